//! One signed-in user of the soak: what it asks for in turn, and how every answer is held against
//! what only this user and this request may get. It knows how connections are had, not what is done
//! to the gateway meanwhile.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{sleep, timeout};

use super::app::{COUNT, LENGTH, NONCE, UPDATE_PATH, UPLOAD_PATH, USER};
use super::content::{Content, Dice};
use super::tally::Tally;
use super::wire::Wire;
use crate::session::replace;

/// An answer that takes longer is one that never comes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest bodies, as powers of two.
const DOWNLOAD_BITS: u64 = 20;
const UPLOAD_BITS: u64 = 18;
/// A slow reader's: more than all buffers between it and the app hold.
const SLOW_LENGTH: usize = 3 * 1024 * 1024;
const SLOW_PAUSE: Duration = Duration::from_millis(15);
/// Between two requests of a user: the machine has other things to do.
const PAUSE: u64 = 8;

/// What all of them share.
pub(super) struct Stage {
    pub(super) tally: Tally,
    /// Of the app and of the other one that does the same: odd while it is down, another after each
    /// change.
    pub(super) outages: [Cell<u64>; 2],
    pub(super) over: Cell<bool>,
}

impl Stage {
    /// What has been of the apps so far.
    pub(super) fn outages(&self) -> [u64; 2] {
        self.outages.each_ref().map(Cell::get)
    }

    /// Whether an app was there all the time since `before` was looked up, at the end of this way.
    pub(super) fn was_up_since(&self, before: [u64; 2], way: Way) -> bool {
        let ([app, other], now) = (before, self.outages());
        match way {
            // One of two will do, as long as it is the same one.
            Way::Two => now == before && (app.is_multiple_of(2) || other.is_multiple_of(2)),
            _ => now[0] == app && app.is_multiple_of(2),
        }
    }
}

/// How the gateway gets to the app: a route each.
#[derive(Clone, Copy)]
pub(super) enum Way {
    /// HTTP/1.1 over clear text.
    Plain,
    /// HTTP/2 over clear text.
    H2c,
    /// HTTP/1.1 over TLS.
    Tls,
    /// HTTP/2 over TLS.
    H2,
    /// To the app or to the other one.
    Two,
}

impl Way {
    const ALL: [Self; 5] = [Self::Plain, Self::H2c, Self::Tls, Self::H2, Self::Two];

    /// What the paths of its route begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::H2c => "/h2c",
            Self::Tls => "/tls",
            Self::H2 => "/h2",
            Self::Two => "/two",
        }
    }

    /// How a right answer by it is counted.
    fn answered(self) -> &'static str {
        match self {
            Self::Plain => "of the right ones, from an app of HTTP/1.1",
            Self::H2c => "of the right ones, from an app of h2c",
            Self::Tls => "of the right ones, from an app of HTTP/1.1 over TLS",
            Self::H2 => "of the right ones, from an app of h2 over TLS",
            Self::Two => "of the right ones, from one of two apps",
        }
    }

    fn drawn(dice: &mut Dice) -> Self {
        let place = usize::try_from(dice.below(Self::ALL.len() as u64)).unwrap_or_default();
        Self::ALL.get(place).copied().unwrap_or(Self::Plain)
    }
}

/// A user.
pub(super) struct Browser {
    pub(super) stage: Rc<Stage>,
    pub(super) subject: String,
    pub(super) cookie: String,
    pub(super) wire: Wire,
    pub(super) dice: Dice,
    /// Of what is asked for now.
    pub(super) way: Way,
    /// What the session has counted: at least, at most. An update that was given up may have come
    /// about or not, and may yet.
    pub(super) counted: (u64, u64),
}

/// What is asked for.
enum Wish {
    Bytes,
    Upload,
    Update,
    /// Read so slowly that everybody before has to wait.
    Slow,
    /// Given up on the way there, or on the way back.
    Abort(&'static str),
}

/// Why an answer is not the one.
enum Fault {
    /// What comes of an app that is not there.
    Lost(anyhow::Error),
    /// 5xx of the gateway's own.
    Refused(StatusCode),
    /// Another user's, or another request's.
    Crossed(String),
    /// Anything else.
    Wrong(String),
}

impl<E: Into<anyhow::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Lost(error.into())
    }
}

impl Browser {
    /// Asks until it is over.
    pub(super) async fn run(mut self) {
        while !self.stage.over.get() {
            let wish = match self.dice.below(100) {
                0..45 => Wish::Bytes,
                45..65 => Wish::Upload,
                65..85 => Wish::Update,
                85..86 => Wish::Slow,
                86..94 => Wish::Abort("GET"),
                94..97 => Wish::Abort("POST"),
                _ => Wish::Abort(UPDATE_PATH),
            };
            self.way = Way::drawn(&mut self.dice);
            let outages = self.stage.outages();
            let done = timeout(PATIENCE, self.fulfil(wish)).await;
            let done =
                done.unwrap_or_else(|_| Err(Fault::Wrong("no answer in a minute".to_owned())));
            if let Err(fault) = done {
                self.wire.close();
                self.judge(fault, outages);
            }
            sleep(Duration::from_millis(self.dice.below(PAUSE))).await;
        }
    }

