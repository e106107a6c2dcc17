//! A browser: keeps cookies and connections, opens pages, follows redirects across the provider and
//! the gateway, submits the login page's form.

use std::sync::{Mutex, MutexGuard};

use http::Method;
use url::{Url, form_urlencoded};

use super::gateway::Gateway;
use super::jar::{From, Jar};
use super::wire::{Answer, Ask, Connection, Protocol, authority_of};

/// Redirects before a browser gives up (Fetch, section 4.4).
const MOST_HOPS: usize = 20;

/// A browser, with one profile.
pub(crate) struct Browser {
    /// The origin whose pages it opens when only a path is given.
    pub(crate) home: Url,
    protocol: Protocol,
    jar: Mutex<Jar>,
    idle: Mutex<Vec<(String, Connection)>>,
    /// Lines of `Set-Cookie` that it refused, and why.
    refused: Mutex<Vec<String>>,
}

impl Browser {
    /// A new profile, at home on the gateway's first public origin.
    pub(crate) fn new(gateway: &Gateway, protocol: Protocol) -> Self {
        Self::at(&gateway.url, protocol)
    }

    /// A new profile, at home on `home`.
    pub(crate) fn at(home: &Url, protocol: Protocol) -> Self {
        Self {
            home: home.clone(),
            protocol,
            jar: Mutex::default(),
            idle: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// Another browser with the same cookies: somebody has copied them.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::at(&self.home, self.protocol);
        *copy.jar() = self.jar().clone();
        copy
    }

    /// The cookies.
    pub(crate) fn jar(&self) -> MutexGuard<'_, Jar> {
        self.jar.lock().unwrap()
    }

    /// The value of a cookie.
    pub(crate) fn cookie(&self, name: &str) -> Option<String> {
        self.jar().get(name).map(|cookie| cookie.value.clone())
    }

