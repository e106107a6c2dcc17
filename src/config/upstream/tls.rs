//! How an https upstream is known, and who it is told that we are: certificates of `route.upstream`.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;

use crate::config::Certificate;
use crate::config::certificate::{certificates, load};
use crate::config::parse::Wrong;
use crate::config::table::{Item, Table, file_path};

/// What differs from any other https upstream.
#[derive(Clone, Debug, Default)]
pub struct UpstreamTls {
    /// `ca`: who may have signed its certificate; absent: the machine's trusted roots.
    pub ca: Option<Arc<RootCertStore>>,
    /// `cert` and `key`: what it is shown if it asks for a certificate.
    pub identity: Option<Arc<CertifiedKey>>,
    /// `server_name`: whom its certificate must be good for, and the name that it is asked by;
    /// absent: the URL's host.
    pub server_name: Option<ServerName<'static>>,
}

impl PartialEq for UpstreamTls {
    fn eq(&self, other: &Self) -> bool {
        let roots = |tls: &Self| tls.ca.as_ref().map(|ca| ca.roots.clone());
        let chain = |tls: &Self| tls.identity.as_ref().map(|identity| identity.cert.clone());
        roots(self) == roots(other)
            && chain(self) == chain(other)
            && self.server_name == other.server_name
    }
}

impl Eq for UpstreamTls {}

/// The keys of an upstream's table that are about TLS; none if it has none of them, or if they are
/// wrong, which has been said then.
pub(super) fn tls(t: &mut Table<'_>, is_https: bool) -> Option<Arc<UpstreamTls>> {
    let ca = t.optional("ca", authorities);
    let cert = t.optional("cert", file_path);
    let key = t.optional("key", file_path);
    let server_name = t.optional("server_name", server_name);
    let given: Vec<_> =
        ["ca", "cert", "key", "server_name"].into_iter().filter(|key| t.has(key)).collect();
    let first = given.first()?;
    if !is_https {
        let wrong = Wrong::new("is for https alone", "write an https:// url, or leave this out");
        return t.wrong(first, wrong);
    }
    let identity = match (cert, key) {
        (Some(cert), Some(key)) => Some(identity(t, &Certificate { cert, key, acme: Vec::new() })?),
        (None, None) => None,
        (Some(_), None) if !t.has("key") => {
            return t.missing("key", r#"write key = "gateway.key", which belongs to cert"#);
        }
        (None, Some(_)) if !t.has("cert") => {
            return t.missing("cert", r#"write cert = "gateway.pem", which belongs to key"#);
        }
        _ => return None,
    };
    Some(Arc::new(UpstreamTls { ca, identity, server_name }))
}

fn identity(t: &Table<'_>, certificate: &Certificate) -> Option<Arc<CertifiedKey>> {
    load(certificate).map_or_else(
        |error| {
            let key = if error.is_about(&certificate.key) { "key" } else { "cert" };
            let remedy = "name a chain in PEM, leaf first, and its key";
            t.wrong(key, Wrong::new(error.to_string(), remedy))
        },
        |certified| Some(Arc::new(certified)),
    )
}

fn authorities(item: &Item<'_>) -> Option<Arc<RootCertStore>> {
    let path = file_path(item)?;
    let remedy = "name a file with the authorities' certificates in PEM";
    let found = match certificates(&path) {
        Ok(found) => found,
        Err(error) => return item.wrong(Wrong::new(error.to_string(), remedy)),
    };
    let mut roots = RootCertStore::empty();
    for certificate in found {
        if let Err(error) = roots.add(certificate) {
            let message = format!("{} holds what is no authority: {error}", path.display());
            return item.wrong(Wrong::new(message, remedy));
        }
    }
    Some(Arc::new(roots))
}

fn server_name(item: &Item<'_>) -> Option<ServerName<'static>> {
    item.parse(|text| {
        ServerName::try_from(text.to_owned()).map_err(|_| {
            Wrong::new("is no name of a server", "write a name or an address: app.internal")
        })
    })
}
