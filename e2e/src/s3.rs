//! The origin of the tests: an S3 server on a host of its own, behind TLS of a private authority.
//!
//! ```text
//! s3.lab.internal = 10.89.0.200
//!   nginx :9000 (TLS) and :9080 (plain) ── access log with the bytes of every answer's body
//!    └─ versitygw 127.0.0.1:9001 ── a folder: <bucket>/<key>
//! ```
//!
//! versitygw's own log does not say how much of an object was sent; what a byte read costs the origin is just what the
//! tests are about. Hence nginx in front of it.

mod access_log;
mod any_key;
mod presign;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

pub use access_log::{Reads, Request};
pub use any_key::AnyKeyServer;

use crate::cluster::{Component, Host, poisoned};
use crate::pki::Authority;
use crate::process::Run as _;
use crate::run_dir::RunDir;
use crate::tools::Tools;

/// The server's address on the bridge.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 200);
/// The server's name in DNS.
pub const NAME: &str = "s3.lab.internal";
/// Port with TLS.
pub const TLS_PORT: u16 = 9000;
/// Port without.
pub const PLAIN_PORT: u16 = 9080;
/// Access key id with every right.
pub const ACCESS_KEY: &str = "larder-lab";
/// Its secret.
pub const SECRET_KEY: &str = "larder-lab-secret";
/// The region it claims to be in.
pub const REGION: &str = "us-east-1";

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The two certificates that an authority issues.
const VALID: &str = "server";
const EXPIRED: &str = "server-expired";

/// The S3 server.
pub struct S3Server {
    tools: Tools,
    run: RunDir,
    host: Host,
    folder: PathBuf,
    state: Mutex<State>,
}

struct State {
    authorities: u32,
    authority: Authority,
    /// Of the two that the authority has issued.
    certificate: &'static str,
    /// Objects, as `<bucket>/<key>`, that are answered with this status.
    refused: Vec<(String, u16)>,
    backend: Option<Component>,
    front: Option<Component>,
}

