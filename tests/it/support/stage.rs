//! What most stories begin with: the embedded provider, an app, a gateway with one route.

use serde_json::Value;

use super::app::{App, Reply};
use super::browser::Browser;
use super::gateway::{Builder, Gateway};
use super::provider::Provider;
use super::wire::{Answer, Protocol};

/// A gateway between its provider and an app.
pub(crate) struct Stage {
    pub(crate) gateway: Gateway,
    pub(crate) app: App,
    pub(crate) provider: Provider,
}

impl Stage {
    /// With one route, `/`, for whoever is signed in.
    pub(crate) async fn new() -> Self {
        Self::with(|builder, app| builder.route("/", app)).await
    }

    /// With what `write` puts into the file.
    pub(crate) async fn with(write: impl FnOnce(Builder, &App) -> Builder) -> Self {
        Self::before_with(App::plain().await, write).await
    }

    /// Before this app, with one route, `/`, for whoever is signed in.
    pub(crate) async fn before(app: App) -> Self {
        Self::before_with(app, |builder, app| builder.route("/", app)).await
    }

    /// Before this app, with what `write` puts into the file.
    pub(crate) async fn before_with(
        app: App,
        write: impl FnOnce(Builder, &App) -> Builder,
    ) -> Self {
        let provider = Provider::start_with(&["localhost", "app.example.test"], |_| {}).await;
        let gateway = write(Gateway::with(&provider), &app).start().await;
        Self { gateway, app, provider }
    }

    /// A new browser in which this user is signed in.
    pub(crate) async fn signed_in(&self, user: &str) -> Browser {
        self.signed_in_over(user, Protocol::Http2).await
    }

    /// The same over this protocol.
    pub(crate) async fn signed_in_over(&self, user: &str, protocol: Protocol) -> Browser {
        let browser = self.gateway.browser_over(protocol);
        let login_page = browser.open("/auth/login").await;
        let home = browser.submit_once(&login_page, &[("user", user)]).await;
        let signed_in = browser.page(home.location().as_str()).await;
        assert_eq!(signed_in.status, 303, "{}", signed_in.text());
        browser
    }

    /// The app answers the browser's next request with this update.
    pub(crate) async fn update(&self, browser: &Browser, update: impl AsRef<[u8]>) -> Answer {
        self.app.say(Reply::new(200).update(update));
        let answer = browser.fetch("/").await;
        self.app.say(Reply::new(200).body("hello"));
        answer
    }
}

impl Browser {
    /// The session, as its user sees it; none if nobody is signed in.
    pub(crate) async fn profile(&self) -> Option<Value> {
        let answer = self.fetch("/auth/profile").await;
        (answer.status == 200).then(|| answer.json())
    }
}
