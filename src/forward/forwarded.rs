//! What an app is told of the connection: `X-Forwarded-*`, `Forwarded` (RFC 7239), the client's
//! certificate, the request's id and its trace. What a client says of itself is believed only if it is a trusted proxy.

use std::cell::Cell;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use http::header::{FORWARDED, HOST};
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::Way;
use super::hops::Hops;
use crate::config::Server;
use crate::config::value::Origin;
use crate::digits;
use crate::peer::ClientCertificate;

/// How often it is told that proxies contradict themselves.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub(super) const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
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
    /// When it was last told that the two headers differ.
    told: Cell<Option<Instant>>,
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
            told: Cell::default(),
        }
    }

    /// Who sent the request: the peer, or the nearest address before it that is no trusted proxy.
    pub(super) fn client(&self, peer: IpAddr, fields: &HeaderMap) -> IpAddr {
        let mut client = peer;
        if !self.trusts(peer) {
            return client;
        }
        if self.walk(peer, fields, |hop| client = hop).differ {
            self.tell(peer);
        }
        client
    }

    /// What `peer` says, if it is to be believed.
    pub(super) fn believed(&self, peer: IpAddr, fields: &HeaderMap) -> Believed {
        if !self.trusts(peer) {
            return Believed::default();
        }
        let all = |name| fields.get_all(name).iter().cloned().collect();
        let (mut forwarded_for, mut forwarded): (Vec<_>, Vec<_>) = (all(FOR), all(FORWARDED));
        // What one of the headers says, an app finds in either.
        if forwarded_for.is_empty() != forwarded.is_empty() {
            let mut hops = Vec::new();
            self.walk(peer, fields, |hop| hops.push(hop));
            let hops = hops.into_iter().rev();
            if forwarded.is_empty() {
                forwarded = hops.filter_map(|hop| node(hop, "").try_into().ok()).collect();
            } else {
                forwarded_for = hops.filter_map(|hop| text(hop).try_into().ok()).collect();
            }
        }
        Believed {
            forwarded_for,
            forwarded,
            trace: fields.get(TRACEPARENT).cloned(),
            trace_state: all(TRACESTATE),
        }
    }

    /// Says who asked for which origin.
    pub(super) fn write(&self, fields: &mut HeaderMap, way: Way<'_>, believed: Believed) {
        let Way { peer, origin, request_id, certificate, .. } = way;
        if let Some(origin) = self.origins.get(origin) {
            fields.insert(HOST, origin.authority.clone());
            fields.insert(FORWARDED_HOST, origin.authority.clone());
            fields.insert(PORT, origin.port.clone());
            append(fields, &FORWARDED, &believed.forwarded, node(peer, &origin.forwarded));
        }
        fields.insert(PROTO, HeaderValue::from_static("https"));
        append(fields, &FOR, &believed.forwarded_for, text(peer));
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

    /// Goes from `peer` over those that are trusted, and says of whom they speak.
    fn walk<'a>(
        &self,
        peer: IpAddr,
        fields: &'a HeaderMap,
        mut met: impl FnMut(IpAddr),
    ) -> Hops<'a> {
        let mut hops = Hops::of(fields);
        let mut at = peer;
        while self.trusts(at)
            && let Some(hop) = hops.next()
        {
            met(hop);
            at = hop;
        }
        hops
    }

    fn tell(&self, peer: IpAddr) {
        if self.told.get().is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            self.told.set(Some(Instant::now()));
            tracing::warn!(
                %peer,
                "a proxy's X-Forwarded-For and Forwarded name different clients: neither is believed; \
                 let it write one of them, and remove the other"
            );
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

fn text(address: IpAddr) -> String {
    let mut text = String::with_capacity(40);
    digits::address(&mut text, address);
    text
}

/// An element of `Forwarded`. An IPv6 address stands in brackets and quotes (RFC 7239, section 6).
fn node(address: IpAddr, more: &str) -> String {
    let (before, after) = if address.is_ipv4() { ("", "") } else { ("\"[", "]\"") };
    ["for=", before, &text(address), after, more].concat()
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
            told: Cell::default(),
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
        written_of(forwarded, peer, &said())
    }

    fn written_of(forwarded: &Forwarded, peer: &str, said: &HeaderMap) -> HeaderMap {
        let peer = peer.parse().unwrap();
        let believed = forwarded.believed(peer, said);
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
            let mut said = said();
            said.remove(FORWARDED);
            forwarded(trusted).client(peer.parse().unwrap(), &said).to_string()
        };
        assert_eq!(client(&[], "192.0.2.1"), "192.0.2.1");
        assert_eq!(client(&["10.0.0.0/8"], "10.1.1.1"), "2001:db8::1");
        assert_eq!(client(&["10.0.0.0/8", "2001:db8::/32"], "10.1.1.1"), "6.6.6.6");
        assert_eq!(client(&["0.0.0.0/0", "::/0"], "10.1.1.1"), "6.6.6.6");
    }

    #[test]
    fn forwarded_names_the_client_as_x_forwarded_for_does_and_neither_does_against_the_other() {
        let client = |listed: &str, line: &str| {
            let mut fields = HeaderMap::new();
            for (name, line) in [(FOR, listed), (FORWARDED, line)] {
                fields.append(name, line.parse().unwrap());
            }
            forwarded(&["10.0.0.0/8"]).client("10.1.1.1".parse().unwrap(), &fields).to_string()
        };
        assert_eq!(client("", "for=6.6.6.6, for=192.0.2.1;proto=http, for=10.0.0.9"), "192.0.2.1");
        assert_eq!(client("", "for=\"[2001:db8::1]:99\""), "2001:db8::1");
        assert_eq!(client("", "for=6.6.6.6, for=unknown"), "10.1.1.1");
        assert_eq!(client("192.0.2.1", "for=6.6.6.6, for=192.0.2.1"), "192.0.2.1");
        assert_eq!(client("192.0.2.1", "for=6.6.6.6"), "10.1.1.1");
        assert_eq!(client("192.0.2.1, 10.0.0.9", "for=6.6.6.6, for=10.0.0.9"), "10.0.0.9");
    }

    #[test]
    fn an_app_finds_the_client_in_either_header_whichever_its_proxy_writes() {
        let written = |name: HeaderName, line: &str| {
            let mut said = HeaderMap::new();
            said.append(name, line.parse().unwrap());
            let fields = written_of(&forwarded(&["10.0.0.0/8"]), "10.1.1.1", &said);
            [FOR, FORWARDED].map(|name| fields[name].to_str().unwrap().to_owned())
        };
        let own = "for=10.1.1.1;host=\"app.example:8443\";proto=https";
        let [listed, line] = written(FOR, "6.6.6.6, 2001:db8::1, 10.0.0.9");
        assert_eq!(listed, "6.6.6.6, 2001:db8::1, 10.0.0.9, 10.1.1.1");
        assert_eq!(line, format!("for=\"[2001:db8::1]\", for=10.0.0.9, {own}"));
        let [listed, line] = written(FORWARDED, "for=6.6.6.6, for=\"192.0.2.1:99\", for=10.0.0.9");
        assert_eq!(listed, "192.0.2.1, 10.0.0.9, 10.1.1.1");
        assert_eq!(line, format!("for=6.6.6.6, for=\"192.0.2.1:99\", for=10.0.0.9, {own}"));
        let [listed, line] = written(FORWARDED, "for=unknown");
        assert_eq!((listed, line), ("10.1.1.1".to_owned(), format!("for=unknown, {own}")));
    }
}
