//! What operators ask: is it alive, is it ready, how much of what; and nobody else can.

use crate::support::{App, Ask, Gateway, Provider, Stage, raw, until};

#[tokio::test]
async fn it_tells_whether_it_lives_and_whether_people_can_log_in() {
    let provider = Provider::start().await;
    provider.go_down().await;
    let app = App::plain().await;
    let gateway = Gateway::with(&provider).route("/", &app).unready().start().await;
    assert_eq!(gateway.admin("/healthz").await.status, 200);
    let waiting = gateway.admin("/readyz").await;
    assert_eq!(waiting.status, 503);
    assert!(waiting.text().contains("provider"), "{}", waiting.text());
    provider.come_back().await;
    until("it is ready", async || (gateway.admin("/readyz").await.status == 200).then_some(()))
        .await;
    // Readiness is about logins having been possible: sessions outlive an outage.
    provider.go_down().await;
    assert_eq!(gateway.admin("/readyz").await.status, 200);
    assert_eq!(gateway.admin("/other").await.status, 404);
}

#[tokio::test]
async fn it_counts_requests_logins_and_updates() {
    let stage = Stage::new().await;
    let zoe = stage.gateway.browser();
    zoe.log_in("zoe", "/").await;
    stage.update(&zoe, r#"{"a":1}"#).await;
    stage.update(&zoe, "nonsense").await;
    zoe.page("/auth/logout").await;
    zoe.fetch("/x").await;
    for (line, count) in [
        ("vestibule_requests_total{route=\"/\",status=\"200\"}", 3),
        ("vestibule_requests_total{route=\"/\",status=\"303\"}", 1),
        ("vestibule_requests_total{route=\"/\",status=\"401\"}", 1),
        ("vestibule_requests_total{route=\"auth\",status=\"303\"}", 2),
        ("vestibule_logins_total{outcome=\"started\"}", 1),
        ("vestibule_logins_total{outcome=\"succeeded\"}", 1),
        ("vestibule_logins_total{outcome=\"logged_out\"}", 1),
        ("vestibule_session_updates_applied_total", 1),
        ("vestibule_session_updates_refused_total{reason=\"not_json\"}", 1),
        ("vestibule_session_updates_refused_total{reason=\"protected\"}", 0),
    ] {
        assert_eq!(stage.gateway.metric(line).await, count, "{line}");
    }
    let metrics = stage.gateway.admin("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    assert!(metrics.text().ends_with("# EOF\n"));
    assert!(metrics.text().contains("_seconds_bucket{le="), "how long requests take");
    for secret in ["zoe", "auth0"] {
        assert!(!metrics.text().contains(secret));
    }
}

/// CVE-2022-24797 (Pomerium): the operators' pages on the public listener.
#[tokio::test]
async fn the_public_listener_knows_nothing_of_it() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/app", app, r#"access = "public""#)).await;
    for path in
        ["/metrics", "/healthz", "/readyz", "/debug/pprof/", "/auth/metrics", "/auth/healthz"]
    {
        let answer = stage.gateway.browser().ask(Ask::page(path)).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(!answer.text().contains("vestibule_"), "{path}");
        assert_eq!(stage.gateway.plain(path).await.status, 308, "{path}");
    }
    // An app may have such pages itself.
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    let text =
        raw::exchange(&stage.gateway, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(text.ends_with("hello"), "{text}");
}

#[tokio::test]
async fn the_operators_listener_forwards_nothing() {
    let stage =
        Stage::with(|builder, app| builder.route_with("/", app, r#"access = "public""#)).await;
    for path in ["/", "/x", "/auth/login"] {
        assert_eq!(stage.gateway.admin(path).await.status, 404, "{path}");
    }
    assert_eq!(stage.app.seen().len(), 0);
}
