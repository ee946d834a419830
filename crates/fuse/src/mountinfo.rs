//! The mount table of this mount namespace, from /proc/self/mountinfo: never touches a mount.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number of the superblock; equal for all its bind mounts.
    pub device: (u32, u32),
    /// Which part of the superblock is mounted.
    pub root: PathBuf,
    /// Where.
    pub target: PathBuf,
    /// Read-only as a mount (its superblock may say so too).
    pub read_only: bool,
    /// File system type, with subtype.
    pub fs_type: String,
    /// What was given to mount(2).
    pub source: String,
}

/// The table now, in mount order: of two at one target the later one is on top.
///
/// # Errors
/// No /proc.
pub fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Everything mounted exactly at `target`, the topmost last.
#[must_use]
pub fn at<'a>(table: &'a [Mount], target: &Path) -> Vec<&'a Mount> {
    table.iter().filter(|m| m.target == target).collect()
}

/// Lines that are not as proc(5) says are left out: one odd line must not hide the others.
#[must_use]
pub fn parse(table: &[u8]) -> Vec<Mount> {
    table.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let (root, target, options) = (fields.next()?, fields.next()?, fields.next()?);
    // Optional fields, any number of them, end with a single dash.
    fields.by_ref().find(|f| *f == b"-")?;
    let (fs_type, source) = (fields.next()?, fields.next()?);
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: path(root),
        target: path(target),
        read_only: options.split(|b| *b == b',').any(|o| o == b"ro"),
        fs_type: text(fs_type),
        source: text(source),
    })
}

fn path(field: &[u8]) -> PathBuf {
    OsString::from_vec(unescape(field)).into()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Space, tab, newline and backslash come as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 28 0:21 / /sys rw,nosuid - sysfs sysfs rw
90 28 0:55 / /var/lib/kubelet/plugins/csi.larder.dev/mounts/a ro,nosuid,nodev,noatime shared:7 - fuse.larder a ro,user_id=0
91 28 0:56 / /pods/x\\040y\\134z/mount ro shared:8 master:1 propagate_from:2 - fuse.larder shroud ro
92 91 0:55 / /pods/x\\040y\\134z/mount ro,nosuid - fuse.larder a rw
half a line
93 28 8:1 /etc /etc2 rw - ext4 /dev/sda1 ro
";

    #[test]
    fn every_field_is_read() {
        let table = parse(TABLE.as_bytes());
        assert_eq!(table.len(), 5);
        assert_eq!(
            table[1],
            Mount {
                device: (0, 55),
                root: "/".into(),
                target: "/var/lib/kubelet/plugins/csi.larder.dev/mounts/a".into(),
                read_only: true,
                fs_type: "fuse.larder".into(),
                source: "a".into(),
            }
        );
        assert_eq!(table[4].root, Path::new("/etc"));
        assert!(!table[4].read_only, "the superblock's option is not the mount's");
    }

    #[test]
    fn stacked_mounts_come_in_order_and_escapes_are_undone() {
        let table = parse(TABLE.as_bytes());
        let sources: Vec<&str> = at(&table, Path::new("/pods/x y\\z/mount")).iter().map(|m| m.source.as_str()).collect();
        assert_eq!(sources, ["shroud", "a"]);
    }

    #[test]
    fn what_is_no_table_gives_nothing() {
        for bad in ["", "\n\n", "1 2 3", "36 35 98 / / rw - a b c", "36 35 0:1 / /x rw a b c", "36 35 0:x / /x rw - a b c"] {
            assert!(parse(bad.as_bytes()).is_empty(), "{bad}");
        }
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }

    #[test]
    fn this_machines_table_has_a_root() {
        assert!(!at(&read().unwrap(), Path::new("/")).is_empty());
    }
}
