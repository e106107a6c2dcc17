//! `vestibule demo`: a provider, an app and a certificate of its own, on loopback.

pub mod certificate;
pub mod identity_provider;
mod web;
