//! Upstreams of HTTP/2: many requests over one connection, and connections that go away, refuse,
//! stall and break.

use std::cell::RefCell;

use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue};

use super::*;
use crate::config::upstream::UpstreamProtocol;

type Asked = (Request<RecvStream>, SendResponse<Bytes>);

fn over_http2(url: &UpstreamUrl, limits: &Limits) -> Upstreams {
    let protocol = UpstreamProtocol::Http2;
    of(vec![Upstream { protocol, ..url.clone().into() }], limits, roots())
}

fn limits() -> Limits {
    Limits { response_time: Duration::from_secs(5), ..sample::limits() }
}

/// An upstream that allows so many streams, and leaves each request to `answer`.
async fn serving<F: Future<Output = ()> + 'static>(
    streams: u32,
    answer: impl Fn(Asked) -> F + Clone + 'static,
) -> (UpstreamUrl, Rc<Cell<usize>>) {
    listen(move |stream, _| {
        let answer = answer.clone();
        async move {
            let mut builder = Builder::new();
            builder.enable_connect_protocol().max_concurrent_streams(streams);
            let handshake = builder.handshake(stream);
            let Ok(mut connection) = handshake.await else { return };
            while let Some(Ok(asked)) = connection.accept().await {
                spawn_local(answer(asked));
            }
        }
    })
    .await
}

/// Reads all of a body, with its trailers.
async fn whole(mut body: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let Ok(piece) = piece else { break };
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend(piece);
    }
    (bytes, body.trailers().await.unwrap_or_default())
}

fn say(mut to: SendResponse<Bytes>, text: impl Into<Bytes>) {
    if let Ok(mut stream) = to.send_response(Response::new(()), false) {
        let _ = stream.send_data(text.into(), true);
    }
}

fn echo((request, to): Asked) {
    let path = request.uri().path().to_owned();
    say(to, path);
}

