//! The whole way against a certified provider that we did not write: the npm package
//! `oidc-provider`, in `tests/oidc-provider`. It takes the standard at its word where Auth0 does
//! not: the user's claims are in userinfo, a refresh token is given only to who asks for consent, one
//! that is used twice ends everything, and every answer says who it is from.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::support::gateway::Builder;
use crate::support::program::{Program, repository};
use crate::support::provider::{CLIENT, Issuer, SECRET};
use crate::support::wire::parameter;
use crate::support::{Answer, App, Ask, Browser, Gateway, PROTOCOLS, Protocol, free_port, until};

/// The provider. Whoever types a name into its page is that user.
struct Certified {
    issuer: String,
    gateway_port: u16,
    program: Program,
}

impl Certified {
    async fn start() -> Self {
        Self::start_with(&json!({})).await
    }

    /// With other arguments for its `server.mjs`.
    async fn start_with(over: &Value) -> Self {
        let package = repository("tests/oidc-provider");
        assert!(
            package.join("node_modules/oidc-provider").exists(),
            "the provider is not installed: npm ci --prefix tests/oidc-provider, or run tests/run"
        );
        let (port, gateway_port) = (free_port(), free_port());
        let mut arguments = json!({
            "port": port, "origin": format!("https://localhost:{gateway_port}"),
            "clientId": CLIENT, "clientSecret": SECRET, "algorithm": "ES256", "tokenSeconds": 3600,
        });
        let over = over.as_object().unwrap().clone();
        arguments.as_object_mut().unwrap().extend(over);
        let mut command = Command::new("node");
        command.arg(package.join("server.mjs")).arg(arguments.to_string());
        let mut program = Program::start(&mut command, "install Debian's nodejs, or run tests/run");
        program.listens(port).await;
        Self { issuer: format!("http://127.0.0.1:{port}"), gateway_port, program }
    }

    /// How often it has said this.
    fn said(&self, what: &str) -> usize {
        let output = self.program.output();
        output.lines().filter(|line| line.strip_prefix("event: ") == Some(what)).count()
    }
}

impl Issuer for Certified {
    fn issuer(&self) -> &str {
        &self.issuer
    }

    fn gateway_port(&self) -> u16 {
        self.gateway_port
    }
}

/// A gateway that asks for a refresh token as OpenID Connect Core, section 11, wants it.
fn gateway(provider: &Certified) -> Builder {
    Gateway::with(provider).provider("login_params = { prompt = \"consent\" }")
}

/// Its two pages: the name, then the consent.
async fn sign_in(browser: &Browser, name: &str, target: &str) -> Answer {
    let page = browser.open(target).await;
    assert!(page.text().contains("Enter any login"), "{} {}", page.url, page.text());
    let page = browser.submit(&page, &[("login", name), ("password", "any")]).await;
    assert!(page.text().contains("offline access"), "{} {}", page.url, page.text());
    browser.submit(&page, &[]).await
}

#[tokio::test]
async fn somebody_signs_in_at_a_certified_provider() {
    for (protocol, algorithm) in PROTOCOLS.into_iter().zip(["ES256", "RS256"]) {
        let provider = Certified::start_with(&json!({ "algorithm": algorithm })).await;
        let app = App::plain().await;
        let gateway = gateway(&provider).route("/", &app).start().await;
        let zoe = gateway.browser_over(protocol);

        let page = sign_in(&zoe, "zoe", "/inbox?sort=date").await;

        assert_eq!((page.status.as_u16(), page.text().as_str()), (200, "hello"));
        assert_eq!(page.url, zoe.url("/inbox?sort=date"));
        let callback = page.hops.iter().find(|url| url.path() == "/auth/callback").unwrap();
        // RFC 9207.
        assert_eq!(parameter(callback, "iss").as_deref(), Some(provider.issuer()));
        // The ID token says none of this but `sub`.
        let user = json!({
            "sub": "zoe", "name": "Zoë “zoe”", "email": "zoe@example.com", "email_verified": true,
        });
        let seen = app.last();
        assert_eq!(seen.header("x-forwarded-user").as_deref(), Some("zoe"));
        assert_eq!(seen.header("x-forwarded-email").as_deref(), Some("zoe@example.com"));
        assert_eq!(seen.header("x-forwarded-preferred-username"), None);
        assert_eq!(known(&seen.session().unwrap()["user"], &user), user);
        let profile = zoe.fetch("/auth/profile").await.json();
        assert_eq!(known(&profile["user"], &user), user);
        assert!(zoe.refused().is_empty(), "{:?}", zoe.refused());
    }
}

/// The members of `found` that `expected` has too.
fn known(found: &Value, expected: &Value) -> Value {
    let expected = expected.as_object().unwrap();
    let found = found.as_object().unwrap().clone().into_iter();
    Value::Object(found.filter(|(name, _)| expected.contains_key(name)).collect())
}

#[tokio::test]
async fn parallel_requests_never_use_a_rotating_refresh_token_twice() {
    // Both wait most of the time.
    tokio::join!(refresh_twice(Protocol::Http1), refresh_twice(Protocol::Http2));
}

