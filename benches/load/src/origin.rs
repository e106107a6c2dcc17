//! The app behind the proxies: answers from memory, over plain HTTP/1.1, on one thread. It must
//! cost less than what is measured, so it reads no more of a request than its path and its end,
//! and takes requests without bodies only.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;

use anyhow::{Context, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

/// Bytes of the usual answer's body.
pub(crate) const SMALL: usize = 1024;
/// Bytes of the body of [`LARGE_PATH`].
pub(crate) const LARGE: usize = 1024 * 1024;
/// Answers [`LARGE`] bytes.
pub(crate) const LARGE_PATH: &str = "/large";
/// Answers [`SMALL`] bytes, and changes the session.
pub(crate) const UPDATE_PATH: &str = "/update";
/// Answers with the request head itself: what an app is told.
pub(crate) const ECHO_PATH: &str = "/echo";
/// Answers 204: an `auth_request` that always says yes.
pub(crate) const ALLOW_PATH: &str = "/allow";

/// Becomes a WebSocket, which sends each short message back.
pub(crate) const SOCKET_PATH: &str = "/socket";
/// What a WebSocket's client always sends here, and what it is answered: the sample of RFC 6455,
/// section 1.3, so that nothing has to be hashed.
pub(crate) const SOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub(crate) const SOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A head of more bytes closes the connection.
const LONGEST_HEAD: usize = 64 * 1024;
const LISTENER: Token = Token(usize::MAX);

/// Serves `address` until the process is stopped.
pub(crate) fn serve(address: SocketAddr) -> Result<()> {
    Origin::new(address)
        .and_then(|mut origin| origin.run())
        .with_context(|| format!("the origin cannot serve {address}"))
}

struct Origin {
    poll: Poll,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answers: Answers,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// The beginning of a head whose end has not arrived.
    head: Vec<u8>,
    /// An answer and how much of it the socket has not taken.
    unsent: Option<(Rc<[u8]>, usize)>,
    /// Whether it has become a WebSocket.
    switched: bool,
}

impl Origin {
    fn new(address: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            answers: Answers::new(address),
            buffer: vec![0; LONGEST_HEAD],
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                polled => polled?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    Token(at) => self.turn(at),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            stream.set_nodelay(true)?;
            let at = self.free.pop().unwrap_or(self.connections.len());
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(at), both)?;
            let connection = Connection { stream, head: Vec::new(), unsent: None, switched: false };
            match self.connections.get_mut(at) {
                Some(slot) => *slot = Some(connection),
                None => self.connections.push(Some(connection)),
            }
        }
    }

    /// Something happened on a connection; one that fails or ends is forgotten.
    fn turn(&mut self, at: usize) {
        let Some(slot) = self.connections.get_mut(at) else { return };
        let Some(connection) = slot else { return };
        if !matches!(connection.turn(&mut self.answers, &mut self.buffer), Ok(true)) {
            *slot = None;
            self.free.push(at);
        }
    }
}

