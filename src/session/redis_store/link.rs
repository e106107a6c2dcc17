//! The connection to Redis: made when it is first needed, dropped when it fails or another server has
//! become the primary, made anew. What is said over it is others' business.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout_at};

use super::super::change::Unavailable;
use super::connector::{Connection, Connector};
use super::news::Primary;
use crate::config::Redis;

/// After a failed connection nobody tries again before this has passed.
const PAUSE: Duration = Duration::from_millis(50);
/// The longest wait between two tries of one call.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// Redis calls that pass away: it is starting, or another server takes over.
const PASSING: [&str; 7] =
    ["READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNBLOCKED"];

/// One worker's connection.
pub(super) struct Link {
    config: Arc<Redis>,
    primary: Arc<Primary>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Rc<Numbered>>,
    connector: Option<Connector>,
    failed: Option<(Instant, String)>,
    made: u64,
}

/// A connection, told from the next one.
struct Numbered {
    number: u64,
    /// To which of the servers that were the primary, one after the other.
    primary: u64,
    made: Instant,
    connection: Connection,
}

impl Link {
    /// To the server that is the primary, or to the next.
    pub(super) fn new(config: Arc<Redis>, primary: Arc<Primary>) -> Self {
        Self { config, primary, state: Mutex::default() }
    }

    /// One more of the same kind.
    pub(super) fn another(&self) -> Self {
        Self::new(self.config.clone(), self.primary.clone())
    }

    /// What every name in Redis begins with.
    pub(super) fn prefix(&self) -> &str {
        &self.config.prefix
    }

    /// The channel on which gateways tell each other what has ended.
    pub(super) async fn publish(&self, word: &str, deadline: Instant) -> Result<(), Unavailable> {
        let mut publish = redis::cmd("PUBLISH");
        publish.arg(channel(&self.config)).arg(word);
        self.run(deadline, async |connection| publish.query_async(connection).await).await
    }

    /// Runs a script, again and again until the deadline if Redis cannot be reached.
    pub(super) async fn call<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
        deadline: Instant,
    ) -> Result<T, Unavailable> {
        self.run(deadline, async |connection| call.invoke_async(connection).await).await
    }

    /// The same for anything that is asked.
    pub(super) async fn run<T>(
        &self,
        deadline: Instant,
        call: impl AsyncFn(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, Unavailable> {
        let mut pause = PAUSE;
        loop {
            let failed = match timeout_at(deadline.into(), self.connection()).await {
                Err(_) => return Err(late()),
                Ok(Err(failed)) => failed,
                Ok(Ok(numbered)) => {
                    let mut connection = numbered.connection.clone();
                    match timeout_at(deadline.into(), call(&mut connection)).await {
                        Ok(Ok(value)) => return Ok(value),
                        Ok(Err(error)) => {
                            let passes = passes(&error);
                            if passes {
                                self.drop_connection(numbered.number).await;
                            } else {
                                return Err(Unavailable(error.to_string()));
                            }
                            error.to_string()
                        }
                        Err(_) => {
                            // What it still owes would come before the next answer.
                            self.drop_connection(numbered.number).await;
                            return Err(late());
                        }
                    }
                }
            };
            if Instant::now() + pause >= deadline {
                return Err(Unavailable(failed));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The connection that is there, or a new one. Whoever waits here waits for the same one.
    async fn connection(&self) -> Result<Rc<Numbered>, String> {
        let mut state = self.state.lock().await;
        let primary = self.primary.number();
        if let Some(connection) = &state.connection
            && connection.primary == primary
        {
            return Ok(connection.clone());
        }
        if let Some((at, why)) = &state.failed
            && at.elapsed() < PAUSE
        {
            return Err(why.clone());
        }
        // It stays where it is: whoever gives up waiting must not take what it has learned.
        let connector = match &mut state.connector {
            Some(connector) => connector,
            none => {
                none.insert(Connector::new(&self.config, None).map_err(|error| error.to_string())?)
            }
        };
        let connected = connector.connect().await;
        match connected {
            Ok(connection) => {
                state.failed = None;
                state.made += 1;
                let (number, made) = (state.made, Instant::now());
                let connection = Rc::new(Numbered { number, primary, made, connection });
                state.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let why = error.to_string();
                state.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    /// Forgets a connection that was made before: another server may be the primary by now, while
    /// this one lives on.
    pub(super) async fn leave(&self, before: Instant) {
        let mut state = self.state.lock().await;
        state.connection.take_if(|connection| connection.made < before);
    }

    /// Forgets a connection that failed, unless there is a newer one already.
    async fn drop_connection(&self, number: u64) {
        let mut state = self.state.lock().await;
        state.connection.take_if(|connection| connection.number == number);
    }
}

fn late() -> Unavailable {
    Unavailable("it did not answer in time".to_owned())
}

/// Whether trying again makes sense.
fn passes(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || error.is_cluster_error()
        || error.code().is_some_and(|code| PASSING.contains(&code))
}

/// The channel on which gateways tell each other what has ended.
pub(super) fn channel(config: &Redis) -> String {
    format!("{}ended", config.prefix)
}
