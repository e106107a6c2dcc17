//! The sockets: one https listener a worker on the same address (`SO_REUSEPORT`), so that the
//! kernel deals connections out; one each for the redirect and the admin pages.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Addresses, StartError};
use crate::config::Server;

/// Connections that wait to be accepted; the kernel cuts it to its own limit.
const BACKLOG: i32 = 4096;

/// Open sockets.
pub(super) struct Listeners {
    /// One a worker.
    pub(super) https: Vec<TcpListener>,
    pub(super) http: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
    pub(super) addresses: Addresses,
}

impl Listeners {
    /// Opens every socket that the configuration names.
    pub(super) fn open(server: &Server) -> Result<Self, StartError> {
        let failed = |key, address| move |source| StartError::Listen { key, address, source };
        let one = |key, address| open(address, false).map_err(failed(key, address));
        let (https, address) =
            shared(server.https, server.workers).map_err(failed("https", server.https))?;
        let http = server.http.map(|address| one("http", address)).transpose()?;
        let admin = server.admin.map(|address| one("admin", address)).transpose()?;
        let bound = |listener: &Option<TcpListener>, key, configured: Option<SocketAddr>| {
            let address = listener.as_ref().map(TcpListener::local_addr).transpose();
            address.map_err(|source| match configured {
                Some(address) => StartError::Listen { key, address, source },
                None => source.into(),
            })
        };
        let addresses = Addresses {
            https: address,
            http: bound(&http, "http", server.http)?,
            admin: bound(&admin, "admin", server.admin)?,
        };
        Ok(Self { https, http, admin, addresses })
    }
}

/// `count` listeners on one address, and that address.
fn shared(address: SocketAddr, count: usize) -> io::Result<(Vec<TcpListener>, SocketAddr)> {
    // Alone first: with SO_REUSEPORT a second gateway on the same address would start without a
    // word and take half of the connections.
    let address = open(address, false)?.local_addr()?;
    let listeners: io::Result<Vec<_>> = (0..count).map(|_| open(address, true)).collect();
    Ok((listeners?, address))
}

fn open(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart need not wait for the old connections' last minutes (TIME-WAIT).
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_listens_on_the_same_port_and_nobody_else_can() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listeners, address) = shared(any, 3).unwrap();
        assert_ne!(address.port(), 0);
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
        let second = shared(address, 3).map(|_| ()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }
}
