//! The way of one request, from its head to its response: what is asked for, who asks, may they,
//! what does the app say, what does it change. Each step is one call; how it is done is in the file
//! that the call names. The gateway of one worker knows no sockets and no TLS.
//!
//! A client may leave at any time. Until the app is asked, its request ends with it, unlogged. Once
//! the app was asked for a session that it may change, the request goes on to its end: its line and
//! its numbers are those of the app's answer, as if somebody had waited for it.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::TRANSFER_ENCODING;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;

use crate::access::{Verdict, is_navigation, judge};
use crate::body::{Body, Incoming};
use crate::clock::Timestamp;
use crate::config::{Access, Config};
use crate::error::Failure;
use crate::forward::{Answer, Forward, Later, Way, Whole};
use crate::login::{Asked, Endpoint, Login, Parties, sessions_unavailable};
use crate::observe::access::AccessLog;
use crate::observe::metrics::{RouteLabel, WorkerMetrics};
use crate::observe::request::{Names, RequestId, RequestIds, Seen, tell_unreadable};
use crate::outbox::Outbox;
use crate::page;
use crate::peer::{ClientCertificate, Peer, Tell, Tunnel};
use crate::room::Rooms;
use crate::route::{Routes, Target, misdirected};
use crate::session::update::UpdateRefused;
use crate::session::{Change, Memory, SessionUpdate, Sessions, Visit};
use crate::upstream::Directory;

/// Answers the requests of one worker.
pub struct Gateway {
    config: Arc<Config>,
    routes: Routes,
    sessions: Rc<Sessions>,
    login: Login,
    forward: Forward,
    metrics: Rc<WorkerMetrics>,
    log: Option<Rc<AccessLog>>,
    ids: RequestIds,
    names: Names,
    /// For requests whose responses have not begun.
    rooms: Rc<Rooms>,
}

/// Where a request's way leads.
enum Next {
    /// It ends here.
    Respond(Response<Body>),
    /// To the app.
    Ask(Request<Incoming>, Destination),
}

/// Indices of a request's route and public origin, and the other end of its connection.
struct Destination {
    route: usize,
    origin: usize,
    peer: IpAddr,
    certificate: Option<Rc<ClientCertificate>>,
    interim: Option<Tell>,
}

impl Gateway {
    /// For one worker. `parties`, `memory` and `directory` are shared by all.
    pub fn new(
        parties: Parties,
        memory: Arc<Memory>,
        directory: &Directory,
        metrics: Rc<WorkerMetrics>,
        log: Option<Rc<AccessLog>>,
        outbox: &Arc<Outbox>,
    ) -> Self {
        let config = parties.config.clone();
        let sealer = parties.sealer.clone();
        let sessions = Rc::new(Sessions::new(&config.session, sealer, memory));
        let known = sessions.clone();
        let owns_cookie = move |name: &[u8]| known.cookie().owns(name) || Login::owns_cookie(name);
        let limits = &config.server.limits;
        let rooms = Rc::new(Rooms::new(limits.requests.div_ceil(config.server.workers.max(1))));
        Self {
            routes: Routes::new(&config),
            forward: Forward::new(
                &config,
                directory,
                Box::new(owns_cookie),
                sessions.clone(),
                outbox,
                rooms.clone(),
            ),
            login: Login::new(parties, sessions.clone(), metrics.clone()),
            names: Names::new(&config),
            ids: RequestIds::default(),
            rooms,
            sessions,
            config,
            metrics,
            log,
        }
    }

