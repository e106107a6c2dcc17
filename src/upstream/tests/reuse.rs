//! When a connection is used again, and when not: no byte of one exchange is read in another.

use super::*;

#[tokio::test]
async fn a_connection_is_used_again_by_the_next_request() {
    local(async {
        let (url, connections) = answering(ok("hello")).await;
        let upstreams = to(&url);
        for _ in 0..20 {
            assert_eq!(get(&upstreams, "/").await.unwrap(), "hello");
        }
        assert_eq!(connections.get(), 1);
        // A response without a body, and one to HEAD, end with their heads.
        for (method, bytes) in [
            ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
            ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n"),
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"),
            ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"),
        ] {
            let (url, connections) = answering(bytes).await;
            let upstreams = to(&url);
            for _ in 0..3 {
                let sent = upstreams
                    .send(0, request(method, "/", Body::Empty), None, &deaf)
                    .await
                    .unwrap();
                text(sent).await.unwrap();
            }
            assert_eq!(connections.get(), 1, "{method} {bytes}");
        }
    })
    .await;
}

#[tokio::test]
async fn requests_at_once_have_connections_of_their_own() {
    local(async {
        let (url, connections) = listen(|mut stream, _| async move {
            let mut rest = Vec::new();
            while let Some(head) = head(&mut stream, &mut rest).await {
                sleep(Duration::from_millis(20)).await;
                stream.write_all(ok(path_of(&head)).as_bytes()).await.unwrap();
            }
        })
        .await;
        let upstreams = Rc::new(to(&url));
        for _ in 0..2 {
            let tasks: Vec<_> = (0..10)
                .map(|at| {
                    let upstreams = upstreams.clone();
                    spawn_local(async move { (at, get(&upstreams, &format!("/{at}")).await) })
                })
                .collect();
            for task in tasks {
                let (at, got) = task.await.unwrap();
                assert_eq!(got.unwrap(), format!("/{at}"));
            }
        }
        assert_eq!(connections.get(), 10, "and the second ten used them again");
    })
    .await;
}

/// A server's keep-alive ends between two requests, without a word and with one.
#[tokio::test]
async fn a_connection_that_its_upstream_closed_between_requests_is_no_502() {
    local(async {
        for word in ["", "connection: close\r\n"] {
            let (url, connections) = listen(move |mut stream, _| async move {
                if head(&mut stream, &mut Vec::new()).await.is_some() {
                    let bytes = format!("HTTP/1.1 200 OK\r\n{word}content-length: 2\r\n\r\nok");
                    stream.write_all(bytes.as_bytes()).await.unwrap();
                }
            })
            .await;
            let upstreams = to(&url);
            for round in 0..50_u64 {
                assert_eq!(get(&upstreams, "/").await.as_deref(), Ok("ok"), "round {round}");
                sleep(Duration::from_millis(round % 3)).await;
            }
            assert_eq!(connections.get(), 50);
        }
    })
    .await;
}

/// The end of a keep-alive that the worker has not heard of yet, for it was at work: the kernel knows.
#[tokio::test]
async fn what_cannot_be_repeated_goes_over_no_connection_that_its_upstream_has_closed() {
    use std::io::{Read, Write};
    local(async {
        for (method, body) in [("GET", ""), ("POST", ""), ("POST", "x"), ("POST", "a stream")] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let app = std::thread::spawn(move || {
                let mut asked = Vec::new();
                for _ in 0..2 {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut read = [0; 1024];
                    let length = stream.read(&mut read).unwrap();
                    asked.push(String::from_utf8_lossy(&read[..length]).into_owned());
                    stream.write_all(ok("ok").as_bytes()).unwrap();
                    std::thread::sleep(Duration::from_millis(20));
                }
                asked
            });
            let upstreams = to(&UpstreamUrl::Http { host: "127.0.0.1".to_owned(), port });
            assert_eq!(get(&upstreams, "/first").await.as_deref(), Ok("ok"));
            // The worker's loop does not turn.
            std::thread::sleep(Duration::from_millis(50));
            let body = match body {
                "" => Body::Empty,
                "a stream" => {
                    let (feed, body) = streaming();
                    feed.send("x".into()).unwrap();
                    body
                }
                body => body.into(),
            };
            let sent = upstreams.send(0, request(method, "/second", body), None, &deaf).await;
            let sent = sent.unwrap_or_else(|error| panic!("{method}: {error:?}"));
            assert_eq!(text(sent).await.as_deref(), Ok("ok"), "{method}");
            let asked = app.join().unwrap();
            let asked: Vec<&str> = asked.iter().map(|head| path_of(head)).collect();
            assert_eq!(asked, ["/first", "/second"], "{method}");
        }
    })
    .await;
}

