//! One connection from a browser: its requests over HTTP/1.1 or HTTP/2, and its end: by
//! the client, by a limit, or because the gateway stops. What a request gets is the gateway's: the
//! one in force when it comes, also if the connection is older.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;

use super::clients::{Clients, Place};
use super::coalesce::Coalesce;
use super::date::Dates;
use super::generation::Generation;
use super::heads::{Guarded, Heads};
use super::http2::{self, Http2};
use super::interim::{self, Interim};
use super::serving::Serving;
use super::watch::{UnderWay, Watch, Watched, Watches};
use crate::body::{Body, BodyError, Incoming};
use crate::gateway::Gateway;
use crate::observe::access::AccessLog;
use crate::observe::metrics::WorkerMetrics;
use crate::observe::request::route_name;
use crate::outbox::{Outbox, Posted};
use crate::peer::Peer;
use crate::session::Memory;

/// To who has begun a head, and does not end it.
const TOO_LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// How long a client may take to hear that its connection is closed.
const LINGER: Duration = Duration::from_secs(1);

/// A connection on which nobody asks for so long is closed when the gateway stops.
const QUIET: Duration = Duration::from_secs(1);
/// So much longer where nobody has asked yet.
const PATIENCE: usize = 3;

/// A connection behind its handshake.
type Encrypted = TlsStream<Posted<TcpStream>>;

/// What the connections of one worker have in common.
pub(super) struct Connections {
    /// What is in force.
    serving: RefCell<Rc<Serving>>,
    /// Those before it, on which requests may still be under way.
    before: RefCell<Vec<Weak<Gateway>>>,
    memory: Arc<Memory>,
    watches: Rc<Watches>,
    metrics: Rc<WorkerMetrics>,
    log: Option<Rc<AccessLog>>,
    clients: Arc<Clients>,
    outbox: Arc<Outbox>,
    dates: Rc<Dates>,
    stopped: watch::Receiver<bool>,
    /// The same, read without a lock.
    stopping: Cell<bool>,
}

impl Connections {
    pub(super) fn new(
        generation: &Generation,
        memory: Arc<Memory>,
        watches: Rc<Watches>,
        metrics: Rc<WorkerMetrics>,
        log: Option<Rc<AccessLog>>,
        clients: Arc<Clients>,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let outbox = Arc::default();
        let serving = Serving::new(generation, &memory, metrics.clone(), log.as_ref(), &outbox);
        Self {
            serving: RefCell::new(Rc::new(serving)),
            before: RefCell::default(),
            memory,
            watches,
            metrics,
            log,
            clients,
            outbox,
            dates: Rc::default(),
            stopped,
            stopping: Cell::new(false),
        }
    }

    /// The gateway stops: each response is the last of its connection.
    pub(super) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Requests that come from now on are answered by this generation, on every connection; those
    /// under way end on the one that they began with. What a connection agreed on with its client
    /// (its certificate, the sizes of its heads) stays.
    pub(super) fn take_over(&self, generation: &Generation) {
        let config = generation.config();
        let routes: Vec<String> = config.routes.iter().map(route_name).collect();
        let metrics = Rc::new(self.metrics.with_routes(&routes));
        if let Some(log) = &self.log {
            log.set_format(config.log.format);
        }
        self.watches.limit(&config.server.limits);
        let log = self.log.as_ref();
        let serving = Serving::new(generation, &self.memory, metrics, log, &self.outbox);
        let old = self.serving.replace(Rc::new(serving));
        let mut before = self.before.borrow_mut();
        before.retain(|gateway| gateway.strong_count() > 0);
        before.push(Rc::downgrade(&old.gateway));
    }

    /// The gateway in force.
    fn gateway(&self) -> Rc<Gateway> {
        self.serving.borrow().gateway.clone()
    }

