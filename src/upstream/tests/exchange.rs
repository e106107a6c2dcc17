//! One exchange: over TCP, TLS and unix sockets, with the next upstream where one is down, and
//! within its time.

use tokio::net::UnixListener;

use super::*;
use crate::upstream::names::Names;

/// An address at which nobody listens.
async fn nobody() -> UpstreamUrl {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    UpstreamUrl::Http { host: "127.0.0.1".to_owned(), port }
}

#[tokio::test]
async fn each_upstream_gets_its_share() {
    local(async {
        let (one, _) = answering(ok("one")).await;
        let (other, _) = answering(ok("other")).await;
        let upstreams = with(vec![one, other], &sample::limits(), roots());
        let mut ones = 0;
        for _ in 0..400 {
            ones += usize::from(get(&upstreams, "/").await.unwrap() == "one");
        }
        assert!((120..280).contains(&ones), "{ones} of 400");
    })
    .await;
}

#[tokio::test]
async fn where_one_upstream_is_down_the_next_is_asked_with_the_whole_request() {
    local(async {
        let (url, _) = listen(|mut stream, _| async move {
            let mut rest = Vec::new();
            while head(&mut stream, &mut rest).await.is_some() {
                while !rest.ends_with(b"0\r\n\r\n") {
                    stream.read_buf(&mut rest).await.unwrap();
                }
                let body = String::from_utf8(std::mem::take(&mut rest)).unwrap();
                stream.write_all(ok(&body).as_bytes()).await.unwrap();
            }
        })
        .await;
        let upstreams = with(vec![nobody().await, url, nobody().await], &sample::limits(), roots());
        for _ in 0..6 {
            let (feed, body) = streaming();
            feed.send("all of it".into()).unwrap();
            drop(feed);
            let mut request = request("POST", "/", body);
            let chunked = http::HeaderValue::from_static("chunked");
            request.headers_mut().insert("transfer-encoding", chunked);
            let response = upstreams.send(0, request, None, &deaf).await.unwrap();
            assert_eq!(text(response).await.unwrap(), "9\r\nall of it\r\n0\r\n\r\n");
        }
    })
    .await;
}

#[tokio::test]
async fn where_all_are_down_the_last_ones_error_is_told() {
    local(async {
        let (one, other) = (nobody().await, nobody().await);
        let upstreams = with(vec![one.clone(), other.clone()], &sample::limits(), roots());
        let failed = upstreams
            .send(0, request("GET", "/", Body::Empty), None, &deaf)
            .await
            .map(|it| it.status());
        let Err(UpstreamError::Connect { upstream, source }) = failed else { panic!("{failed:?}") };
        assert!(upstream == one || upstream == other);
        assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
        let none = upstreams.send(1, request("GET", "/", Body::Empty), None, &deaf).await;
        assert!(matches!(none, Err(UpstreamError::None)));
    })
    .await;
}

/// However far its response has come: no limit of time is on that.
#[tokio::test]
async fn every_upstream_is_asked_whether_it_is_still_there() {
    use crate::keepalive::ASK_AFTER;
    use crate::upstream::connect::{Reach, Stream, connect};
    local(async {
        let (url, _) = answering("").await;
        for (response, gone) in [(60, 120), (600, 600)] {
            let response_time = Duration::from_secs(response);
            let reach = Reach::new(&client_tls(roots()), None, &[], Names::system(), response_time);
            let reach = reach.unwrap();
            let connected = connect(&url, &reach, Duration::from_secs(5)).await.unwrap();
            let Stream::Tcp(connected) = connected else { panic!() };
            let socket = socket2::SockRef::from(&connected);
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), ASK_AFTER);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(gone)));
        }
    })
    .await;
}

