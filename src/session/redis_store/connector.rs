//! How connections to Redis are made: to a single server, to the primary that sentinels name, or to a
//! cluster. What is said over them, and for how long they last, is others' business.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, IntoConnectionInfo, Pipeline,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError, RedisFuture, RedisResult,
    TlsCertificates, TlsMode, Value,
};

use crate::config::{Redis, RedisServers};

/// How long a connection may take to be made, its greeting included.
const CONNECT_TIME: Duration = Duration::from_secs(1);

/// A connection of any kind.
#[derive(Clone)]
pub(super) enum Connection {
    /// To one server.
    One(MultiplexedConnection),
    /// To all of a cluster.
    Cluster(ClusterConnection),
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

    /// Where the primary is that sentinels name; nothing where there are none.
    pub(super) async fn primary(&mut self) -> RedisResult<Option<String>> {
        let Way::Sentinel(client) = &mut self.way else { return Ok(None) };
        let primary = client.async_get_client().await?;
        Ok(Some(primary.get_connection_info().addr().to_string()))
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
