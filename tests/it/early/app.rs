//! An app that says something before it answers, over HTTP/1.1 or HTTP/2, and answers when it is
//! told to.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::support::app::Peer;
use crate::support::{App, Protocol};

/// Status and fields of what is said.
pub(super) type Said = (u16, Vec<(&'static str, &'static str)>);

/// The app. It ends with its value.
pub(super) struct Hinting {
    /// As a value of `upstream`.
    pub(super) upstream: String,
    /// What lets it answer, once.
    pub(super) go: Arc<Notify>,
    _tasks: JoinSet<()>,
    _app: Option<App>,
}

impl Hinting {
    /// Says all of this before each answer.
    pub(super) async fn start(protocol: Protocol, said: Vec<Said>) -> Self {
        let go = Arc::<Notify>::default();
        let told = go.clone();
        let mut tasks = JoinSet::new();
        if protocol == Protocol::Http1 {
            let said: Arc<str> = said.iter().map(text).collect::<String>().into();
            let app = App::by_hand(move |mut peer: Peer| {
                let (said, told) = (said.clone(), told.clone());
                async move {
                    while peer.request().await.is_some() {
                        peer.write(said.as_bytes()).await.unwrap();
                        told.notified().await;
                        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal";
                        peer.write(answer).await.unwrap();
                    }
                }
            })
            .await;
            let upstream = format!("{:?}", app.url);
            return Self { upstream, go, _tasks: tasks, _app: Some(app) };
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (said, told) = (said.clone(), told.clone());
                connections.spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    let mut answers = JoinSet::new();
                    while let Some(Ok((_, mut reply))) = connection.accept().await {
                        let (said, told) = (said.clone(), told.clone());
                        answers.spawn(async move {
                            for said in &said {
                                reply.send_informational(head(said)).unwrap();
                            }
                            told.notified().await;
                            let answer = Response::builder().header("content-length", "5");
                            let answer = answer.body(()).unwrap();
                            let mut body = reply.send_response(answer, false).unwrap();
                            body.send_data(Bytes::from_static(b"final"), true).unwrap();
                        });
                    }
                });
            }
        });
        let upstream = format!("{{ url = {url:?}, protocol = \"http2\" }}");
        Self { upstream, go, _tasks: tasks, _app: None }
    }
}

/// As HTTP/1.1 says it.
pub(super) fn text((status, fields): &Said) -> String {
    let fields: String =
        fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {status} Whatever\r\n{fields}\r\n")
}

fn head((status, fields): &Said) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = (*status).try_into().unwrap();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        // What concerns one connection is not said in HTTP/2 (RFC 9113, section 8.2.2).
        if !["connection", "keep-alive"].contains(&name.as_str()) {
            head.headers_mut().append(name, HeaderValue::from_static(value));
        }
    }
    head
}