fn hurried() -> Limits {
    Limits {
        response_time: Duration::from_millis(150),
        connect_time: Duration::from_millis(150),
        ..sample::limits()
    }
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_late() {
    local(async {
        for begin in ["", "HTTP/1.1 200", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
            let (url, _) = listen(move |mut stream, _| async move {
                head(&mut stream, &mut Vec::new()).await;
                stream.write_all(begin.as_bytes()).await.unwrap();
                sleep(Duration::from_secs(20)).await;
            })
            .await;
            let upstreams = with(vec![url], &hurried(), roots());
            let begun = Instant::now();
            let late = upstreams
                .send(0, request("GET", "/", Body::Empty), None, &deaf)
                .await
                .map(|it| it.status());
            assert!(matches!(late, Err(UpstreamError::Late { .. })), "{late:?}");
            assert!(begun.elapsed() < Duration::from_secs(2));
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_is_not_late_while_it_still_receives() {
    local(async {
        let (url, _) = listen(|mut stream, _| async move {
            let mut rest = Vec::new();
            while !rest.ends_with(b"0\r\n\r\n") {
                stream.read_buf(&mut rest).await.unwrap();
            }
            stream.write_all(ok("got it").as_bytes()).await.unwrap();
        })
        .await;
        let upstreams = with(vec![url], &hurried(), roots());
        let (feed, body) = streaming();
        spawn_local(async move {
            for _ in 0..8 {
                feed.send("a piece".into()).unwrap();
                sleep(Duration::from_millis(60)).await;
            }
        });
        let mut slow = request("POST", "/", body);
        let chunked = http::HeaderValue::from_static("chunked");
        slow.headers_mut().insert("transfer-encoding", chunked);
        let response = upstreams.send(0, slow, None, &deaf).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "got it");
    })
    .await;
}

#[tokio::test]
async fn a_response_may_take_as_long_as_it_likes_once_it_has_begun() {
    local(async {
        let (url, _) = listen(|mut stream, _| async move {
            head(&mut stream, &mut Vec::new()).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n").await.unwrap();
            for _ in 0..3 {
                sleep(Duration::from_millis(200)).await;
                stream.write_all(b"ok").await.unwrap();
            }
        })
        .await;
        assert_eq!(get(&with(vec![url], &hurried(), roots()), "/").await.unwrap(), "okokok");
    })
    .await;
}

#[tokio::test]
async fn an_app_on_a_unix_socket_is_asked() {
    local(async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.sock");
        let listener = UnixListener::bind(&path).unwrap();
        spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut rest = Vec::new();
            while let Some(head) = head(&mut stream, &mut rest).await {
                stream.write_all(ok(path_of(&head)).as_bytes()).await.unwrap();
            }
        });
        let upstreams = to(&UpstreamUrl::Unix(path));
        for asked in ["/a?b=c", "/d"] {
            assert_eq!(get(&upstreams, asked).await.unwrap(), asked);
        }
        let nowhere = to(&UpstreamUrl::Unix(directory.path().join("none.sock")));
        let failed = nowhere
            .send(0, request("GET", "/", Body::Empty), None, &deaf)
            .await
            .map(|it| it.status());
        assert!(matches!(failed, Err(UpstreamError::Connect { .. })));
    })
    .await;
}

/// An https upstream on loopback whose certificate is for `name`; with the certificate.
async fn encrypted(name: &str) -> (u16, rustls::RootCertStore) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let mut store = roots();
    store.add(made.cert.der().clone()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (url, _) = listen(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut rest = Vec::new();
            while head(&mut stream, &mut rest).await.is_some() {
                stream.write_all(ok("encrypted").as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    })
    .await;
    let UpstreamUrl::Http { port, .. } = url else { panic!() };
    (port, store)
}

#[tokio::test]
async fn an_https_upstream_is_asked_if_its_certificate_is_good_for_its_name() {
    local(async {
        let https = |host: &str, port| UpstreamUrl::Https { host: host.to_owned(), port };
        for host in ["localhost", "127.0.0.1"] {
            let (port, store) = encrypted(host).await;
            let upstreams = with(vec![https(host, port)], &sample::limits(), store.clone());
            for _ in 0..2 {
                assert_eq!(get(&upstreams, "/").await.unwrap(), "encrypted");
            }
            let other = if host == "localhost" { "127.0.0.1" } else { "localhost" };
            for (host, store) in [(other, store), (host, roots())] {
                let upstreams = with(vec![https(host, port)], &sample::limits(), store);
                let failed = upstreams
                    .send(0, request("GET", "/", Body::Empty), None, &deaf)
                    .await
                    .map(|it| it.status());
                assert!(matches!(failed, Err(UpstreamError::Connect { .. })), "{failed:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up() {
    local(async {
        let (url, _) = listen(|stream, _| async move {
            sleep(Duration::from_secs(20)).await;
            drop(stream);
        })
        .await;
        let UpstreamUrl::Http { host, port } = url else { panic!() };
        let upstreams = with(vec![UpstreamUrl::Https { host, port }], &hurried(), roots());
        let failed = upstreams
            .send(0, request("GET", "/", Body::Empty), None, &deaf)
            .await
            .map(|it| it.status());
        let Err(UpstreamError::Connect { source, .. }) = failed else { panic!("{failed:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::TimedOut);
    })
    .await;
}

#[tokio::test]
async fn the_target_and_every_byte_of_both_bodies_pass() {
    local(async {
        let (url, _) = listen(|mut stream, _| async move {
            let mut rest = Vec::new();
            let head = head(&mut stream, &mut rest).await.unwrap();
            while rest.len() < 100_000 {
                stream.read_buf(&mut rest).await.unwrap();
            }
            let sum: u64 = rest.iter().map(|byte| u64::from(*byte)).sum();
            stream.write_all(ok(&format!("{} {sum}", path_of(&head))).as_bytes()).await.unwrap();
        })
        .await;
        let body: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        let sum: u64 = body.iter().map(|byte| u64::from(*byte)).sum();
        let sent = to(&url)
            .send(0, request("POST", "/%C3%AB;x//y?q=%zz&r", body.into()), None, &deaf)
            .await;
        assert_eq!(text(sent.unwrap()).await.unwrap(), format!("/%C3%AB;x//y?q=%zz&r {sum}"));
    })
    .await;
}

/// What an upstream is sent until its connection is silent for a while, or closed.
async fn sent(request: Request<Body>) -> (Vec<u8>, bool) {
    let heard = Rc::new(std::cell::RefCell::new((Vec::new(), false)));
    let hearing = heard.clone();
    let (url, _) = listen(move |mut stream, _| {
        let hearing = hearing.clone();
        async move {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                hearing.borrow_mut().0.extend_from_slice(&bytes[..length]);
            }
            hearing.borrow_mut().1 = true;
        }
    })
    .await;
    let upstreams = with(vec![url], &hurried(), roots());
    let _ = upstreams.send(0, request, None, &deaf).await;
    sleep(Duration::from_millis(20)).await;
    heard.borrow().clone()
}

/// SECURITY: request smuggling.
#[tokio::test]
async fn what_frames_a_request_is_what_is_sent_and_never_what_its_fields_say() {
    local(async {
        let framed = |method: &str, body: Body, fields: &[(&'static str, &str)]| {
            let mut request = request(method, "/", body);
            for (name, value) in fields {
                request.headers_mut().append(*name, value.parse().unwrap());
            }
            request
        };
        let stream = || {
            let (feed, body) = streaming();
            feed.send("ab".into()).unwrap();
            feed.send(Bytes::new()).unwrap();
            feed.send("cd".into()).unwrap();
            body
        };
        let both = [("content-length", "4"), ("transfer-encoding", "chunked")];
        let none = "GET / HTTP/1.1\r\nhost: app.example\r\n\r\n";
        let zero = "host: app.example\r\ncontent-length: 0\r\n\r\n";
        let four = "POST / HTTP/1.1\r\nhost: app.example\r\ncontent-length: 4\r\n\r\nabcd";
        let chunks = "host: app.example\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n";
        for (request, expected) in [
            (framed("GET", Body::Empty, &[]), none.to_owned()),
            (framed("GET", Body::Empty, &both[1..]), none.to_owned()),
            (framed("GET", Body::Empty, &both), format!("GET / HTTP/1.1\r\n{zero}")),
            (framed("POST", Body::Empty, &[]), format!("POST / HTTP/1.1\r\n{zero}")),
            (framed("POST", "abcd".into(), &[("content-length", "9")]), four.to_owned()),
            (framed("POST", stream(), &both), four.to_owned()),
            (framed("POST", stream(), &[]), format!("POST / HTTP/1.1\r\n{chunks}")),
            (framed("GET", stream(), &[]), format!("GET / HTTP/1.1\r\n{chunks}")),
        ] {
            assert_eq!(String::from_utf8(sent(request).await.0).unwrap(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_is_cut_off_and_its_connection_closed() {
    local(async {
        for (announced, arrives) in [("5", "abcd"), ("3", "")] {
            let (feed, body) = streaming();
            feed.send("ab".into()).unwrap();
            feed.send("cd".into()).unwrap();
            drop(feed);
            let mut request = request("POST", "/", body);
            request.headers_mut().insert("content-length", announced.parse().unwrap());
            let (bytes, closed) = sent(request).await;
            let text = String::from_utf8(bytes).unwrap();
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            assert!(closed && (body == arrives || body == "ab"), "{announced}: {text}");
        }
    })
    .await;
}

/// An app that has begun to answer, and waits for the rest of the request, would wait for ever.
#[tokio::test]
async fn a_body_that_breaks_off_after_the_responses_head_ends_the_exchange() {
    local(async {
        let gone = Rc::new(Cell::new(false));
        let leaving = gone.clone();
        let (url, _) = listen(move |mut stream, _| {
            let leaving = leaving.clone();
            async move {
                head(&mut stream, &mut Vec::new()).await;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nso far")
                    .await
                    .unwrap();
                while let Ok(1..) = stream.read(&mut [0; 64]).await {}
                leaving.set(true);
            }
        })
        .await;
        let (feed, body) = streaming();
        feed.send("half".into()).unwrap();
        let mut request = request("POST", "/", body);
        request.headers_mut().insert("content-length", "8".parse().unwrap());
        let response = to(&url).send(0, request, None, &deaf).await.unwrap();
        let reading = spawn_local(text(response));
        sleep(Duration::from_millis(20)).await;
        assert!(!reading.is_finished() && !gone.get());
        drop(feed);
        let broken = timeout(Duration::from_secs(2), reading).await.unwrap().unwrap().unwrap_err();
        assert!(broken.starts_with("the request's body broke off"), "{broken}");
        sleep(Duration::from_millis(20)).await;
        assert!(gone.get(), "the app was let go");
    })
    .await;
}

/// A browser that does not read lets them wait, and each waits in the buffer that it was read into.
#[tokio::test]
async fn small_pieces_that_wait_hold_no_more_than_they_are() {
    local(async {
        for (framing, piece) in [
            ("transfer-encoding: chunked", "64\r\nPIECE\r\n"),
            ("content-length: 10000000", "PIECE"),
            ("content-length: 30000", "PIECE"),
            ("connection: close", "PIECE"),
        ] {
            let piece = piece.replace("PIECE", &"x".repeat(100));
            let (url, _) = listen(move |mut stream, _| {
                let piece = piece.clone();
                async move {
                    head(&mut stream, &mut Vec::new()).await;
                    let begin = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
                    stream.write_all(begin.as_bytes()).await.unwrap();
                    while stream.write_all(piece.as_bytes()).await.is_ok() {
                        sleep(Duration::from_millis(1)).await;
                    }
                }
            })
            .await;
            let upstreams = to(&url);
            let mut response =
                upstreams.send(0, request("GET", "/", Body::Empty), None, &deaf).await.unwrap();
            let mut waiting: Vec<Bytes> = Vec::new();
            while waiting.len() < 250 {
                let frame = response.body_mut().frame().await.unwrap().unwrap();
                waiting.push(frame.into_data().unwrap());
            }
            // Those that lie one behind the other are in one buffer.
            let place = |bytes: &Bytes| bytes.as_ptr().addr();
            let apart = |pair: &&[Bytes]| {
                let [one, next] = pair else { panic!() };
                !(0..16).contains(&place(next).wrapping_sub(place(one) + one.len()))
            };
            let buffers = 1 + waiting.windows(2).filter(apart).count();
            let bytes: usize = waiting.iter().map(Bytes::len).sum();
            assert!(buffers <= 1 + bytes / 4096, "{framing}: {buffers} for {bytes} bytes");
        }
    })
    .await;
}
