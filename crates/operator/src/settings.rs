//! Flags, and what they resolve to.

use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use std::{collections::BTreeMap, net::SocketAddr};

/// Flags of `larder operator`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Namespace that the operator runs in; workers go there too
    #[arg(long, env = "POD_NAMESPACE", default_value = "larder-system")]
    pub namespace: String,
    /// Image of the workers
    #[arg(long, env = "LARDER_IMAGE")]
    pub image: String,
    /// When the workers' image is pulled
    #[arg(long, env = "LARDER_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub pull_policy: String,
    /// Secrets in the operator's namespace to pull the workers' image with
    #[arg(long = "pull-secret", env = "LARDER_PULL_SECRETS", value_delimiter = ',')]
    pub pull_secrets: Vec<String>,
    /// A kind of disk that datasets may use, as <name>=<folder on the host>
    #[arg(long = "tier", env = "LARDER_TIERS", value_delimiter = ',', required = true)]
    pub tiers: Vec<String>,
    /// ServiceAccount of the workers
    #[arg(long, default_value = "larder-worker")]
    pub worker_service_account: String,
    /// Log filter of the workers
    #[arg(long, env = "LARDER_WORKER_LOG", default_value = "info")]
    pub worker_log: String,
    /// Seconds after which a node without a ready worker loses its share
    #[arg(long, env = "LARDER_MEMBER_GRACE", default_value_t = 600)]
    pub member_grace_seconds: u32,
    /// Address of the admin port
    #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], larder_core::names::OPERATOR_ADMIN_PORT)))]
    pub admin_addr: SocketAddr,
}

/// What the administrator decided, checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub namespace: String,
    pub image: String,
    pub pull_policy: String,
    pub pull_secrets: Vec<String>,
    /// Name → folder on the host.
    pub tiers: BTreeMap<String, String>,
    pub worker_service_account: String,
    pub worker_log: String,
    pub member_grace: SignedDuration,
}

impl Args {
    pub(crate) fn resolve(&self) -> anyhow::Result<Settings> {
        let mut tiers = BTreeMap::new();
        for tier in self.tiers.iter().filter(|t| !t.is_empty()) {
            let (name, path) =
                tier.split_once('=').with_context(|| format!("--tier {tier}: want <name>=<folder on the host>"))?;
            ensure!(!name.is_empty(), "--tier {tier}: the name is empty");
            ensure!(path.starts_with('/'), "--tier {tier}: the folder must be absolute");
            ensure!(!path.split('/').any(|part| part == ".."), "--tier {tier}: the folder must not contain '..'");
            let path = path.trim_end_matches('/');
            ensure!(!path.is_empty(), "--tier {tier}: the host's root is no tier");
            ensure!(tiers.insert(name.to_owned(), path.to_owned()).is_none(), "--tier {tier}: the name is there twice");
        }
        ensure!(!tiers.is_empty(), "at least one --tier <name>=<folder on the host> is needed");
        Ok(Settings {
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            pull_policy: self.pull_policy.clone(),
            pull_secrets: self.pull_secrets.iter().filter(|s| !s.is_empty()).cloned().collect(),
            tiers,
            worker_service_account: self.worker_service_account.clone(),
            worker_log: self.worker_log.clone(),
            member_grace: SignedDuration::from_secs(self.member_grace_seconds.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn resolve(tiers: &[&str]) -> anyhow::Result<Settings> {
        let flags = tiers.iter().flat_map(|t| ["--tier", t]);
        Cli::try_parse_from(["larder", "--image", "larder:test"].into_iter().chain(flags))?.args.resolve()
    }

    #[test]
    fn tiers_are_names_with_absolute_folders() {
        let settings = resolve(&["nvme=/mnt/nvme0/", "ssd=/mnt/ssd"]).unwrap();
        assert_eq!(settings.tiers, [("nvme", "/mnt/nvme0"), ("ssd", "/mnt/ssd")].map(|(a, b)| (a.into(), b.into())).into());
        for bad in ["nvme", "=/mnt", "nvme=mnt", "nvme=/", "nvme=/mnt/../etc"] {
            assert!(resolve(&[bad]).is_err(), "{bad}");
        }
        assert!(resolve(&["nvme=/a", "nvme=/b"]).is_err());
        assert!(resolve(&[]).is_err());
    }
}
