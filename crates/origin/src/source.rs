//! The source as the spec names it, checked and brought into one form.

use crate::{Error, Reason};
use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

/// Where the data lives, as the user wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `s3://bucket/prefix/` or `file:///folder/`; without the last `/` it is taken as a folder all the same.
    pub uri: String,
    /// `http[s]://host[:port]`; empty: Amazon's own.
    pub endpoint: String,
    /// Empty: us-east-1.
    pub region: String,
    /// Bucket in the path instead of in the host's name.
    pub path_style: bool,
    /// Globs on the path relative to the prefix, `*` does not cross `/`; empty: everything.
    pub include: Vec<String>,
    /// Globs; what matches one is left out.
    pub exclude: Vec<String>,
    /// No credentials are used.
    pub anonymous: bool,
}

/// A checked source.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// `s3://bucket/prefix/`
    pub uri: String,
    pub bucket: String,
    /// Empty, or ends in `/`.
    pub prefix: String,
    /// With the bucket in it where the style wants that; `None`: object_store knows it.
    pub endpoint: Option<String>,
    /// For messages.
    pub endpoint_shown: String,
    pub virtual_hosted: bool,
    pub region: String,
    pub globs: Globs,
}

/// Which paths are meant.
#[derive(Clone, Debug)]
pub struct Globs {
    include: Option<GlobSet>,
    exclude: GlobSet,
    /// Folders with nothing in them that `exclude` lets through.
    excluded_folders: GlobSet,
}

impl Globs {
    /// Is it one of them?
    #[must_use]
    pub fn admit(&self, path: &str) -> bool {
        self.include.as_ref().is_none_or(|g| g.is_match(path)) && !self.exclude.is_match(path)
    }

    pub(crate) fn new(include: &[String], exclude: &[String]) -> Result<Self, Error> {
        let include = if include.is_empty() { None } else { Some(set("source.include", include)?) };
        let folders = exclude.iter().filter_map(|glob| glob.strip_suffix("/**"));
        // A whole folder is what ends in /**. What is before that may be no glob; then every name beneath is looked at.
        let folders = folders.filter(|folder| glob(folder).is_ok()).map(str::to_owned);
        let beneath = exclude.iter().filter(|glob| *glob == "**" || glob.ends_with("/**")).cloned();
        let excluded_folders = set("source.exclude", &folders.chain(beneath).collect::<Vec<_>>())?;
        Ok(Self { include, exclude: set("source.exclude", exclude)?, excluded_folders })
    }

    /// Is there nothing in this folder, however deep, that `exclude` lets through? Without a slash at its end.
    pub(crate) fn exclude_folder(&self, folder: &str) -> bool {
        self.excluded_folders.is_match(folder)
    }

    /// Globs, and folders that end in a slash; none: everything. `field` is what errors name.
    ///
    /// # Errors
    /// One that is no glob.
    pub fn of_paths(field: &str, paths: &[String]) -> Result<Self, Error> {
        let globs: Vec<_> = paths.iter().map(|p| if p.ends_with('/') { format!("{p}**") } else { p.clone() }).collect();
        let include = if globs.is_empty() { None } else { Some(set(field, &globs)?) };
        Ok(Self { include, exclude: GlobSet::empty(), excluded_folders: GlobSet::empty() })
    }
}

fn set(field: &str, globs: &[String]) -> Result<GlobSet, Error> {
    let invalid = |e: globset::Error| invalid(format!("{field}: {e}; correct the glob"));
    let mut builder = GlobSetBuilder::new();
    for text in globs {
        builder.add(glob(text).map_err(invalid)?);
    }
    builder.build().map_err(invalid)
}

fn glob(text: &str) -> Result<Glob, globset::Error> {
    GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build()
}

fn invalid(message: String) -> Error {
    Error::new(Reason::InvalidSource, message)
}

impl Source {
    /// Is it a folder of this machine, which needs no credentials?
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.uri.starts_with("file:")
    }

    pub(crate) fn resolve(&self) -> Result<Resolved, Error> {
        let uri = self.uri.as_str();
        let rest = uri.strip_prefix("s3://").ok_or_else(|| {
            invalid(format!("source.uri {uri}: only s3://bucket/prefix/ and file:///folder/ are supported; correct the uri"))
        })?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_bucket(bucket) {
            return Err(invalid(format!("source.uri {uri}: {bucket:?} is no bucket name; correct the uri")));
        }
        let prefix = if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") };
        if prefix.strip_suffix('/').is_some_and(|p| p.is_empty() || !crate::s3::fetchable(p)) {
            return Err(invalid(format!(
                "source.uri {uri}: the prefix has an empty, '.', '..' or unprintable part; correct the uri"
            )));
        }
        let (endpoint, endpoint_shown, virtual_hosted) = self.endpoint(bucket)?;
        Ok(Resolved {
            uri: format!("s3://{bucket}/{prefix}"),
            bucket: bucket.to_owned(),
            prefix,
            endpoint,
            endpoint_shown,
            virtual_hosted,
            region: if self.region.is_empty() { "us-east-1".to_owned() } else { self.region.clone() },
            globs: Globs::new(&self.include, &self.exclude)?,
        })
    }

    fn endpoint(&self, bucket: &str) -> Result<(Option<String>, String, bool), Error> {
        if self.endpoint.is_empty() {
            // A dot in the bucket's name does not fit Amazon's wildcard certificate.
            return Ok((None, "Amazon S3".to_owned(), !self.path_style && !bucket.contains('.')));
        }
        let shown = self.endpoint.trim_end_matches('/').to_owned();
        let bad = || invalid(format!("source.endpoint {}: must be http://host[:port] or https://host[:port]", self.endpoint));
        let url: http::Uri = shown.parse().map_err(|_| bad())?;
        let (Some(scheme @ ("http" | "https")), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(bad());
        };
        if authority.as_str().contains('@') || url.query().is_some() {
            return Err(bad());
        }
        // No name can be put before an address.
        let host = authority.host().trim_matches(['[', ']']);
        let virtual_hosted = !self.path_style && host.parse::<std::net::IpAddr>().is_err();
        let path = url.path().trim_end_matches('/');
        let endpoint = if virtual_hosted {
            format!("{scheme}://{bucket}.{authority}{path}")
        } else {
            format!("{scheme}://{authority}{path}")
        };
        Ok((Some(endpoint), shown, virtual_hosted))
    }
}

