//! Servers of Python's own library behind the gateway: files by `python3 -m http.server`, a WSGI
//! app, and one that writes its chunks itself.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::program::{Program, repository};
use crate::support::{Ask, Browser, Gateway, PROTOCOLS, Protocol, Provider, free_port, join_all};

const REMEDY: &str = "install Debian's python3, or run tests/run";

/// All three, behind routes of their names.
struct Scene {
    gateway: Gateway,
    files: TempDir,
    _programs: [Program; 2],
    _provider: Provider,
}

impl Scene {
    async fn new() -> Self {
        let [wsgi, plain, static_files] = [free_port(), free_port(), free_port()];
        let files = TempDir::new().unwrap();
        std::fs::create_dir(files.path().join("files")).unwrap();
        std::fs::write(files.path().join("files/page"), "a page").unwrap();
        let mut command = Command::new("python3");
        command
            .arg(repository("tests/it/real/server.py"))
            .args([wsgi, plain].map(|p| p.to_string()));
        let mut servers = Program::start(&mut command, REMEDY);
        let mut command = Command::new("python3");
        command.args(["-m", "http.server", "--bind", "127.0.0.1", "--directory"]);
        command.arg(files.path()).arg(static_files.to_string());
        let mut of_files = Program::start(&mut command, REMEDY);
        let provider = Provider::start().await;
        let mut builder = Gateway::with(&provider);
        for (path, port) in [("/wsgi", wsgi), ("/plain", plain), ("/files", static_files)] {
            builder = builder.route_to(path, &[&format!("http://127.0.0.1:{port}")], "");
        }
        servers.listens(wsgi).await;
        servers.listens(plain).await;
        of_files.listens(static_files).await;
        let gateway = builder.start().await;
        Self { gateway, files, _programs: [servers, of_files], _provider: provider }
    }

    async fn zoe(&self, protocol: Protocol) -> Browser {
        let zoe = self.gateway.browser_over(protocol);
        zoe.log_in("zoe", "/plain").await;
        zoe
    }
}

/// RFC 9112, section 6.3: the end of the connection is the end of the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_http_1_0_without_a_length_arrive_whole() {
    let scene = Scene::new().await;
    for protocol in PROTOCOLS {
        let zoe = scene.zoe(protocol).await;
        for round in 0..10 {
            let ask = Ask::post(&format!("/wsgi/told?round={round}"), "Zoë");
            let answer = zoe.ask(ask).await;
            assert_eq!(answer.status, 200);
            let told = answer.json();
            assert_eq!(answer.body.len() - answer.text().trim_end().len(), 100_000);
            assert_eq!(told["query"], format!("round={round}"));
            assert_eq!((&told["method"], &told["body"]), (&"POST".into(), &"ZoÃ«".into()));
            assert_eq!(told["HTTP_X_FORWARDED_USER"], "auth0|zoe");
        }
        let missing = zoe.fetch("/wsgi/missing").await;
        assert_eq!((missing.status.as_u16(), missing.body.len()), (404, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wsgi_app_changes_the_session_and_is_told_it() {
    let scene = Scene::new().await;
    for protocol in PROTOCOLS {
        let zoe = scene.zoe(protocol).await;
        assert_eq!(zoe.fetch("/wsgi/update").await.status, 200);
        let told = zoe.fetch("/wsgi/told").await.json();
        let session: Value =
            serde_json::from_str(told["HTTP_X_SESSION"].as_str().unwrap()).unwrap();
        assert_eq!(session["theme"], "Zoë's");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_and_ends_of_connections_are_told_apart() {
    let scene = Scene::new().await;
    for protocol in PROTOCOLS {
        let zoe = scene.zoe(protocol).await;
        for _ in 0..10 {
            let chunks = zoe.fetch("/plain/chunks").await;
            assert_eq!((chunks.status.as_u16(), chunks.body.len()), (200, 199 * 100));
            assert_eq!(zoe.fetch("/plain/close").await.text(), "until the end");
            assert_eq!(zoe.fetch("/plain").await.text(), "plain");
        }
        let asked = (0..40).map(|number| {
            let (zoe, path) = (&zoe, ["/plain/chunks", "/plain/close", "/plain"][number % 3]);
            async move { (number % 3, zoe.fetch(path).await.body.len()) }
        });
        for (kind, length) in join_all(asked).await {
            assert_eq!(length, [199 * 100, 13, 5][kind], "{protocol:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_pythons_http_server_have_their_304_404_and_heads() {
    let scene = Scene::new().await;
    assert!(scene.files.path().join("files/page").exists());
    for protocol in PROTOCOLS {
        let zoe = scene.zoe(protocol).await;
        let page = zoe.fetch("/files/page").await;
        assert_eq!((page.status.as_u16(), page.text().as_str()), (200, "a page"));
        let date = page.header("last-modified").unwrap();
        let same = zoe.ask(Ask::fetch("/files/page").header("if-modified-since", date)).await;
        assert_eq!((same.status.as_u16(), same.body.len()), (304, 0));
        let head = Ask { method: http::Method::HEAD, ..Ask::fetch("/files/page") };
        let head = zoe.ask(head).await;
        assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some("6"));
        assert_eq!(zoe.fetch("/files/none").await.status, 404);
        assert_eq!(zoe.fetch("/files").await.status, 301, "a folder");
        assert!(zoe.fetch("/files/").await.text().contains("page"));
    }
}
