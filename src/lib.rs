//! Vestibule: a reverse-proxy authentication gateway.

pub mod body;
pub mod clock;
pub mod config;
pub mod error;
pub mod forward;
pub mod session;
pub mod upstream;
