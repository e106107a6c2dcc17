//! Vestibule: a reverse-proxy authentication gateway.

pub mod access;
pub mod body;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod error;
pub mod forward;
pub mod gateway;
pub mod login;
pub mod observe;
pub mod page;
pub mod peer;
pub mod route;
pub mod server;
pub mod session;
pub mod upstream;
