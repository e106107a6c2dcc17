//! Three servers that tell what they read in a request: hyper, nginx, and Python's http.server.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::process::Command;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::support::app::Seen;
use crate::support::free_port;
use crate::support::nginx::Nginx;
use crate::support::program::{Program, repository};

/// What somebody reads in a request. Bytes are the letters of Latin-1.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reading {
    pub(super) method: String,
    pub(super) target: String,
    /// Names as CGI writes them, each with its values in order.
    #[serde(deserialize_with = "lines")]
    pub(super) fields: BTreeMap<String, Vec<String>>,
    pub(super) body: String,
}

fn letters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

fn lines<'de, D: serde::Deserializer<'de>>(
    source: D,
) -> Result<BTreeMap<String, Vec<String>>, D::Error> {
    Ok(by_name(Vec::<(String, String)>::deserialize(source)?))
}

/// What frames a message is not compared: it is what the readers are asked to undo.
fn by_name(lines: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, Vec<String>> {
    let mut fields = BTreeMap::<String, Vec<String>>::new();
    for (name, value) in lines {
        let name = name.to_ascii_uppercase().replace('-', "_");
        if !["CONTENT_LENGTH", "TRANSFER_ENCODING"].contains(&name.as_str()) {
            fields.entry(name).or_default().push(value);
        }
    }
    fields
}

impl Reading {
    /// What the tests' own app has read.
    pub(super) fn of(seen: &Seen) -> Self {
        let line = |(name, value): &(String, Vec<u8>)| (name.clone(), letters(value));
        Self {
            method: seen.method.clone(),
            target: seen.target.clone(),
            fields: by_name(seen.headers.iter().map(line)),
            body: letters(&seen.body),
        }
    }
}

/// The servers. They end with their value.
pub(super) struct Readers {
    /// Their names and ports.
    ports: [(&'static str, u16); 3],
    _programs: (Program, Nginx),
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Readers {
    pub(super) async fn start() -> Self {
        let [python, nginx] = [free_port(), free_port()];
        let mut command = Command::new("python3");
        command.arg(repository("tests/it/bytes/reader.py")).arg(python.to_string());
        let mut in_python = Program::start(&mut command, "install Debian's python3");
        let (hyper, reads) = hyper().await;
        let (scgi, tells) = scgi().await;
        let in_nginx = Nginx::start(nginx, |_| handing_on(nginx, scgi)).await;
        in_python.listens(python).await;
        Self {
            ports: [("hyper", hyper), ("nginx", nginx), ("http.server", python)],
            _programs: (in_python, in_nginx),
            tasks: [reads, tells],
        }
    }

    /// What each reads in these bytes, and that it reads no byte more; none where it refuses them.
    pub(super) async fn read(&self, request: &[u8]) -> Vec<(&'static str, Option<Reading>)> {
        let mut readings = Vec::new();
        for (name, port) in self.ports {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let next = b"GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(&[request, next].concat()).await;
            let mut answers = Vec::new();
            let _ = stream.read_to_end(&mut answers).await;
            let (first, rest) = answer(&answers);
            let Some(first) = first else {
                readings.push((name, None));
                continue;
            };
            let (second, rest) = answer(rest);
            assert_eq!(second.unwrap().target, "/next", "{name}: {}", letters(request));
            assert!(rest.is_empty(), "{name}: {}", letters(request));
            readings.push((name, Some(first)));
        }
        readings
    }
}

/// The reading in a response, and what is behind it; none where it is a refusal.
fn answer(bytes: &[u8]) -> (Option<Reading>, &[u8]) {
    let head = memchr::memmem::find(bytes, b"\r\n\r\n").unwrap_or_else(|| {
        panic!("no answer: {}", letters(bytes));
    });
    let text = letters(&bytes[..head]).to_ascii_lowercase();
    if !text.starts_with("http/1.1 200 ") {
        assert!(text.starts_with("http/1.1 4") || text.starts_with("http/1.1 5"), "{text}");
        return (None, &[]);
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let (body, rest) = bytes[head + 4..].split_at(length.parse().unwrap());
    (Some(serde_json::from_slice(body).unwrap()), rest)
}

/// As the readers tell it.
fn told(method: &str, target: &str, fields: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let body = letters(body);
    serde_json::json!({ "method": method, "target": target, "fields": fields, "body": body })
        .to_string()
        .into_bytes()
}

async fn hyper() -> (u16, JoinHandle<()>) {
    async fn tell(request: Request<Incoming>) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), letters(value.as_bytes()))
        };
        let fields: Vec<_> = head.headers.iter().map(line).collect();
        let target = head.uri.to_string();
        Ok(Response::new(Full::from(told(head.method.as_str(), &target, &fields, &body))))
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(tell);
            let mut server = hyper::server::conn::http1::Builder::new();
            server.max_headers(1000);
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    (port, task)
}

/// nginx has read a request when it hands it on, as SCGI: a netstring of names and values, and
/// the body.
fn handing_on(port: u16, scgi: u16) -> String {
    format!(
        "large_client_header_buffers 8 128k; underscores_in_headers on; ignore_invalid_headers off;\n\
         server {{ listen 127.0.0.1:{port}; location / {{\n\
         scgi_param CONTENT_LENGTH $content_length; scgi_param SCGI 1;\n\
         scgi_param REQUEST_METHOD $request_method; scgi_param REQUEST_URI $request_uri;\n\
         scgi_pass 127.0.0.1:{scgi}; }} }}\n"
    )
}

async fn scgi() -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(tell_of_scgi(stream));
        }
    });
    (port, task)
}

async fn tell_of_scgi(mut stream: TcpStream) {
    let mut length = Vec::new();
    while length.last() != Some(&b':') {
        length.push(stream.read_u8().await.unwrap());
    }
    length.pop();
    let length: usize = letters(&length).parse().unwrap();
    let mut head = vec![0; length + 1];
    stream.read_exact(&mut head).await.unwrap();
    let mut words = head[..length].split(|byte| *byte == 0).map(letters);
    let (mut known, mut fields) = (BTreeMap::new(), Vec::new());
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        match name.strip_prefix("HTTP_") {
            Some(name) => fields.push((name.to_owned(), value)),
            None => drop(known.insert(name, value)),
        }
    }
    let length = known["CONTENT_LENGTH"].parse().unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    let told = told(&known["REQUEST_METHOD"], &known["REQUEST_URI"], &fields, &body);
    let answer = format!("Status: 200 OK\r\nContent-Length: {}\r\n\r\n", told.len());
    let _ = stream.write_all(&[answer.as_bytes(), &told].concat()).await;
}