/// `Keep-Alive: timeout=5`, as Node.js and Apache have it: the last second is not waited for.
#[tokio::test(start_paused = true)]
async fn a_connection_is_used_only_as_long_as_its_upstream_says_that_it_is_open() {
    Box::pin(tokio::task::LocalSet::new().run_until(async {
        for (field, times) in [
            ("", [(1, 1), (4, 1), (20, 1)]),
            ("keep-alive: timeout=5\r\n", [(3, 1), (4, 2), (3, 2)]),
            ("keep-alive: max=7, Timeout = \"3\"\r\n", [(1, 1), (2, 2), (1, 2)]),
            ("keep-alive: timeout=1\r\n", [(0, 2), (0, 3), (0, 4)]),
            ("keep-alive: timeout=0\r\n", [(0, 2), (0, 3), (0, 4)]),
            ("keep-alive: timeout=x, max=100\r\n", [(1, 1), (4, 1), (20, 1)]),
            ("keep-alive: timeout=99999999999999999999\r\n", [(1, 1), (4, 1), (20, 1)]),
        ] {
            let bytes = format!("HTTP/1.1 200 OK\r\n{field}content-length: 2\r\n\r\nok");
            let (url, connections) = answering(bytes).await;
            let upstreams = to(&url);
            assert_eq!(get(&upstreams, "/").await.as_deref(), Ok("ok"));
            for (wait, count) in times {
                sleep(Duration::from_secs(wait)).await;
                assert_eq!(get(&upstreams, "/").await.as_deref(), Ok("ok"));
                assert_eq!(connections.get(), count, "{field} after {wait} s");
            }
        }
    }))
    .await;
}

