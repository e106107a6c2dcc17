//! The connection to Redis: made when it is first needed, dropped when it fails, made anew: a single
//! server, the primary that sentinels name, or a cluster. What is said over it is others' business.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, FromRedisValue, IntoConnectionInfo,
    Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisFuture, RedisResult,
    ScriptInvocation, TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout_at};

use super::super::change::Unavailable;
use crate::config::{Redis, RedisServers};

/// How long a connection may take to be made, its greeting included.
const CONNECT_TIME: Duration = Duration::from_secs(1);
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
    connection: Connection,
}

/// A connection of any kind.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server.
    One(MultiplexedConnection),
    /// To all of a cluster.
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) fn new(config: Arc<Redis>) -> Self {
        Self { config, state: Mutex::default() }
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
        if let Some(connection) = &state.connection {
            return Ok(connection.clone());
        }
        if let Some((at, why)) = &state.failed
            && at.elapsed() < PAUSE
        {
            return Err(why.clone());
        }
        let mut connector = match state.connector.take() {
            Some(connector) => connector,
            None => Connector::new(&self.config, None).map_err(|error| error.to_string())?,
        };
        let connected = connector.connect().await;
        state.connector = Some(connector);
        match connected {
            Ok(connection) => {
                state.failed = None;
                state.made += 1;
                let connection = Rc::new(Numbered { number: state.made, connection });
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

/// Makes connections.
pub(super) struct Connector {
    way: Way,
    options: AsyncConnectionConfig,
}

enum Way {
    One(Box<Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

/// Hears what Redis says unasked.
pub(super) type Hearer = Arc<dyn Fn(PushInfo) + Send + Sync>;

impl Connector {
    /// For a configuration. With a `hearer` its connections can subscribe.
    pub(super) fn new(config: &Redis, hearer: Option<Hearer>) -> RedisResult<Self> {
        let mut options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIME))
            .set_response_timeout(None);
        if let Some(hearer) = hearer.clone() {
            options = options.set_push_sender(move |push| {
                hearer(push);
                Ok::<(), redis::aio::SendError>(())
            });
        }
        let servers = config.urls.iter().map(|url| connection_info(url, config));
        let servers: Vec<ConnectionInfo> = servers.collect::<RedisResult<_>>()?;
        let certificates = config
            .ca
            .as_ref()
            .map(|ca| TlsCertificates { client_tls: None, root_cert: Some(ca.clone()) });
        let way = match &config.servers {
            RedisServers::Single => {
                let server = servers.into_iter().next().ok_or_else(nowhere)?;
                Way::One(Box::new(match certificates {
                    Some(certificates) => Client::build_with_tls(server, certificates)?,
                    None => Client::open(server)?,
                }))
            }
            RedisServers::Sentinel { primary, password } => {
                Way::Sentinel(Box::new(sentinel(config, &servers, primary, password.as_ref())?))
            }
            RedisServers::Cluster => {
                let mut builder = ClusterClientBuilder::new(servers)
                    .use_protocol(ProtocolVersion::RESP3)
                    .connection_timeout(CONNECT_TIME)
                    .response_timeout(CONNECT_TIME);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                if let Some(hearer) = hearer {
                    builder = builder.push_sender(move |push| {
                        hearer(push);
                        Ok::<(), redis::aio::SendError>(())
                    });
                }
                Way::Cluster(Box::new(builder.build()?))
            }
        };
        Ok(Self { way, options })
    }

    /// One connection.
    pub(super) async fn connect(&mut self) -> RedisResult<Connection> {
        let options = &self.options;
        Ok(match &mut self.way {
            Way::One(client) => {
                let connecting = client.get_multiplexed_async_connection_with_config(options);
                Connection::One(connecting.await?)
            }
            Way::Sentinel(client) => {
                Connection::One(client.get_async_connection_with_config(options).await?)
            }
            Way::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}

fn nowhere() -> RedisError {
    RedisError::from((redis::ErrorKind::InvalidClientConfig, "no address"))
}

fn sentinel(
    config: &Redis,
    servers: &[ConnectionInfo],
    primary: &str,
    password: Option<&crate::config::value::Secret>,
) -> RedisResult<SentinelClient> {
    let addresses = servers.iter().map(|server| server.addr().clone());
    let mut builder = SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?
        .set_client_to_redis_protocol(ProtocolVersion::RESP3);
    if let Some(database) = servers.first().map(|server| server.redis_settings().db()) {
        builder = builder.set_client_to_redis_db(database);
    }
    if let Some(username) = &config.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &config.password {
        builder = builder.set_client_to_redis_password(text(password));
    }
    if let Some(password) = password {
        builder = builder.set_client_to_sentinel_password(text(password));
    }
    if config.urls.iter().any(|url| url.starts_with("rediss:")) {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(ca) = &config.ca {
            let certificates = || TlsCertificates { client_tls: None, root_cert: Some(ca.clone()) };
            builder = builder
                .set_client_to_redis_certificates(certificates())
                .set_client_to_sentinel_certificates(certificates());
        }
    }
    builder.build()
}

fn connection_info(url: &str, config: &Redis) -> RedisResult<ConnectionInfo> {
    let server = url.into_connection_info()?;
    let mut settings = RedisConnectionInfo::default()
        .set_db(server.redis_settings().db())
        .set_protocol(ProtocolVersion::RESP3);
    if let Some(username) = &config.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &config.password {
        settings = settings.set_password(text(password));
    }
    Ok(server.set_redis_settings(settings))
}

/// The configuration checked that it is text.
fn text(secret: &crate::config::value::Secret) -> &str {
    std::str::from_utf8(secret.expose()).unwrap_or_default()
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(cmd, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::One(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}