    fn judge(&self, fault: Fault, outages: [u64; 2]) {
        let (tally, who) =
            (&self.stage.tally, format!("{} over {}", self.subject, self.wire.name()));
        let who = format!("{who}{}", self.way.prefix());
        let up = self.stage.was_up_since(outages, self.way);
        match fault {
            Fault::Crossed(what) => tally.fail("CROSSED", &format!("{who}: {what}")),
            Fault::Wrong(what) => tally.fail("WRONG", &format!("{who}: {what}")),
            Fault::Refused(status) if up => {
                tally.fail("5xx WHILE THE APP WAS UP", &format!("{who}: {status}"));
            }
            Fault::Lost(error) if up => {
                tally.fail("BROKEN OFF WHILE THE APP WAS UP", &format!("{who}: {error:#}"));
            }
            Fault::Refused(status) => tally.refused(status.as_u16()),
            Fault::Lost(_) => tally.count("broken off while the app was down"),
        }
    }

    async fn fulfil(&mut self, wish: Wish) -> Result<(), Fault> {
        let tally = &self.stage.clone().tally;
        match wish {
            Wish::Bytes => self.download(false).await?,
            Wish::Slow => self.download(true).await?,
            Wish::Upload => self.upload().await?,
            Wish::Update => self.update().await?,
            Wish::Abort(what) => return self.abort(what).await,
        }
        tally.count(match wish {
            Wish::Slow => "right: read slowly",
            Wish::Upload => "right: uploads sent back",
            Wish::Update => "right: updates",
            _ => "right: downloads",
        });
        tally.count(self.wire.answered());
        tally.count(self.way.answered());
        Ok(())
    }

    async fn download(&mut self, slow: bool) -> Result<(), Fault> {
        let nonce = self.dice.nonce();
        let length = if slow { SLOW_LENGTH } else { self.dice.length(DOWNLOAD_BITS) };
        let path = if self.dice.below(2) == 0 { "/soak/bytes" } else { "/soak/chunked" };
        let request = self.request(Method::GET, path, nonce, length, Upload::nothing())?;
        let response = self.send(request).await?;
        self.check_head(&response, nonce)?;
        let expected = Content::new(&self.subject, nonce, length);
        read(response.into_body(), expected, slow.then_some(SLOW_PAUSE)).await
    }

    async fn upload(&mut self) -> Result<(), Fault> {
        let nonce = self.dice.nonce();
        let upload = self.some_upload(nonce);
        let expected = upload.content.clone();
        let request = self.request(Method::POST, UPLOAD_PATH, nonce, 0, upload)?;
        let response = self.send(request).await?;
        self.check_head(&response, nonce)?;
        read(response.into_body(), expected, None).await
    }

    fn some_upload(&mut self, nonce: u64) -> Upload {
        let length = self.dice.length(UPLOAD_BITS);
        Upload {
            content: Content::new(&self.subject, nonce, length),
            of_known_length: self.dice.below(2) == 0,
            // Many small frames are what a gateway must not bear.
            piece: self.wire.smallest_piece() + self.dice.length(14),
        }
    }

    async fn update(&mut self) -> Result<(), Fault> {
        let nonce = self.dice.nonce();
        let request = self.request(Method::POST, UPDATE_PATH, nonce, 0, Upload::nothing())?;
        self.counted.1 += 1;
        let response = self.send(request).await?;
        self.check_head(&response, nonce)?;
        // A request that is sent after this answer has come sees the update.
        self.counted.0 += 1;
        read(response.into_body(), Content::new("", 0, 0), None).await
    }

    /// Goes away at some moment: before the request is whole, before an answer, within it.
    async fn abort(&mut self, what: &'static str) -> Result<(), Fault> {
        let nonce = self.dice.nonce();
        let (method, path, upload) = match what {
            "GET" => (Method::GET, "/soak/bytes", Upload::nothing()),
            "POST" => (Method::POST, UPLOAD_PATH, self.some_upload(nonce)),
            path => {
                self.counted.1 += 1;
                (Method::POST, path, Upload::nothing())
            }
        };
        let length = self.dice.length(DOWNLOAD_BITS);
        let request = self.request(method, path, nonce, length, upload)?;
        let moment = Duration::from_micros(self.dice.length(15) as u64);
        let within = async {
            let mut body = self.send(request).await?.into_body();
            while let Some(frame) = body.frame().await {
                frame?;
            }
            Ok::<_, Fault>(())
        };
        let _ = timeout(moment, within).await;
        self.wire.give_up();
        self.stage.tally.count("given up by the client");
        Ok(())
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        nonce: u64,
        length: usize,
        upload: Upload,
    ) -> Result<Request<Upload>, Fault> {
        let path = format!("{}{path}", self.way.prefix());
        let request = self.wire.request(method, &path).header(COOKIE, &self.cookie);
        Ok(request.header(NONCE, nonce).header(LENGTH, length).body(upload)?)
    }

