//! The app's pages: plain HTML, no scripts. Whatever came in a header is escaped.

use std::fmt::Write as _;

use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use super::MAX_NICKNAME;
use super::button::{BUTTONS, Button, RENAME};
use super::style::STYLE;
use super::told::Told;
use crate::demo::web::{self, Escaped, Reply};

/// Headers that the gateway makes, besides those that begin with `x-forwarded-` or `x-session`: its
/// own, and the two that the demo's first route adds.
const OF_THE_GATEWAY: [&str; 5] =
    ["forwarded", "x-request-id", "traceparent", "x-user-name", "x-theme"];
/// A door that stands open.
const ICON: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 32 32\">\
    <rect width=\"32\" height=\"32\" rx=\"7\" fill=\"#b4442c\"/>\
    <path d=\"M9 26V8h14v18\" fill=\"none\" stroke=\"#fff\" stroke-width=\"2.4\"/>\
    <path d=\"M9 8l8 3v18l-8-3z\" fill=\"#fff\"/></svg>\n";

/// The page for whoever is signed in; `did` is the button that led here.
pub(super) fn home(told: &Told<'_>, did: &str) -> Reply {
    let mut body = who(told);
    if let Some(sentence) = note(did) {
        let _ = writeln!(body, "<p class=\"note\" id=\"note\" role=\"status\">{sentence}</p>");
    }
    body += &changes(told);
    body += &session(told);
    body += &headers(told);
    body += "<p class=\"links\"><a href=\"/public\">A page for everybody</a> · \
             <a href=\"/admin\">a page for admins</a> · \
             <a href=\"/api/session\">the same as JSON</a></p>\n";
    page(told, "A legacy app", &body)
}

/// The page for everybody, for which the session is not looked at.
pub(super) fn public(told: &Told<'_>) -> Reply {
    let body = format!(
        "<section class=\"card\"><h1 id=\"public\">Open to everybody</h1>\n\
         <p>The route of this page is <code>access = \"public\"</code>: the gateway asks nobody to \
         sign in and tells the app of nobody. A header that claims a user does not get through, \
         whoever sends it.</p>\n<p><a class=\"button main\" id=\"sign-in\" href=\"/\">Sign in</a>\
         </p></section>\n{}",
        headers(told)
    );
    page(told, "Open to everybody", &body)
}

/// The page for those whom the route's `require` lets in.
pub(super) fn admin(told: &Told<'_>) -> Reply {
    let body = format!(
        "{}<section class=\"card\"><h2 id=\"admin\">For admins only</h2>\n\
         <p>The app has checked nothing. The route says \
         <code>require = {{ roles = [\"admin\"] }}</code>, and the provider says that you are \
         one.</p>\n<p><a href=\"/\">Back</a></p></section>\n{}",
        who(told),
        headers(told)
    );
    page(told, "For admins only", &body)
}

/// The icon in the browser's tab.
pub(super) fn icon() -> Reply {
    let mut reply = web::page(StatusCode::OK, ICON.to_owned());
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("image/svg+xml"));
    reply
}

/// Who the user is.
fn who(told: &Told<'_>) -> String {
    let user = told.header("x-forwarded-user").unwrap_or_default();
    let name = told.shown(&["user", "name"]).unwrap_or_else(|| user.clone().into_owned());
    let mut html = String::from("<header class=\"who\">");
    let picture = told.shown(&["user", "picture"]);
    let is_web = |url: &String| url.starts_with("https://") || url.starts_with("http://");
    if let Some(picture) = picture.filter(is_web) {
        let _ = write!(
            html,
            "<img id=\"picture\" src=\"{}\" alt=\"\" width=\"72\" height=\"72\">",
            Escaped(&picture)
        );
    }
    let _ = write!(
        html,
        "<div><h1 id=\"user-name\">{}</h1><p><code id=\"user\">{}</code>",
        Escaped(&name),
        Escaped(&user)
    );
    for (header, id) in [("x-forwarded-email", "email"), ("x-forwarded-groups", "groups")] {
        if let Some(value) = told.header(header) {
            let _ = write!(html, " · <span id=\"{id}\">{}</span>", Escaped(&value));
        }
    }
    html +=
        "</p></div><a class=\"button\" id=\"log-out\" href=\"/auth/logout\">Log out</a></header>\n";
    html
}

/// What the session holds that a button can change, and the buttons.
fn changes(told: &Told<'_>) -> String {
    let value = |path: &[&str], absent: &str| told.shown(path).unwrap_or_else(|| absent.to_owned());
    let mut html = String::from("<section class=\"card\"><h2>Change the session</h2>\n");
    html += "<p>Each button is a form. The app answers it with one header more, \
             <code>X-Session-Update</code>, and the gateway does the rest.</p>\n<div class=\"rows\">";
    let (theme, beta) = (value(&["theme"], "not set"), value(&["features", "beta"], "not set"));
    html += &row("Theme", "theme", &theme, &buttons(&["set-dark", "set-light"]));
    html += &row("Beta feature", "beta", &beta, &buttons(&["beta-on", "beta-off"]));
    let nickname = value(&["user", "nickname"], "not set");
    html += &row("Nickname", "nickname", &nickname, &rename());
    html += &row("Page views", "page-views", &value(&["pageViews"], "0"), &buttons(&["count"]));
    html += &row("Not JSON", "", "nothing may change", &buttons(&["malformed"]));
    html += &row("The end", "", "as an app ends it", &buttons(&["end-session"]));
    html += "</div></section>\n";
    html
}

