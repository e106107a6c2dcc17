//! Connections that become something else: a WebSocket over HTTP/1.1 (RFC 6455, section 4), or a
//! stream of HTTP/2 that becomes one (RFC 8441); to the app it is the same. Any other upgrade is not
//! passed on: what the gateway does not understand it could not guard.

use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{self, Poll, ready};
use std::time::Duration;

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};

use super::close_frame::{Frames, SESSION_ENDED};
use super::headers::list;
use super::live::Open;
use crate::body::Body;
use crate::peer::Tunnel;
use crate::upstream::{Switched, websocket};

/// How long a frame under way may take to end when the session has.
const FRAME_TIME: Duration = Duration::from_millis(300);
/// How long a browser may take to answer the goodbye.
const GOODBYE_TIME: Duration = Duration::from_secs(1);

/// A WebSocket that a browser asks for.
pub(super) enum Wanted {
    /// Over HTTP/1.1.
    Http1(OnUpgrade),
    /// Over HTTP/2 the gateway shakes hands with the app by itself, with this key.
    Http2(Tunnel, HeaderValue),
}

/// What the request asks for, if that is a WebSocket.
pub(super) fn wanted<B>(request: &mut Request<B>) -> Option<Wanted> {
    match request.version() {
        Version::HTTP_2 => {
            let tunnel = request.extensions_mut().remove::<Tunnel>()?;
            Some(Wanted::Http2(tunnel, websocket::key()))
        }
        // SECURITY: `Upgrade: h2c` would be a way past every later check (h2c smuggling).
        Version::HTTP_11
            if request.method() == Method::GET
                && names(request.headers(), CONNECTION, b"upgrade")
                && names(request.headers(), UPGRADE, b"websocket") =>
        {
            Some(Wanted::Http1(hyper::upgrade::on(request)))
        }
        _ => None,
    }
}

impl Wanted {
    /// Asks an upstream to change the protocol of its connection.
    pub(super) fn ask(&self, fields: &mut HeaderMap) {
        write(fields);
        if let Self::Http2(_, key) = self {
            fields.insert(SEC_WEBSOCKET_KEY, key.clone());
            let version = fields.entry(SEC_WEBSOCKET_VERSION);
            version.or_insert(HeaderValue::from_static("13"));
        }
    }

    /// Whether an app that switches protocols switches to this WebSocket.
    pub(super) fn is_agreed(&self, response: &HeaderMap) -> bool {
        let accepts = match self {
            Self::Http1(_) => true,
            Self::Http2(_, key) => websocket::accepted(key)
                .is_some_and(|accepted| response.get(SEC_WEBSOCKET_ACCEPT) == Some(&accepted)),
        };
        accepts && names(response, UPGRADE, b"websocket")
    }

    /// Whether this answer without a switch says something else to the browser than the app meant:
    /// over HTTP/2 success is the switch (RFC 8441, section 5).
    pub(super) fn is_misread(&self, status: StatusCode) -> bool {
        matches!(self, Self::Http2(..)) && status.is_success()
    }

    /// Tells the browser that the protocol has changed, and joins the two.
    pub(super) fn switch(
        self,
        response: &mut Response<Body>,
        app: Switched,
        open: Option<Rc<Open>>,
    ) {
        if let Self::Http2(..) = self {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        } else {
            write(response.headers_mut());
        }
        // Joins the two connections once both have changed.
        tokio::task::spawn_local(async move {
            match self {
                Self::Http1(browser) => {
                    let Ok(browser) = browser.await else { return };
                    join(TokioIo::new(browser), app, open).await;
                }
                Self::Http2(tunnel, _) => {
                    let Some(browser) = tunnel.opened().await else { return };
                    join(browser, app, open).await;
                }
            }
        });
    }
}

