//! A connection, with TLS or without.

use crate::Caller;
use hyper_util::client::legacy::connect;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;

/// The bytes of a connection; on the side that accepted it, also who called.
#[derive(Debug)]
pub struct Stream {
    bytes: Bytes,
    caller: Caller,
}

#[derive(Debug)]
enum Bytes {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(crate) fn plain(tcp: TcpStream) -> Self {
        Self { bytes: Bytes::Plain(tcp), caller: Caller::Anyone }
    }

    pub(crate) fn tls(tls: impl Into<TlsStream<TcpStream>>, caller: Caller) -> Self {
        Self { bytes: Bytes::Tls(Box::new(tls.into())), caller }
    }

    /// Who is at the other end. Who connects has checked that already, and finds [`Caller::Anyone`].
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    fn writer(self: Pin<&mut Self>) -> Pin<&mut (dyn AsyncWrite + Unpin)> {
        match &mut self.get_mut().bytes {
            Bytes::Plain(tcp) => Pin::new(tcp),
            Bytes::Tls(tls) => Pin::new(&mut **tls),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().bytes {
            Bytes::Plain(tcp) => Pin::new(tcp).poll_read(context, buf),
            Bytes::Tls(tls) => Pin::new(&mut **tls).poll_read(context, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writer().poll_write(context, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer().poll_shutdown(context)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.writer().poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.bytes {
            Bytes::Plain(tcp) => tcp.is_write_vectored(),
            Bytes::Tls(tls) => tls.is_write_vectored(),
        }
    }
}

/// For the pool of an HTTP client.
impl connect::Connection for Stream {
    fn connected(&self) -> connect::Connected {
        match &self.bytes {
            Bytes::Plain(tcp) => tcp.connected(),
            Bytes::Tls(tls) => tls.get_ref().0.connected(),
        }
    }
}

/// For a gRPC server: the caller is among the extensions of each request.
impl tonic::transport::server::Connected for Stream {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}