impl S3Server {
    /// Makes the host, an authority and a certificate, and starts the server with no buckets.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start(run: &RunDir, tools: &Tools) -> Result<Self> {
        let folder = run.path("s3");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("buckets")).context("make the buckets' folder")?;
        // The pod networks are reached through the gateway, which forwards.
        let host = Host::add("s3", ADDRESS, "")?;
        let authority = certificate(&folder, 1)?;
        let state = State { authorities: 1, authority, certificate: VALID, refused: vec![], backend: None, front: None };
        let server = Self { tools: tools.clone(), run: run.clone(), host, folder, state: Mutex::new(state) };
        server.resume()?;
        Ok(server)
    }

    /// Starts it again after [`S3Server::stop`].
    ///
    /// # Errors
    /// It did not come up.
    pub fn resume(&self) -> Result<()> {
        let backend = Component::start(
            &self.run,
            "s3-backend",
            self.host
                .command(self.tools.go("versitygw")?)
                .args(["--port", "127.0.0.1:9001", "--access", ACCESS_KEY, "--secret", SECRET_KEY, "--region", REGION])
                .args(["--quiet", "--keep-alive", "--access-log"])
                .arg(self.run.log("s3-backend-access"))
                .arg("posix")
                .arg(self.folder.join("buckets")),
        )?;
        self.state()?.backend = Some(backend);
        self.start_front()
    }

    fn start_front(&self) -> Result<()> {
        let mut state = self.state()?;
        if let Some(mut front) = state.front.take() {
            front.stop_with_its_children();
        }
        let configuration = self.folder.join("nginx.conf");
        let text = self.front_configuration(&state);
        fs::write(&configuration, text).context("write nginx's configuration")?;
        state.front = Some(Component::start(
            &self.run,
            "s3-front",
            self.host
                .command("nginx")
                .arg("-p")
                .arg(&self.folder)
                .arg("-e")
                .arg(self.run.log("s3-front"))
                .arg("-c")
                .arg(configuration),
        )?);
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let State { backend, front, .. } = &mut *state;
            [backend, front].into_iter().flatten().try_for_each(Component::check)?;
            let answer = fetch(&state.authority, "GET", "/", &[]);
            let Err(error) = Self::answers(answer, state.certificate) else { return Ok(()) };
            ensure!(Instant::now() < deadline, "the S3 server does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// With a certificate that is expired the right answer is none.
    fn answers(answer: Result<String>, certificate: &str) -> Result<()> {
        match answer {
            Err(error) if certificate == EXPIRED && format!("{error:#}").contains("certificate has expired") => Ok(()),
            Ok(answer) if certificate == VALID && answer.starts_with("HTTP/1.1 4") => Ok(()),
            Ok(answer) => bail!("{}", answer.lines().next().unwrap_or("it closed the connection")),
            Err(error) => Err(error),
        }
    }

    fn front_configuration(&self, state: &State) -> String {
        let State { authority, certificate, refused, .. } = state;
        let refused = refused.iter().map(|(object, status)| {
            let wait = if *status == 503 { "add_header Retry-After 1 always; " } else { "" };
            format!("    location = \"/{object}\" {{ {wait}return {status}; }}\n")
        });
        format!(
            r#"daemon off;
user root;
pid {folder}/nginx.pid;
worker_processes 2;
error_log {log}/s3-front warn;
events {{ worker_connections 4096; }}
http {{
  log_format requests escape=json '{{"time":$msec,"client":"$remote_addr","method":"$request_method","uri":"$request_uri","status":$status,"body":$body_bytes_sent,"range":"$http_range","agent":"$http_user_agent","seconds":$request_time}}';
  access_log {log}/s3-access requests;
  client_body_temp_path {folder}/tmp-body; proxy_temp_path {folder}/tmp-proxy;
  fastcgi_temp_path {folder}/tmp-f; uwsgi_temp_path {folder}/tmp-u; scgi_temp_path {folder}/tmp-s;
  # The request as it was signed.
  merge_slashes off; underscores_in_headers on; ignore_invalid_headers off; client_max_body_size 0;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
  proxy_request_buffering off; proxy_max_temp_file_size 0; proxy_buffers 16 64k; proxy_buffer_size 64k;
  proxy_read_timeout 300s; keepalive_requests 1000000; tcp_nodelay on;
  ssl_protocols TLSv1.2 TLSv1.3;
  upstream backend {{ server 127.0.0.1:9001; keepalive 128; }}
  server {{
    listen {TLS_PORT} ssl backlog=1024; listen {PLAIN_PORT} backlog=1024;
    ssl_certificate {certificate}; ssl_certificate_key {key};
{refused}    location / {{ proxy_pass http://backend; }}
  }}
}}
"#,
            refused = refused.collect::<String>(),
            folder = self.folder.display(),
            log = self.run.log_folder().display(),
            certificate = authority.certificate(certificate).display(),
            key = authority.key(certificate).display(),
        )
    }

    /// Ends the server at once; connections break.
    ///
    /// # Errors
    /// The harness is broken.
    pub fn stop(&self) -> Result<()> {
        let mut state = self.state()?;
        state.front.take().iter_mut().for_each(Component::stop_with_its_children);
        state.backend.take().iter_mut().for_each(Component::stop);
        Ok(())
    }

    /// Gives it a certificate of a new authority; clients that know only the old one must refuse it from now on.
    ///
    /// # Errors
    /// It did not come up again.
    pub fn change_authority(&self) -> Result<()> {
        {
            let mut state = self.state()?;
            state.authorities += 1;
            state.authority = certificate(&self.folder, state.authorities)?;
        }
        self.start_front()
    }

    /// Gives it a certificate of the same authority that is expired, or the valid one again.
    ///
    /// # Errors
    /// It did not come up again.
    pub fn let_certificate_expire(&self, expired: bool) -> Result<()> {
        self.state()?.certificate = if expired { EXPIRED } else { VALID };
        self.start_front()
    }

    /// Answers requests for these objects, `<bucket>/<key>`, with these statuses, and all others as they should be. Connections
    /// that are open break.
    ///
    /// # Errors
    /// It did not come up again.
    pub fn refuse(&self, objects: &[(&str, u16)]) -> Result<()> {
        self.state()?.refused = objects.iter().map(|(object, status)| ((*object).to_owned(), *status)).collect();
        self.start_front()
    }

    /// `https://s3.lab.internal:9000`.
    pub fn endpoint(&self) -> String {
        format!("https://{NAME}:{TLS_PORT}")
    }

    /// `http://s3.lab.internal:9080`.
    pub fn plain_endpoint(&self) -> String {
        format!("http://{NAME}:{PLAIN_PORT}")
    }

    /// The authority's certificate, PEM.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn authority(&self) -> Result<String> {
        fs::read_to_string(self.state()?.authority.certificate("ca")).context("read the authority's certificate")
    }

    /// The folder that is a bucket, made if it is not there. A file put there by [`crate::dataset`] is an object.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn bucket(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join("buckets").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("make bucket {name}"))?;
        Ok(folder)
    }

    /// The link to the server's host, for shaping its speed with `tc`.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// A URL without TLS with which anyone may do one request for an hour.
    pub fn presigned(&self, method: &str, bucket: &str, key: &str) -> String {
        let host = format!("{NAME}:{PLAIN_PORT}");
        format!("http://{host}{}", presign::target(method, &host, &format!("/{bucket}/{key}")))
    }

    /// Does one small request through TLS, checking the certificate; returns status line, headers and body.
    ///
    /// # Errors
    /// The connection failed or the certificate is not to be trusted.
    pub fn request(&self, method: &str, bucket: &str, key: &str, body: &[u8]) -> Result<String> {
        let target = presign::target(method, &format!("{NAME}:{TLS_PORT}"), &format!("/{bucket}/{key}"));
        fetch(&self.state()?.authority, method, &target, body)
    }

    /// All requests since the start, oldest first. A request is there once its answer is sent.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn requests(&self) -> Result<Vec<Request>> {
        access_log::read(&self.run.log("s3-access"))
    }

    fn state(&self) -> Result<std::sync::MutexGuard<'_, State>> {
        self.state.lock().map_err(|_| poisoned())
    }
}

fn certificate(folder: &Path, number: u32) -> Result<Authority> {
    let authority = Authority::create(&folder.join(format!("pki-{number}")), &format!("larder-e2e corporate CA {number}"))?;
    let (subject, names) = (format!("/CN={NAME}"), [format!("DNS:{NAME}"), format!("IP:{ADDRESS}")]);
    authority.issue(VALID, &subject, &names)?;
    authority.issue_expired(EXPIRED, &subject, &names)?;
    Ok(authority)
}

/// One HTTP request through `openssl s_client`, which ends the answer with the connection (HTTP/1.0).
fn fetch(authority: &Authority, method: &str, target: &str, body: &[u8]) -> Result<String> {
    let mut request =
        format!("{method} {target} HTTP/1.0\r\nHost: {NAME}:{TLS_PORT}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_quiet", "-verify_return_error", "-verify_hostname", NAME, "-servername", NAME])
        .args(["-connect", &format!("{ADDRESS}:{TLS_PORT}"), "-CAfile"])
        .arg(authority.certificate("ca"))
        .env("OPENSSL_CONF", "/dev/null")
        .run_with_input(&request)
}
