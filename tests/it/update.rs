//! `X-Session-Update`: what an app's response changes, what it does not, and who gets to see it.

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    App, Ask, Browser, Gateway, PROTOCOLS, Protocol, Raw, Reply, Stage, join_all, raw,
};

/// The counter of refused updates.
async fn refused(gateway: &Gateway, reason: &str) -> u64 {
    let name = format!("vestibule_session_updates_refused_total{{reason=\"{reason}\"}}");
    gateway.metric(&name).await
}

async fn applied(gateway: &Gateway) -> u64 {
    gateway.metric("vestibule_session_updates_applied_total").await
}

/// The member of the browser's session.
async fn member(browser: &Browser, name: &str) -> Value {
    browser.profile().await.unwrap()[name].clone()
}

#[tokio::test]
async fn an_update_is_read_from_every_status() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        for status in
            [200, 201, 204, 206, 301, 302, 303, 304, 307, 400, 401, 403, 404, 410, 500, 503]
        {
            let update = json!({ "status": status }).to_string();
            stage.app.say(Reply::new(status).update(update));
            let answer = zoe.fetch("/").await;
            assert_eq!(answer.status.as_u16(), status, "the status itself passes");
            assert_eq!(answer.header("x-session-update"), None, "{status}");
            assert!(answer.set_cookie("__Host-session").is_some(), "{status}");
            assert_eq!(member(&zoe, "status").await, status, "{status}");
        }
        assert_eq!(applied(&stage.gateway).await, 16);
    }
}

#[tokio::test]
async fn an_update_is_read_from_the_answer_to_any_method() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"];
    for method in methods {
        stage.app.say(Reply::new(200).update(json!({ "method": method }).to_string()));
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        zoe.ask(Ask { method: method.clone(), ..Ask::fetch("/") }).await;
        assert_eq!(member(&zoe, "method").await, method.as_str());
    }
}

#[tokio::test]
async fn an_update_is_a_merge_patch() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, r#"{"theme":"dark","features":{"beta":true,"old":1},"draft":"x"}"#).await;
    stage.update(&zoe, r#"{"features":{"old":null,"new":[1,2]},"draft":null,"cart":{}}"#).await;
    let session = zoe.profile().await.unwrap();
    assert_eq!(session["theme"], "dark");
    assert_eq!(session["features"], json!({ "beta": true, "new": [1, 2] }));
    assert_eq!(session.get("draft"), None);
    assert_eq!(session["cart"], json!({}));
    // RFC 7396, section 2: an array is replaced whole.
    stage.update(&zoe, r#"{"features":{"new":[3]}}"#).await;
    assert_eq!(member(&zoe, "features").await["new"], json!([3]));
}

#[tokio::test]
async fn an_app_may_write_utf8_or_escapes() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, "{\"a\":\"Zoë 李 🦊\"}").await;
    stage.update(&zoe, r#"{"b":"Zo\u00eb \u674e \ud83e\udd8a"}"#).await;
    let session = zoe.profile().await.unwrap();
    assert_eq!(session["a"], "Zoë 李 🦊");
    assert_eq!(session["a"], session["b"]);
}

