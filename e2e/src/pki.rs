//! Certificate authorities made at start, and leaves signed by them; all by openssl.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::process::Run as _;

/// Longer than any run, shorter than anyone could come to rely on.
const DAYS: &str = "10";

/// A private certificate authority in a folder of its own.
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes one; `name` is its common name.
    ///
    /// # Errors
    /// openssl failed.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let authority = Self { folder: folder.to_owned() };
        openssl()
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"])
            .args(["-days", DAYS, "-subj", &format!("/CN={name}")])
            .args(["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"])
            .arg("-keyout")
            .arg(authority.key("ca"))
            .arg("-out")
            .arg(authority.certificate("ca"))
            .run()?;
        Ok(authority)
    }

    /// Issues `name`.crt and `name`.key for a subject such as `/O=system:masters/CN=admin` and names such as
    /// `DNS:s3.lab.internal`.
    ///
    /// # Errors
    /// openssl failed.
    pub fn issue(&self, name: &str, subject: &str, names: &[String]) -> Result<()> {
        let (request, extensions) = self.request(name, subject, names)?;
        openssl()
            .args(["x509", "-req", "-sha256", "-days", DAYS, "-set_serial", &serial(), "-in"])
            .arg(&request)
            .arg("-CA")
            .arg(self.certificate("ca"))
            .arg("-CAkey")
            .arg(self.key("ca"))
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(self.certificate(name))
            .run()?;
        Ok(())
    }

    /// The same, valid on the first day of 2020 only. `openssl x509` knows no dates in the past, `openssl ca` does; it wants
    /// a configuration file and a list of what it has issued.
    ///
    /// # Errors
    /// openssl failed.
    pub fn issue_expired(&self, name: &str, subject: &str, names: &[String]) -> Result<()> {
        let (request, extensions) = self.request(name, subject, names)?;
        let folder = self.folder.display();
        let configuration = self.folder.join("ca.conf");
        let text = format!(
            "[ca]\ndefault_ca=this\n[this]\ndatabase={folder}/issued\nnew_certs_dir={folder}\nrand_serial=yes\n\
             unique_subject=no\npolicy=any\ndefault_md=sha256\n[any]\ncommonName=supplied\n"
        );
        fs::write(&configuration, text).context("write openssl's configuration")?;
        fs::write(self.folder.join("issued"), "").context("write openssl's list")?;
        openssl()
            .args(["ca", "-batch", "-notext", "-startdate", "20200101000000Z", "-enddate", "20200102000000Z", "-config"])
            .arg(&configuration)
            .arg("-in")
            .arg(&request)
            .arg("-cert")
            .arg(self.certificate("ca"))
            .arg("-keyfile")
            .arg(self.key("ca"))
            .arg("-extfile")
            .arg(&extensions)
            .arg("-out")
            .arg(self.certificate(name))
            .run()?;
        Ok(())
    }

    /// A new key with a request to sign it, and the extensions of what is to be issued: two files.
    fn request(&self, name: &str, subject: &str, names: &[String]) -> Result<(PathBuf, PathBuf)> {
        let request = self.folder.join(format!("{name}.csr"));
        openssl()
            .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256"])
            .args(["-subj", subject, "-keyout"])
            .arg(self.key(name))
            .arg("-out")
            .arg(&request)
            .run()?;
        let extensions = self.folder.join(format!("{name}.ext"));
        let mut text = String::from(
            "basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n",
        );
        if !names.is_empty() {
            text.push_str(&format!("subjectAltName={}\n", names.join(",")));
        }
        fs::write(&extensions, text).context("write certificate extensions")?;
        Ok((request, extensions))
    }

    /// The certificate file of `name`; `ca` is the authority itself.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.crt"))
    }

    /// The private key file of `name`.
    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }
}

/// An RSA key pair for service account tokens: (private, public).
///
/// # Errors
/// openssl failed.
pub fn token_key_pair(folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let (private, public) = (folder.join("sa.key"), folder.join("sa.pub"));
    openssl()
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"])
        .arg(&private)
        .run_any()?;
    openssl().args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(&public).run()?;
    Ok((private, public))
}

fn openssl() -> Command {
    let mut command = Command::new("openssl");
    // Not the machine's configuration file, which may not exist or may say anything.
    command.env("OPENSSL_CONF", "/dev/null");
    command
}

/// Unique enough within one authority: nanoseconds since 1970.
fn serial() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos().to_string()
}
