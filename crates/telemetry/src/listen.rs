//! Ports of daemons: on a node they are for every address that it has, of IPv4 and of IPv6.

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt::Ipv6V6Only},
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted, as tokio has it.
const BACKLOG: u32 = 1024;

/// A port at every address of this machine.
#[must_use]
pub fn any(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// Listens at an address; at [`any`] for IPv4 too, and only for that where there is no IPv6.
///
/// # Errors
/// The address is not this machine's, or taken.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != Ipv6Addr::UNSPECIFIED {
        return TcpListener::bind(address).await;
    }
    match listen_for_both(address) {
        Err(error) if is_without_ipv6(&error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await,
        listener => listener,
    }
}

/// Whatever the machine's setting `net.ipv6.bindv6only` says.
fn listen_for_both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v6()?;
    setsockopt(&socket, Ipv6V6Only, &false)?;
    // As tokio does it: the port of a process that has just ended is free.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn every_address_means_both_protocols() {
        let listener = listen(any(0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await {
            Ok(_) => drop(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap()),
            Err(error) => eprintln!("SKIPPED, IPv6 WAS NOT TESTED: {error}"),
        }
    }

    #[tokio::test]
    async fn an_address_that_is_named_is_the_only_one() {
        for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv4Addr::LOCALHOST.into()] {
            let listener = listen((address, 0).into()).await.unwrap();
            assert_eq!(listener.local_addr().unwrap().ip(), address);
        }
    }

    #[test]
    fn only_a_machine_without_ipv6_goes_without() {
        for (errno, without) in
            [(Errno::EAFNOSUPPORT, true), (Errno::EADDRNOTAVAIL, true), (Errno::EADDRINUSE, false), (Errno::EACCES, false)]
        {
            assert_eq!(is_without_ipv6(&errno.into()), without, "{errno}");
        }
    }
}
