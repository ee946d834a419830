//! Flags, and what they resolve to.

use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use larder_api::quantity;
use larder_core::{
    names,
    shares::{FLOOR_BYTES, FLOOR_PERCENT},
};
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
    /// Space of a tier's disks that workers leave free, as <name>=<percent>:<bytes>, whichever is more; default: the workers'
    #[arg(long = "tier-floor", env = "LARDER_TIER_FLOORS", value_delimiter = ',')]
    pub tier_floors: Vec<String>,
    /// A folder of the hosts beneath which file:// sources may lie
    #[arg(long = "file-origin", env = "LARDER_FILE_ORIGINS", value_delimiter = ',')]
    pub file_origins: Vec<String>,
    /// ServiceAccount of the workers
    #[arg(long, default_value = "larder-worker")]
    pub worker_service_account: String,
    /// Log filter of the workers
    #[arg(long, env = "LARDER_WORKER_LOG", default_value = "info")]
    pub worker_log: String,
    /// Seconds after which a node without a ready worker loses its share
    #[arg(long, env = "LARDER_MEMBER_GRACE", default_value_t = 600)]
    pub member_grace_seconds: u32,
    /// Take the taint larder.dev/not-ready off nodes on which datasets can be mounted
    #[arg(long)]
    pub startup_taint: bool,
    /// No certificates: whoever reaches a port of a worker is answered
    #[arg(long)]
    pub plain: bool,
    /// Address of the port for certificates
    #[arg(long, default_value_t = larder_telemetry::listen::any(names::OPERATOR_AUTHORITY_PORT))]
    pub authority_addr: SocketAddr,
    /// Address of the admin port
    #[arg(long, default_value_t = larder_telemetry::listen::any(names::OPERATOR_ADMIN_PORT))]
    pub admin_addr: SocketAddr,
}

/// What the administrator decided, checked.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub namespace: String,
    pub image: String,
    pub pull_policy: String,
    pub pull_secrets: Vec<String>,
    pub tiers: BTreeMap<String, Tier>,
    /// Folders of the hosts beneath which sources may lie.
    pub file_origins: Vec<String>,
    pub worker_service_account: String,
    pub worker_log: String,
    pub member_grace: SignedDuration,
    pub startup_taint: bool,
    /// Where workers get their certificates; `None`: they have none.
    pub authority: Option<String>,
}

/// A kind of disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tier {
    /// Folder on the host.
    pub path: String,
    /// What the workers leave free; `None`: their default.
    pub floor: Option<Floor>,
}

/// Space of a disk that is left alone: the greater of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Of the disk's size.
    pub percent: u8,
    /// Never less than this.
    pub bytes: u64,
}

impl Default for Floor {
    /// The workers'.
    fn default() -> Self {
        Self { percent: FLOOR_PERCENT, bytes: FLOOR_BYTES }
    }
}

impl std::str::FromStr for Floor {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (percent, quantity) = text.split_once(':').context("want <percent>:<bytes>")?;
        let percent = percent.parse::<u8>().ok().filter(|p| *p <= 100).context("want a percentage of 0 to 100")?;
        let bytes = quantity::bytes(&Quantity(quantity.to_owned())).context("want a number of bytes such as 10Gi")?;
        Ok(Self { percent, bytes })
    }
}

impl Args {
    pub(crate) fn resolve(&self) -> anyhow::Result<Settings> {
        let mut tiers = BTreeMap::new();
        for tier in self.tiers.iter().filter(|t| !t.is_empty()) {
            let (name, path) =
                tier.split_once('=').with_context(|| format!("--tier {tier}: want <name>=<folder on the host>"))?;
            ensure!(!name.is_empty(), "--tier {tier}: the name is empty");
            let path = host_folder(path).with_context(|| format!("--tier {tier}"))?;
            let folder = Tier { path, floor: None };
            ensure!(tiers.insert(name.to_owned(), folder).is_none(), "--tier {tier}: the name is there twice");
        }
        for floor in self.tier_floors.iter().filter(|t| !t.is_empty()) {
            let (name, text) = floor.split_once('=').with_context(|| format!("--tier-floor {floor}: want <name>=<floor>"))?;
            let tier = tiers.get_mut(name).with_context(|| format!("--tier-floor {floor}: there is no such tier"))?;
            tier.floor = Some(text.parse::<Floor>().with_context(|| format!("--tier-floor {floor}"))?);
        }
        ensure!(!tiers.is_empty(), "at least one --tier <name>=<folder on the host> is needed");
        Ok(Settings {
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            pull_policy: self.pull_policy.clone(),
            pull_secrets: self.pull_secrets.iter().filter(|s| !s.is_empty()).cloned().collect(),
            tiers,
            file_origins: self
                .file_origins
                .iter()
                .filter(|f| !f.is_empty())
                .map(|folder| host_folder(folder).with_context(|| format!("--file-origin {folder}")))
                .collect::<anyhow::Result<_>>()?,
            worker_service_account: self.worker_service_account.clone(),
            worker_log: self.worker_log.clone(),
            member_grace: SignedDuration::from_secs(self.member_grace_seconds.into()),
            startup_taint: self.startup_taint,
            authority: (!self.plain)
                .then(|| format!("{}.{}.svc:{}", names::OPERATOR_SERVICE, self.namespace, names::OPERATOR_AUTHORITY_PORT)),
        })
    }
}

/// A folder of the hosts as it is named from then on.
fn host_folder(path: &str) -> anyhow::Result<String> {
    ensure!(path.starts_with('/'), "the folder must be absolute");
    ensure!(!path.split('/').any(|part| part == ".."), "the folder must not contain '..'");
    let path = path.trim_end_matches('/');
    ensure!(!path.is_empty(), "it must not be the host's root");
    Ok(path.to_owned())
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
        let tier = |path: &str| Tier { path: path.into(), floor: None };
        assert_eq!(settings.tiers, [("nvme".into(), tier("/mnt/nvme0")), ("ssd".into(), tier("/mnt/ssd"))].into());
        for bad in ["nvme", "=/mnt", "nvme=mnt", "nvme=/", "nvme=/mnt/../etc"] {
            assert!(resolve(&[bad]).is_err(), "{bad}");
        }
        assert!(resolve(&["nvme=/a", "nvme=/b"]).is_err());
        assert!(resolve(&[]).is_err());
    }

    #[test]
    fn folders_that_sources_may_name_are_absolute() {
        let resolve = |folder: &str| {
            let args = ["larder", "--image=i", "--tier=nvme=/a", "--file-origin", folder];
            Cli::try_parse_from(args)?.args.resolve()
        };
        assert_eq!(resolve("/shared/,/lustre/sets").unwrap().file_origins, ["/shared", "/lustre/sets"]);
        for bad in ["shared", "/", "/shared/../etc"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_tier_can_have_a_floor_of_its_own() {
        let resolve = |floor: &str| {
            let args = ["larder", "--image=i", "--tier=nvme=/a", "--tier=ssd=/b", "--tier-floor", floor];
            Cli::try_parse_from(args)?.args.resolve()
        };
        let settings = resolve("nvme=1:512Mi").unwrap();
        assert_eq!(settings.tiers["nvme"].floor, Some(Floor { percent: 1, bytes: 512 << 20 }));
        assert_eq!(settings.tiers["ssd"].floor, None);
        for bad in ["nvme", "nvme=1", "nvme=101:1Gi", "nvme=-1:1Gi", "nvme=1:much", "hdd=1:1Gi"] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }
}