#[tokio::test]
async fn requests_share_a_connection_and_a_further_one_is_opened_when_its_streams_are_taken() {
    local(async {
        let (url, connections) = serving(10, |asked: Asked| async {
            sleep(Duration::from_millis(50)).await;
            echo(asked);
        })
        .await;
        let upstreams = Rc::new(over_http2(&url, &limits()));
        for (at_once, expected) in [(1, 1), (10, 1), (25, 3), (25, 3), (5, 3)] {
            let tasks: Vec<_> = (0..at_once)
                .map(|at| {
                    let upstreams = upstreams.clone();
                    spawn_local(async move { (at, get(&upstreams, &format!("/{at}")).await) })
                })
                .collect();
            for task in tasks {
                let (at, got) = task.await.unwrap();
                assert_eq!(got.unwrap(), format!("/{at}"));
            }
            assert_eq!(connections.get(), expected);
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_goes_away_again_and_again_loses_no_request() {
    local(async {
        let (url, connections) = listen(|stream, _| async move {
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let mut left = 7;
            while let Some(Ok(asked)) = connection.accept().await {
                left -= 1;
                if left == 0 {
                    connection.graceful_shutdown();
                }
                spawn_local(async {
                    sleep(Duration::from_millis(3)).await;
                    echo(asked);
                });
            }
        })
        .await;
        let upstreams = Rc::new(over_http2(&url, &limits()));
        let tasks: Vec<_> = (0..10)
            .map(|at| {
                let upstreams = upstreams.clone();
                spawn_local(async move {
                    for round in 0..20 {
                        let path = format!("/{at}/{round}");
                        let sent = request("POST", &path, "body".into());
                        let response = upstreams.send(0, sent, None, &deaf).await.unwrap();
                        assert_eq!(text(response).await.unwrap(), path);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(connections.get() > 5, "{}", connections.get());
    })
    .await;
}

#[tokio::test]
async fn no_empty_frame_is_handed_on() {
    local(async {
        let (url, _) = serving(100, |(request, mut to): Asked| async move {
            let mut stream = to.send_response(Response::new(()), false).unwrap();
            for piece in ["", "a", "", "", "b", ""] {
                stream.send_data(piece.into(), false).unwrap();
            }
            match request.uri().path() {
                "/trailers" => stream.send_trailers(HeaderMap::new()).unwrap(),
                _ => stream.send_data(Bytes::new(), true).unwrap(),
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        for path in ["/trailers", "/"] {
            let response = upstreams.send(0, request("GET", path, Body::Empty), None, &deaf).await;
            let mut body = response.unwrap().into_body();
            let mut pieces = Vec::new();
            while let Some(frame) = body.frame().await {
                pieces.extend(frame.unwrap().into_data());
            }
            assert_eq!(pieces, ["a", "b"], "{path}");
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_refused_unprocessed_is_sent_again_and_what_may_be_done_is_not() {
    local(async {
        for (reason, expected) in [(Reason::REFUSED_STREAM, 2), (Reason::INTERNAL_ERROR, 1)] {
            let asked = Rc::new(Cell::new(0));
            let counted = asked.clone();
            let (url, _) = serving(100, move |(request, mut to): Asked| {
                let counted = counted.clone();
                async move {
                    counted.set(counted.get() + 1);
                    if counted.get() == 1 {
                        return to.send_reset(reason);
                    }
                    let (body, _) = whole(request.into_body()).await;
                    say(to, body);
                }
            })
            .await;
            let upstreams = over_http2(&url, &limits());
            let sent =
                upstreams.send(0, request("POST", "/", "all of it".into()), None, &deaf).await;
            if expected == 2 {
                assert_eq!(text(sent.unwrap()).await.unwrap(), "all of it");
            } else {
                let Err(UpstreamError::Http2 { .. }) = sent else { panic!("{reason:?}") };
            }
            assert_eq!(asked.get(), expected);
        }
    })
    .await;
}

/// gRPC's requests all have bodies of unknown length.
#[tokio::test]
async fn a_refused_request_is_sent_again_from_its_beginning_if_not_much_of_it_has_gone() {
    local(async {
        for (pieces, sent_again) in [(3_u8, true), (100, false)] {
            let asked = Rc::new(Cell::new(0));
            let counted = asked.clone();
            let (url, _) = serving(100, move |(request, mut to): Asked| {
                let counted = counted.clone();
                async move {
                    counted.set(counted.get() + 1);
                    if counted.get() == 1 {
                        let mut body = request.into_body();
                        for _ in 0..3 {
                            let piece = body.data().await.unwrap().unwrap();
                            body.flow_control().release_capacity(piece.len()).unwrap();
                        }
                        sleep(Duration::from_millis(30)).await;
                        return to.send_reset(Reason::REFUSED_STREAM);
                    }
                    let (body, trailers) = whole(request.into_body()).await;
                    assert_eq!(trailers.unwrap()["x-sum"], "7");
                    say(to, body);
                }
            })
            .await;
            let upstreams = over_http2(&url, &limits());
            let (feed, body) = trailed();
            for at in 0..pieces {
                feed.send(Frame::data(vec![b'a' + at % 26; 1000].into())).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("7"));
            feed.send(Frame::trailers(trailers)).unwrap();
            drop(feed);
            let sent = upstreams.send(0, request("POST", "/", body), None, &deaf).await;
            if sent_again {
                let expected: String = ["a", "b", "c"].map(|one| one.repeat(1000)).concat();
                assert_eq!(text(sent.unwrap()).await.unwrap(), expected);
            } else {
                assert!(matches!(sent, Err(UpstreamError::Http2 { .. })));
            }
            assert_eq!(asked.get(), if sent_again { 2 } else { 1 });
        }
    })
    .await;
}

#[tokio::test]
async fn both_bodies_and_their_trailers_pass_and_nothing_of_http1_does() {
    local(async {
        let seen = Rc::<RefCell<Vec<http::request::Parts>>>::default();
        let kept = seen.clone();
        let (url, _) = serving(100, move |(request, mut to): Asked| {
            let kept = kept.clone();
            async move {
                let (parts, body) = request.into_parts();
                kept.borrow_mut().push(parts);
                let (bytes, trailers) = whole(body).await;
                let mut stream = to.send_response(Response::new(()), false).unwrap();
                stream.send_data(bytes.into(), false).unwrap();
                stream.send_trailers(trailers.unwrap_or_default()).unwrap();
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        let (feed, body) = trailed();
        let pieces: Vec<Bytes> = (0..60_u8).map(|at| vec![at; 10_000].into()).collect();
        for piece in &pieces {
            feed.send(Frame::data(piece.clone())).unwrap();
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("7"));
        feed.send(Frame::trailers(trailers.clone())).unwrap();
        drop(feed);
        let mut sent = request("POST", "/%C3%AB;x//y?q=%zz", body);
        for (name, value) in
            [("te", "trailers"), ("connection", "te"), ("transfer-encoding", "chunked")]
        {
            sent.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        let response = upstreams.send(0, sent, None, &deaf).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), pieces.concat());
        let parts = &seen.borrow()[0];
        assert_eq!(parts.uri, "http://app.example/%C3%AB;x//y?q=%zz");
        let names: Vec<_> = parts.headers.iter().collect();
        assert_eq!(names, [(&http::header::TE, &HeaderValue::from_static("trailers"))]);
    })
    .await;
}

/// A body whose frames the test sends one by one.
struct Frames(mpsc::UnboundedReceiver<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

fn trailed() -> (mpsc::UnboundedSender<Frame<Bytes>>, Body) {
    let (feed, frames) = mpsc::unbounded_channel();
    (feed, Body::stream(Frames(frames)))
}

#[tokio::test]
async fn who_does_not_read_holds_up_nobody_and_fills_no_memory() {
    local(async {
        let taken = Rc::new(Cell::new(0_usize));
        let counted = taken.clone();
        let (url, connections) = serving(100, move |(request, mut to): Asked| {
            let counted = counted.clone();
            async move {
                if request.uri().path() != "/endless" {
                    return echo((request, to));
                }
                let mut stream = to.send_response(Response::new(()), false).unwrap();
                loop {
                    stream.reserve_capacity(16 * 1024);
                    let room = std::future::poll_fn(|context| stream.poll_capacity(context)).await;
                    let Some(Ok(room)) = room else { return };
                    if stream.send_data(vec![b'x'; room].into(), false).is_err() {
                        return;
                    }
                    counted.set(counted.get() + room);
                }
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        let mut unread = Vec::new();
        for _ in 0..50 {
            let sent =
                upstreams.send(0, request("GET", "/endless", Body::Empty), None, &deaf).await;
            unread.push(sent.unwrap());
        }
        sleep(Duration::from_millis(200)).await;
        assert!(taken.get() <= 50 * 128 * 1024, "{}", taken.get());
        for at in 0..20 {
            let path = format!("/{at}");
            assert_eq!(get(&upstreams, &path).await.unwrap(), path);
        }
        assert_eq!(connections.get(), 1);
        // One that reads again gets more.
        let before = taken.get();
        unread[0].body_mut().frame().await.unwrap().unwrap();
        sleep(Duration::from_millis(50)).await;
        assert!(taken.get() > before);
    })
    .await;
}

#[tokio::test]
async fn whoever_leaves_is_reported_to_the_upstream() {
    local(async {
        let ends = Rc::<RefCell<Vec<Reason>>>::default();
        let kept = ends.clone();
        let (url, connections) = serving(100, move |(request, mut to): Asked| {
            let kept = kept.clone();
            async move {
                let mut stream = to.send_response(Response::new(()), false).unwrap();
                let reason = std::future::poll_fn(|context| stream.poll_reset(context)).await;
                kept.borrow_mut().push(reason.unwrap());
                drop(request);
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        for upload in [false, true] {
            let (feed, body) = streaming();
            let body = if upload { body } else { Body::Empty };
            let response =
                upstreams.send(0, request("POST", "/", body), None, &deaf).await.unwrap();
            drop(response);
            sleep(Duration::from_millis(50)).await;
            drop(feed);
        }
        assert_eq!(*ends.borrow(), [Reason::CANCEL, Reason::CANCEL]);
        assert_eq!(connections.get(), 1, "the connection itself is good");
    })
    .await;
}

/// A body that ends with an error, after one piece.
struct BreaksOff(bool);

impl http_body::Body for BreaksOff {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let first = !std::mem::replace(&mut self.0, true);
        let broken = || Err("the client left".into());
        Poll::Ready(Some(if first { Ok(Frame::data("half".into())) } else { broken() }))
    }
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_no_whole_upload() {
    local(async {
        let got = Rc::<RefCell<Vec<bool>>>::default();
        let kept = got.clone();
        let (url, _) = serving(100, move |(request, _to): Asked| {
            let kept = kept.clone();
            async move {
                let mut body = request.into_body();
                while let Some(Ok(_)) = body.data().await {}
                kept.borrow_mut().push(body.is_end_stream());
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        let body = Body::stream(BreaksOff(false));
        let failed = upstreams.send(0, request("POST", "/", body), None, &deaf).await;
        assert!(matches!(failed, Err(UpstreamError::Http2 { .. })));
        sleep(Duration::from_millis(50)).await;
        assert_eq!(*got.borrow(), [false]);
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_arrives_before_the_upload_has_ended() {
    local(async {
        let (url, _) = serving(100, |(request, to): Asked| async move {
            say(to, "enough");
            drop(request);
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        for _ in 0..3 {
            let (feed, body) = streaming();
            feed.send("first".into()).unwrap();
            let early = upstreams.send(0, request("POST", "/", body), None, &deaf).await.unwrap();
            assert_eq!(text(early).await.unwrap(), "enough");
        }
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_is_late_or_speaks_something_else_is_given_up() {
    local(async {
        let hurried = Limits {
            response_time: Duration::from_millis(150),
            connect_time: Duration::from_millis(300),
            ..sample::limits()
        };
        let (url, connections) = serving(100, |asked: Asked| async {
            sleep(Duration::from_secs(20)).await;
            drop(asked);
        })
        .await;
        let upstreams = over_http2(&url, &hurried);
        for round in 1..=2 {
            let late = upstreams.send(0, request("GET", "/", Body::Empty), None, &deaf).await;
            assert!(matches!(late, Err(UpstreamError::Late { .. })));
            assert_eq!(connections.get(), round, "who was late gets no more requests");
        }
        let (silent, _) = listen(|stream, _| async move {
            sleep(Duration::from_secs(20)).await;
            drop(stream);
        })
        .await;
        let (http1, _) = answering(ok("hello")).await;
        let bad = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
        let (rude, _) = answering(bad).await;
        let (gone, _) = listen(|stream, _| async move { drop(stream) }).await;
        for url in [silent, http1, rude, gone] {
            let upstreams = over_http2(&url, &hurried);
            let begun = Instant::now();
            let failed = upstreams.send(0, request("POST", "/", "x".into()), None, &deaf).await;
            let failed = failed.map(|response| response.status());
            assert!(matches!(failed, Err(UpstreamError::Connect { .. })), "{failed:?}");
            assert!(begun.elapsed() < Duration::from_secs(2));
        }
    })
    .await;
}

/// What a stalled upstream takes of an upload counts as progress, as with HTTP/1.1.
#[tokio::test]
async fn an_upstream_is_not_late_while_it_still_receives() {
    local(async {
        let (url, _) = serving(100, |(request, to): Asked| async move {
            let (bytes, _) = whole(request.into_body()).await;
            say(to, bytes.len().to_string());
        })
        .await;
        let hurried = Limits { response_time: Duration::from_millis(150), ..sample::limits() };
        let upstreams = over_http2(&url, &hurried);
        let (feed, body) = streaming();
        spawn_local(async move {
            for _ in 0..8 {
                feed.send("a piece".into()).unwrap();
                sleep(Duration::from_millis(60)).await;
            }
        });
        let response = upstreams.send(0, request("POST", "/", body), None, &deaf).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "56");
    })
    .await;
}

/// Its connection ends without a word while it is idle, and while a request is under way.
#[tokio::test]
async fn what_can_be_repeated_is_sent_once_more_when_a_connection_breaks_under_it() {
    local(async {
        let asked = Rc::new(Cell::new(0));
        let counted = asked.clone();
        let (url, _) = listen(move |stream, number| {
            let counted = counted.clone();
            async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok(asked)) = connection.accept().await {
                    counted.set(counted.get() + 1);
                    // The first connection breaks under its second request.
                    if number == 0 && counted.get() == 2 {
                        return;
                    }
                    echo(asked);
                }
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        assert_eq!(get(&upstreams, "/a").await.unwrap(), "/a");
        assert_eq!(get(&upstreams, "/b").await.unwrap(), "/b");
        assert_eq!(asked.get(), 3);
        let post = Rc::new(Cell::new(0));
        let counted = post.clone();
        let (url, _) = listen(move |stream, _| {
            let counted = counted.clone();
            async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok(asked)) = connection.accept().await {
                    if asked.0.method() == "POST" {
                        counted.set(counted.get() + 1);
                        return;
                    }
                    echo(asked);
                }
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        get(&upstreams, "/").await.unwrap();
        let failed = upstreams.send(0, request("POST", "/", Body::Empty), None, &deaf).await;
        assert!(matches!(failed, Err(UpstreamError::Http2 { .. })));
        assert_eq!(post.get(), 1, "what may have been done is not done twice");
    })
    .await;
}

/// SECURITY: response smuggling towards browsers of HTTP/1.1.
#[tokio::test]
async fn a_response_with_two_lengths_is_none() {
    local(async {
        let (url, _) = serving(100, |(_, mut to): Asked| async move {
            let mut head = Response::new(());
            for length in ["4", "40"] {
                head.headers_mut().append("content-length", HeaderValue::from_static(length));
            }
            if let Ok(mut stream) = to.send_response(head, false) {
                let _ = stream.send_data("evil".into(), true);
            }
        })
        .await;
        let failed = get(&over_http2(&url, &limits()), "/").await;
        assert!(failed.is_err(), "{failed:?}");
    })
    .await;
}

fn websocket(path: &str) -> Request<Body> {
    let mut request = request("GET", path, Body::Empty);
    let fields = request.headers_mut();
    fields.insert("upgrade", HeaderValue::from_static("websocket"));
    fields.insert("sec-websocket-key", super::websocket::key());
    request
}

/// RFC 8441.
#[tokio::test]
async fn a_websocket_has_a_stream_as_long_as_it_lasts() {
    local(async {
        let (url, connections) = serving(2, |(request, mut to): Asked| async move {
            if request.method() != "CONNECT" {
                return echo((request, to));
            }
            let (mut body, mut stream) =
                (request.into_body(), to.send_response(Response::new(()), false).unwrap());
            while let Some(Ok(piece)) = body.data().await {
                body.flow_control().release_capacity(piece.len()).unwrap();
                stream.send_data(piece, false).unwrap();
            }
            let _ = stream.send_data("bye".into(), true);
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        let open = async || {
            let response = upstreams.send(0, websocket("/"), None, &deaf).await;
            Switched::take(&mut response.unwrap()).unwrap()
        };
        let (mut one, mut other) = (open().await, open().await);
        assert_eq!(connections.get(), 1);
        assert_eq!(get(&upstreams, "/page").await.unwrap(), "/page");
        assert_eq!(connections.get(), 2, "both streams of the first are in use");

        one.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        one.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello");
        // Each way ends by itself.
        one.shutdown().await.unwrap();
        let mut rest = Vec::new();
        one.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"bye");
        other.write_all(b"still").await.unwrap();
        other.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"still");
        drop((one, other));
        let (_one, _other, _third, _fourth) =
            (open().await, open().await, open().await, open().await);
        assert_eq!(connections.get(), 2, "their streams are free again");
    })
    .await;
}

#[tokio::test]
async fn an_upstream_that_declines_a_websocket_hears_no_more_of_it() {
    local(async {
        let (told, mut ends) = mpsc::unbounded_channel();
        let (url, _) = serving(100, move |(request, mut to): Asked| {
            let told = told.clone();
            async move {
                let response = Response::builder().status(404).body(()).unwrap();
                let mut stream = to.send_response(response, false).unwrap();
                stream.send_data("no".into(), false).unwrap();
                let mut body = request.into_body();
                let mut piece = body.data().await;
                while matches!(piece, Some(Ok(_))) {
                    piece = body.data().await;
                }
                told.send(piece.is_none()).unwrap();
                stream.send_data(Bytes::new(), true).unwrap();
            }
        })
        .await;
        let upstreams = over_http2(&url, &limits());
        let mut response = upstreams.send(0, websocket("/"), None, &deaf).await.unwrap();
        assert_eq!(response.status(), 404);
        assert!(Switched::take(&mut response).is_none());
        assert_eq!(text(response).await.unwrap(), "no");
        assert_eq!(ends.recv().await, Some(true), "it ended, and was not reset");
    })
    .await;
}