/// The keep-alive ends while the next request is on its way: RFC 9112, section 9.3.1.
#[tokio::test]
async fn what_can_be_repeated_is_sent_again_when_an_idle_connection_breaks_under_it() {
    local(async {
        let asked = Rc::new(Cell::new(0));
        let counted = asked.clone();
        let (url, _) = listen(move |mut stream, number| {
            let counted = counted.clone();
            async move {
                let mut rest = Vec::new();
                while head(&mut stream, &mut rest).await.is_some() {
                    counted.set(counted.get() + 1);
                    // The first connection takes a second request and closes.
                    if number == 0 && counted.get() > 1 {
                        return;
                    }
                    stream.write_all(ok("ok").as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let upstreams = to(&url);
        get(&upstreams, "/").await.unwrap();
        sleep(Duration::from_millis(30)).await;
        assert_eq!(get(&upstreams, "/").await.as_deref(), Ok("ok"));
        assert_eq!(asked.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_twice() {
    local(async {
        // The last one's upstream has begun to answer, with a hint.
        for (method, body) in
            [("POST", ""), ("POST", "x"), ("PATCH", ""), ("PUT", "x"), ("DELETE", "")]
        {
            let asked = Rc::new(Cell::new(0));
            let counted = asked.clone();
            let (url, _) = listen(move |mut stream, _| {
                let counted = counted.clone();
                async move {
                    let mut rest = Vec::new();
                    while let Some(head) = head(&mut stream, &mut rest).await {
                        if !head.starts_with("GET") {
                            counted.set(counted.get() + 1);
                            if head.starts_with("DELETE") {
                                let hint = b"HTTP/1.1 103 Early Hints\r\n\r\n";
                                stream.write_all(hint).await.unwrap();
                            }
                            return;
                        }
                        stream.write_all(ok("ok").as_bytes()).await.unwrap();
                    }
                }
            })
            .await;
            let upstreams = to(&url);
            get(&upstreams, "/").await.unwrap();
            sleep(Duration::from_millis(30)).await;
            let whole = if body.is_empty() { Body::Empty } else { body.into() };
            let sent = upstreams.send(0, request(method, "/", whole), None, &deaf).await;
            assert!(matches!(sent, Err(UpstreamError::Broken { .. })), "{method} {body}");
            assert_eq!(asked.get(), 1, "{method} {body}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_response_that_is_not_read_to_its_end_takes_its_connection_with_it() {
    local(async {
        let body = "x".repeat(1024 * 1024);
        let (url, connections) = answering(ok(&body)).await;
        let upstreams = to(&url);
        for round in 1..=5 {
            let mut response =
                upstreams.send(0, request("GET", "/", Body::Empty), None, &deaf).await.unwrap();
            if round % 2 == 0 {
                response.body_mut().frame().await.unwrap().unwrap();
            }
            drop(response);
            assert_eq!(connections.get(), round);
        }
    })
    .await;
}

/// An app that answers before it has read all, as with 413.
#[tokio::test]
async fn an_early_answer_arrives_and_its_connection_is_not_used_again() {
    local(async {
        let (url, connections) = listen(|mut stream, _| async move {
            let mut rest = Vec::new();
            head(&mut stream, &mut rest).await;
            let early = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nlarge";
            stream.write_all(early.as_bytes()).await.unwrap();
            // What comes later is read as nothing but the rest of that body.
            while stream.read_buf(&mut rest).await.unwrap_or(0) > 0 {}
        })
        .await;
        let upstreams = to(&url);
        for round in 1..=3 {
            let (feed, body) = streaming();
            feed.send("first".into()).unwrap();
            let early = upstreams.send(0, request("POST", "/", body), None, &deaf).await.unwrap();
            assert_eq!(early.status(), 413);
            assert_eq!(text(early).await.unwrap(), "large");
            assert_eq!(connections.get(), round);
            drop(feed.send("GET /smuggled HTTP/1.1\r\nhost: app.example\r\n\r\n".into()));
        }
    })
    .await;
}

#[tokio::test]
async fn an_early_answer_without_a_body_does_not_free_the_connection_either() {
    local(async {
        let (url, connections) = listen(|mut stream, _| async move {
            let mut rest = Vec::new();
            while head(&mut stream, &mut rest).await.is_some() {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                rest.clear();
            }
        })
        .await;
        let upstreams = to(&url);
        let (feed, body) = streaming();
        feed.send("first".into()).unwrap();
        let early = upstreams.send(0, request("POST", "/", body), None, &deaf).await.unwrap();
        assert_eq!(early.status(), 204);
        let next = upstreams.send(0, request("GET", "/", Body::Empty), None, &deaf).await.unwrap();
        assert_eq!((next.status().as_u16(), connections.get()), (204, 2));
        drop(feed);
    })
    .await;
}

/// It has answered, and all of the request is on its way, but it does not read that any more.
#[tokio::test]
async fn a_connection_that_is_stuck_holds_up_nobody() {
    local(async {
        let (url, connections) = listen(|mut stream, _| async move {
            let head = head(&mut stream, &mut Vec::new()).await.unwrap();
            stream.write_all(ok("early").as_bytes()).await.unwrap();
            if head.starts_with("POST") {
                std::future::pending::<()>().await;
            }
        })
        .await;
        let upstreams = to(&url);
        let body = vec![b'x'; 64 * 1024 * 1024].into();
        let early = upstreams.send(0, request("POST", "/", body), None, &deaf).await.unwrap();
        assert_eq!(text(early).await.unwrap(), "early");
        let begun = Instant::now();
        assert_eq!(get(&upstreams, "/").await.unwrap(), "early");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(connections.get(), 2);
    })
    .await;
}

/// CVE-2026-71324: whoever goes away in the middle leaves nothing behind for the next.
#[tokio::test]
async fn no_response_ever_crosses_over_however_many_requests_are_aborted() {
    local(async {
        let (url, _) = listen(|mut stream, number| async move {
            let (mut rest, mut served) = (Vec::new(), number);
            while let Some(head) = head(&mut stream, &mut rest).await {
                served += 1;
                let body = path_of(&head).repeat(200);
                let bytes = ok(&body);
                let (one, other) = bytes.split_at(served * 37 % bytes.len());
                for part in [one, other] {
                    if stream.write_all(part.as_bytes()).await.is_err() {
                        return;
                    }
                    sleep(Duration::from_micros((served * 331 % 1500) as u64)).await;
                }
            }
        })
        .await;
        let upstreams = Rc::new(to(&url));
        let tasks: Vec<_> = (0..16_u64)
            .map(|user| {
                let upstreams = upstreams.clone();
                spawn_local(async move {
                    let mut whole = 0;
                    for round in 0..60_u64 {
                        let path = format!("/user{user}-{round}.");
                        let patience = Duration::from_micros((user * 61 + round * 97) % 6000);
                        if let Ok(got) = timeout(patience, get(&upstreams, &path)).await {
                            assert_eq!(got.unwrap(), path.repeat(200));
                            whole += 1;
                        }
                    }
                    whole
                })
            })
            .collect();
        let mut whole = 0;
        for task in tasks {
            whole += task.await.unwrap();
        }
        assert!((50..950).contains(&whole), "some were aborted and some were not: {whole}");
    })
    .await;
}

/// Response queue poisoning: what an upstream sends too much of is nobody's response.
#[tokio::test]
async fn surplus_bytes_are_no_response_to_the_next_request() {
    local(async {
        let evil = ok("evil");
        for bytes in [
            format!("{}{evil}", ok("good")),
            format!("HTTP/1.1 204 No Content\r\ncontent-length: 4\r\n\r\n{evil}"),
            format!("HTTP/1.1 304 Not Modified\r\n\r\n{evil}"),
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n{evil}"
            ),
            format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ngood\r\n{evil}"),
        ] {
            let (url, _) = answering(bytes.clone()).await;
            let upstreams = to(&url);
            for round in 0..20_u64 {
                // A connection that breaks for its surplus may take a request with it.
                let got = get(&upstreams, "/").await.unwrap_or_default();
                assert!(["good", ""].contains(&got.as_str()), "{got} after {bytes}");
                if round % 2 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
        }
        // It comes late, when the connection is idle.
        let (url, connections) = listen(move |mut stream, _| async move {
            head(&mut stream, &mut Vec::new()).await;
            stream.write_all(ok("good").as_bytes()).await.unwrap();
            sleep(Duration::from_millis(20)).await;
            let _ = stream.write_all(ok("evil").as_bytes()).await;
            sleep(Duration::from_secs(5)).await;
        })
        .await;
        let upstreams = to(&url);
        for round in 1..=3 {
            assert_eq!(get(&upstreams, "/").await.unwrap(), "good");
            sleep(Duration::from_millis(60)).await;
            // Once more: on a busy machine both sleeps may end in the same turn.
            sleep(Duration::from_millis(5)).await;
            assert_eq!(connections.get(), round);
        }
    })
    .await;
}

/// A request that ends each connection it is sent over must not end them all.
#[tokio::test]
async fn what_can_be_repeated_is_repeated_once() {
    local(async {
        let asked = Rc::new(Cell::new(0));
        let counted = asked.clone();
        let (url, _) = listen(move |mut stream, _| {
            let counted = counted.clone();
            async move {
                let mut rest = Vec::new();
                while let Some(head) = head(&mut stream, &mut rest).await {
                    if path_of(&head) == "/deadly" {
                        counted.set(counted.get() + 1);
                        return;
                    }
                    sleep(Duration::from_millis(20)).await;
                    stream.write_all(ok("ok").as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let upstreams = Rc::new(to(&url));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let upstreams = upstreams.clone();
                spawn_local(async move { get(&upstreams, "/").await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let sent = upstreams.send(0, request("GET", "/deadly", Body::Empty), None, &deaf).await;
        assert!(matches!(sent, Err(UpstreamError::Broken { .. })));
        assert_eq!(asked.get(), 2);
        assert_eq!(get(&upstreams, "/").await.as_deref(), Ok("ok"));
    })
    .await;
}

/// Nobody reads an idle connection: without a look now and then it would stay half open for ever.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_its_upstream_closed_or_that_is_old_is_closed_here_too() {
    Box::pin(tokio::task::LocalSet::new().run_until(async {
        for (closes, after) in [(true, 6), (false, 56)] {
            let left = Rc::new(Cell::new(false));
            let leaving = left.clone();
            let (url, _) = listen(move |mut stream, _| {
                let leaving = leaving.clone();
                async move {
                    let mut rest = Vec::new();
                    head(&mut stream, &mut rest).await;
                    stream.write_all(ok("ok").as_bytes()).await.unwrap();
                    if closes {
                        stream.shutdown().await.unwrap();
                    }
                    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
                    leaving.set(true);
                }
            })
            .await;
            let upstreams = to(&url);
            assert_eq!(get(&upstreams, "/").await.as_deref(), Ok("ok"));
            sleep(Duration::from_secs(after - 2)).await;
            assert!(!left.get());
            sleep(Duration::from_secs(4)).await;
            // Time is not real here, but the sockets are.
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            assert!(left.get(), "{closes}");
        }
    }))
    .await;
}
