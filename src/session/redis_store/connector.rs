//! How connections to Redis are made: to a single server, to the primary that sentinels name, or to a
//! cluster. What is said over them, and for how long they last, is others' business.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo, Pipeline, ProtocolVersion, PushInfo, RedisConnectionInfo, RedisError,
    RedisFuture, RedisResult, Role, TlsCertificates, Value,
};

use super::sentinels::Sentinels;
use crate::config::value::Secret;
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
    Sentinel(Box<Named>),
    Cluster(Box<ClusterClient>),
}

/// The server that sentinels name.
struct Named {
    sentinels: Sentinels,
    /// How any of the servers is reached, but for its address.
    server: ConnectionInfo,
    certificates: Option<TlsCertificates>,
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
                Way::One(Box::new(client(server, certificates.as_ref())?))
            }
            RedisServers::Sentinel { primary, password } => {
                let server = servers.first().ok_or_else(nowhere)?.clone();
                let sentinels = servers.into_iter().map(|sentinel| {
                    let settings = settings(None, password.as_ref());
                    client(sentinel.set_redis_settings(settings), certificates.as_ref())
                });
                let sentinels = Sentinels::new(primary, sentinels.collect::<RedisResult<_>>()?);
                Way::Sentinel(Box::new(Named { sentinels, server, certificates }))
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
    pub(super) async fn primary(&mut self) -> RedisResult<Option<(String, u16)>> {
        match &mut self.way {
            Way::Sentinel(named) => named.sentinels.primary().await.map(Some),
            Way::One(_) | Way::Cluster(_) => Ok(None),
        }
    }

    /// One connection.
    pub(super) async fn connect(&mut self) -> RedisResult<Connection> {
        let options = &self.options;
        Ok(match &mut self.way {
            Way::One(client) => {
                let connecting = client.get_multiplexed_async_connection_with_config(options);
                Connection::One(connecting.await?)
            }
            Way::Sentinel(named) => Connection::One(named.connect(options).await?),
            Way::Cluster(client) => Connection::Cluster(client.get_async_connection().await?),
        })
    }
}

impl Named {
    async fn connect(
        &mut self,
        options: &AsyncConnectionConfig,
    ) -> RedisResult<MultiplexedConnection> {
        let (host, port) = self.sentinels.primary().await?;
        let address = match self.server.addr() {
            ConnectionAddr::TcpTls { .. } => {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            }
            _ => ConnectionAddr::Tcp(host, port),
        };
        let server = self.server.clone().set_addr(address);
        let client = client(server, self.certificates.as_ref())?;
        let mut connection = client.get_multiplexed_async_connection_with_config(options).await?;
        // It may know already that it is the primary no more, or not yet that it is.
        match redis::cmd("ROLE").query_async(&mut connection).await? {
            Role::Primary { .. } => Ok(connection),
            _ => Err(RedisError::from((ErrorKind::Io, "it is not the primary"))),
        }
    }
}

fn nowhere() -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, "no address"))
}

fn client(server: ConnectionInfo, certificates: Option<&TlsCertificates>) -> RedisResult<Client> {
    match certificates {
        Some(certificates) => Client::build_with_tls(server, certificates.clone()),
        None => Client::open(server),
    }
}

fn connection_info(url: &str, config: &Redis) -> RedisResult<ConnectionInfo> {
    let server = url.into_connection_info()?;
    let settings = settings(config.username.as_deref(), config.password.as_ref())
        .set_db(server.redis_settings().db())
        .set_protocol(ProtocolVersion::RESP3);
    Ok(server.set_redis_settings(settings))
}

fn settings(username: Option<&str>, password: Option<&Secret>) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default();
    if let Some(username) = username {
        settings = settings.set_username(username);
    }
    if let Some(password) = password {
        settings = settings.set_password(text(password));
    }
    settings
}

/// The configuration checked that it is text.
fn text(secret: &Secret) -> &str {
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
