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

mod acme;
mod admin;
mod backchannel;
mod bound;
mod bytes;
mod callback;
mod chromium;
mod client_certificates;
mod contract;
mod cookie;
mod crossing;
mod demo;
mod early;
mod ends;
mod faults;
mod forward;
mod grpc;
mod http2_upstreams;
mod identity;
mod lease;
mod legacy_apps;
mod limits;
mod live;
mod login;
mod logout;
mod model;
mod oidc_provider;
mod paths;
mod process;
mod proxy_protocol;
mod races;
mod real;
mod redirects;
mod reload;
mod restart;
mod semantics;
mod session;
mod slow_http2;
mod streams;
mod stripping;
mod three_gateways;
mod tls;
mod trailers;
mod update;
mod upgrade;
mod upstreams;
mod websocket_http2;
mod websocket_upstreams;
