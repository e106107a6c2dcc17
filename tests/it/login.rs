//! Logging in: from a page to the provider and back.

use crate::support::{App, Gateway, PROTOCOLS, Provider};

#[tokio::test]
async fn somebody_who_opens_a_page_signs_in_and_is_on_that_page() {
    for protocol in PROTOCOLS {
        let provider = Provider::start().await;
        let app = App::plain().await;
        let gateway = Gateway::with(&provider).route("/", &app).start().await;
        let zoe = gateway.browser_over(protocol);

        let page = zoe.log_in("zoe", "/inbox/7?sort=date").await;

        assert_eq!(page.status, 200);
        assert_eq!(page.text(), "hello");
        assert_eq!(page.url, zoe.url("/inbox/7?sort=date"));
        assert_eq!(app.seen().len(), 1, "the app hears of her only now");
        assert_eq!(app.last().header("x-forwarded-user").as_deref(), Some("auth0|zoe"));
        assert_eq!(zoe.refused(), Vec::<String>::new());
    }
}