fn write(fields: &mut HeaderMap) {
    fields.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Copies what each side says to the other, until either ends, or the session that they belong to.
async fn join(
    mut browser: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: Switched,
    open: Option<Rc<Open>>,
) {
    if let Some(open) = open {
        copy_until_over(browser, upstream, &open).await;
    } else {
        // Either side may break off at any time; the other is closed then.
        let _ = copy_bidirectional(&mut browser, &mut upstream).await;
    }
}

/// The same, with a goodbye to the browser where the session ends first.
async fn copy_until_over(
    browser: impl AsyncRead + AsyncWrite + Unpin,
    mut upstream: impl AsyncRead + AsyncWrite + Unpin,
    open: &Open,
) {
    let frames = Frames::default();
    let mut browser = Framed { stream: browser, frames: &frames, open };
    {
        let mut copying = pin!(copy_bidirectional(&mut browser, &mut upstream));
        tokio::select! {
            _ = copying.as_mut() => {}
            () = open.over() => {
                if !frames.is_between() {
                    let _ = tokio::time::timeout(FRAME_TIME, copying).await;
                }
            }
        }
    }
    drop(upstream);
    if open.is_over() {
        tracing::debug!("a WebSocket was closed: its session is over");
        let _ = tokio::time::timeout(GOODBYE_TIME, say_goodbye(browser.stream, &frames)).await;
    }
}

/// Closes with status 1008 (RFC 6455, section 7.4.1), if that can be said in a frame of its own.
async fn say_goodbye(
    mut browser: impl AsyncRead + AsyncWrite + Unpin,
    frames: &Frames,
) -> io::Result<()> {
    if frames.is_between() && !frames.is_closing() {
        browser.write_all(&SESSION_ENDED).await?;
    }
    browser.shutdown().await?;
    // What comes is read and dropped: a connection closed with bytes unread is reset, and the
    // goodbye lost (RFC 9112, section 9.6, on the same trap).
    tokio::io::copy(&mut browser, &mut tokio::io::sink()).await.map(drop)
}

/// The browser's connection, which takes nothing beyond the frame under way once the session is
/// over.
struct Framed<'a, S> {
    stream: S,
    frames: &'a Frames,
    open: &'a Open,
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Framed<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        mut bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.open.is_over() && !bytes.is_empty() {
            bytes = bytes.get(..self.frames.rest_of_frame(bytes)).unwrap_or_default();
            if bytes.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.frames.pass(bytes.get(..written).unwrap_or(bytes));
        Poll::Ready(Ok(written))
    }

    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn names(fields: &HeaderMap, name: http::HeaderName, word: &[u8]) -> bool {
    fields.get_all(name).iter().flat_map(list).any(|element| element.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::task::LocalSet;

    use super::super::live::Live;
    use super::super::live::tests::signed_in;
    use super::*;
    use crate::clock::Timestamp;
    use crate::session::Change;

    /// Joins a browser and an app; `script` plays both and ends the session by its last argument.
    async fn joined<F: Future<Output = ()>>(
        script: impl FnOnce(DuplexStream, DuplexStream, Pin<Box<dyn Future<Output = ()>>>) -> F,
    ) {
        LocalSet::new()
            .run_until(async {
                let (sessions, mut visit) = signed_in().await;
                let open = Live::new(sessions.clone()).open(visit.opened().unwrap());
                let (browser, ours) = duplex(64);
                let (app, theirs) = duplex(64);
                tokio::task::spawn_local(async move {
                    copy_until_over(ours, theirs, &open).await;
                });
                let end = async move {
                    sessions.commit(&mut visit, Change::End, Timestamp::now()).await.unwrap();
                };
                let played = script(browser, app, Box::pin(end));
                tokio::time::timeout(Duration::from_secs(30), played).await.unwrap();
            })
            .await;
    }

    async fn to_end(mut stream: DuplexStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_websocket_is_closed_with_1008_within_a_second_and_its_app_left() {
        joined(async |mut browser, mut app, end| {
            app.write_all(b"\x81\x02hi").await.unwrap();
            let mut hi = [0; 4];
            browser.read_exact(&mut hi).await.unwrap();
            browser.write_all(b"to the app").await.unwrap();
            end.await;
            let ended = tokio::time::Instant::now();
            assert_eq!(to_end(browser).await, SESSION_ENDED);
            assert!(ended.elapsed() <= Duration::from_secs(1));
            assert_eq!(to_end(app).await, b"to the app");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_under_way_is_sent_whole_before_the_goodbye_and_nothing_after_it() {
        joined(async |browser, mut app, end| {
            app.write_all(b"\x82\x7e\x01\x00").await.unwrap();
            app.write_all(&[7; 10]).await.unwrap();
            end.await;
            tokio::time::sleep(Duration::from_millis(600)).await;
            let rest = [&[7; 246][..], b"\x81\x06secret"].concat();
            let writing = tokio::task::spawn_local(async move {
                let _ = app.write_all(&rest).await;
            });
            let whole = [b"\x82\x7e\x01\x00", &[7; 256][..], &SESSION_ENDED].concat();
            assert_eq!(to_end(browser).await, whole);
            writing.await.unwrap();
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_does_not_end_is_not_waited_for_and_not_broken_into() {
        joined(async |browser, mut app, end| {
            app.write_all(b"\x81\x05he").await.unwrap();
            end.await;
            let ended = tokio::time::Instant::now();
            assert_eq!(to_end(browser).await, b"\x81\x05he");
            assert!(ended.elapsed() <= Duration::from_secs(1));
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_apps_own_goodbye_there_is_no_second() {
        joined(async |browser, mut app, end| {
            app.write_all(b"\x88\x02\x03\xe8").await.unwrap();
            end.await;
            assert_eq!(to_end(browser).await, b"\x88\x02\x03\xe8");
        })
        .await;
    }
}
