//! What an operator sees: logs, access lines, numbers, and whether the gateway is well. It is told
//! what happened and asks nobody; no cookie, token or secret comes here.

pub mod access;
pub mod admin;
pub mod log;
pub mod metrics;
pub mod request;
