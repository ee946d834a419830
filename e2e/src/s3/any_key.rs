//! A second S3 server, for keys that no folder can hold, as the first one keeps its objects in one. Everything is in memory;
//! there is neither TLS nor a check of credentials.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{ADDRESS, NAME, S3Server};
use crate::cluster::Component;

const PORT: u16 = 9100;
const TIMEOUT: Duration = Duration::from_secs(20);

/// The server; it ends when this is dropped.
pub struct AnyKeyServer {
    process: Component,
    bucket: String,
}

impl AnyKeyServer {
    /// Starts it on the host of the first one, with one empty bucket.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start(beside: &S3Server, bucket: &str) -> Result<Self> {
        let mut command = beside.host.command(beside.tools.go("gofakes3")?);
        command.args(["-backend", "memory", "-quiet", "-initialbucket", bucket, "-host", &format!("{ADDRESS}:{PORT}")]);
        let process = Component::start(&beside.run, "s3-any-key", &mut command)?;
        let mut server = Self { process, bucket: bucket.to_owned() };
        let deadline = Instant::now() + TIMEOUT;
        while let Err(error) = server.request("GET", "?list-type=2", &[]) {
            server.process.check()?;
            ensure!(Instant::now() < deadline, "the S3 server for any key does not answer: {error:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// `http://s3.lab.internal:9100`.
    pub fn endpoint(&self) -> String {
        format!("http://{NAME}:{PORT}")
    }

    /// Stores an object. The key goes out as it is, so it must need no escapes.
    ///
    /// # Errors
    /// The server refused it.
    pub fn put(&self, key: &str, content: &[u8]) -> Result<()> {
        self.request("PUT", &format!("/{key}"), content)
    }

    fn request(&self, method: &str, target: &str, body: &[u8]) -> Result<()> {
        let mut stream = TcpStream::connect((ADDRESS, PORT)).context("connect")?;
        stream.set_read_timeout(Some(TIMEOUT)).context("set a time limit")?;
        let length = body.len();
        let head = format!("{method} /{}{target} HTTP/1.0\r\nHost: {NAME}\r\nContent-Length: {length}\r\n\r\n", self.bucket);
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).context("write a request")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read an answer")?;
        ensure!(answer.split(' ').nth(1) == Some("200"), "{method} {target}: {answer}");
        Ok(())
    }
}

impl Drop for AnyKeyServer {
    fn drop(&mut self) {
        self.process.stop();
    }
}