    /// Answers a request. Whatever goes wrong becomes a page, is logged here, once, and counted.
    pub async fn answer(
        self: &Rc<Self>,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Response<Body> {
        let client = self.forward.client(peer.address, request.headers());
        let mut seen = Seen::begin(&request, client, self.ids.next());
        let mut visit = Visit::default();
        let Some(_room) = self.rooms.take() else {
            return self.respond(Err(overloaded()), &visit, &seen);
        };
        match self.pass(request, peer, &mut visit, &mut seen).await {
            Ok(Next::Ask(request, to)) => {
                let (route, opened) = (to.route, visit.opened().cloned());
                let whole = Whole::of(request.body());
                let exchange = self.clone().ask(request, to, visit, seen, whole.clone());
                self.forward.see_through(exchange, route, opened.as_ref(), whole).await
            }
            Ok(Next::Respond(response)) => self.respond(Ok(response), &visit, &seen),
            Err(failure) => self.respond(Err(failure), &visit, &seen),
        }
    }

    /// Tells of a request that could not be read; it was answered with this status.
    pub fn unreadable(&self, status: StatusCode, client: IpAddr) {
        tell_unreadable(status, client, self.ids.next(), &self.metrics, self.log.as_deref());
    }

    /// The way of a request, up to whoever answers it.
    async fn pass(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
        visit: &mut Visit,
        seen: &mut Seen,
    ) -> Result<Next, Failure> {
        let now = Timestamp::now();
        let (head, body) = request.into_parts();
        self.limit(&head)?;
        if !body.is_end_stream() {
            refuse_codings(&head)?;
        }
        let origin_index = self.routes.origin(&head)?;
        let origin = self.routes.origin_at(origin_index).ok_or_else(misdirected)?;
        seen.origin = Some(origin_index);
        if !peer.may_ask_for(&origin.host) {
            return Err(misdirected());
        }
        let asked = Asked { request: &head, origin, now };
        let index = match self.routes.target(&head, origin_index)? {
            Target::Upstream(index) => index,
            Target::Auth(endpoint) => {
                seen.route = RouteLabel::Auth;
                if head.extensions.get::<Tunnel>().is_some() {
                    return Err(no_websocket());
                }
                if endpoint == Endpoint::Login {
                    self.login.admit(seen.client)?;
                }
                if endpoint.looks_at_session() {
                    *visit = match self.sessions.load(&head.headers, now).await {
                        Ok(visit) => visit,
                        Err(error) if endpoint == Endpoint::Logout => {
                            self.sessions.end_unread(&head.headers, now, &error)
                        }
                        Err(error) => return Err(sessions_unavailable(error)),
                    };
                }
                // Boxed, as all that is rare: a request's future is moved and kept by hyper, and
                // would be five times as large.
                let served = Box::pin(self.login.serve(endpoint, asked, body, visit));
                return served.await.map(Next::Respond);
            }
        };
        let route = self.config.routes.get(index).ok_or_else(misdirected)?;
        seen.route = RouteLabel::Route(index);
        if route.client_certificate && peer.certificate.is_none() {
            return Err(uncertified());
        }
        if route.access.looks_at_session() {
            *visit = self.sessions.load(&head.headers, now).await.map_err(sessions_unavailable)?;
        }
        // Before the verdict: it is spoken over the claims as they are now (CVE-2021-41230).
        if route.access_token {
            Box::pin(self.login.refresh(visit, now)).await?;
        }
        match judge(route, visit.session().map(|session| &session.identity)) {
            Verdict::Allow => {}
            Verdict::SignIn if route.access == Access::Login && is_navigation(&head) => {
                self.login.admit(seen.client)?;
                return self.login.begin(asked).map(Next::Respond);
            }
            Verdict::SignIn => return Err(self.login.login_required()),
            Verdict::Forbid => return Err(forbidden()),
        }
        // RFC 9110, section 15.2: HTTP/1.0 knows none.
        let interim = (head.version > Version::HTTP_10).then(|| peer.tell.clone());
        let to = Destination {
            route: index,
            origin: origin_index,
            peer: peer.address,
            certificate: peer.certificate.clone(),
            interim,
        };
        Ok(Next::Ask(Request::from_parts(head, body), to))
    }

    /// The way to the app and back, which needs no client any more: what the app asks of the
    /// session is committed, then it is answered.
    async fn ask(
        self: Rc<Self>,
        request: Request<Incoming>,
        to: Destination,
        mut visit: Visit,
        mut seen: Seen,
        whole: Whole,
    ) -> Response<Body> {
        let (id, route, sent) = (seen.id, seen.route, Instant::now());
        let Destination { route: index, origin, peer, certificate, interim } = to;
        let (certificate, interim) = (certificate.as_deref(), interim.as_deref());
        let way = Way { route: index, origin, peer, request_id: id.as_str(), certificate, interim };
        visit.spare_cookies();
        let answer = self.forward.send(request, way, visit.opened(), &whole).await;
        seen.upstream = Some(sent.elapsed());
        let outcome = match answer {
            Ok(Answer { response, update }) => {
                let mut over = None;
                if let Some(update) = update {
                    let asked_for = visit.opened().cloned();
                    let refused = Box::pin(self.commit(update, &mut visit, route, id)).await;
                    // It ended before: so does what was meant for it.
                    over = asked_for.filter(|_| refused == Some(UpdateRefused::NoSession));
                }
                let later = || self.clone().commit_later(&visit, route, id);
                let opened = visit.opened().or(over.as_ref());
                Ok(self.forward.deliver(response, way, opened, later))
            }
            Err(failure) => Err(failure),
        };
        self.respond(outcome, &visit, &seen)
    }

    /// The response with the session's cookie, told to whom it concerns.
    fn respond(
        &self,
        outcome: Result<Response<Body>, Failure>,
        visit: &Visit,
        seen: &Seen,
    ) -> Response<Body> {
        let mut failed = None;
        let mut response = outcome.unwrap_or_else(|failure| {
            seen.log_failure(&failure);
            failed = Some(failure.status);
            if seen.is_grpc {
                return page::render_grpc(&failure);
            }
            page::render(&failure, seen.accept.as_ref(), &seen.method, seen.id.as_str())
        });
        self.sessions.answer(visit, response.headers_mut(), Timestamp::now());
        let log = self.log.as_deref();
        let status = failed.unwrap_or(response.status());
        seen.end(status, visit.opened(), &self.names, &self.metrics, log);
        response
    }

    /// Commits what comes in a response's trailers. Its head has gone: the newer cookie goes to the
    /// browser with the next response.
    fn commit_later(self: Rc<Self>, visit: &Visit, route: RouteLabel, id: RequestId) -> Later {
        let mut visit = visit.without_cookies();
        let commit = move |update| async move {
            self.commit(update, &mut visit, route, id).await;
        };
        Box::new(move |update| Box::pin(commit(update)))
    }

    /// Makes the change that an app asked for. One that is refused changes nothing, and the app's
    /// response passes: the app has already acted. Says why it was refused.
    async fn commit(
        &self,
        update: Result<SessionUpdate, UpdateRefused>,
        visit: &mut Visit,
        route: RouteLabel,
        id: RequestId,
    ) -> Option<UpdateRefused> {
        let committed = match update {
            Ok(update) => {
                self.sessions.commit(visit, Change::Update(update), Timestamp::now()).await
            }
            Err(refused) => Err(refused.into()),
        };
        let Err(refused) = committed else {
            self.metrics.update_applied();
            return None;
        };
        let (route, request_id) = (self.names.route(route), id.as_str());
        let why = refused.reason();
        if let Some(why) = why {
            self.metrics.update_refused(why);
            let reason = why.reason();
            tracing::warn!(route, reason, request_id, "an app's X-Session-Update was refused");
        } else {
            self.metrics.update_lost();
            tracing::error!(route, request_id, error = %refused, "an update was lost");
        }
        why
    }

    /// Ends when no request goes on without its client, and no refresh.
    pub async fn settled(&self) {
        self.forward.settled().await;
        self.login.settled().await;
    }

    /// What the HTTP library does not count. It does the fields of an HTTP/1.1 head, not those of
    /// HTTP/2, where a browser may send each cookie in a field of its own (RFC 9113, section 8.2.3).
    fn limit(&self, head: &Parts) -> Result<(), Failure> {
        let limits = &self.config.server.limits;
        if head.uri.path_and_query().is_some_and(|it| it.as_str().len() > limits.target_bytes) {
            return Err(Failure::new(
                StatusCode::URI_TOO_LONG,
                "target_too_long",
                "The address is too long.",
            ));
        }
        let fields = &head.headers;
        let most = limits.headers;
        if fields.len() <= most {
            return Ok(());
        }
        let cookies = fields.get_all(http::header::COOKIE).iter().count();
        if fields.len() - cookies.saturating_sub(1) <= most {
            return Ok(());
        }
        Err(Failure::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too_many_headers",
            "The request has too many header fields.",
        ))
    }
}