fn row(label: &str, id: &str, value: &str, forms: &str) -> String {
    let value = if id.is_empty() {
        format!("<span class=\"quiet\">{value}</span>")
    } else {
        format!("<b id=\"{id}\">{}</b>", Escaped(value))
    };
    format!(
        "<div class=\"row\"><div><span class=\"quiet\">{label}</span>{value}</div>{forms}</div>\n"
    )
}

/// One form a button: each works by itself.
fn buttons(names: &[&str]) -> String {
    let buttons: Vec<&Button> =
        BUTTONS.iter().filter(|button| names.contains(&button.name)).collect();
    let mut html = String::from("<div class=\"forms\">");
    for Button { name, label, update, .. } in buttons {
        let _ = write!(
            html,
            "<form method=\"post\" action=\"/do/{name}\"><button id=\"{name}\">{label}</button>\
             <code>{}</code></form>",
            Escaped(update)
        );
    }
    html + "</div>"
}

fn rename() -> String {
    format!(
        "<div class=\"forms\"><form method=\"post\" action=\"/do/{RENAME}\">\
         <span class=\"field\"><input id=\"new-nickname\" name=\"nickname\" \
         maxlength=\"{MAX_NICKNAME}\" aria-label=\"A new nickname\" placeholder=\"Zoë the First\" \
         autocomplete=\"off\" required><button id=\"{RENAME}\">Rename</button></span>\
         <code>{{&quot;user&quot;:{{&quot;nickname&quot;:&quot;…&quot;}}}}</code></form></div>"
    )
}

/// The session as the app is told it.
fn session(told: &Told<'_>) -> String {
    let mut html = String::from("<section class=\"card\"><h2>X-Session</h2>\n");
    if told.header("x-session-omitted").is_some() {
        html += "<p id=\"omitted\">The session is too large for a header: the gateway left it out \
                 and said so in <code>X-Session-Omitted</code>.</p>\n";
    }
    let text = match told.session() {
        Value::Null if told.header("x-session").is_some() => "(it cannot be read)".to_owned(),
        Value::Null => "(none)".to_owned(),
        session => serde_json::to_string_pretty(session).unwrap_or_default(),
    };
    let _ = writeln!(html, "<pre id=\"session\">{}</pre></section>", Escaped(&text));
    html
}

/// Every header that arrived.
fn headers(told: &Told<'_>) -> String {
    let mut html = String::from(
        "<section class=\"card\"><h2>What arrived</h2>\n\
         <p>Every header of this request. What only the gateway can say is marked; secrets are \
         shortened.</p>\n\
         <div class=\"scroll\"><table id=\"headers\"><thead><tr><th>Header</th><th>Value</th></tr>\
         </thead><tbody>\n",
    );
    // What the gateway says first: that is what the page is about.
    let mut lines: Vec<_> = told.lines().collect();
    lines.sort_by_key(|(name, _)| !is_of_the_gateway(name));
    for (name, value) in lines {
        let ours = is_of_the_gateway(name);
        let class = if ours { " class=\"ours\"" } else { "" };
        let (name, value) = (Escaped(name), Escaped(&value));
        let _ = writeln!(html, "<tr{class}><th>{name}</th><td>{value}</td></tr>");
    }
    html += "</tbody></table></div></section>\n";
    html
}

fn is_of_the_gateway(name: &str) -> bool {
    OF_THE_GATEWAY.contains(&name)
        || name.starts_with("x-forwarded-")
        || name.starts_with("x-session")
}

fn note(did: &str) -> Option<String> {
    let sent = |update| format!("Sent <code>X-Session-Update: {}</code>. ", Escaped(update));
    match did {
        RENAME => Some(
            "The nickname has changed for apps. Who you are has not: the identity headers say what \
             the provider said."
                .to_owned(),
        ),
        "not-renamed" => {
            Some(format!("A nickname has 1 to {MAX_NICKNAME} characters. Nothing has changed."))
        }
        did => Button::find(did).map(|button| sent(button.update) + button.afterwards),
    }
}

fn page(told: &Told<'_>, title: &str, body: &str) -> Reply {
    // SECURITY: nothing but these two words gets into the attribute.
    let theme = match told.shown(&["theme"]).as_deref() {
        Some("dark") => " data-theme=\"dark\"",
        Some("light") => " data-theme=\"light\"",
        _ => "",
    };
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"{theme}>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"/public/icon.svg\">\n<style>\n{STYLE}</style>\n<main>\n{body}</main>\n</html>\n"
    );
    let mut reply = web::page(StatusCode::OK, html);
    // A user's picture is wherever the provider keeps it, the demo's provider on loopback.
    let policy = HeaderValue::from_static(
        "default-src 'none'; style-src 'unsafe-inline'; \
         img-src 'self' https: http://127.0.0.1:* http://localhost:*; \
         base-uri 'none'; frame-ancestors 'none'",
    );
    reply.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    reply
}
