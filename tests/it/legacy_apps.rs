//! The examples as their readers run them: a page in PHP and one in Python that know one header each
//! way and nothing of logins, behind the gateway.

use std::process::Command;

use crate::support::program::{Program, repository};
use crate::support::{Ask, Browser, Gateway, PROTOCOLS, Provider, free_port};

/// One of the examples, served as its first lines say.
struct Example {
    url: String,
    _program: Program,
}

impl Example {
    async fn php() -> Self {
        let port = free_port();
        let mut command = Command::new("php");
        command.args(["-S", &format!("127.0.0.1:{port}"), "-t"]).arg(repository("examples/php"));
        Self::serve(&mut command, "install Debian's php-cli, or run tests/run", port).await
    }

    async fn python() -> Self {
        let port = free_port();
        let mut command = Command::new("python3");
        command.arg(repository("examples/python/app.py")).arg(port.to_string());
        Self::serve(&mut command, "install Debian's python3, or run tests/run", port).await
    }

    async fn serve(command: &mut Command, remedy: &str, port: u16) -> Self {
        let mut program = Program::start(command, remedy);
        program.listens(port).await;
        Self { url: format!("http://127.0.0.1:{port}"), _program: program }
    }

    /// Behind a gateway, where everybody may come and whoever signs in is known.
    async fn behind(&self, provider: &Provider) -> Gateway {
        let gateway = Gateway::with(provider);
        gateway.route_to("/", &[&self.url], "access = \"optional\"").start().await
    }
}

#[tokio::test]
async fn a_page_in_php_greets_its_user_and_remembers_what_they_chose() {
    remembers(&Example::php().await).await;
}

#[tokio::test]
async fn a_page_in_python_greets_its_user_and_remembers_what_they_chose() {
    remembers(&Example::python().await).await;
}

#[tokio::test]
async fn php_believes_no_session_that_a_visitor_made_up() {
    believes_nobody(&Example::php().await).await;
}

#[tokio::test]
async fn python_believes_no_session_that_a_visitor_made_up() {
    believes_nobody(&Example::python().await).await;
}

async fn remembers(example: &Example) {
    let provider = Provider::start().await;
    let gateway = example.behind(&provider).await;
    for protocol in PROTOCOLS {
        let zoe = gateway.browser_over(protocol);
        assert_eq!(says(&zoe, "/").await, "Hello stranger\ntheme: none\nviews: 0\n");

        let page = zoe.log_in("zoe", "/auth/login").await;
        assert_eq!(page.text(), "Hello Zoë Okafor\ntheme: none\nviews: 0\n", "{protocol:?}");

        // The update is for the next request; the page was written before it.
        let page = zoe.open("/?theme=dark").await;
        assert_eq!(page.text(), "Hello Zoë Okafor\ntheme: none\nviews: 0\n");
        assert_eq!(page.header("x-session-update"), None);
        assert_eq!(says(&zoe, "/").await, "Hello Zoë Okafor\ntheme: dark\nviews: 1\n");
        // Both languages escape what is not ASCII; no request forgets what the one before it did.
        zoe.open("/?theme=d%C3%BCster").await;
        assert_eq!(says(&zoe, "/").await, "Hello Zoë Okafor\ntheme: düster\nviews: 2\n");
        assert_eq!(says(&zoe, "/").await, "Hello Zoë Okafor\ntheme: düster\nviews: 2\n");

        let somebody_else = gateway.browser_over(protocol);
        let page = somebody_else.log_in("bob", "/auth/login").await;
        assert_eq!(page.text(), "Hello Bob Lindqvist\ntheme: none\nviews: 0\n");
    }
}

async fn believes_nobody(example: &Example) {
    let provider = Provider::start().await;
    let gateway = example.behind(&provider).await;
    for protocol in PROTOCOLS {
        let (stranger, zoe) = (gateway.browser_over(protocol), gateway.browser_over(protocol));
        zoe.log_in("zoe", "/auth/login").await;
        // CGI makes one variable of all these names: HTTP_X_SESSION.
        for name in ["x-session", "x_session", "x.session"] {
            let ask = Ask::page("/").header(name, r#"{"user":{"name":"Mallory"},"views":9}"#);
            let page = stranger.ask(ask.clone()).await;
            assert_eq!(page.text(), "Hello stranger\ntheme: none\nviews: 0\n", "{name}");
            let page = zoe.ask(ask).await;
            assert_eq!(page.text(), "Hello Zoë Okafor\ntheme: none\nviews: 0\n", "{name}");
        }
    }
}

async fn says(browser: &Browser, target: &str) -> String {
    browser.open(target).await.text()
}