    /// The names of all cookies for home that begin so.
    pub(crate) fn cookies(&self, prefix: &str) -> Vec<String> {
        let jar = self.jar();
        let names = jar.all().iter().map(|cookie| cookie.name.clone());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Gives a cookie of home this value.
    pub(crate) fn set_cookie(&self, name: &str, value: &str) {
        self.jar().put(&self.home, name, value);
    }

    /// Forgets a cookie.
    pub(crate) fn forget(&self, name: &str) {
        self.jar().remove(name);
    }

    /// What was refused of what it was told to keep.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }

    /// The whole address of a path.
    pub(crate) fn url(&self, target: &str) -> Url {
        if target.starts_with('/') {
            // As typed: not what `Url::join` would make of `//host`.
            let origin = &self.home[..url::Position::BeforePath];
            return Url::parse(&format!("{origin}{target}")).unwrap();
        }
        Url::parse(target).unwrap()
    }

    /// One exchange, with cookies.
    pub(crate) async fn ask(&self, ask: Ask) -> Answer {
        self.ask_from(ask, From::SameSite).await
    }

    /// One exchange that another site may have caused.
    pub(crate) async fn ask_from(&self, mut ask: Ask, from: From) -> Answer {
        let url = self.url(&ask.target);
        if let Some(line) = self.jar().line(&url, from) {
            ask = ask.header("cookie", line);
        }
        let site = if from == From::SameSite { "same-origin" } else { "cross-site" };
        if ask.headers.contains_key("sec-fetch-mode") && !ask.headers.contains_key("sec-fetch-site")
        {
            ask = ask.header("sec-fetch-site", site);
        }
        let answer = self.exchange(&url, ask).await;
        for line in answer.set_cookies() {
            if let Err(why) = self.jar().take(&url, line) {
                self.refused.lock().unwrap().push(format!("{why}: {line}"));
            }
        }
        answer
    }

    /// Opens a page and stays where it is sent from.
    pub(crate) async fn page(&self, target: &str) -> Answer {
        self.ask(Ask::page(target)).await
    }

    /// Fetches, as a script of the page does.
    pub(crate) async fn fetch(&self, target: &str) -> Answer {
        self.ask(Ask::fetch(target)).await
    }

    /// Opens a page and goes wherever it is sent.
    pub(crate) async fn open(&self, target: &str) -> Answer {
        let answer = self.page(target).await;
        self.follow(answer).await
    }

    /// Opens a page by a link on another site, and goes wherever it is sent.
    pub(crate) async fn open_from_elsewhere(&self, target: &str) -> Answer {
        let answer = self.ask_from(Ask::page(target), From::Link).await;
        self.follow_from(answer, From::Link).await
    }

    /// Goes wherever an answer sends.
    pub(crate) async fn follow(&self, answer: Answer) -> Answer {
        self.follow_from(answer, From::SameSite).await
    }

    async fn follow_from(&self, mut answer: Answer, from: From) -> Answer {
        let mut hops = std::mem::take(&mut answer.hops);
        while answer.status.is_redirection() && answer.headers.contains_key("location") {
            assert!(hops.len() < MOST_HOPS, "redirected in circles: {hops:?}");
            hops.push(answer.url.clone());
            let next = answer.location();
            answer = self.ask_from(Ask::page(next.as_str()), from).await;
        }
        answer.hops = hops;
        answer
    }

    /// Submits the first form of a page with these fields and goes wherever that leads.
    pub(crate) async fn submit(&self, page: &Answer, fields: &[(&str, &str)]) -> Answer {
        let answer = self.submit_once(page, fields).await;
        // The page that the form stands on starts what follows.
        let from =
            if page.url.host_str() == self.home.host_str() { From::SameSite } else { From::Link };
        self.follow_from(answer, from).await
    }

    /// Submits the first form of a page with these fields.
    pub(crate) async fn submit_once(&self, page: &Answer, fields: &[(&str, &str)]) -> Answer {
        let form = Form::first(&page.text()).unwrap_or_else(|| {
            panic!("{} has no form: {} {}", page.url, page.status, page.text());
        });
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form.hidden).extend_pairs(fields);
        let action = page.url.join(&form.action).unwrap();
        let ask = Ask { method: Method::POST, ..Ask::page(action.as_str()) }
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.finish());
        self.ask(ask).await
    }

    /// Opens a page as somebody who is not signed in, and signs in on the way.
    pub(crate) async fn log_in(&self, user: &str, target: &str) -> Answer {
        let login_page = self.open(target).await;
        assert_ne!(login_page.url.host_str(), self.home.host_str(), "no login was asked for");
        self.submit(&login_page, &[("user", user)]).await
    }

    async fn exchange(&self, url: &Url, ask: Ask) -> Answer {
        let origin = format!("{}://{}", url.scheme(), authority_of(url));
        let protocol = if url.scheme() == "https" { self.protocol } else { Protocol::Http1 };
        let connection = loop {
            match self.idle(&origin) {
                // A server may have closed it meanwhile.
                Some(kept) if kept.is_ready().await => break kept,
                Some(_) => {}
                None => break Connection::open(url, protocol).await.unwrap(),
            }
        };
        if protocol == Protocol::Http2 {
            self.idle.lock().unwrap().push((origin.clone(), connection.clone()));
        }
        let answer = connection.ask(url, ask).await;
        let answer = answer.unwrap_or_else(|error| panic!("{url}: {error:?}"));
        if protocol == Protocol::Http1 {
            self.idle.lock().unwrap().push((origin, connection));
        }
        answer
    }

    /// A connection that is free: taken, so that no other request has it at once.
    fn idle(&self, origin: &str) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap();
        let place = idle.iter().position(|(known, _)| known == origin)?;
        Some(idle.swap_remove(place).1)
    }
}

/// A form of a page.
struct Form {
    action: String,
    hidden: Vec<(String, String)>,
}

impl Form {
    fn first(html: &str) -> Option<Self> {
        let (_, rest) = html.split_once("<form")?;
        let (tag, rest) = rest.split_once('>')?;
        let inside = rest.split_once("</form").map_or(rest, |(inside, _)| inside);
        let hidden = inside.split("<input").skip(1).filter_map(|input| {
            let (input, _) = input.split_once('>')?;
            let is_hidden = attribute(input, "type")? == "hidden";
            is_hidden.then(|| Some((attribute(input, "name")?, attribute(input, "value")?)))?
        });
        let action = attribute(tag, "action").unwrap_or_default();
        Some(Self { action, hidden: hidden.collect() })
    }
}

/// An attribute of a tag, in double quotes.
fn attribute(tag: &str, name: &str) -> Option<String> {
    let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    let plain = value.replace("&quot;", "\"").replace("&#39;", "'").replace("&lt;", "<");
    Some(plain.replace("&gt;", ">").replace("&amp;", "&"))
}
