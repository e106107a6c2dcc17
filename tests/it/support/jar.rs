//! A browser's cookies, by the rules of RFC 6265bis that decide what a gateway's cookies can do. A
//! line that a browser would refuse is refused here.

use std::time::{Duration, Instant};

use url::Url;

/// One cookie.
#[derive(Clone, Debug)]
pub(crate) struct Cookie {
    pub(crate) name: String,
    pub(crate) value: String,
    /// A host, or with `subdomains` a domain.
    pub(crate) domain: String,
    pub(crate) subdomains: bool,
    pub(crate) path: String,
    pub(crate) secure: bool,
    pub(crate) http_only: bool,
    pub(crate) same_site: String,
    /// None: until the browser closes.
    pub(crate) expires: Option<Instant>,
}

/// A browser's cookies.
#[derive(Clone, Debug, Default)]
pub(crate) struct Jar(Vec<Cookie>);

/// Where a request comes from, as far as cookies care (RFC 6265bis, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// The same site, or the address bar.
    SameSite,
    /// A link or a redirect of another site.
    Link,
}

impl Jar {
    /// Takes a `Set-Cookie` line that came from `url`; says why not, if not.
    pub(crate) fn take(&mut self, url: &Url, line: &str) -> Result<(), &'static str> {
        let cookie = parse(url, line)?;
        let expired = cookie.expires.is_some_and(|at| at <= Instant::now());
        let same = |other: &Cookie| {
            (&other.name, &other.domain, &other.path)
                == (&cookie.name, &cookie.domain, &cookie.path)
        };
        let place = self.0.iter().position(same);
        match (place, expired) {
            (Some(place), true) => drop(self.0.remove(place)),
            // Section 5.7: the time of creation, and with it the order, stays.
            (Some(place), false) => self.0[place] = cookie,
            (None, true) => {}
            (None, false) => self.0.push(cookie),
        }
        Ok(())
    }

    /// The `Cookie` line for a request to `url`.
    pub(crate) fn line(&self, url: &Url, from: From) -> Option<String> {
        let host = url.host_str().unwrap_or_default();
        let sent = self.0.iter().filter(|cookie| {
            let same_site = cookie.same_site.as_str();
            let allowed = match from {
                From::SameSite => true,
                From::Link => same_site != "Strict",
            };
            allowed
                && (cookie.domain == host || cookie.subdomains && below(host, &cookie.domain))
                && (!cookie.secure || url.scheme() == "https")
                && covers(&cookie.path, url.path())
                && cookie.expires.is_none_or(|at| at > Instant::now())
        });
        let mut sent: Vec<&Cookie> = sent.collect();
        // Section 5.8.3: longer paths first, then the older.
        sent.sort_by_key(|cookie| std::cmp::Reverse(cookie.path.len()));
        let pairs: Vec<String> =
            sent.iter().map(|cookie| format!("{}={}", cookie.name, cookie.value)).collect();
        (!pairs.is_empty()).then(|| pairs.join("; "))
    }

    /// The cookie of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Cookie> {
        self.0.iter().find(|cookie| cookie.name == name)
    }

    /// All cookies, in the order of their creation.
    pub(crate) fn all(&self) -> &[Cookie] {
        &self.0
    }

    /// Gives a cookie this value, as somebody at the keyboard can.
    pub(crate) fn put(&mut self, url: &Url, name: &str, value: &str) {
        self.remove(name);
        self.0.push(Cookie {
            name: name.to_owned(),
            value: value.to_owned(),
            domain: url.host_str().unwrap_or_default().to_owned(),
            subdomains: false,
            path: "/".to_owned(),
            secure: true,
            http_only: true,
            same_site: "Lax".to_owned(),
            expires: None,
        });
    }

    /// Forgets a cookie.
    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|cookie| cookie.name != name);
    }

    /// Forgets the cookies that live until the browser closes.
    pub(crate) fn close_browser(&mut self) {
        self.0.retain(|cookie| cookie.expires.is_some());
    }
}

fn parse(url: &Url, line: &str) -> Result<Cookie, &'static str> {
    if line.chars().any(|character| character.is_ascii_control() && character != '\t') {
        return Err("a control character");
    }
    let mut parts = line.split(';');
    let (name, value) = parts.next().unwrap_or_default().split_once('=').ok_or("no =")?;
    let host = url.host_str().unwrap_or_default();
    let mut cookie = Cookie {
        name: name.trim().to_owned(),
        value: value.trim().to_owned(),
        domain: host.to_owned(),
        subdomains: false,
        path: default_path(url.path()).to_owned(),
        secure: false,
        http_only: false,
        same_site: "Lax".to_owned(),
        expires: None,
    };
    let mut explicit_path = false;
    for attribute in parts {
        let (key, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let value = value.trim();
        // Section 5.6: an attribute that is too long is no attribute.
        if value.len() > 1024 {
            continue;
        }
        match key.trim().to_ascii_lowercase().as_str() {
            "secure" => cookie.secure = true,
            "httponly" => cookie.http_only = true,
            "path" if value.starts_with('/') => {
                value.clone_into(&mut cookie.path);
                explicit_path = true;
            }
            "samesite" => value.clone_into(&mut cookie.same_site),
            "domain" => {
                let domain = value.trim_start_matches('.').to_ascii_lowercase();
                if domain != host && !below(host, &domain) {
                    return Err("another domain");
                }
                cookie.domain = domain;
                cookie.subdomains = true;
            }
            "max-age" => {
                let seconds: i64 = value.parse().map_err(|_| "no number")?;
                let life = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                cookie.expires = Some(Instant::now() + life);
            }
            _ => {}
        }
    }
    check(url, &cookie, explicit_path).map(|()| cookie)
}

/// Section 5.7: what is refused.
fn check(url: &Url, cookie: &Cookie, explicit_path: bool) -> Result<(), &'static str> {
    let lower = cookie.name.to_ascii_lowercase();
    if cookie.name.len() + cookie.value.len() > 4096 {
        return Err("over 4096 bytes");
    }
    if cookie.secure && url.scheme() != "https" {
        return Err("Secure, over http");
    }
    if cookie.same_site == "None" && !cookie.secure {
        return Err("SameSite=None without Secure");
    }
    if lower.starts_with("__secure-") && !cookie.secure {
        return Err("__Secure- without Secure");
    }
    let host_only = cookie.secure && !cookie.subdomains && explicit_path && cookie.path == "/";
    if lower.starts_with("__host-") && !host_only {
        return Err("__Host- without Secure and Path=/, or with Domain");
    }
    Ok(())
}

/// Section 5.1.4.
fn default_path(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(end) => &path[..end],
    }
}

fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

fn below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}
