//! Where things are beneath the kubelet's folder.

use larder_core::names;
use std::{
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

/// Longest path, and longest part of one, that the kernel takes.
const PATH_MAX: usize = 4095;
const NAME_MAX: usize = 255;

/// Why a path from the kubelet is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum LayoutError {
    #[error("path is empty, and must not be")]
    Empty,
    #[error(
        "path must be absolute, of at most {PATH_MAX} bytes, and without control characters; no part may be empty, . or .. or have more than {NAME_MAX} bytes"
    )]
    NotPlain,
    #[error("path must lie in the kubelet's folder {} and not in the driver's own", .0.display())]
    Elsewhere(PathBuf),
}

/// Paths of this node.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    kubelet: PathBuf,
}

impl Layout {
    pub(crate) fn new(kubelet: &Path) -> Self {
        // Without a slash at the end, so that paths can be compared with the mount table's.
        Self { kubelet: kubelet.components().collect() }
    }

    pub(crate) fn kubelet(&self) -> &Path {
        &self.kubelet
    }

    /// The driver's own folder.
    pub(crate) fn plugin(&self) -> PathBuf {
        self.kubelet.join("plugins").join(names::DRIVER)
    }

    pub(crate) fn csi_socket(&self) -> PathBuf {
        self.plugin().join("csi.sock")
    }

    /// The controller alone, for those who want it and the node service apart.
    pub(crate) fn controller_socket(&self) -> PathBuf {
        self.plugin().join("controller.sock")
    }

    /// The `@` is not for beauty. The kubelet sends the percent-encoded path of this socket as `:authority`, which the HTTP/2
    /// library refuses as a host name (hyperium/h2#487) but takes before an `@`, where percent signs are legal.
    pub(crate) fn registration_socket(&self) -> PathBuf {
        self.kubelet.join("plugins_registry").join(format!("larder@{}-reg.sock", names::DRIVER))
    }

    /// One superblock for each identity, in here.
    pub(crate) fn superblocks(&self) -> PathBuf {
        self.plugin().join("mounts")
    }

    pub(crate) fn superblock(&self, identity: &str) -> PathBuf {
        self.superblocks().join(identity)
    }

    pub(crate) fn shroud(&self) -> PathBuf {
        self.plugin().join("shroud")
    }

    /// Mount tokens of this node.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.plugin().join("tokens.json")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.plugin().join("state")
    }

    pub(crate) fn volumes(&self) -> PathBuf {
        self.plugin().join("volumes")
    }

    /// A target path as the kubelet gives it, checked: everything the plugin mounts, unmounts and removes is there.
    pub(crate) fn target(&self, path: &str) -> Result<PathBuf, LayoutError> {
        if path.is_empty() {
            return Err(LayoutError::Empty);
        }
        let plain = path.len() <= PATH_MAX && !path.contains(char::is_control) && path.starts_with('/');
        // `components` would hide `.` and double slashes, and a path in another spelling would be another key to us.
        let spelled = path.split('/').skip(1).all(|part| !matches!(part, "" | "." | "..") && part.len() <= NAME_MAX);
        if !plain || !spelled {
            return Err(LayoutError::NotPlain);
        }
        let target = PathBuf::from(path);
        let inside = target.strip_prefix(&self.kubelet).is_ok_and(|rest| rest.components().count() >= 2);
        if !inside || target.starts_with(self.plugin()) {
            return Err(LayoutError::Elsewhere(self.kubelet.clone()));
        }
        Ok(target)
    }

    /// Folder and last part of a path beneath the kubelet's folder, relative to that.
    pub(crate) fn split<'a>(&self, path: &'a Path) -> Option<(&'a Path, &'a OsStr)> {
        let rest = path.strip_prefix(&self.kubelet).ok()?;
        let plain = rest.components().all(|c| matches!(c, Component::Normal(_)));
        plain.then(|| Some((rest.parent()?, rest.file_name()?))).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_layout() -> Layout {
        Layout::new(Path::new("/var/lib/kubelet/"))
    }

    #[test]
    fn the_path_of_the_registration_socket_is_a_legal_authority_as_the_kubelet_sends_it() {
        let path = mk_layout().registration_socket().to_string_lossy().into_owned();
        let sent = path.replace('/', "%2F");
        assert!(sent.parse::<http::uri::Authority>().is_ok(), "{sent}");
        assert!(sent.replace('@', "-").parse::<http::uri::Authority>().is_err(), "the @ is not needed any more");
    }

    #[test]
    fn a_target_lies_in_the_kubelets_folder() {
        let good = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~csi/pv/mount";
        assert_eq!(mk_layout().target(good).unwrap(), Path::new(good));
        assert_eq!(mk_layout().target(""), Err(LayoutError::Empty));
        for bad in [
            "var/lib/kubelet/pods/x",
            "/var/lib/kubelet/pods/../../../etc",
            "/var/lib/kubelet/pods/./x",
            "/var/lib/kubelet/pods//x",
            "/var/lib/kubelet/pods/x/",
            "/var/lib/kubelet/pods/x\0y",
            "/var/lib/kubelet/pods/x\ny",
        ] {
            assert_eq!(mk_layout().target(bad), Err(LayoutError::NotPlain), "{bad:?}");
        }
        for bad in [
            "/etc",
            "/etc/x",
            "/var/lib/kubelet",
            "/var/lib/kubelet/pods",
            "/var/lib/kubelet2/pods/x",
            "/var/lib/kubelet/plugins/csi.larder.dev/state",
            "/var/lib/kubelet/plugins/csi.larder.dev",
        ] {
            assert!(matches!(mk_layout().target(bad), Err(LayoutError::Elsewhere(_))), "{bad:?}");
        }
        for long in ["x".repeat(256), "x/".repeat(2500) + "x"] {
            assert_eq!(mk_layout().target(&format!("/var/lib/kubelet/pods/{long}")), Err(LayoutError::NotPlain));
        }
        assert!(mk_layout().target(&format!("/var/lib/kubelet/pods/{}", "x".repeat(255))).is_ok());
    }
}
