//! Clients of HTTP/2 that hold a connection without using it: whatever they say meanwhile, it ends, and
//! they are told so.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::bytes::http2::{frame, usual};
use crate::limits::resident;
use crate::support::app::Peer;
use crate::support::{App, Gateway, Protocol, Provider, Raw, join_all, until};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Waits between what is said.
const PAUSE: Duration = Duration::from_millis(100);

async fn stage(limits: &str) -> (Provider, App, Gateway) {
    let app = App::by_hand(|mut peer: Peer| async move {
        while let Some(seen) = peer.request().await {
            if seen.path() == "/slow" {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            let _ = peer.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await;
        }
    })
    .await;
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .limits(limits)
        .route_with("/", &app, r#"access = "public""#)
        .start()
        .await;
    (provider, app, gateway)
}

/// A client that has begun a connection.
async fn begun(gateway: &Gateway) -> Raw {
    let mut client = Raw::open_as(gateway, "localhost", Protocol::Http2).await;
    client
        .send([&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat())
        .await;
    client
}

fn get(path: &str, stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &usual("GET", path))
}

/// The types of the whole frames in these bytes.
fn types(mut bytes: &[u8]) -> Vec<u8> {
    let mut types = Vec::new();
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(rest) = rest.get(length..) else { break };
        types.push(*kind);
        bytes = rest;
    }
    types
}

/// Sends this again and again; how long it took until the gateway closed, and what came by then.
async fn until_closed(client: &mut Raw, again: &[u8]) -> (Duration, Vec<u8>) {
    let (start, mut came) = (Instant::now(), Vec::new());
    while start.elapsed() < Duration::from_secs(8) {
        client.send(again).await;
        let (bytes, closed) = client.bytes_for(PAUSE).await;
        came.extend(bytes);
        if closed {
            return (start.elapsed(), types(&came));
        }
    }
    panic!("it is still open");
}

#[tokio::test]
async fn the_first_head_of_a_connection_is_due_however_much_else_is_said() {
    let (_provider, app, gateway) = stage("header_time = \"500ms\"\nidle_time = \"60s\"").await;
    let fields = usual("GET", "/");
    let (some, rest) = fields.split_at(3);
    let ways = [
        ("nothing", vec![], vec![]),
        ("pings", vec![], frame(PING, 0, 0, b"12345678")),
        ("settings", vec![], frame(SETTINGS, 0, 0, &[])),
        ("a frame that does not end", vec![0, 0x3f, 0, 0xee, 0, 0, 0, 0, 0], vec![0]),
        ("a head that does not end", frame(HEADERS, 0, 1, some), frame(CONTINUATION, 0, 1, &[])),
    ];
    join_all(ways.map(async |(what, first, again)| {
        let mut client = begun(&gateway).await;
        client.send(first).await;
        let (time, types) = until_closed(&mut client, &again).await;
        assert!(time < Duration::from_secs(4), "{what}: {time:?}");
        assert!(types.contains(&GOAWAY), "{what}: {types:?}");
    }))
    .await;
    assert!(app.seen().is_empty());
    // In pieces, but in time.
    let mut client = begun(&gateway).await;
    client.send(frame(HEADERS, END_STREAM, 1, some)).await;
    tokio::time::sleep(PAUSE).await;
    client.send(frame(CONTINUATION, END_HEADERS, 1, rest)).await;
    let (bytes, _) = client.bytes_until(|bytes| types(bytes).contains(&DATA)).await;
    assert!(types(&bytes).contains(&DATA));
    // Later ones are not waited for so shortly.
    let (_, closed) = client.bytes_for(Duration::from_secs(2)).await;
    assert!(!closed);
}

#[tokio::test]
async fn a_connection_is_idle_from_the_end_of_its_last_request_however_much_is_said() {
    let (_provider, _app, gateway) = stage("idle_time = \"1s\"").await;
    let ways = [
        ("nothing", vec![], vec![]),
        ("pings", vec![], frame(PING, 0, 0, b"12345678")),
        ("a frame that does not end", vec![0, 0x3f, 0, 0xee, 0, 0, 0, 0, 0], vec![0]),
    ];
    join_all(ways.map(async |(what, first, again)| {
        let mut client = begun(&gateway).await;
        client.send(get("/", 1)).await;
        let (bytes, _) = client.bytes_until(|bytes| types(bytes).contains(&DATA)).await;
        assert!(types(&bytes).contains(&DATA), "{what}");
        client.send(first).await;
        let (time, types) = until_closed(&mut client, &again).await;
        assert!(time > Duration::from_millis(400), "{what}: {time:?}");
        assert!(time < Duration::from_secs(4), "{what}: {time:?}");
        assert!(types.contains(&GOAWAY), "{what}: {types:?}");
    }))
    .await;
}

/// The two may cross on their way, and a request is not to be lost.
#[tokio::test]
async fn what_is_asked_while_the_connection_ends_is_answered() {
    let (_provider, _app, gateway) = stage("idle_time = \"500ms\"").await;
    let mut client = begun(&gateway).await;
    client.send(get("/", 1)).await;
    let ends = |bytes: &[u8]| types(bytes).contains(&GOAWAY);
    let (bytes, closed) = client.bytes_until(ends).await;
    assert!(ends(&bytes) && !closed, "{:?}", types(&bytes));
    tokio::time::sleep(Duration::from_millis(700)).await;
    client.send(get("/slow", 3)).await;
    let (bytes, _) = client.bytes_until(|bytes| types(bytes).contains(&DATA)).await;
    assert!(types(&bytes).contains(&DATA), "{:?}", types(&bytes));
    let (_, closed) = client.bytes_until(|_| false).await;
    assert!(closed);
}

#[tokio::test]
async fn a_connection_with_a_request_under_way_is_not_idle() {
    let (_provider, _app, gateway) = stage("header_time = \"500ms\"\nidle_time = \"500ms\"").await;
    let mut client = begun(&gateway).await;
    client.send(get("/slow", 1)).await;
    let (bytes, closed) = client.bytes_until(|bytes| types(bytes).contains(&DATA)).await;
    assert!(types(&bytes).contains(&DATA) && !closed, "{:?}", types(&bytes));
}

/// Apps that have more to say than anybody takes, in pieces of this length; how much they could.
async fn talking(piece: usize) -> (App, Arc<AtomicUsize>) {
    let sent = Arc::<AtomicUsize>::default();
    let count = sent.clone();
    let app = App::by_hand(move |mut peer: Peer| {
        let count = count.clone();
        async move {
            peer.head().await;
            let _ = peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            let chunk = format!("{piece:x}\r\n{}\r\n", "x".repeat(piece));
            while peer.write(&chunk).await.is_ok() {
                count.fetch_add(piece, Ordering::Relaxed);
                if piece == 1000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    })
    .await;
    (app, sent)
}

/// HTTP/2 lets a client say that it will take two gigabytes of each response, and then take nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_windows_make_nobody_gather_what_is_not_taken() {
    const STREAMS: u32 = 100;
    const OPEN: u32 = (1 << 31) - 1;
    for piece in [1000, 64 * 1024] {
        let (app, sent) = talking(piece).await;
        let provider = Provider::start().await;
        let gateway = Gateway::with(&provider)
            .server("workers = 1")
            .route_with("/", &app, r#"access = "public""#)
            .start()
            .await;
        let before = resident(&gateway);
        let mut client = begun(&gateway).await;
        let window = [&[0, 4][..], &OPEN.to_be_bytes()].concat();
        client.send(frame(SETTINGS, 0, 0, &window)).await;
        client.send(frame(WINDOW_UPDATE, 0, 0, &(OPEN - 65_535).to_be_bytes())).await;
        for stream in 0..STREAMS {
            client.send(get("/", 2 * stream + 1)).await;
        }
        let mut last = 0;
        until("nothing moves any more", async || {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = sent.load(Ordering::Relaxed);
            (now > 0 && std::mem::replace(&mut last, now) == now).then_some(())
        })
        .await;
        let grown = resident(&gateway).saturating_sub(before);
        eprintln!("pieces of {piece}: {grown} MiB");
        assert!(grown < 32, "pieces of {piece}: the gateway has grown by {grown} MiB");
    }
}