async fn refresh_twice(protocol: Protocol) {
    let provider = Certified::start_with(&json!({ "tokenSeconds": 3 })).await;
    let app = App::plain().await;
    let gateway = gateway(&provider).route_with("/", &app, "access_token = true").start().await;
    let zoe = Arc::new(gateway.browser_over(protocol));
    sign_in(&zoe, "zoe", "/").await;
    // The first requests after a token has become old come all at once.
    let tokens = until("the access token was replaced twice", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let requests: JoinSet<_> = std::iter::repeat_n(zoe.clone(), 8)
            .map(|zoe| async move { zoe.fetch("/").await })
            .collect();
        for answer in requests.join_all().await {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let tokens: HashSet<_> =
            app.seen().iter().map(|seen| seen.header("authorization").unwrap()).collect();
        (tokens.len() > 2).then_some(tokens)
    })
    .await;
    assert_eq!(provider.said("granted refresh_token"), tokens.len() - 1);
    assert_eq!(provider.said("revoked"), 0, "a refresh token was used twice");
    assert!(!provider.program.output().contains("refused"));
}

#[tokio::test]
async fn signing_out_ends_the_session_here_and_there() {
    for protocol in PROTOCOLS {
        let provider = Certified::start().await;
        let app = App::plain().await;
        let gateway = gateway(&provider).route("/", &app).start().await;
        let zoe = gateway.browser_over(protocol);
        sign_in(&zoe, "zoe", "/").await;
        let thief = zoe.copy();
        assert_eq!(thief.fetch("/").await.status, 200);

        let question = zoe.open("/auth/logout").await;
        assert!(question.text().contains("Do you want to sign-out"), "{}", question.text());
        assert_eq!(thief.fetch("/").await.status, 401, "before the provider has its answer");
        let page = zoe.submit(&question, &[("logout", "yes")]).await;

        // Home again, and from there to sign in: the provider does not know her any more.
        assert!(page.hops.contains(&zoe.url("/")), "{:?}", page.hops);
        assert!(page.text().contains("Enter any login"), "{}", page.text());
        assert_eq!(provider.said("signed out"), 1);
        assert_eq!(thief.fetch("/").await.status, 401);
        assert_eq!(thief.fetch("/auth/profile").await.status, 401);
        until("the refresh token is revoked", async || {
            (provider.said("revoked") > 0).then_some(())
        })
        .await;
        // Nothing keeps her from coming back.
        assert_eq!(sign_in(&zoe, "zoe", "/").await.text(), "hello");
    }
}

#[tokio::test]
async fn whoever_stays_signed_in_at_the_provider_is_signed_out_here() {
    let provider = Certified::start().await;
    let app = App::plain().await;
    let gateway = gateway(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    sign_in(&zoe, "zoe", "/").await;

    let question = zoe.open("/auth/logout").await;
    let page = zoe.submit(&question, &[]).await;

    assert_eq!(zoe.fetch("/").await.status, 401);
    // The provider still knows her name, and asks for her consent alone.
    assert!(page.text().contains("offline access"), "{} {}", page.url, page.text());
    assert_eq!(zoe.submit(&page, &[]).await.text(), "hello");
}

#[tokio::test]
async fn a_sign_in_that_was_cancelled_is_no_loop() {
    let provider = Certified::start().await;
    let app = App::plain().await;
    let gateway = gateway(&provider).route("/", &app).start().await;
    let zoe = gateway.browser();
    let page = zoe.open("/").await;

    let page =
        zoe.open(page.url.join(&format!("{}/abort", page.url.path())).unwrap().as_str()).await;

    assert_eq!((page.status.as_u16(), page.url.path()), (403, "/auth/callback"));
    assert!(page.text().contains("cancelled"), "{}", page.text());
    assert_eq!(app.seen().len(), 0);
    assert_eq!(sign_in(&zoe, "zoe", "/").await.text(), "hello");
}

#[tokio::test]
async fn without_consent_there_is_no_refresh_token_and_the_session_lives_on() {
    let provider = Certified::start_with(&json!({ "tokenSeconds": 1 })).await;
    let app = App::plain().await;
    let gateway =
        Gateway::with(&provider).route_with("/", &app, "access_token = true").start().await;
    let zoe = gateway.browser();
    let page = zoe.open("/").await;
    let page = zoe.submit(&page, &[("login", "zoe"), ("password", "any")]).await;
    assert_eq!(zoe.submit(&page, &[]).await.text(), "hello");

    let token = app.last().header("authorization").unwrap();
    until("the provider takes the access token no more", async || {
        let ask = Ask::fetch(&format!("{}/me", provider.issuer())).header("authorization", &token);
        (zoe.ask(ask).await.status == 401).then_some(())
    })
    .await;

    assert_eq!(zoe.fetch("/").await.status, 200);
    assert_eq!(provider.said("granted refresh_token"), 0);
}

#[tokio::test]
async fn a_gateway_without_a_secret_proves_itself_with_its_key() {
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let provider = Certified::start_with(&json!({ "clientKey": key, "tokenSeconds": 3 })).await;
    let file = provider.program.directory.path().join("client.key");
    std::fs::write(&file, key).unwrap();
    let app = App::plain().await;
    let gateway = gateway(&provider)
        .provider(&format!("private_key = {{ file = {file:?} }}"))
        .route_with("/", &app, "access_token = true")
        .start()
        .await;
    let zoe = gateway.browser();
    assert_eq!(sign_in(&zoe, "zoe", "/").await.text(), "hello");

    // Every call has its proof, each used once: the provider refuses a second use.
    until("the tokens are refreshed", async || {
        assert_eq!(zoe.fetch("/").await.status, 200);
        (provider.said("granted refresh_token") > 1).then_some(())
    })
    .await;
}
