//! Which server is the primary: sentinels say so, in the way that is documented for clients
//! (`SENTINEL GET-MASTER-ADDR-BY-NAME`), which names the next one as soon as it has been promoted.
//! `SENTINEL MASTERS` goes on naming the one before until all its replicas copy the next.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};
use tokio::time::timeout;

/// How long one of them may take to say so.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// The sentinels. Who has answered last is asked first.
pub(super) struct Sentinels {
    primary: String,
    all: Vec<Sentinel>,
}

struct Sentinel {
    client: Client,
    connection: Option<MultiplexedConnection>,
}

impl Sentinels {
    /// Those of this primary.
    pub(super) fn new(primary: &str, clients: Vec<Client>) -> Self {
        let all = clients.into_iter().map(|client| Sentinel { client, connection: None });
        Self { primary: primary.to_owned(), all: all.collect() }
    }

    /// Its host and port.
    pub(super) async fn primary(&mut self) -> RedisResult<(String, u16)> {
        let mut failed = said("no sentinel is known");
        for _ in 0..self.all.len() {
            let Some(sentinel) = self.all.first_mut() else { break };
            failed = match timeout(ANSWER_TIME, sentinel.ask(&self.primary)).await {
                Ok(Ok(Some(address))) => return Ok(address),
                Ok(Ok(None)) => said("a sentinel does not know the primary"),
                Ok(Err(error)) => error,
                Err(_) => said("a sentinel does not answer in time"),
            };
            sentinel.connection = None;
            self.all.rotate_left(1);
        }
        Err(failed)
    }
}

impl Sentinel {
    async fn ask(&mut self, primary: &str) -> RedisResult<Option<(String, u16)>> {
        let mut connection = if let Some(connection) = self.connection.take() {
            connection
        } else {
            let options = AsyncConnectionConfig::new().set_response_timeout(None);
            self.client.get_multiplexed_async_connection_with_config(&options).await?
        };
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
        let answer = ask.query_async(&mut connection).await?;
        self.connection = Some(connection);
        Ok(answer)
    }
}

fn said(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Io, what))
}