    /// Serves a connection to its end. `held` is dropped with its stream, which a WebSocket has longer.
    pub(super) async fn serve(
        self: &Rc<Self>,
        stream: TcpStream,
        address: IpAddr,
        held: impl Any + Send + Sync,
    ) {
        // Boxed, as HTTP/2 below: an idle connection's task must not keep room for what it is not.
        let Some((serving, stream, address, held)) =
            Box::pin(self.arrive(stream, address, held)).await
        else {
            return;
        };
        // A connection that becomes a WebSocket goes on counting: its stream has the watch.
        let watch = self.watches.add(held);
        // A connection that breaks off ends for its requests too, and they tell what matters.
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            watch.multiplexed();
            let aside = Rc::<http2::Aside>::default();
            let said = aside.clone();
            let tell = Rc::new(move |status, fields| said.say(status, fields));
            let exchange = self.exchange(serving.peer(&stream, address, tell), &watch);
            let answer = move |request| exchange.answer(request);
            let stream = Watched { inner: Coalesce::new(stream), watch: watch.clone() };
            let begun = serving.http2.handshake(stream);
            let dates = self.dates.clone();
            let connection = Http2::new(begun, answer, aside, dates, watch.clone());
            let mut connection = Box::pin(connection);
            // Nothing of a generation is to be held by a connection that outlives it.
            drop(serving);
            tokio::select! {
                ended = connection.as_mut() => return self.ended_http2(ended, address),
                // Who does not read what he asked for does not hear a farewell either.
                () = watch.closed() => if !watch.is_idle() { return },
                () = self.may_leave(&watch) => {
                    connection.leave();
                    return self.ended_http2(connection.await, address);
                }
            }
            // RFC 9113, section 9.1: what the client asks just now is still answered, and what it
            // asks later goes elsewhere.
            connection.leave();
            tokio::select! {
                ended = connection => self.ended_http2(ended, address),
                () = Box::pin(watch.closed_after(LINGER)) => {}
            }
        } else {
            let aside = Arc::<interim::Aside>::default();
            let said = aside.clone();
            let tell = Rc::new(move |status, fields| said.say(status, &fields));
            let exchange = self.exchange(serving.peer(&stream, address, tell), &watch);
            let answer = move |request: Request<hyper::body::Incoming>| {
                exchange.answer(request.map(Incoming::from))
            };
            let heads = Heads::default();
            let stream = Interim { inner: stream, aside };
            let stream = Guarded { inner: stream, heads, watch: watch.clone() };
            let stream = Watched { inner: stream, watch: watch.clone() };
            let connection =
                serving.http1.serve_connection(TokioIo::new(stream), service_fn(answer));
            let mut connection = connection.with_upgrades();
            drop(serving);
            let ended = tokio::select! {
                ended = &mut connection => Some(ended),
                () = watch.closed() => {
                    let stream = connection.into_parts().map(|parts| parts.io.into_inner());
                    return Box::pin(self.too_late(stream, &watch, address)).await;
                }
                () = self.may_leave(&watch) => None,
            };
            let ended = if let Some(ended) = ended {
                ended
            } else {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            };
            // What breaks off is not to look as if it had ended: it is cut.
            let said_goodbye = ended.as_ref().err().is_none_or(hyper::Error::is_parse);
            self.ended_http1(ended, address);
            if let Some(parts) = connection.into_parts().filter(|_| said_goodbye) {
                linger(parts.io.into_inner().inner.inner).await;
            }
        }
    }

    /// The beginning of a connection, up to the end of its TLS handshake: what serves it, its stream,
    /// who is at the other end, and what counts it as open.
    async fn arrive(
        &self,
        stream: TcpStream,
        address: IpAddr,
        held: impl Any + Send + Sync,
    ) -> Option<(Rc<Serving>, Encrypted, IpAddr, Box<dyn Any + Send + Sync>)> {
        let serving = self.serving.borrow().clone();
        // Before the handshake, which costs more than all that comes after it.
        let place = self.enter(&serving, address)?;
        let open = self.metrics.connection();
        let peer = address;
        let arrival = tokio::time::timeout(serving.handshake_time, serving.arrive(stream, address));
        let (stream, address) = match arrival.await {
            Ok(Ok(arrived)) => arrived,
            Ok(Err(error)) => {
                tracing::debug!(%address, %error, "no TLS");
                return None;
            }
            Err(_) => {
                tracing::debug!(%address, "the TLS handshake took too long");
                return None;
            }
        };
        // Whom a load balancer speaks for is a client as well.
        let named = if address == peer { None } else { Some(self.enter(&serving, address)?) };
        Some((serving, stream, address, Box::new((open, held, place, named))))
    }

    fn exchange(self: &Rc<Self>, peer: Peer, watch: &Arc<Watch>) -> Exchange {
        Exchange { connections: self.clone(), peer: Rc::new(peer), watch: watch.clone() }
    }

    /// A place for a connection of this client, if it may have one more.
    fn enter(&self, serving: &Serving, address: IpAddr) -> Option<Place> {
        let place = self.clients.enter(address, &serving.config.server);
        if place.is_none() {
            self.metrics.refused_connection();
            tracing::debug!(%address, "a client has too many connections");
        }
        place
    }

    /// hyper answers what it cannot read by itself, and closes; nobody else would hear of it.
    fn ended_http1(&self, ended: hyper::Result<()>, client: IpAddr) {
        let Err(error) = ended else { return };
        // To who speaks another protocol it says nothing.
        if error.is_parse() && !error.is_parse_version_h2() {
            let large = error.is_parse_too_large();
            let bad = StatusCode::BAD_REQUEST;
            let status = if large { StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE } else { bad };
            self.gateway().unreadable(status, client);
        }
    }

    /// A connection is over its limits. RFC 9110, section 15.5.9: who has begun to ask is told so.
    async fn too_late(
        &self,
        stream: Option<Watched<Guarded<Interim<Encrypted>>>>,
        watch: &Watch,
        client: IpAddr,
    ) {
        let within = |stream: &Watched<Guarded<_>>| stream.inner.heads.is_within();
        let Some(mut stream) = stream.filter(|stream| within(stream) && watch.is_idle()) else {
            return;
        };
        self.gateway().unreadable(StatusCode::REQUEST_TIMEOUT, client);
        let telling = async {
            stream.write_all(TOO_LATE).await?;
            stream.shutdown().await
        };
        if let Ok(Ok(())) = tokio::time::timeout(LINGER, telling).await {
            linger(stream.inner.inner).await;
        }
    }

    fn ended_http2(&self, ended: Result<(), h2::Error>, client: IpAddr) {
        if let Some(error) = ended.err().filter(|error| !error.is_io()) {
            self.metrics.broken_http2();
            tracing::debug!(%client, %error, "a client breaks HTTP/2");
        }
    }

    /// Ends when no request goes on whose connection is gone.
    pub(super) async fn settled(&self) {
        let mut all: Vec<_> = self.before.take().iter().filter_map(Weak::upgrade).collect();
        all.push(self.gateway());
        for gateway in all {
            gateway.settled().await;
        }
    }

    /// Ends when the gateway stops and the connection can be closed without anybody being cut off:
    /// who has just connected is to be answered once, and who asks again at this moment (RFC 9112,
    /// section 9.6, warns of it) with the word that it was the last time.
    async fn may_leave(&self, watch: &Watch) {
        // The sender lives until every worker has ended.
        let _ = self.stopped.clone().wait_for(|stopped| *stopped).await;
        // Boxed: an idle connection's task keeps no room for its end.
        Box::pin(came_to_rest(watch)).await;
    }
}

