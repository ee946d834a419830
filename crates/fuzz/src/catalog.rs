use larder_core::catalog::{Arrival, Catalog, fuzzing::with_checksums};

/// Entries that are looked at.
const ENTRIES: u64 = 200;

/// A snapshot's catalog, as it comes from another node or lies on the disk.
pub fn catalog(data: &[u8]) {
    read(data.to_vec());
    if let Some(right) = with_checksums(data.to_vec()) {
        read(right);
    }
}

fn read(bytes: Vec<u8>) {
    let mut arrival = Arrival::new();
    let arrived = bytes.chunks(1000).try_for_each(|piece| arrival.update(piece));
    let Ok(catalog) = Catalog::open(bytes) else { return };
    assert!(arrived.is_ok());
    let whole = catalog.verify().is_ok();
    assert!(!whole || arrival.finish(catalog.digest()).is_ok());
    for index in (0..catalog.entries().min(ENTRIES)).chain([catalog.entries(), u64::MAX]) {
        let (entry, name, path) = (catalog.entry(index), catalog.name(index), catalog.path(index));
        let _ = (catalog.version(index), catalog.object_key(index));
        if let Ok(name) = &name {
            assert!(!name.contains(['/', '\0']) && !matches!(name.as_str(), "." | ".."), "{name:?}");
        }
        if let Ok(path) = &path {
            assert!(!path.split('/').any(|part| matches!(part, "." | "..")), "{path:?}");
        }
        let Ok(children) = catalog.children(index) else { continue };
        assert!(entry.is_ok() && children.start > index && children.end <= catalog.entries(), "{children:?}");
        for child in children.take(ENTRIES as usize) {
            // Names of a folder that is not sorted are not found, which is all that may happen.
            let found = catalog.name(child).and_then(|name| catalog.lookup(index, &name));
            if let Ok(Some(found)) = found {
                assert!(catalog.name(found).is_ok());
            }
        }
        let _ = (catalog.lookup(index, ""), catalog.lookup(index, "\u{10ffff}"));
    }
    let _ = catalog.file_indices().take(ENTRIES as usize).count();
    let _ = (catalog.files(), catalog.dirs(), catalog.bytes(), catalog.sizes().below(1 << 20));
}
