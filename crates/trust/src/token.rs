//! Mount tokens: the mounter of one node may read one dataset until some time.
//!
//! The operator signs one when a node plugin is about to mount; workers check it with the CA's public key and ask nobody. It is
//! no secret beyond the node: without the certificate of that node's mounter it opens nothing.

use crate::{Bundle, identity::is_node, now};
use http::HeaderValue;
use larder_core::names;
use parking_lot::RwLock;
use std::{collections::HashMap, fmt::Write as _, sync::Arc};

/// Request header with the token.
pub const MOUNT_TOKEN_HEADER: &str = "larder-mount-token";

/// What is signed begins with this, which no certificate does.
const CONTEXT: &str = "larder mount token v1";

/// Why a token is not good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the form of one.
    #[error("this is no mount token")]
    Malformed,
    /// Not signed by a CA that counts.
    #[error("the mount token is not signed by a CA that is known here")]
    Signature,
    /// Over.
    #[error("the mount token has expired")]
    Expired,
    /// For other bytes.
    #[error("the mount token is for dataset {0}")]
    OtherDataset(String),
    /// For another node's mounter.
    #[error("the mount token is for node {0}")]
    OtherNode(String),
}

/// A token: `<dataset uid>:<node>:<expiry>:<signature, hex>`.
#[derive(Clone, PartialEq, Eq)]
pub struct MountToken {
    text: String,
    expiry: i64,
}

impl std::fmt::Debug for MountToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the signature.
        f.debug_tuple("MountToken").field(&self.text.rsplit_once(':').map_or("", |(claims, _)| claims)).finish()
    }
}

impl MountToken {
    pub(crate) fn signed<E>(
        dataset: &str,
        node: &str,
        expiry: i64,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let claims = claims(dataset, node, expiry);
        let signature = sign(message(&claims).as_bytes())?;
        let text = signature.iter().fold(format!("{claims}:"), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Ok(Self { text, expiry })
    }

    /// As it came; only its form is looked at.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (_, _, expiry, _) = parts(text)?;
        Ok(Self { text: text.to_owned(), expiry })
    }

    /// As it goes into the header.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Until when, in seconds since 1970.
    #[must_use]
    pub fn expiry(&self) -> i64 {
        self.expiry
    }

    /// Did a CA of these sign it? Who asks holds the token for itself, and wants to know whether others will take it.
    #[must_use]
    pub fn is_vouched_for(&self, bundle: &Bundle) -> bool {
        parts(&self.text).is_ok_and(|(dataset, node, expiry, signature)| {
            bundle.has_signed(message(&claims(dataset, node, expiry)).as_bytes(), &signature)
        })
    }

    /// Until when the token lets the mounter of `node` read `dataset`.
    ///
    /// # Errors
    /// When it does not at `now`.
    pub fn verify(text: &str, bundle: &Bundle, dataset: &str, node: &str, now: i64) -> Result<i64, TokenError> {
        let (of_dataset, of_node, expiry, signature) = parts(text)?;
        if !bundle.has_signed(message(&claims(of_dataset, of_node, expiry)).as_bytes(), &signature) {
            return Err(TokenError::Signature);
        }
        if expiry <= now {
            return Err(TokenError::Expired);
        }
        if of_dataset != dataset {
            return Err(TokenError::OtherDataset(of_dataset.to_owned()));
        }
        if of_node != node {
            return Err(TokenError::OtherNode(of_node.to_owned()));
        }
        Ok(expiry)
    }
}

fn claims(dataset: &str, node: &str, expiry: i64) -> String {
    format!("{dataset}:{node}:{expiry}")
}

fn message(claims: &str) -> String {
    format!("{CONTEXT}\n{claims}")
}

