//! A restart in which no connection is lost: the next process gets the listening sockets themselves
//! from the one that serves, over a unix socket. What waits in their queues waits on; only when the
//! next one serves does the other stop. It knows no addresses.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{UnixListener, UnixStream};

/// Sockets in one message: Linux takes 253.
const AT_ONCE: usize = 64;
/// Messages: more sockets than workers and listeners there cannot be.
const MOST_MESSAGES: usize = 64;
/// What stands in a message beside its sockets.
const MORE: u8 = b'+';
const LAST: u8 = b'.';
/// What the next process says once it serves.
const SERVING: u8 = b'!';

/// How long the one that serves may take to send its sockets.
const SEND_TIME: Duration = Duration::from_secs(5);
/// How long the next one may take from there until it serves.
const START_TIME: Duration = Duration::from_secs(60);

/// The process that serves, as the next one sees it.
pub(super) struct Predecessor {
    stream: StdUnixStream,
    /// What it listens on.
    pub(super) sockets: Vec<TcpListener>,
}

impl Predecessor {
    /// The process that offers its sockets there; none if nobody does.
    pub(super) fn find(path: &Path) -> io::Result<Option<Self>> {
        let stream = match StdUnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => return Ok(None),
                _ => return Err(error),
            },
        };
        of_our_user(&stream)?;
        stream.set_read_timeout(Some(SEND_TIME))?;
        let sockets = receive(&stream)?;
        Ok(Some(Self { stream, sockets }))
    }

    /// The next one serves: it may stop.
    pub(super) fn relieve(mut self) {
        if let Err(error) = self.stream.write_all(&[SERVING]) {
            tracing::warn!(%error, "the process before this one could not be told to stop");
        }
    }
}

/// Where the next process asks for the sockets.
pub(super) struct Successors(UnixListener);

impl Successors {
    /// Opens the socket in the place of one that a process before left or is about to leave.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(data) if data.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("there is a file that is no socket")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        // Until here the directory and who is asked below keep others out.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }

    /// Ends when another process serves on these sockets.
    pub(super) async fn wait(&self, sockets: &[TcpListener]) {
        loop {
            let offered = async {
                let (stream, _) = self.0.accept().await?;
                offer(stream, sockets).await
            };
            match offered.await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "another process asked for the sockets, and does not serve");
                    // Also if it cannot be accepted at all.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn offer(mut stream: UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    of_our_user(&stream)?;
    let sending = async {
        let mut rest = sockets;
        loop {
            let (some, others) = rest.split_at(rest.len().min(AT_ONCE));
            let word = if others.is_empty() { LAST } else { MORE };
            stream.async_io(Interest::WRITABLE, || send(&stream, word, some)).await?;
            if others.is_empty() {
                return Ok::<_, io::Error>(());
            }
            rest = others;
        }
    };
    tokio::time::timeout(SEND_TIME, sending).await??;
    match tokio::time::timeout(START_TIME, stream.read_u8()).await?? {
        SERVING => Ok(()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send(stream: &UnixStream, word: u8, sockets: &[TcpListener]) -> io::Result<()> {
    let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(stream, &[IoSlice::new(&[word])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(stream: &StdUnixStream) -> io::Result<Vec<TcpListener>> {
    let mut sockets = Vec::new();
    for _ in 0..MOST_MESSAGES {
        let mut word = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut word)];
        let received = recvmsg(stream, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors.map(listening).collect::<io::Result<Vec<_>>>()?);
            }
        }
        match word {
            _ if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            [LAST] => return Ok(sockets),
            [MORE] => {}
            _ => break,
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn listening(descriptor: OwnedFd) -> io::Result<TcpListener> {
    let listener = TcpListener::from(descriptor);
    if !socket2::SockRef::from(&listener).is_listener()? {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(listener)
}

/// SECURITY: who gets a socket has every connection of it, and who gives one decides who is spoken
/// to. Only a process of the same user is dealt with.
fn of_our_user(stream: &impl AsFd) -> io::Result<()> {
    if sockopt::socket_peercred(stream)?.uid == rustix::process::getuid() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is a process of another user"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    #[tokio::test]
    async fn every_socket_arrives_and_nobody_stops_before_the_next_one_serves() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("next");
        assert!(Predecessor::find(&path).unwrap().is_none());
        let successors = Successors::open(&path).unwrap();
        let sockets: Vec<_> = (0..150).map(|_| listener()).collect();
        let addresses = |sockets: &[TcpListener]| -> Vec<_> {
            sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
        };
        let expected = addresses(&sockets);
        let find = move || {
            tokio::task::spawn_blocking({
                let path = path.clone();
                move || Predecessor::find(&path).unwrap().unwrap()
            })
        };
        let mut waiting = std::pin::pin!(successors.wait(&sockets));
        let found = tokio::select! {
            () = &mut waiting => panic!("nobody serves yet"),
            found = find() => found.unwrap(),
        };
        assert_eq!(addresses(&found.sockets), expected);
        // It does not start after all.
        drop(found);
        let found = tokio::select! {
            () = &mut waiting => panic!("nobody serves yet"),
            found = find() => found.unwrap(),
        };
        assert_eq!(addresses(&found.sockets), expected);
        found.relieve();
        waiting.await;
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_replaced_and_what_is_left_over_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("next");
        fs::write(&path, "precious").unwrap();
        assert!(Successors::open(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
        drop(Successors::open(&path).unwrap());
        assert!(Predecessor::find(&path).unwrap().is_none(), "nobody is there");
        let _next = Successors::open(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_listening_socket_is_not_taken() {
        let listener = listener();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(listening(OwnedFd::from(stream)).is_err());
        assert!(listening(OwnedFd::from(listener)).is_ok());
    }
}
