//! What a worker makes of one generation: the gateway that answers, and how connections begin, from
//! their first byte to the first request. What becomes of them then is not known here.

use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use ipnet::IpNet;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::client_certificate::describe;
use super::generation::Generation;
use super::http2;
use super::proxy_protocol;
use super::tls::Certificates;
use crate::config::{Config, Limits};
use crate::gateway::Gateway;
use crate::observe::access::AccessLog;
use crate::observe::metrics::WorkerMetrics;
use crate::outbox::{Outbox, Posted};
use crate::peer::{Peer, Tell};
use crate::session::Memory;

/// hyper's own limit of fields, which it checks without an allocation.
const USUAL_HEADERS: usize = 100;

/// What this worker makes of one generation.
pub(super) struct Serving {
    pub(super) gateway: Rc<Gateway>,
    tls: TlsAcceptor,
    certificates: Arc<Certificates>,
    /// Of whom connections are counted, and how many each may have.
    pub(super) config: Arc<Config>,
    /// Who writes a PROXY header, where that is wanted.
    proxies: Option<Vec<IpNet>>,
    pub(super) handshake_time: Duration,
    pub(super) http1: http1::Builder,
    pub(super) http2: h2::server::Builder,
    outbox: Arc<Outbox>,
}

impl Serving {
    pub(super) fn new(
        generation: &Generation,
        memory: &Arc<Memory>,
        metrics: Rc<WorkerMetrics>,
        log: Option<&Rc<AccessLog>>,
        outbox: &Arc<Outbox>,
    ) -> Self {
        let config = generation.config();
        let limits = &config.server.limits;
        let proxies = config.server.proxy_protocol.https;
        let gateway = Gateway::new(
            generation.parties.clone(),
            memory.clone(),
            &generation.directory,
            metrics,
            log.filter(|_| config.log.access).cloned(),
            outbox,
        );
        Self {
            gateway: Rc::new(gateway),
            tls: TlsAcceptor::from(generation.server_tls.clone()),
            certificates: generation.certificates.clone(),
            config: config.clone(),
            proxies: proxies.then(|| config.server.trusted_proxies.clone()),
            handshake_time: limits.handshake_time,
            http1: http1(limits),
            http2: http2::builder(limits),
            outbox: outbox.clone(),
        }
    }

    /// The first bytes of a connection: who it is for, where a load balancer says so, and TLS.
    pub(super) async fn arrive(
        &self,
        mut stream: TcpStream,
        mut address: IpAddr,
    ) -> io::Result<(TlsStream<Posted<TcpStream>>, IpAddr)> {
        if let Some(trusted) = &self.proxies {
            let client = proxy_protocol::client(&mut stream, address, trusted).await;
            address = client.map_err(|error| error.told(address))?;
        }
        let stream = Posted::new(stream, self.outbox.clone());
        Ok((self.tls.accept(stream).await?, address))
    }

    pub(super) fn peer(
        &self,
        stream: &TlsStream<Posted<TcpStream>>,
        address: IpAddr,
        tell: Tell,
    ) -> Peer {
        let name = stream.get_ref().1.server_name().map(str::to_ascii_lowercase);
        let (certificates, asked) = (self.certificates.clone(), name.clone());
        let same_certificate =
            move |host: &str| asked.as_deref().is_none_or(|asked| certificates.same(asked, host));
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        Peer {
            address,
            server_name: name,
            same_certificate: Box::new(same_certificate),
            certificate: certificate.map(|certificate| Rc::new(describe(certificate))),
            tell,
        }
    }
}

fn http1(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // How long a head may take is the watch's to judge.
    builder
        .header_read_timeout(None)
        .max_buf_size(limits.header_bytes)
        .max_header_size(limits.header_bytes);
    if limits.headers != USUAL_HEADERS {
        builder.max_headers(limits.headers);
    }
    builder
}