    /// The answer's head; its session cookie is taken, as a browser does.
    async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, Fault> {
        let response = self.wire.send(request).await?;
        for line in response.headers().get_all(SET_COOKIE) {
            let line = line.to_str()?;
            if line.contains("Max-Age=0") {
                return Err(Fault::Wrong(format!("the session is deleted: {}", response.status())));
            }
            replace(&mut self.cookie, line);
        }
        Ok(response)
    }

    /// Whether it is this user's answer, to this request.
    fn check_head(&mut self, response: &Response<Incoming>, nonce: u64) -> Result<(), Fault> {
        let status = response.status();
        let headers = response.headers();
        if status.is_server_error() && !headers.contains_key(NONCE) {
            return Err(Fault::Refused(status));
        }
        if headers.contains_key("x-session-update") {
            return Err(Fault::Wrong("a browser gets the update".to_owned()));
        }
        let (user, answered) = (text(headers, USER.as_str()), text(headers, NONCE.as_str()));
        if user != self.subject || answered != nonce.to_string() {
            let all = format!("{status}: {user} {answered}, not {nonce}");
            let gateways_own = user.is_empty() && answered.is_empty();
            return Err(if gateways_own { Fault::Wrong(all) } else { Fault::Crossed(all) });
        }
        if status != StatusCode::OK {
            return Err(Fault::Wrong(format!("{status}")));
        }
        let count = text(headers, COUNT.as_str()).parse().unwrap_or(u64::MAX);
        let (least, most) = self.counted;
        if !(least..=most).contains(&count) {
            return Err(Fault::Wrong(format!("{count} updates, not {least} to {most}")));
        }
        self.counted.0 = count;
        Ok(())
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Reads a body to its end.
async fn read(
    mut body: Incoming,
    mut expected: Content,
    pause: Option<Duration>,
) -> Result<(), Fault> {
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame?.into_data()
            && !expected.continues_with(&bytes)
        {
            return Err(Fault::Wrong(format!("other bytes, {} before the end", expected.left())));
        }
        if let Some(pause) = pause {
            sleep(pause).await;
        }
    }
    if expected.left() > 0 {
        return Err(Fault::Wrong(format!("an end {} bytes early", expected.left())));
    }
    Ok(())
}

/// A request's body.
pub(super) struct Upload {
    content: Content,
    of_known_length: bool,
    piece: usize,
}

impl Upload {
    pub(super) fn nothing() -> Self {
        Self { content: Content::new("", 0, 0), of_known_length: true, piece: 1 }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let most = self.piece;
        let bytes = (self.content.left() > 0).then(|| self.content.take(most));
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.of_known_length && self.content.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        if self.of_known_length {
            SizeHint::with_exact(self.content.left() as u64)
        } else {
            SizeHint::default()
        }
    }
}

/// Somebody who talks over one WebSocket after another.
pub(super) async fn talk(browser: Browser) {
    let Browser { stage, subject, cookie, mut wire, mut dice, .. } = browser;
    while !stage.over.get() {
        let outages = stage.outages();
        let messages = dice.below(200);
        let talking =
            timeout(PATIENCE, one_talk(&mut wire, &cookie, &subject, &mut dice, messages));
        match talking.await.unwrap_or_else(|_| Err(anyhow!("no message in a minute"))) {
            Ok(said) if said == messages => stage.tally.count("right: WebSockets"),
            Ok(_) => stage.tally.fail("CROSSED", &format!("{subject}: another's message")),
            Err(error) if stage.was_up_since(outages, Way::Plain) => {
                stage
                    .tally
                    .fail("WebSocket BROKEN OFF WHILE THE APP WAS UP", &format!("{error:#}"));
            }
            Err(_) => stage.tally.count("WebSockets broken off while the app was down"),
        }
        sleep(Duration::from_millis(dice.below(100))).await;
    }
}

/// How many messages came back as they should.
async fn one_talk(
    wire: &mut Wire,
    cookie: &str,
    subject: &str,
    dice: &mut Dice,
    messages: u64,
) -> Result<u64> {
    let mut socket = wire.websocket(cookie).await?;
    for said in 0..messages {
        let message = dice.nonce().to_string();
        socket.say(message.as_bytes()).await?;
        if socket.hear().await.context("no message comes back")? != format!("{subject} {message}") {
            return Ok(said);
        }
        sleep(Duration::from_millis(dice.below(20))).await;
    }
    if dice.below(2) == 0 {
        // As one who just goes away.
        return Ok(messages);
    }
    if !socket.close().await? {
        bail!("it is not closed");
    }
    Ok(messages)
}
