//! What an app is told of the connection: `X-Forwarded-*`, `Forwarded` (RFC 7239), the client's
//! certificate, the request's id and its trace. What a client says of itself is believed only if it is a trusted proxy.

use std::net::IpAddr;

use http::header::{FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::Way;
use super::headers::list;
use crate::config::Server;
use crate::config::value::Origin;
use crate::digits;
use crate::peer::ClientCertificate;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
const CERT_FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");

/// Trusted proxies, and the public origins as header values.
pub(super) struct Forwarded {
    trusted: Vec<IpNet>,
    origins: Vec<PublicOrigin>,
}

struct PublicOrigin {
    authority: HeaderValue,
    port: HeaderValue,
    /// `;host="…";proto=https`
    forwarded: String,
}

/// What a trusted proxy said, taken off before the fields are stripped.
#[derive(Default)]
pub(super) struct Believed {
    forwarded_for: Vec<HeaderValue>,
    forwarded: Vec<HeaderValue>,
    trace: Option<HeaderValue>,
    trace_state: Vec<HeaderValue>,
}

impl Forwarded {
    pub(super) fn new(server: &Server) -> Self {
        Self {
            trusted: server.trusted_proxies.clone(),
            origins: server.public_urls.iter().filter_map(PublicOrigin::new).collect(),
        }
    }

    /// Who sent the request: the peer, or the nearest address before it that is no trusted proxy.
    pub(super) fn client(&self, peer: IpAddr, fields: &HeaderMap) -> IpAddr {
        let mut client = peer;
        if self.trusts(peer) {
            let fields: Vec<_> = fields.get_all(FOR).iter().flat_map(list).collect();
            for address in fields.into_iter().rev() {
                let Some(address) = parse(address) else { break };
                client = address;
                if !self.trusts(client) {
                    break;
                }
            }
        }
        client
    }

    /// What `peer` says, if it is to be believed.
    pub(super) fn believed(&self, peer: IpAddr, fields: &HeaderMap) -> Believed {
        if !self.trusts(peer) {
            return Believed::default();
        }
        let all = |name| fields.get_all(name).iter().cloned().collect();
        Believed {
            forwarded_for: all(FOR),
            forwarded: all(FORWARDED),
            trace: fields.get(TRACEPARENT).cloned(),
            trace_state: all(TRACESTATE),
        }
    }

    /// Says who asked for which origin.
    pub(super) fn write(&self, fields: &mut HeaderMap, way: Way<'_>, believed: Believed) {
        let Way { peer, origin, request_id, certificate, .. } = way;
        let mut address = String::with_capacity(40);
        digits::address(&mut address, peer);
        if let Some(origin) = self.origins.get(origin) {
            fields.insert(HOST, origin.authority.clone());
            fields.insert(FORWARDED_HOST, origin.authority.clone());
            fields.insert(PORT, origin.port.clone());
            // RFC 7239, section 6: an IPv6 address stands in brackets and quotes.
            let (before, after) = if peer.is_ipv4() { ("", "") } else { ("\"[", "]\"") };
            let element = ["for=", before, &address, after, &origin.forwarded].concat();
            append(fields, &FORWARDED, &believed.forwarded, element);
        }
        fields.insert(PROTO, HeaderValue::from_static("https"));
        append(fields, &FOR, &believed.forwarded_for, address);
        if let Ok(id) = HeaderValue::from_str(request_id) {
            fields.insert(REQUEST_ID, id);
        }
        if let Some(ClientCertificate { subject, fingerprint }) = certificate {
            let subject = subject.as_ref().map(|subject| (CERT_SUBJECT, subject));
            for (name, text) in subject.into_iter().chain([(CERT_FINGERPRINT, fingerprint)]) {
                // Visible ASCII and spaces: it is one.
                if let Ok(value) = HeaderValue::from_str(text) {
                    fields.insert(name, value);
                }
            }
        }
        if let Some(trace) = believed.trace {
            fields.insert(TRACEPARENT, trace);
            for state in believed.trace_state {
                fields.append(TRACESTATE, state);
            }
        } else if let Some(span) = request_id.get(16..)
            // W3C Trace Context, section 3.2: version, trace, parent, and the flag "sampled".
            && let Ok(trace) = HeaderValue::try_from(["00-", request_id, "-", span, "-01"].concat())
        {
            fields.insert(TRACEPARENT, trace);
        }
    }

    fn trusts(&self, peer: IpAddr) -> bool {
        !self.trusted.is_empty() && self.trusted.iter().any(|net| net.contains(&peer))
    }
}

impl PublicOrigin {
    fn new(origin: &Origin) -> Option<Self> {
        let authority = origin.authority();
        Some(Self {
            forwarded: format!(";host=\"{authority}\";proto=https"),
            authority: authority.try_into().ok()?,
            port: origin.port.into(),
        })
    }
}

/// The fields before it, and `element` as the last.
fn append(fields: &mut HeaderMap, name: &HeaderName, before: &[HeaderValue], element: String) {
    let Ok(last) = HeaderValue::try_from(element) else { return };
    if before.is_empty() {
        fields.insert(name, last);
        return;
    }
    let all: Vec<&[u8]> = before.iter().chain([&last]).map(HeaderValue::as_bytes).collect();
    fields.insert(name, HeaderValue::from_bytes(&all.join(&b", "[..])).unwrap_or(last));
}

/// One address of `X-Forwarded-For`, with or without a port.
fn parse(address: &[u8]) -> Option<IpAddr> {
    let address = std::str::from_utf8(address).ok()?;
    let socket = || address.parse::<std::net::SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bracketed.unwrap_or(address).parse().ok().or_else(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef00000000000000ff";

    fn forwarded(trusted: &[&str]) -> Forwarded {
        let origin = Origin { host: "app.example".to_owned(), port: 8443 };
        Forwarded {
            trusted: trusted.iter().map(|net| net.parse().unwrap()).collect(),
            origins: vec![PublicOrigin::new(&origin).unwrap()],
        }
    }

    fn said() -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.append(FOR, HeaderValue::from_static("6.6.6.6, 10.0.0.9"));
        fields.append(FOR, HeaderValue::from_static("[2001:db8::1]:99"));
        fields.append(FORWARDED, HeaderValue::from_static("for=6.6.6.6"));
        fields.append(TRACEPARENT, HeaderValue::from_static("theirs"));
        fields
    }

    fn written(forwarded: &Forwarded, peer: &str) -> HeaderMap {
        let peer = peer.parse().unwrap();
        let believed = forwarded.believed(peer, &said());
        let mut fields = HeaderMap::new();
        forwarded.write(
            &mut fields,
            Way { route: 0, origin: 0, peer, request_id: ID, certificate: None, interim: None },
            believed,
        );
        fields
    }

    #[test]
    fn a_strangers_word_about_itself_counts_for_nothing() {
        let fields = written(&forwarded(&["10.0.0.0/8"]), "192.0.2.1");
        assert_eq!(fields[FOR], "192.0.2.1");
        assert_eq!(fields[FORWARDED], "for=192.0.2.1;host=\"app.example:8443\";proto=https");
        assert_eq!(fields[FORWARDED_HOST], "app.example:8443");
        assert_eq!(fields[HOST], "app.example:8443");
        assert_eq!(fields[PORT], "8443");
        assert_eq!(fields[PROTO], "https");
        assert_eq!(fields[REQUEST_ID], ID);
        assert_eq!(fields[TRACEPARENT], format!("00-{ID}-00000000000000ff-01"));
        let six = written(&forwarded(&[]), "2001:db8::2");
        assert!(six[FORWARDED].to_str().unwrap().starts_with("for=\"[2001:db8::2]\";"));
    }

    #[test]
    fn a_trusted_proxys_word_is_kept_and_added_to() {
        let fields = written(&forwarded(&["10.0.0.0/8"]), "10.1.1.1");
        assert_eq!(fields[FOR], "6.6.6.6, 10.0.0.9, [2001:db8::1]:99, 10.1.1.1");
        assert!(fields[FORWARDED].to_str().unwrap().starts_with("for=6.6.6.6, for=10.1.1.1;"));
        assert_eq!(fields[TRACEPARENT], "theirs");
        assert_eq!(fields.get_all(FOR).iter().count(), 1);
    }

    #[test]
    fn the_client_is_the_nearest_address_that_is_not_trusted() {
        let client = |trusted: &[&str], peer: &str| {
            forwarded(trusted).client(peer.parse().unwrap(), &said()).to_string()
        };
        assert_eq!(client(&[], "192.0.2.1"), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "10.1.1.1"), "2001:db8::1");
        assert_eq!(client(&["10.0.0.0/8", "2001:db8::/32"], "10.1.1.1"), "6.6.6.6");
        assert_eq!(client(&["0.0.0.0/0", "::/0"], "10.1.1.1"), "6.6.6.6");
    }
}