#[tokio::test]
async fn several_lines_and_folded_lines_are_applied_in_order() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let reply = Reply::new(200)
            .update(r#"{"n":1,"a":"first"}"#)
            .header("x-session-UPDATE", r#"{"n":2,"b":"a,b"}, {"n":3,"c":{"d":1}}"#)
            .update(r#"{"n":4}"#);
        stage.app.say(reply);
        let answer = zoe.fetch("/").await;
        assert!(!answer.headers.contains_key("x-session-update"));
        let session = zoe.profile().await.unwrap();
        assert_eq!(
            (&session["n"], &session["a"], &session["b"]),
            (&json!(4), &json!("first"), &json!("a,b"))
        );
        assert_eq!(session["c"]["d"], 1);
    }
}

#[tokio::test]
async fn of_several_lines_all_are_applied_or_none() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    for second in ["{", "7", r#"{"tokenSet":{"accessToken":"mine"}}"#, r#"{"user":{"sub":"x"}}"#] {
        stage.app.say(Reply::new(200).update(r#"{"first":true}"#).update(second));
        zoe.fetch("/").await;
        assert_eq!(member(&zoe, "first").await, Value::Null, "{second}");
    }
}

#[tokio::test]
async fn counting_is_atomic() {
    let stage = Stage::new().await;
    stage.app.say(Reply::new(200).update(r#"{"pageViews":{"$add":1},"deep":{"n":{"$add":-0.5}}}"#));
    for protocol in PROTOCOLS {
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let requests: Vec<_> = (0..40).map(|_| zoe.fetch("/")).collect();
        for answer in join_all(requests).await {
            assert_eq!(answer.status, 200);
        }
        let session = zoe.profile().await.unwrap();
        assert_eq!(session["pageViews"], 40);
        assert_eq!(session["deep"]["n"], -20.0);
    }
}

/// SDK #1286, #544: the later response erased the earlier one's update.
#[tokio::test]
async fn updates_of_parallel_requests_all_survive() {
    // Each request sets a member of its own, and all are answered at the same moment.
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(20));
    let app = App::start_later(move |seen| {
        let barrier = barrier.clone();
        async move {
            let Some(name) = seen.target.strip_prefix("/set/") else { return Reply::new(200) };
            barrier.wait().await;
            Reply::new(200).update(json!({ name: true, "shared": { name: 1 } }).to_string())
        }
    })
    .await;
    let stage = Stage::before(app).await;
    for protocol in PROTOCOLS {
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let paths: Vec<_> = (0..20).map(|number| format!("/set/k{number}")).collect();
        join_all(paths.iter().map(|path| zoe.fetch(path))).await;
        let session = zoe.profile().await.unwrap();
        for number in 0..20 {
            assert_eq!(session[format!("k{number}")], true, "{session}");
            assert_eq!(session["shared"][format!("k{number}")], 1, "{session}");
        }
    }
}

#[tokio::test]
async fn a_request_after_the_updates_response_sees_it_even_with_the_cookie_from_before() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let another_tab = zoe.copy();
    stage.update(&zoe, r#"{"step":2}"#).await;
    // Its cookie is from before the update.
    let answer = another_tab.fetch("/").await;
    assert_eq!(stage.app.last().session().unwrap()["step"], 2);
    let newer = answer.set_cookie("__Host-session");
    assert!(newer.is_some(), "it is given the newer cookie");
    assert_eq!(another_tab.cookie("__Host-session"), zoe.cookie("__Host-session"));
    assert!(another_tab.fetch("/").await.set_cookies().is_empty(), "once");
}

#[tokio::test]
async fn a_bare_null_ends_the_session() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let copied = zoe.copy();
        let answer = stage.update(&zoe, "null").await;
        assert_eq!(answer.status, 200);
        assert!(answer.set_cookie("__Host-session").unwrap().contains("Max-Age=0"));
        assert_eq!(zoe.profile().await, None);
        assert_eq!(copied.profile().await, None, "and copies of its cookie are dead");
    }
}

#[tokio::test]
async fn an_update_is_read_from_trailers_and_taken_off_them() {
    for protocol in PROTOCOLS {
        let stage = Stage::new().await;
        let zoe = stage.signed_in_over("zoe", protocol).await;
        let reply = Reply::new(200)
            .header("Trailer", "X-Checksum, X-Session-Update")
            .body("streamed")
            .trailer("X-Checksum", "abc")
            .trailer("x-session-update", r#"{"late":true}"#)
            .trailer("X-Session-Update", r#"{"later":true}"#);
        stage.app.say(reply);
        let ask = Ask::fetch("/").header("te", "trailers");
        let answer = zoe.ask(ask).await;
        assert_eq!(answer.text(), "streamed");
        assert_eq!(answer.trailers.get("x-checksum").unwrap(), "abc", "others pass");
        assert!(!answer.trailers.contains_key("x-session-update"), "{:?}", answer.trailers);
        assert_eq!(member(&zoe, "late").await, true);
        assert_eq!(member(&zoe, "later").await, true);
        assert_eq!(applied(&stage.gateway).await, 1);
    }
}

#[tokio::test]
async fn a_refused_update_in_trailers_is_counted() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    stage.app.say(Reply::new(200).body("x").trailer("X-Session-Update", "[1]"));
    assert_eq!(zoe.fetch("/").await.text(), "x");
    assert_eq!(refused(&stage.gateway, "not_an_object").await, 1);
}

#[tokio::test]
async fn an_interim_response_changes_nothing_and_shows_nothing() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http1).await;
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\
                   X-Session-Update: {\"early\":true}\r\n\r\n";
    stage.app.say(Reply::new(200).after(interim).body("done"));
    let mut client = Raw::open(&stage.gateway).await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    client
        .send(format!("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: __Host-session={cookie}\r\nConnection: close\r\n\r\n"))
        .await;
    let response = client.read_to_close().await;
    assert!(response.contains("done"), "{response}");
    assert!(!response.to_ascii_lowercase().contains("x-session-update"), "{response}");
    assert_eq!(member(&zoe, "early").await, Value::Null);
}

#[tokio::test]
async fn every_refusal_is_whole_counted_and_logged_and_the_response_passes() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_with("/some", app, r#"session_update = ["theme"]"#)
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    stage.update(&zoe, r#"{"word":"w","theme":"light"}"#).await;
    let before = zoe.profile().await.unwrap();

    let deep = format!("{}1{}", r#"{"a":"#.repeat(33), "}".repeat(33));
    let huge = format!(r#"{{"a":"{}"}}"#, "x".repeat(16 * 1024));
    let large = format!(r#"{{"a":"{}"}}"#, noise(13_000));
    for (reason, path, update) in [
        ("not_json", "/", r#"{"theme":"dark""#),
        ("not_json", "/", "theme=dark"),
        ("not_json", "/", r#"{"theme":"dark"}; path=/"#),
        ("not_json", "/", ""),
        ("not_an_object", "/", "7"),
        ("not_an_object", "/", r#"["theme"]"#),
        ("not_an_object", "/", r#""null""#),
        ("too_deep", "/", &deep),
        ("too_large", "/", &huge),
        ("session_too_large", "/", &large),
        ("key_not_allowed", "/some", r#"{"theme":"dark","word":"x"}"#),
        ("protected", "/", r#"{"theme":"dark","tokenSet":{"accessToken":"mine"}}"#),
        ("protected", "/", r#"{"theme":"dark","user":{"sub":"auth0|bob"}}"#),
        ("protected", "/", r#"{"user":{"iss":"https://evil.example/"}}"#),
        ("protected", "/", r#"{"user":{"aud":"other"}}"#),
        ("protected", "/", r#"{"user":{"sid":"other"}}"#),
        ("protected", "/", r#"{"user":{"org_id":"org_evil"}}"#),
        ("protected", "/", r#"{"user":null}"#),
        ("protected", "/", r#"{"user":"auth0|bob"}"#),
        ("not_a_number", "/", r#"{"theme":"dark","word":{"$add":1}}"#),
        ("not_a_number", "/", r#"{"n":{"$add":"1"}}"#),
    ] {
        let count = refused(&stage.gateway, reason).await;
        stage.app.say(
            Reply::new(418).update(update).header("X-Other", "kept").body("the app has acted"),
        );
        let answer = zoe.fetch(path).await;
        let shown = update.chars().take(60).collect::<String>();
        assert_eq!(answer.status, 418, "{shown}");
        assert_eq!(answer.text(), "the app has acted", "{shown}");
        assert_eq!(answer.header("x-other"), Some("kept"), "{shown}");
        assert_eq!(answer.header("x-session-update"), None, "{shown}");
        assert_eq!(answer.set_cookies(), Vec::<&str>::new(), "{shown}");
        assert_eq!(zoe.profile().await.unwrap(), before, "{shown}");
        assert_eq!(refused(&stage.gateway, reason).await, count + 1, "{reason}: {shown}");
        let line = stage
            .gateway
            .logged(&["WARN", &format!("route=\"{path}\""), &format!("reason=\"{reason}\"")])
            .await;
        assert!(!line.contains("dark") && !line.contains("mine"), "{line}");
    }
    assert_eq!(applied(&stage.gateway).await, 1);
}

/// CVE-2021-26691 (Apache `mod_session`): a hostile origin's session header overflowed a buffer.
#[tokio::test]
async fn a_huge_update_is_refused_and_nothing_breaks() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    for size in [17_000, 60_000, 300_000] {
        let update = format!(r#"{{"a":"{}"}}"#, "x".repeat(size));
        let status = stage.update(&zoe, update).await.status.as_u16();
        // Past what the gateway takes for an upstream's head at all, the app's response is no good.
        assert!([200, 502].contains(&status), "{size}: {status}");
        assert_eq!(zoe.fetch("/").await.status, 200);
        assert_eq!(member(&zoe, "a").await, Value::Null);
    }
    assert!(refused(&stage.gateway, "too_large").await >= 1);
}

#[tokio::test]
async fn an_update_without_a_session_is_refused() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_with("/open", app, r#"access = "optional""#).route_with(
            "/public",
            app,
            r#"access = "public""#,
        )
    })
    .await;
    let nobody = stage.gateway.browser();
    let zoe = stage.signed_in("zoe").await;
    stage.app.say(Reply::new(200).update(r#"{"a":1}"#).body("x"));
    for (count, (browser, path)) in
        [(&nobody, "/open"), (&nobody, "/public"), (&zoe, "/public")].into_iter().enumerate()
    {
        let answer = browser.fetch(path).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "x"));
        assert_eq!(answer.header("x-session-update"), None, "{path}");
        assert_eq!(answer.set_cookies(), Vec::<&str>::new(), "{path}");
        let refused = refused(&stage.gateway, "no_session").await;
        assert_eq!(refused, count as u64 + 1, "{path}");
    }
    assert_eq!(member(&zoe, "a").await, Value::Null, "a public route has no session to change");
}

#[tokio::test]
async fn a_route_may_change_all_some_or_nothing() {
    let stage = Stage::with(|builder, app| {
        builder
            .route("/", app)
            .route_with("/some", app, r#"session_update = ["theme", "cart"]"#)
            .route_with("/none", app, "session_update = false")
    })
    .await;
    let zoe = stage.signed_in("zoe").await;
    for (path, update, done) in [
        ("/some", r#"{"theme":"dark"}"#, true),
        ("/some", r#"{"cart":{"apples":2},"theme":null}"#, true),
        ("/some", r#"{"cart":{},"user":{"nickname":"Al"}}"#, false),
        ("/some", r#"{"themes":1}"#, false),
        ("/none", r#"{"theme":"dark"}"#, false),
        ("/", r#"{"anything":1}"#, true),
    ] {
        let before = zoe.profile().await;
        stage.app.say(Reply::new(200).update(update));
        zoe.fetch(path).await;
        assert_eq!(zoe.profile().await != before, done, "{path} {update}");
    }
    assert_eq!(refused(&stage.gateway, "key_not_allowed").await, 3);
}

#[tokio::test]
async fn what_an_app_echoes_unchanged_is_taken_and_internal_is_left_out() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let session = zoe.profile().await.unwrap();
    // `updateSession({ ...session, theme: "dark" })`, as apps written for the SDK do it.
    let mut whole = session.clone();
    whole["theme"] = "dark".into();
    whole["internal"] = json!({ "sid": "x", "createdAt": 1 });
    stage.update(&zoe, whole.to_string()).await;
    let after = zoe.profile().await.unwrap();
    assert_eq!(after["theme"], "dark");
    assert_eq!(after["user"], session["user"]);
    assert_eq!(after.get("internal"), None);
    assert_eq!(applied(&stage.gateway).await, 1);
}

/// SDK: `{}` left a session without a user that still counted as signed in.
#[tokio::test]
async fn an_empty_update_changes_nothing() {
    let stage = Stage::new().await;
    let zoe = stage.signed_in("zoe").await;
    let before = zoe.profile().await;
    let answer = stage.update(&zoe, "{}").await;
    assert_eq!(answer.set_cookies(), Vec::<&str>::new());
    assert_eq!(zoe.profile().await, before);
}

#[tokio::test]
async fn an_app_never_sees_an_update_that_a_client_sends() {
    let stage = Stage::with(|builder, app| {
        builder.route("/", app).route_with("/public", app, r#"access = "public""#)
    })
    .await;
    let zoe = stage.signed_in_over("zoe", Protocol::Http1).await;
    let cookie = zoe.cookie("__Host-session").unwrap();
    for name in [
        "X-Session-Update",
        "x-session-update",
        "X_Session_Update",
        "x_session_update",
        "X.Session.Update",
        "X-Session_Update",
        "X_SESSION-update",
    ] {
        for (method, path) in [("GET", "/"), ("POST", "/"), ("OPTIONS", "/"), ("GET", "/public")] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{name}: {{\"forged\":1}}\r\n\
                 Cookie: __Host-session={cookie}\r\nContent-Length: 0\r\n\r\n"
            );
            let response = raw::exchange(&stage.gateway, request).await;
            assert_eq!(raw::status(&response), 200, "{response}");
            let seen = stage.app.last();
            assert!(!seen.holds("forged"), "{name}: {}", String::from_utf8_lossy(&seen.raw));
            assert_eq!(member(&zoe, "forged").await, Value::Null);
        }
    }
}

#[tokio::test]
async fn an_app_that_mirrors_a_request_does_not_let_a_client_update() {
    let app = App::start(|seen| {
        let mut reply = Reply::new(200);
        for (name, value) in seen.headers.iter().chain(&seen.trailers) {
            if name.to_ascii_lowercase().starts_with('x') {
                reply = reply.header(name, value);
            }
        }
        reply
    })
    .await;
    let stage = Stage::before(app).await;
    let zoe = stage.signed_in("zoe").await;
    let before = zoe.profile().await;
    let ask = Ask::post("/", "{}")
        .header("x-session-update", r#"{"forged":1}"#)
        .trailer("x-session-update", r#"{"forged":2}"#);
    zoe.ask(ask).await;
    assert_eq!(zoe.profile().await, before);
}

#[tokio::test]
async fn a_response_under_way_at_logout_cannot_bring_the_session_back() {
    let arrived = std::sync::Arc::new(tokio::sync::Notify::new());
    let release = std::sync::Arc::new(tokio::sync::Notify::new());
    let (at_app, go_on) = (arrived.clone(), release.clone());
    let app = App::start_later(move |seen| {
        let (at_app, go_on) = (at_app.clone(), go_on.clone());
        async move {
            if seen.path() == "/slow" {
                at_app.notify_one();
                go_on.notified().await;
                return Reply::new(200).update(r#"{"late":true}"#);
            }
            Reply::new(200)
        }
    })
    .await;
    let stage = Stage::before(app).await;
    let zoe = stage.signed_in("zoe").await;
    let slow = async {
        let answer = zoe.fetch("/slow").await;
        assert_eq!(answer.status, 200);
        let revived =
            answer.set_cookie("__Host-session").filter(|line| !line.contains("Max-Age=0"));
        assert_eq!(revived, None);
    };
    let logout = async {
        arrived.notified().await;
        zoe.page("/auth/logout").await;
        release.notify_one();
    };
    tokio::join!(slow, logout);
    assert_eq!(zoe.profile().await, None);
    assert_eq!(refused(&stage.gateway, "no_session").await, 1);
}

/// Text that does not compress, of a length.
fn noise(length: usize) -> String {
    (0..length).map(|at| char::from(b'a' + u8::try_from(at * at % 26).unwrap())).collect()
}