impl Connection {
    /// Sends what is left, reads what is there, answers a head that is whole. Whether the
    /// connection goes on.
    fn turn(&mut self, answers: &mut Answers, buffer: &mut [u8]) -> io::Result<bool> {
        if let Some((answer, left)) = self.unsent.take() {
            self.send(answer, left)?;
        }
        loop {
            let read = match self.stream.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            let arrived = buffer.get(..read).unwrap_or_default();
            if self.switched {
                let echo = echo(arrived).ok_or(io::ErrorKind::InvalidData)?;
                self.send_all(echo)?;
            } else if self.head.is_empty() && is_whole(arrived) {
                self.switched = switches(arrived);
                let answer = answers.to(arrived);
                self.send_all(answer)?;
            } else {
                self.head.extend_from_slice(arrived);
                if is_whole(&self.head) {
                    let head = std::mem::take(&mut self.head);
                    self.switched = switches(&head);
                    self.send_all(answers.to(&head))?;
                } else if self.head.len() > LONGEST_HEAD {
                    return Ok(false);
                }
            }
            // Less than asked for: the socket is empty, and epoll tells when that changes.
            if read < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn send_all(&mut self, answer: Rc<[u8]>) -> io::Result<()> {
        let length = answer.len();
        self.send(answer, length)
    }

    /// Sends the last `left` bytes of `answer`, now or when the socket takes them.
    fn send(&mut self, answer: Rc<[u8]>, mut left: usize) -> io::Result<()> {
        while left > 0 {
            let rest = answer.get(answer.len() - left..).unwrap_or_default();
            match self.stream.write(rest) {
                Ok(sent) => left -= sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent = Some((answer, left));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn switches(head: &[u8]) -> bool {
    head.strip_prefix(b"GET ").is_some_and(|target| target.starts_with(SOCKET_PATH.as_bytes()))
}

/// A short message of a client, which is masked, as a server sends it (RFC 6455, section 5.2).
fn echo(frame: &[u8]) -> Option<Rc<[u8]>> {
    let [kind, length, rest @ ..] = frame else { return None };
    let (mask, payload) = rest.split_first_chunk::<4>()?;
    let length = length.checked_sub(0x80).filter(|length| usize::from(*length) == payload.len())?;
    let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    Some([*kind, length].into_iter().chain(unmasked).collect())
}

fn is_whole(head: &[u8]) -> bool {
    head.ends_with(b"\r\n\r\n")
}

/// The answers, as they go over the wire.
struct Answers {
    small: Rc<[u8]>,
    large: Rc<[u8]>,
    allow: Rc<[u8]>,
    switch: Rc<[u8]>,
    metadata: Rc<[u8]>,
    keys: Rc<[u8]>,
    updates: u64,
}

impl Answers {
    fn new(address: SocketAddr) -> Self {
        // A provider that nobody logs in at, so that the gateway does not look for it again and
        // again while it is measured (OpenID Connect Discovery 1.0, section 3).
        let issuer = format!("http://{address}/");
        let metadata = serde_json::json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}authorize"),
            "token_endpoint": format!("{issuer}oauth/token"),
            "jwks_uri": format!("{issuer}jwks"),
        });
        let text = |length| answer("Content-Type: text/plain\r\n", &"x".repeat(length));
        let json = |text: &str| answer("Content-Type: application/json\r\n", text);
        let allow = b"HTTP/1.1 204 No Content\r\nX-Auth-User: auth0|6650\r\n\r\n";
        let switch = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {SOCKET_ACCEPT}\r\n\r\n"
        );
        Self {
            small: text(SMALL),
            large: text(LARGE),
            allow: Rc::from(&allow[..]),
            switch: Rc::from(switch.into_bytes()),
            metadata: json(&metadata.to_string()),
            keys: json(r#"{"keys":[]}"#),
            updates: 0,
        }
    }

    /// The answer to a request with this head.
    fn to(&mut self, head: &[u8]) -> Rc<[u8]> {
        let target = head.strip_prefix(b"GET ").unwrap_or_default();
        let path = target.split(|byte| *byte == b' ').next().unwrap_or_default();
        match path {
            path if path == LARGE_PATH.as_bytes() => self.large.clone(),
            path if path == ALLOW_PATH.as_bytes() => self.allow.clone(),
            path if path == SOCKET_PATH.as_bytes() => self.switch.clone(),
            path if path == UPDATE_PATH.as_bytes() => {
                self.updates += 1;
                let update = format!("X-Session-Update: {{\"visits\":{}}}\r\n", self.updates);
                answer(&update, &"x".repeat(SMALL))
            }
            path if path.ends_with(ECHO_PATH.as_bytes()) => {
                answer("", &String::from_utf8_lossy(head))
            }
            b"/.well-known/openid-configuration" => self.metadata.clone(),
            b"/jwks" => self.keys.clone(),
            _ => self.small.clone(),
        }
    }
}

fn answer(lines: &str, body: &str) -> Rc<[u8]> {
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nServer: origin\r\n\
         {lines}Content-Length: {length}\r\n\r\n{body}"
    );
    Rc::from(answer.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_what_is_answered() {
        let mut answers = Answers::new("127.0.0.1:9".parse().unwrap());
        assert!(answers.to(b"GET / HTTP/1.1\r\n\r\n").len() > SMALL);
        assert!(answers.to(b"GET /large HTTP/1.1\r\n\r\n").len() > LARGE);
        assert!(answers.to(b"GET /allow HTTP/1.1\r\n\r\n").starts_with(b"HTTP/1.1 204"));
        let echo = answers.to(b"GET /public/echo HTTP/1.1\r\nHost: a\r\n\r\n").to_vec();
        assert!(String::from_utf8(echo).unwrap().ends_with("Host: a\r\n\r\n"));
    }

    #[test]
    fn a_message_comes_back_unmasked() {
        let echoed = echo(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58").unwrap();
        assert_eq!(*echoed, *b"\x81\x05Hello");
        assert!(echo(b"\x81\x85\x37\xfa").is_none());
    }

    #[test]
    fn every_update_is_another() {
        let mut answers = Answers::new("127.0.0.1:9".parse().unwrap());
        let first = answers.to(b"GET /update HTTP/1.1\r\n\r\n").to_vec();
        assert_ne!(first, *answers.to(b"GET /update HTTP/1.1\r\n\r\n"));
    }
}
