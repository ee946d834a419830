//! Accepts connections: handshakes run beside each other, none holds another up for long.

use crate::{Caller, Credentials, Held, Peer, Security, Stream};
use futures::{StreamExt as _, stream, stream::BoxStream};
use nix::sys::socket::{setsockopt, sockopt};
use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// Longest handshake: several round trips to a busy node, and no more that an intruder can hold.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once. Who connects beyond it waits in the kernel.
const HANDSHAKES: usize = 256;
/// Pause after the process was refused another descriptor.
const PAUSE: Duration = Duration::from_millis(100);
/// A connection ends when the other end takes nothing that is sent for so long: its node is gone, or its process is frozen. What
/// is held for it is free again then.
const UNTAKEN: Duration = Duration::from_secs(30);
/// The same when there is nothing to send: the kernel asks after so many seconds, and then as often.
const ASK: u32 = 15;
/// Encrypted bytes that wait to be sent at most, per connection: few system calls for a piece of 1 MiB, and still in the cache.
const BUFFER: usize = 256 << 10;

/// Who is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those with a certificate of our CA.
    Known,
    /// Everyone: they have no certificate yet, and prove in another way who they are.
    Anyone,
}

/// The connections of a listener, each after its handshake; none as long as there are no credentials. Ends never by itself.
pub type Incoming = BoxStream<'static, Result<Stream, Infallible>>;

/// Accepts from now on, as long as it is polled.
#[must_use]
pub fn incoming(listener: TcpListener, security: &Security, clients: Clients) -> Incoming {
    let port = Port { listener, security: security.clone(), clients, greeted: JoinSet::new() };
    stream::unfold(port, |mut port| async { Some((Ok(port.next().await), port)) }).boxed()
}

struct Port {
    listener: TcpListener,
    security: Security,
    clients: Clients,
    /// Handshakes under way.
    greeted: JoinSet<Option<Stream>>,
}

impl Port {
    async fn next(&mut self) -> Stream {
        let Security::Mutual(held) = &self.security else { return Stream::plain(accept(&self.listener).await.0) };
        held.ready().await;
        loop {
            tokio::select! {
                (tcp, from) = accept(&self.listener), if self.greeted.len() < HANDSHAKES => {
                    self.greeted.spawn(welcome(tcp, from, held.clone(), self.clients));
                }
                Some(ended) = self.greeted.join_next() => if let Ok(Some(stream)) = ended {
                    return stream;
                }
            }
        }
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((tcp, from)) => {
                if let Err(error) = tcp.set_nodelay(true).and_then(|()| notice_death(&tcp)) {
                    tracing::debug!(%from, %error, "set options of a connection");
                }
                return (tcp, from);
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn notice_death(tcp: &TcpStream) -> io::Result<()> {
    setsockopt(tcp, sockopt::TcpUserTimeout, &(UNTAKEN.as_millis() as u32))?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &ASK)?;
    Ok(setsockopt(tcp, sockopt::TcpKeepInterval, &ASK)?)
}

async fn welcome(tcp: TcpStream, from: SocketAddr, held: Held, clients: Clients) -> Option<Stream> {
    let greeted = match held.now() {
        Ok(credentials) => greet(tcp, &credentials, held, clients).await,
        Err(error) => Err(io::Error::other(error)),
    };
    greeted.inspect_err(|error| tracing::warn!(%from, %error, "connection refused")).ok()
}

async fn greet(tcp: TcpStream, credentials: &Credentials, held: Held, clients: Clients) -> io::Result<Stream> {
    let config = match clients {
        Clients::Known => credentials.mutual(),
        Clients::Anyone => credentials.open(),
    };
    let handshake = TlsAcceptor::from(config).accept_with(tcp, |connection| connection.set_buffer_limit(Some(BUFFER)));
    let tls = tokio::time::timeout(HANDSHAKE, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let shown = tls.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let caller = match (clients, shown) {
        (Clients::Anyone, _) => Caller::Anyone,
        (Clients::Known, Some(certificate)) => Caller::Known(Arc::new(Peer::new(certificate, held).map_err(io::Error::other)?)),
        (Clients::Known, None) => return Err(io::Error::other("no certificate")),
    };
    Ok(Stream::tls(tls, caller))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::getsockopt;

    #[tokio::test]
    async fn a_connection_whose_other_end_is_gone_does_not_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (tcp, _) = accept(&listener).await;
        assert_eq!(getsockopt(&tcp, sockopt::TcpUserTimeout).unwrap(), 30_000);
        assert!(getsockopt(&tcp, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&tcp, sockopt::TcpKeepIdle).unwrap(), ASK);
    }
}