/// RFC 9112, section 6.1: 501 for a coding that nobody here undoes. What the HTTP library takes for
/// chunks may be in another coding as well, which the app would never hear of.
fn refuse_codings(head: &Parts) -> Result<(), Failure> {
    let mut lines = head.headers.get_all(TRANSFER_ENCODING).iter();
    let chunked =
        |line: &HeaderValue| line.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    match (lines.next(), lines.next()) {
        (None, _) => Ok(()),
        (Some(line), None) if chunked(line) => Ok(()),
        _ => Err(Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            "unknown_coding",
            "The request is in a transfer coding that is not known here.",
        )),
    }
}

/// More wait for an answer than the gateway has room for: what comes now is not begun, so that what
/// was begun is finished.
fn overloaded() -> Failure {
    Failure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "Too much is going on right now. Try again in a moment.",
    )
    .retry_after(Duration::from_secs(1))
}

/// Success would say that there is one.
fn no_websocket() -> Failure {
    Failure::new(StatusCode::BAD_REQUEST, "no_websocket", "There is no WebSocket at this address.")
}

fn uncertified() -> Failure {
    Failure::new(
        StatusCode::FORBIDDEN,
        "certificate_required",
        "This is open only to who shows a certificate of their own. Ask whoever runs this site.",
    )
}

fn forbidden() -> Failure {
    Failure::new(
        StatusCode::FORBIDDEN,
        "forbidden",
        "You are signed in, but this is not open to you. Ask whoever runs this site.",
    )
}
