//! Small files that are replaced as a whole: whoever reads one sees the old bytes or the new ones, also when the writer is killed
//! half-way.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// What is there when the power has failed after the file was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// The new file.
    KeepsNew,
    /// The old file or the new one.
    KeepsOne,
    /// Perhaps neither: for what may be lost.
    MayLose,
}

/// Who can open it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Its owner.
    Owner,
    /// Those whom the umask lets.
    Usual,
}

/// Replaces a file, or makes it. The new one lies beside it until it is whole, with the extension `part`; one that a killed
/// process left is overwritten. Two writers at a time are the caller's to prevent. Blocks.
///
/// # Errors
/// The disk's; the old file is there as before, unless only its folder could not be synced.
pub fn replace(path: &Path, bytes: &[u8], readers: Readers, power_loss: PowerLoss) -> io::Result<()> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Usual => 0o666,
    };
    let part = path.with_extension("part");
    let mut file = File::options().create(true).truncate(true).write(true).mode(mode).open(&part)?;
    file.write_all(bytes)?;
    if power_loss != PowerLoss::MayLose {
        file.sync_all()?;
    }
    fs::rename(&part, path)?;
    match path.parent() {
        Some(folder) if power_loss == PowerLoss::KeepsNew => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const ALL: [PowerLoss; 3] = [PowerLoss::KeepsNew, PowerLoss::KeepsOne, PowerLoss::MayLose];

    #[test]
    fn a_file_is_made_and_replaced_also_over_what_a_killed_process_left() {
        for power_loss in ALL {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state.json");
            replace(&path, b"a long first", Readers::Usual, power_loss).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"a long first");
            fs::write(dir.path().join("state.part"), "half of something that is longer than the next").unwrap();
            replace(&path, b"second", Readers::Usual, power_loss).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"second");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        }
    }

    #[test]
    fn who_reads_the_old_file_while_it_is_replaced_reads_it_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        replace(&path, b"first", Readers::Usual, PowerLoss::MayLose).unwrap();
        let old = File::open(&path).unwrap();
        replace(&path, b"2", Readers::Usual, PowerLoss::MayLose).unwrap();
        assert_eq!(io::read_to_string(old).unwrap(), "first");
    }

    #[test]
    fn what_fails_leaves_the_old_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        replace(&path, b"first", Readers::Usual, PowerLoss::KeepsNew).unwrap();
        fs::create_dir(dir.path().join("state.part")).unwrap();
        replace(&path, b"second", Readers::Usual, PowerLoss::KeepsNew).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn a_file_for_its_owner_is_for_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |name: &str, readers| {
            let path = dir.path().join(name);
            replace(&path, b"", readers, PowerLoss::KeepsOne).unwrap();
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode("secret", Readers::Owner), 0o600);
        fs::write(dir.path().join("made"), "").unwrap();
        assert_eq!(mode("usual", Readers::Usual), fs::metadata(dir.path().join("made")).unwrap().permissions().mode() & 0o777);
    }
}
