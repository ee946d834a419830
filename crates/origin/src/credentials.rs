//! Credentials from a mounted folder.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Keys of an S3 account. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) session_token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Why no credentials come out of the folder.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// One key without the other.
    #[error(
        "read credentials: the Secret has no key {0}; it needs accessKeyId and secretAccessKey (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    )]
    Missing(&'static str),
    /// The file cannot be read.
    #[error("read credentials {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The disk's answer.
        source: io::Error,
    },
}

/// File names, in the order in which they are looked for.
const ACCESS_KEY_ID: [&str; 2] = ["accessKeyId", "AWS_ACCESS_KEY_ID"];
const SECRET_ACCESS_KEY: [&str; 2] = ["secretAccessKey", "AWS_SECRET_ACCESS_KEY"];
const SESSION_TOKEN: [&str; 2] = ["sessionToken", "AWS_SESSION_TOKEN"];

impl Credentials {
    /// From their parts.
    #[must_use]
    pub fn new(access_key_id: &str, secret_access_key: &str, session_token: Option<&str>) -> Self {
        Self {
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
            session_token: session_token.map(str::to_owned),
        }
    }

    /// From the files of a mounted Secret; `None` when it holds neither key.
    ///
    /// # Errors
    /// One key without the other, or a file that cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Self>, CredentialsError> {
        match (one_of(folder, ACCESS_KEY_ID)?, one_of(folder, SECRET_ACCESS_KEY)?) {
            (Some(access_key_id), Some(secret_access_key)) => {
                let session_token = one_of(folder, SESSION_TOKEN)?;
                Ok(Some(Self { access_key_id, secret_access_key, session_token }))
            }
            (None, None) => Ok(None),
            (None, Some(_)) => Err(CredentialsError::Missing(ACCESS_KEY_ID[0])),
            (Some(_), None) => Err(CredentialsError::Missing(SECRET_ACCESS_KEY[0])),
        }
    }
}

fn one_of(folder: &Path, names: [&str; 2]) -> Result<Option<String>, CredentialsError> {
    for name in names {
        let path = folder.join(name);
        match std::fs::read_to_string(&path) {
            // Secrets made with `echo` end in a newline, which no key does.
            Ok(text) if !text.trim().is_empty() => return Ok(Some(text.trim().to_owned())),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(CredentialsError::Read { path, source }),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read_and_newlines_cut() {
        for (id, secret) in [("accessKeyId", "secretAccessKey"), ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(id), "id\n").unwrap();
            std::fs::write(dir.path().join(secret), "s3cret").unwrap();
            assert_eq!(Credentials::load(dir.path()).unwrap(), Some(Credentials::new("id", "s3cret", None)));
        }
    }

    #[test]
    fn half_of_a_pair_is_an_error_that_names_the_other_half() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Credentials::load(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join("accessKeyId"), "id").unwrap();
        let e = Credentials::load(dir.path()).unwrap_err().to_string();
        assert!(e.contains("no key secretAccessKey"), "{e}");
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", Credentials::new("id", "s3cret", Some("tok"))).contains("s3cret"));
    }
}
