//! Vestibule: a reverse-proxy authentication gateway whose apps can change the session.
//!
//! # The life of a request
//!
//! A browser connects. [`server`] accepts it on one of its workers, each a thread with a listener,
//! a runtime and upstream connections of its own; the TLS handshake picks a certificate by name and
//! HTTP/1.1 or HTTP/2; from here on the connection is a [`peer::Peer`], and a watch sees to it that
//! nobody holds it without using it.
//! When `gateway.toml` has changed, each worker takes another gateway over between two requests, and
//! what is under way ends with the one that it began with.
//!
//! Each request goes to its worker's [`gateway`], the page to read. [`route`] says which public
//! origin and which route it is for, and refuses what could be read in two ways. [`session`] finds
//! the session in the cookie, opens it or knows it from a moment ago, and asks its memory whether
//! anything newer is known or the session has ended. [`access`] judges: may this identity have this
//! route? If somebody has to sign in, [`login`] sends the browser to the provider, and takes it back
//! at its callback.
//!
//! Then [`forward`] prepares the request: off with everything that only the gateway may say, in any
//! spelling; on with who the user is, what the session holds, where the request came from.
//! [`upstream`] chooses an app, has a connection to it, and brings the response back. From it
//! `forward` takes `X-Session-Update`, and `session` merges it into the newest version of the
//! session: every change goes through one `commit`. If the session is new, newer or gone, the
//! response gets a cookie. What many connections have to say in one turn of the worker's loop is
//! written together, by the [`outbox`].
//!
//! Some things come early: what an app says before its response, such as the hints of a 103, goes to
//! the browser at once. Some come late. An update in the trailers is committed before the
//! response's end goes out. A browser that leaves while its app is at work loses no update: the exchange goes on by
//! itself. And what is still open when its session ends, a WebSocket or a stream of events, is
//! closed within a second.
//!
//! Whatever fails becomes an [`error::Failure`]: one sentence for anyone, which [`page`] shows, and
//! one cause for the log. [`observe`] is told how it ended.
//!
//! # What is deliberately absent
//!
//! * `session` knows no bodies, no HTTP client, no OpenID Connect; `upstream` knows no session.
//! * `login` and `forward` do not know each other.
//! * Only `login/provider` and what is below it know the crate `openidconnect`.
//! * Nobody knows `server` but the commands, and nobody `demo`.
//!
//! A test in `house` reads the sources and keeps this true.

// From the outside in.
pub mod cli;
pub mod server;

pub mod gateway;

pub mod access;
pub mod forward;
pub mod login;
pub mod route;

pub mod observe;
pub mod page;
pub mod session;
pub mod upstream;

pub mod body;
pub mod clock;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod digits;
pub mod duplex;
pub mod error;
pub mod keepalive;
pub mod lock;
pub mod outbox;
pub mod peer;
pub mod room;

#[cfg(test)]
mod house;