async fn came_to_rest(watch: &Watch) {
    for _ in 0..PATIENCE {
        if watch.is_multiplexed() && watch.is_at_rest() {
            return;
        }
        tokio::time::sleep(QUIET).await;
        if watch.is_at_rest() {
            return;
        }
    }
    while !watch.is_idle() {
        tokio::time::sleep(QUIET).await;
    }
}

/// Reads on for a moment, past who looks at heads, where the gateway has said the last word: a
/// connection that is closed with bytes unread is reset, and its client may lose what it was told
/// (RFC 9112, section 9.6).
async fn linger(mut stream: impl AsyncRead + Unpin) {
    let rest = async {
        let mut buffer = [0; 1024];
        while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {}
    };
    let _ = tokio::time::timeout(LINGER, Box::pin(rest)).await;
}

/// Answers the requests of one connection.
struct Exchange {
    connections: Rc<Connections>,
    peer: Rc<Peer>,
    watch: Arc<Watch>,
}

impl Exchange {
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Sent>, Infallible>> + 'static + use<> {
        let (gateway, peer) = (self.connections.gateway(), self.peer.clone());
        let (connections, watch) = (self.connections.clone(), self.watch.clone());
        let under_way = watch.request();
        async move {
            let mut response = gateway.answer(request, &peer).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                watch.upgraded();
            } else if connections.stopping.get() && !watch.is_multiplexed() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| Sent { body, _under_way: under_way, _gateway: gateway }))
        }
    }
}

/// A response's body; while it lasts its request is under way.
struct Sent {
    body: Body,
    _under_way: UnderWay,
    /// With its connections to the apps.
    _gateway: Rc<Gateway>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
