//! Flags that every daemon has which talks to others.

use crate::{Enrolment, Held, Issuer, Security};
use std::path::PathBuf;
use tokio::sync::watch;

/// With certificates, or expressly without.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// The operator's port for certificates, as <host>:<port>
    #[arg(long, env = "LARDER_AUTHORITY", required_unless_present = "plain", conflicts_with = "plain")]
    pub authority: Option<String>,
    /// The token of this pod's ServiceAccount, for the audience larder-operator
    #[arg(long, env = "LARDER_AUTHORITY_TOKEN", default_value = "/var/run/secrets/larder.dev/token")]
    pub authority_token: PathBuf,
    /// No certificates: whoever reaches a port is answered
    #[arg(long)]
    pub plain: bool,
}

impl Flags {
    /// `--plain`.
    #[must_use]
    pub fn without_certificates() -> Self {
        Self { authority: None, authority_token: PathBuf::new(), plain: true }
    }

    /// Where certificates and mount tokens come from; `None` where there are none.
    #[must_use]
    pub fn issuer(&self) -> Option<Issuer> {
        let authority = self.authority.as_ref().filter(|_| !self.plain)?;
        Some(Issuer::new(authority, &self.authority_token))
    }

    /// How this daemon talks; and what has to run, so that it has a certificate, if it needs one. `bundle` is the text in the
    /// ConfigMap with the certificates of the CA, as it is now; `stored` are credentials of an earlier process.
    #[must_use]
    pub fn security(
        &self,
        bundle: impl FnOnce() -> watch::Receiver<Option<String>>,
        stored: Option<crate::Credentials>,
    ) -> (Security, Option<Enrolment>) {
        let Some(issuer) = self.issuer() else { return (Security::Plain, None) };
        let (sender, held) = Held::new();
        (Security::Mutual(held), Some(Enrolment::new(issuer, bundle(), stored, sender)))
    }
}