fn parts(text: &str) -> Result<(&str, &str, i64, Vec<u8>), TokenError> {
    let parts: Vec<_> = text.split(':').collect();
    let [dataset, node, expiry, signature] = parts[..] else { return Err(TokenError::Malformed) };
    let expiry = expiry.parse::<i64>().ok().filter(|e| e.to_string() == expiry).ok_or(TokenError::Malformed)?;
    let signature = bytes(signature).ok_or(TokenError::Malformed)?;
    if names::is_uid(dataset) && is_node(node) { Ok((dataset, node, expiry, signature)) } else { Err(TokenError::Malformed) }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

/// The tokens that a mounter has, by dataset; clones see the same. Empty where none are asked for.
#[derive(Clone, Debug, Default)]
pub struct Tokens(Arc<RwLock<HashMap<String, HeaderValue>>>);

impl Tokens {
    /// Shows this one from now on.
    ///
    /// # Errors
    /// When it is none, is for another dataset, or is over.
    pub fn set(&self, dataset: &str, text: &str) -> Result<(), TokenError> {
        let (of_dataset, _, expiry, _) = parts(text)?;
        if of_dataset != dataset {
            return Err(TokenError::OtherDataset(of_dataset.to_owned()));
        }
        if expiry <= now() {
            return Err(TokenError::Expired);
        }
        let mut value = HeaderValue::from_str(text).map_err(|_| TokenError::Malformed)?;
        value.set_sensitive(true);
        self.0.write().insert(dataset.to_owned(), value);
        Ok(())
    }

    /// The one to show for a dataset.
    #[must_use]
    pub fn get(&self, dataset: &str) -> Option<HeaderValue> {
        self.0.read().get(dataset).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Lifetimes};

    const UID: &str = "0d1f3a52-7c0e-4d55-9f5a-0a1b2c3d4e5f";

    fn ca() -> (Authority, Bundle) {
        let authority = Authority::generate(&Lifetimes::default(), now()).unwrap();
        let bundle = Bundle::new(vec![authority.certificate().clone()]).unwrap();
        (authority, bundle)
    }

    #[test]
    fn a_token_is_good_for_its_dataset_its_node_and_its_time_only() {
        let (authority, bundle) = ca();
        let token = authority.mount_token(UID, "gpu-1", &Lifetimes::default()).unwrap();
        let verify = |dataset: &str, node: &str, now| MountToken::verify(token.as_str(), &bundle, dataset, node, now);
        assert_eq!(verify(UID, "gpu-1", now()), Ok(token.expiry()));
        assert_eq!(verify(UID, "gpu-1", token.expiry()), Err(TokenError::Expired));
        assert_eq!(verify(UID, "gpu-2", now()), Err(TokenError::OtherNode("gpu-1".into())));
        assert_eq!(verify(&UID.replace('0', "1"), "gpu-1", now()), Err(TokenError::OtherDataset(UID.into())));
        assert!((token.expiry() - now() - 7 * 86_400).abs() < 60);
    }

    #[test]
    fn a_changed_token_and_one_of_another_ca_are_not_good() {
        let ((authority, bundle), (_, other)) = (ca(), ca());
        let token = authority.mount_token(UID, "gpu-1", &Lifetimes::default()).unwrap();
        assert_eq!(MountToken::verify(token.as_str(), &other, UID, "gpu-1", now()), Err(TokenError::Signature));
        let longer = token.as_str().replace(&token.expiry().to_string(), &(token.expiry() + 1).to_string());
        assert_eq!(MountToken::verify(&longer, &bundle, UID, "gpu-1", now()), Err(TokenError::Signature));
        let moved = token.as_str().replace("gpu-1", "gpu-2");
        assert_eq!(MountToken::verify(&moved, &bundle, UID, "gpu-2", now()), Err(TokenError::Signature));
        for bad in ["", ":::", "a:b:c:d", &format!("{UID}:gpu-1:1:zz"), &format!("{UID}:gpu-1:+1:00"), &token.as_str()[..40]] {
            assert_eq!(MountToken::verify(bad, &bundle, UID, "gpu-1", now()), Err(TokenError::Malformed), "{bad}");
        }
    }

    #[test]
    fn after_a_change_of_the_ca_tokens_of_the_old_one_are_good() {
        let ((old, _), (new, _)) = (ca(), ca());
        let both = Bundle::new(vec![new.certificate().clone(), old.certificate().clone()]).unwrap();
        let token = old.mount_token(UID, "gpu-1", &Lifetimes::default()).unwrap();
        assert!(MountToken::verify(token.as_str(), &both, UID, "gpu-1", now()).is_ok());
    }

    #[test]
    fn a_mounter_keeps_no_token_that_it_could_not_use() {
        let (authority, _) = ca();
        let token = authority.mount_token(UID, "gpu-1", &Lifetimes::default()).unwrap();
        let over = authority.mount_token(UID, "gpu-1", &Lifetimes { token: std::time::Duration::ZERO, ..Lifetimes::default() });
        let tokens = Tokens::default();
        assert_eq!(tokens.set(UID, over.unwrap().as_str()), Err(TokenError::Expired));
        assert!(tokens.set(&UID.replace('0', "1"), token.as_str()).is_err() && tokens.get(UID).is_none());
        tokens.set(UID, token.as_str()).unwrap();
        assert_eq!(tokens.get(UID).unwrap(), token.as_str());
        let signature = token.as_str().rsplit_once(':').unwrap().1;
        assert!(!format!("{token:?} {tokens:?}").contains(signature), "a log could tell it");
    }
}
