//! The gateway as a black box: each file is a subject, each test a story. The real binary runs with
//! a `gateway.toml` of its own, browsers talk to it over TLS, scripted apps stand behind it, and a
//! provider stands beside it; all of it on loopback. Nothing here knows the gateway's modules but
//! for the embedded provider.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a broken assumption of a test is a failed test"
)]

mod support;

mod callback;
mod chromium;
mod contract;
mod cookie;
mod demo;
mod faults;
mod identity;
mod legacy_apps;
mod live;
mod login;
mod logout;
mod model;
mod oidc_provider;
mod paths;
mod races;
mod redirects;
mod session;
mod stripping;
mod trailers;
mod update;
