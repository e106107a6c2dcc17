//! What is not HTTP, or more of it than anyone needs.

use super::*;

/// What becomes of a response of these bytes, after which the upstream stays silent or closes.
async fn becomes(bytes: &str, closes: bool) -> Result<String, UpstreamError> {
    let bytes: Rc<str> = bytes.into();
    let (url, _) = listen(move |mut stream, _| {
        let bytes = bytes.clone();
        async move {
            head(&mut stream, &mut Vec::new()).await;
            let _ = stream.write_all(bytes.as_bytes()).await;
            if !closes {
                sleep(Duration::from_secs(20)).await;
            }
        }
    })
    .await;
    let response = to(&url).send(0, request("GET", "/", Body::Empty), None, &deaf).await?;
    Ok(text(response).await.unwrap_or_else(|error| format!("broke off: {error}")))
}

#[tokio::test]
async fn what_is_not_http_is_a_broken_exchange() {
    local(async {
        for bytes in [
            "hello\r\n\r\n",
            "\0\0\0\0\0\0\0\0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/0.9 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 99 Low\r\n\r\n",
            "HTTP/1.1 20 Short\r\n\r\n",
            "HTTP/1.1 2000 Long\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: no name\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx : z\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\r\n folded: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ncontent-length: 1x\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let got = becomes(bytes, false).await;
            assert!(matches!(got, Err(UpstreamError::Broken { .. })), "{bytes}: {got:?}");
        }
        for bytes in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
            let got = becomes(bytes, true).await;
            assert!(matches!(got, Err(UpstreamError::Broken { .. })), "{bytes}: {got:?}");
        }
    })
    .await;
}

/// RFC 9112, section 6.3.
#[tokio::test]
async fn a_response_whose_length_can_be_read_in_two_ways_is_refused() {
    local(async {
        for lines in [
            "content-length: 4\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 9",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked, identity",
            "transfer-encoding: xchunked",
            "transfer-encoding: ",
            "content-length: 4\r\ncontent-length: 4",
            "content-length: 4, 4",
        ] {
            let bytes = format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n4\r\ngood\r\n0\r\n\r\n");
            let got = becomes(&bytes, true).await;
            assert!(matches!(got, Err(UpstreamError::Broken { .. })), "{lines}: {got:?}");
        }
        let plain = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n4\r\ngood\r\n0\r\n\r\n";
        assert_eq!(becomes(plain, false).await.unwrap(), "good");
        let until_its_end = "HTTP/1.1 200 OK\r\n\r\ngood";
        assert_eq!(becomes(until_its_end, true).await.unwrap(), "good");
        assert_eq!(becomes("HTTP/1.0 200 OK\r\n\r\ngood", true).await.unwrap(), "good");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_taken_for_whole() {
    local(async {
        for bytes in [
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhal",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhalf\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-4\r\nhalf\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nhalf",
        ] {
            let got = becomes(bytes, true).await.unwrap();
            assert!(got.starts_with("broke off"), "{bytes}: {got}");
        }
    })
    .await;
}

/// RFC 9110, section 15.2.
#[tokio::test]
async fn what_comes_before_the_response_is_heard_but_for_what_two_ends_say_to_each_other() {
    local(async {
        let bytes = format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n\
             HTTP/1.1 199 Whatever\r\n\r\n{}",
            ok("final")
        );
        let heard = Rc::new(RefCell::new(Vec::new()));
        let told = heard.clone();
        let hear = move |status: StatusCode, fields: HeaderMap| {
            told.borrow_mut().push((status.as_u16(), fields.len()));
        };
        let (url, _) = answering(bytes).await;
        let upstreams = to(&url);
        let sent = upstreams.send(0, request("GET", "/", Body::Empty), None, &hear).await;
        assert_eq!(text(sent.unwrap()).await.unwrap(), "final");
        assert_eq!(*heard.borrow(), [(103, 1), (199, 0)]);
    })
    .await;
}

#[tokio::test]
async fn a_head_without_end_is_given_up_long_before_memory_is() {
    local(async {
        let many =
            |count: usize| -> String { (0..count).map(|at| format!("x-{at}: y\r\n")).collect() };
        // As many as HTTP/2 lets an app send.
        for count in [99, 100, 1000, 8191] {
            let most = format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", many(count));
            assert_eq!(becomes(&most, false).await.unwrap(), "ok", "{count}");
        }
        let over = format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", many(8192));
        assert!(matches!(becomes(&over, false).await, Err(UpstreamError::Broken { .. })));
        let long = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1024 * 1024));
        assert!(matches!(becomes(&long, false).await, Err(UpstreamError::Broken { .. })));
        let sent = Rc::new(Cell::new(0));
        let counted = sent.clone();
        let (url, _) = listen(move |mut stream, _| {
            let counted = counted.clone();
            async move {
                head(&mut stream, &mut Vec::new()).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
                while stream.write_all(&[b'y'; 4096]).await.is_ok() {
                    counted.set(counted.get() + 4096);
                }
            }
        })
        .await;
        let failed = to(&url)
            .send(0, request("GET", "/", Body::Empty), None, &deaf)
            .await
            .map(|it| it.status());
        assert!(matches!(failed, Err(UpstreamError::Broken { .. })), "{failed:?}");
        sleep(Duration::from_millis(50)).await;
        // What the sockets hold is more than what the gateway has read.
        assert!(sent.get() < 16 * 1024 * 1024, "{}", sent.get());
    })
    .await;
}

/// It may say one thing after another for ever, and none of it the answer: as fast as it can, or
/// now and then.
#[tokio::test]
async fn interim_responses_without_end_are_too_much() {
    local(async {
        let (url, _) = listen(|mut stream, _| async move {
            head(&mut stream, &mut Vec::new()).await;
            let many = "HTTP/1.1 102 Processing\r\n\r\n".repeat(500);
            while stream.write_all(many.as_bytes()).await.is_ok() {}
        })
        .await;
        let failed = to(&url).send(0, request("GET", "/", Body::Empty), None, &deaf).await;
        let failed = failed.map(|it| it.status());
        let long = |error: &_| matches!(error, ExchangeError::HeadTooLong);
        let Err(UpstreamError::Broken { source, .. }) = &failed else { panic!("{failed:?}") };
        assert!(long(source), "{failed:?}");
    })
    .await;
}

#[tokio::test]
async fn interim_responses_without_end_are_late() {
    local(async {
        let (url, _) = listen(|mut stream, _| async move {
            head(&mut stream, &mut Vec::new()).await;
            while stream.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let limits = Limits { response_time: Duration::from_millis(150), ..sample::limits() };
        let upstreams = with(vec![url], &limits, roots());
        let failed = upstreams.send(0, request("GET", "/", Body::Empty), None, &deaf).await;
        let failed = failed.map(|it| it.status());
        assert!(matches!(failed, Err(UpstreamError::Late { .. })), "{failed:?}");
    })
    .await;
}

#[tokio::test]
async fn trailers_arrive_after_the_body() {
    local(async {
        let bytes = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                     4\r\nbody\r\n0\r\nx-sum: 1\r\n\r\n";
        let (url, connections) = answering(bytes).await;
        let upstreams = to(&url);
        for _ in 0..2 {
            let sent =
                upstreams.send(0, request("GET", "/", Body::Empty), None, &deaf).await.unwrap();
            let whole = sent.into_body().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()["x-sum"], "1");
            assert_eq!(whole.to_bytes(), "body");
        }
        assert_eq!(connections.get(), 1);
    })
    .await;
}
