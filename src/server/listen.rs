//! The sockets: one https listener a worker on the same address (`SO_REUSEPORT`), so that the
//! kernel deals connections out; one each for the redirect and the admin pages. Those that somebody
//! else has opened for us are used as they are.

use std::io;
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Addresses, StartError};
use crate::config::Server;
use crate::keepalive::notice_who_is_gone;

/// Connections that wait to be accepted; the kernel cuts it to its own limit.
const BACKLOG: i32 = 4096;

/// Open sockets.
pub(super) struct Listeners {
    /// For each worker; some may share one.
    pub(super) https: Vec<Vec<TcpListener>>,
    pub(super) http: Option<TcpListener>,
    pub(super) admin: Option<TcpListener>,
    pub(super) addresses: Addresses,
}

/// Sockets that are open already.
#[derive(Default)]
pub(super) struct Given {
    /// By the service manager (`LISTEN_FDS`): each must be one of ours.
    pub(super) managed: Vec<TcpListener>,
    /// By the process before this one, whose file may have been another.
    pub(super) inherited: Vec<TcpListener>,
}

impl Given {
    /// What the service manager has opened for this process.
    pub(super) fn by_service_manager() -> io::Result<Vec<TcpListener>> {
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::with_capacity(passed.len());
        for index in 0..passed.len() {
            sockets.extend(passed.take_tcp_listener(index)?);
        }
        Ok(sockets)
    }

    /// Those that listen on this address.
    fn take(&mut self, address: SocketAddr) -> Vec<TcpListener> {
        let on = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|own| own == address);
        let mut taken: Vec<_> = self.managed.extract_if(.., on).collect();
        taken.extend(self.inherited.extract_if(.., on));
        taken
    }
}

impl Listeners {
    /// Opens every socket that the configuration names and that is not there.
    pub(super) fn open(server: &Server, mut given: Given) -> Result<Self, StartError> {
        let failed = |key, address| move |source| StartError::Listen { key, address, source };
        let mut one = |key, address| {
            let there = given.take(address).into_iter().next();
            let socket = there.map_or_else(|| open(address, false), Ok);
            let bound = socket.and_then(|socket| {
                socket.set_nonblocking(true)?;
                Ok((socket.local_addr()?, socket))
            });
            bound.map_err(failed(key, address))
        };
        let http = server.http.map(|address| one("http", address)).transpose()?;
        let admin = server.admin.map(|address| one("admin", address)).transpose()?;
        let (https, address) = https(server.https, server.workers, given.take(server.https))
            .map_err(failed("https", server.https))?;
        for socket in https.iter().flatten() {
            // Whoever is there but does not read is `idle_time`'s.
            notice_who_is_gone(socket, server.limits.idle_time)
                .map_err(failed("https", server.https))?;
        }
        if let Some(socket) = given.managed.first() {
            return Err(StartError::Unknown(socket.local_addr()?));
        }
        let ((http_address, http), (admin_address, admin)) = (http.unzip(), admin.unzip());
        let addresses = Addresses { https: address, http: http_address, admin: admin_address };
        Ok(Self { https, http, admin, addresses })
    }

    /// The same sockets once more.
    pub(super) fn copies(&self) -> io::Result<Vec<TcpListener>> {
        let all = self.https.iter().flatten().chain(&self.http).chain(&self.admin);
        all.map(TcpListener::try_clone).collect()
    }
}

/// The workers' listeners, and their address.
fn https(
    address: SocketAddr,
    workers: usize,
    there: Vec<TcpListener>,
) -> io::Result<(Vec<Vec<TcpListener>>, SocketAddr)> {
    let (sockets, address) =
        if there.is_empty() { shared(address, workers)? } else { (there, address) };
    Ok((deal(&sockets, workers)?, address))
}

/// Each socket to at least one worker, for the kernel lets connections wait at each; and at least
/// one to each worker.
fn deal(sockets: &[TcpListener], workers: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut dealt: Vec<Vec<TcpListener>> = Vec::new();
    dealt.resize_with(workers, Vec::new);
    let rounds = sockets.len().max(workers);
    for (socket, worker) in sockets.iter().cycle().zip((0..workers).cycle()).take(rounds) {
        socket.set_nonblocking(true)?;
        if let Some(hand) = dealt.get_mut(worker) {
            hand.push(socket.try_clone()?);
        }
    }
    Ok(dealt)
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
    use std::time::Duration;

    use socket2::SockRef;

    use super::*;
    use crate::keepalive::ASK_AFTER;

    #[test]
    fn every_worker_listens_on_the_same_port_and_nobody_else_can() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listeners, address) = shared(any, 3).unwrap();
        assert_ne!(address.port(), 0);
        assert!(listeners.iter().all(|l| l.local_addr().unwrap() == address));
        let second = shared(address, 3).map(|_| ()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn every_socket_is_somebodys_and_nobody_has_none() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for (sockets, workers) in [(1, 3), (3, 1), (2, 2), (3, 2), (2, 3)] {
            let (listeners, _) = shared(any, sockets).unwrap();
            let dealt = deal(&listeners, workers).unwrap();
            assert_eq!(dealt.len(), workers);
            assert!(dealt.iter().all(|hand| !hand.is_empty()), "{sockets} {workers}");
            let all: usize = dealt.iter().map(Vec::len).sum();
            assert_eq!(all, sockets.max(workers));
        }
    }

    #[test]
    fn a_socket_that_is_there_is_used_and_one_that_is_not_named_is_told() {
        let mut server = crate::config::sample::config().server;
        server.workers = 2;
        let there = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        server.https = there.local_addr().unwrap();
        let copy = || vec![there.try_clone().unwrap()];
        assert!(Listeners::open(&server, Given::default()).is_err(), "the address is taken");
        let given = Given { managed: copy(), inherited: vec![] };
        let open = Listeners::open(&server, given).unwrap();
        assert_eq!(open.addresses.https, server.https);
        assert_eq!(open.copies().unwrap().len(), 2);
        server.https.set_port(0);
        let inherited = Given { managed: vec![], inherited: copy() };
        assert!(Listeners::open(&server, inherited).is_ok(), "the file is another now");
        let managed = Given { managed: copy(), inherited: vec![] };
        let error = Listeners::open(&server, managed).err().unwrap().to_string();
        assert!(error.contains(&there.local_addr().unwrap().to_string()), "{error}");
    }

    #[test]
    fn every_connection_is_asked_whether_its_client_is_still_there() {
        let mut server = crate::config::sample::config().server;
        for (idle, gone) in [(75, 120), (600, 600)] {
            server.https.set_port(0);
            server.limits.idle_time = Duration::from_secs(idle);
            let open = Listeners::open(&server, Given::default()).unwrap();
            let listener = &open.https[0][0];
            listener.set_nonblocking(false).unwrap();
            let _client = std::net::TcpStream::connect(open.addresses.https).unwrap();
            let (connection, _) = listener.accept().unwrap();
            let socket = SockRef::from(&connection);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), ASK_AFTER);
            let patience = Some(Duration::from_secs(gone));
            assert_eq!(socket.tcp_user_timeout().unwrap(), patience);
        }
    }
}