/// Wider than Amazon's rules (other servers allow more), narrow enough that it cannot change the URL it becomes part of.
fn is_bucket(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(uri: &str) -> Source {
        Source { uri: uri.into(), ..Source::default() }
    }

    #[test]
    fn a_prefix_is_a_folder_with_or_without_its_last_slash() {
        for uri in ["s3://b/demo", "s3://b/demo/"] {
            let r = source(uri).resolve().unwrap();
            assert_eq!((r.uri.as_str(), r.prefix.as_str()), ("s3://b/demo/", "demo/"));
        }
        for uri in ["s3://b", "s3://b/"] {
            let r = source(uri).resolve().unwrap();
            assert_eq!((r.uri.as_str(), r.prefix.as_str()), ("s3://b/", ""));
        }
    }

    #[test]
    fn sources_that_cannot_work_are_refused_with_their_text() {
        for bad in
            ["", "file:///etc", "s3://", "s3:///x", "s3://b/a//b/", "s3://b//", "s3://b/../x", "s3://b@evil/x", "https://b/x"]
        {
            let e = source(bad).resolve().unwrap_err();
            assert_eq!(e.reason(), Reason::InvalidSource, "{bad}");
            assert!(e.to_string().contains(bad), "{e}");
        }
        for bad in ["minio", "ftp://minio", "http://u:p@minio", "http://minio?x=1"] {
            let s = Source { endpoint: bad.into(), ..source("s3://b/") };
            assert_eq!(s.resolve().unwrap_err().reason(), Reason::InvalidSource, "{bad}");
        }
        let s = Source { include: vec!["a[".into()], ..source("s3://b/") };
        assert!(s.resolve().unwrap_err().to_string().contains("source.include"));
    }

    #[test]
    fn the_bucket_goes_where_the_style_wants_it() {
        let of = |endpoint: &str, path_style| {
            let r = Source { endpoint: endpoint.into(), path_style, ..source("s3://b/") }.resolve().unwrap();
            (r.endpoint, r.virtual_hosted)
        };
        assert_eq!(of("https://s3.x:9000/", true), (Some("https://s3.x:9000".into()), false));
        assert_eq!(of("https://s3.x:9000", false), (Some("https://b.s3.x:9000".into()), true));
        assert_eq!(of("http://10.0.0.1:9000", false), (Some("http://10.0.0.1:9000".into()), false));
        assert_eq!(of("http://[::1]:9000", false), (Some("http://[::1]:9000".into()), false));
        assert_eq!(of("", false), (None, true));
    }

    #[test]
    fn globs_look_at_the_relative_path_and_a_star_does_not_cross_folders() {
        let g = Globs::new(&["train/**".into(), "*.json".into()], &["**/*.tmp".into()]).unwrap();
        for (path, yes) in [
            ("train/a", true),
            ("train/a/b", true),
            ("train/a/b.tmp", false),
            ("x.json", true),
            ("val/x.json", false),
            ("trainer/a", false),
        ] {
            assert_eq!(g.admit(path), yes, "{path}");
        }
        let all = Globs::new(&[], &[]).unwrap();
        assert!(all.admit("a/b"));
        let g = Globs::new(&[], &["lost+found/**".into(), "**/.git/**".into(), "tmp".into(), "*/old/**".into()]).unwrap();
        for (folder, all) in [
            ("lost+found", true),
            ("lost+found/x", true),
            ("a/lost+found", false),
            (".git", true),
            ("a/b/.git", true),
            ("a/.github", false),
            ("tmp", false),
            ("a/old", true),
            ("a/old/er", true),
            ("old", false),
            ("a", false),
        ] {
            assert_eq!(g.exclude_folder(folder), all, "{folder}");
            assert!(!all || !g.admit(&format!("{folder}/f")), "{folder}");
        }
        assert!(Globs::new(&[], &["**".into()]).unwrap().exclude_folder("a"));
        // Without its last part it is no glob.
        assert!(!Globs::new(&[], &["a\\/**".into()]).is_ok_and(|g| g.exclude_folder("b")));
        let paths = Globs::of_paths("paths", &["train/".into(), "*.json".into()]).unwrap();
        for (path, yes) in [("train/a/b", true), ("trainer/a", false), ("x.json", true), ("val/x.json", false)] {
            assert_eq!(paths.admit(path), yes, "{path}");
        }
        assert!(Globs::of_paths("paths", &[]).unwrap().admit("a"));
        assert!(Globs::of_paths("spec.paths", &["a[".into()]).unwrap_err().to_string().contains("spec.paths"));
    }
}
