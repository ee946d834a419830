//! When a CA is made, when it signs, when it goes.
//!
//! ```text
//! made ──known to everyone (two lives of a leaf)──► signs ──successor signs──► its key goes ──expires──► its certificate goes
//! ```
//!
//! A CA signs only when everyone has had the time to learn of it, and is trusted as long as anything it signed is valid.

use crate::{Authority, AuthorityError, Bundle, Lifetimes, identity};

/// What the operator should have.
#[derive(Debug)]
pub struct Kept {
    /// CAs with their keys: the one that signs, then those that are to sign. Never empty.
    pub authorities: Vec<Authority>,
    /// Whom everyone trusts.
    pub bundle: Bundle,
}

impl Kept {
    /// The one that signs.
    #[must_use]
    pub fn signer(&self) -> &Authority {
        &self.authorities[0]
    }
}

/// Decides, from the CAs that are stored and the certificates that are published. `now` is in seconds since 1970.
///
/// # Errors
/// When a new CA is due and cannot be made.
pub fn upkeep(
    stored: Vec<Authority>,
    published: Option<&Bundle>,
    lifetimes: &Lifetimes,
    now: i64,
) -> Result<Kept, AuthorityError> {
    let mut authorities: Vec<_> = stored.into_iter().filter(|a| a.not_after() > now).collect();
    authorities.sort_by_key(Authority::not_before);
    let due = |a: &Authority| a.not_before() + (a.not_after() - a.not_before()) * 2 / 3 <= now;
    if authorities.last().is_none_or(due) {
        authorities.push(Authority::generate(lifetimes, now)?);
    }
    let known_after = 2 * lifetimes.leaf.as_secs().cast_signed();
    let known = |a: &Authority| a.not_before() + known_after <= now;
    let signer = authorities.iter().rposition(known).unwrap_or(0);
    authorities.drain(..signer);
    let mut certificates: Vec<_> = authorities.iter().map(|a| a.certificate().clone()).collect();
    for certificate in published.map(Bundle::certificates).unwrap_or_default() {
        let valid = identity::valid_until(certificate).is_some_and(|until| until > now);
        if valid && !certificates.contains(certificate) {
            certificates.push(certificate.clone());
        }
    }
    Ok(Kept { authorities, bundle: Bundle::new(certificates)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::now;
    use rustls::pki_types::CertificateDer;

    const DAY: i64 = 24 * 3600;

    fn again(kept: Kept, after: i64) -> Kept {
        upkeep(kept.authorities, Some(&kept.bundle), &Lifetimes::default(), now() + after).unwrap()
    }

    fn names(kept: &Kept) -> Vec<CertificateDer<'static>> {
        kept.authorities.iter().map(|a| a.certificate().clone()).collect()
    }

    #[test]
    fn the_first_ca_signs_at_once_and_stays() {
        let first = upkeep(vec![], None, &Lifetimes::default(), now()).unwrap();
        assert_eq!(first.authorities.len(), 1);
        let name = names(&first);
        let later = again(again(first, DAY), 100 * DAY);
        assert_eq!(names(&later), name);
    }

    #[test]
    fn a_successor_is_published_before_it_signs_and_the_old_one_is_trusted_to_its_end() {
        let first = upkeep(vec![], None, &Lifetimes::default(), now()).unwrap();
        let old = first.signer().certificate().clone();
        let both = again(again(first, 250 * DAY), 251 * DAY);
        assert_eq!((both.authorities.len(), both.signer().certificate()), (2, &old), "not known to everyone yet");
        assert_eq!(both.bundle.certificates().len(), 2);
        let after = again(both, 253 * DAY);
        assert_eq!(after.authorities.len(), 1, "the old key is gone");
        assert_ne!(after.signer().certificate(), &old);
        assert!(after.bundle.certificates().contains(&old), "leaves that it signed are still about");
        let end = again(after, 366 * DAY);
        assert!(!end.bundle.certificates().contains(&old));
    }

    #[test]
    fn when_the_keys_are_lost_what_they_signed_goes_on_being_trusted() {
        let first = upkeep(vec![], None, &Lifetimes::default(), now()).unwrap();
        let lost = upkeep(vec![], Some(&first.bundle), &Lifetimes::default(), now()).unwrap();
        assert_eq!(lost.bundle.certificates().len(), 2);
        assert_ne!(lost.signer().certificate(), first.signer().certificate());
    }
}
