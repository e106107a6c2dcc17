//! One worker's connections to one upstream. The one used last is used next, so that those not
//! needed grow old. A connection comes back when the response's body has ended and the request's
//! body was sent whole; whatever else happens to it, it is closed: no byte of one exchange is ever
//! read in another.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};

use super::connect::{Reach, connect};
use super::http1::{Connection, ExchangeError, Failed, Head, Reached, Receiving, Upload};
use super::{Hear, UpstreamError};
use crate::body::Body;
use crate::config::Limits;
use crate::config::value::UpstreamUrl;
use crate::outbox::Outbox;

/// Idle connections kept; more than the requests that are ever under way at once, for else
/// connections come and go.
const KEPT: usize = 1024;
/// How often idle connections are looked at. Nobody reads them: what their upstream has closed stays
/// open here until then.
const LOOK: Duration = Duration::from_secs(5);
/// An idle connection that was looked at this often is closed: many servers close theirs after 60 s.
const OLDEST: u8 = 11;

/// Why there is no response, and whether the upstream may have seen the request.
pub(super) enum NoResponse {
    /// It has seen nothing: the request may go elsewhere.
    Unsent(Box<Request<Body>>, UpstreamError),
    /// It closed the connection without a byte in return; the request may be repeated.
    Unanswered(Box<Request<Body>>, UpstreamError),
    /// It may have acted.
    Sent(UpstreamError),
}

/// The connections.
pub(super) struct Pool {
    url: UpstreamUrl,
    reach: Reach,
    connect_time: Duration,
    response_time: Duration,
    outbox: Arc<Outbox>,
    idle: RefCell<Vec<Connection>>,
    /// Whether somebody looks at the idle ones.
    is_looked_at: Cell<bool>,
}

impl Pool {
    pub(super) fn new(
        url: UpstreamUrl,
        reach: Reach,
        limits: &Limits,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self {
            url,
            reach,
            connect_time: limits.connect_time,
            response_time: limits.response_time,
            outbox,
            idle: RefCell::default(),
            is_looked_at: Cell::default(),
        }
    }

    /// Sends a request over an idle connection, or over a new one.
    pub(super) async fn send(
        self: &Rc<Self>,
        mut request: Request<Body>,
        hear: Hear<'_>,
    ) -> Result<Response<Body>, NoResponse> {
        let mut is_repeated = false;
        loop {
            let is_empty = matches!(request.body(), Body::Empty);
            let can_be_repeated = is_empty && request.method().is_idempotent();
            let idle = if is_repeated { None } else { self.take(can_be_repeated) };
            let (mut connection, is_new) = match idle {
                Some(connection) => (connection, false),
                None => match Box::pin(self.connect()).await {
                    Ok(connection) => (connection, true),
                    Err(error) => return Err(NoResponse::Unsent(Box::new(request), error)),
                },
            };
            let Failed { error, reached } =
                match connection.exchange(&mut request, self.response_time, hear).await {
                    Ok((head, upload)) => return Ok(self.receive(head, connection, upload)),
                    Err(failed) => failed,
                };
            // A body goes out once: it is here again if nothing of it was read.
            let is_whole = is_empty || !matches!(request.body(), Body::Empty);
            match reached {
                // The upstream had closed the connection before the request was written.
                Reached::Nothing if !is_new && is_whole => {}
                // It did so while the request was on its way: RFC 9112, section 9.3.1, lets what can
                // be repeated be sent again. Once: a request that ends one connection after the
                // other is not to end them all.
                Reached::Sent if !is_new && can_be_repeated => is_repeated = true,
                reached => {
                    let error = self.failure(error);
                    return Err(match reached {
                        Reached::Nothing if is_whole && !is_repeated => {
                            NoResponse::Unsent(Box::new(request), error)
                        }
                        Reached::Nothing | Reached::Sent if can_be_repeated => {
                            NoResponse::Unanswered(Box::new(request), error)
                        }
                        _ => NoResponse::Sent(error),
                    });
                }
            }
        }
    }

    fn failure(&self, error: ExchangeError) -> UpstreamError {
        let upstream = self.url.clone();
        match error {
            ExchangeError::Late => UpstreamError::Late { upstream, limit: self.response_time },
            source => UpstreamError::Broken { upstream, source },
        }
    }

    /// An idle connection that is still good, for a request that can be sent once more if it is not
    /// after all, or for one that cannot: then the socket itself is asked.
    fn take(&self, can_be_repeated: bool) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find_map(|mut connection| {
            let is_good = connection.is_in_time()
                && connection.is_quiet()
                && (can_be_repeated || connection.is_silent());
            is_good.then_some(connection)
        })
    }

    async fn connect(&self) -> Result<Connection, UpstreamError> {
        let stream = connect(&self.url, &self.reach, self.connect_time)
            .await
            .map_err(|source| UpstreamError::Connect { upstream: self.url.clone(), source })?;
        Ok(Connection::new(stream, self.outbox.clone()))
    }

    fn receive(
        self: &Rc<Self>,
        head: Head,
        connection: Connection,
        upload: Upload,
    ) -> Response<Body> {
        let Head { status, fields, framing, keeps, keeps_for } = head;
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(switched) = connection.switch() {
                switched.put(&mut response);
            }
            return response;
        }
        let pool = self.clone();
        let after = move |connection| {
            if keeps {
                pool.give_back(connection, keeps_for);
            }
        };
        *response.body_mut() = match Receiving::begin(connection, upload, framing, after) {
            Ok(whole) if whole.is_empty() => Body::Empty,
            Ok(whole) => Body::Full(whole),
            Err(receiving) => Body::stream(receiving),
        };
        response
    }

    fn give_back(self: &Rc<Self>, mut connection: Connection, keeps_for: Option<Duration>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < KEPT {
            connection.rest(keeps_for);
            idle.push(connection);
        }
        if !self.is_looked_at.replace(true) {
            tokio::task::spawn_local(look(Rc::downgrade(self)));
        }
    }
}

/// Closes what is old, and what its upstream has closed, until there is nothing left.
async fn look(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.borrow_mut();
        idle.retain_mut(|connection| {
            connection.age += 1;
            connection.age < OLDEST && connection.is_in_time() && connection.is_quiet()
        });
        if idle.is_empty() {
            pool.is_looked_at.set(false);
            return;
        }
    }
}
