//! The sample app: the kind that knows nothing of logins, and reads headers and writes headers. It
//! keeps nothing: what a user changes is in the session, and comes back with the next request.
//!
//! | path | shows or does |
//! |---|---|
//! | `/` | who the user is, what the session holds, a button for each kind of change |
//! | `/do/NAME` | what a button does: a POST, answered with `X-Session-Update` and 303 |
//! | `/public`, `/admin` | pages for everybody, and for who may |
//! | `/api/session` | the same facts as JSON |

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;

mod button;
mod pages;
mod style;
mod told;

use super::web::{self, Parameters, Reply};
use button::Button;
use told::Told;

const X_SESSION_UPDATE: HeaderName = HeaderName::from_static("x-session-update");
/// Characters of a nickname.
const MAX_NICKNAME: usize = 60;

/// Serves `listener` until the future is dropped, which also ends its connections.
pub(super) async fn serve(listener: TcpListener) -> Infallible {
    web::serve(listener, answer).await
}

/// What stands on each button, and the `X-Session-Update` that it brings.
pub(super) fn buttons() -> impl Iterator<Item = (&'static str, &'static str)> {
    let fixed = button::BUTTONS.iter().map(|button| (button.label, button.update));
    fixed.chain([("Rename", r#"{"user":{"nickname":"…"}}"#)])
}

fn answer(request: &Request<Bytes>) -> Reply {
    let path = request.uri().path();
    let action = path.strip_prefix("/do/");
    match (request.method(), action) {
        (&Method::POST, Some(name)) => act(name, request.body()),
        (_, Some(_)) => web::method_not_allowed("POST"),
        (&Method::GET | &Method::HEAD, None) => show(path, request),
        (_, None) => web::method_not_allowed("GET, HEAD"),
    }
}

fn show(path: &str, request: &Request<Bytes>) -> Reply {
    let told = Told::of(request.headers());
    match path {
        "/" => {
            // What was just done, if a button led here; what else it says is not looked at.
            let query = Parameters::of_query(request).unwrap_or_default();
            pages::home(&told, query.get("did").unwrap_or_default())
        }
        "/public" => pages::public(&told),
        "/public/icon.svg" => pages::icon(),
        "/admin" => pages::admin(&told),
        "/api/session" => {
            let user = told.header("x-forwarded-user");
            web::json(StatusCode::OK, &json!({ "user": user, "session": told.session() }))
        }
        _ => web::text(StatusCode::NOT_FOUND, "The app has no such page."),
    }
}

/// Does what a button says: it asks the gateway for a change of the session, and sends the browser
/// back to where it sees it.
fn act(name: &str, form: &[u8]) -> Reply {
    if name == button::RENAME {
        return rename(form);
    }
    match Button::find(name) {
        Some(button) => done(button.name, button.back, Some(button.update)),
        None => web::text(StatusCode::NOT_FOUND, "The app has no such button."),
    }
}

/// The one change that holds what a user typed.
fn rename(form: &[u8]) -> Reply {
    let form = Parameters::parse(form).unwrap_or_default();
    let nickname = form.get("nickname").unwrap_or_default().trim();
    let fits = !nickname.is_empty()
        && nickname.chars().count() <= MAX_NICKNAME
        && !nickname.chars().any(char::is_control);
    if !fits {
        return done("not-renamed", "/", None);
    }
    let update = json!({ "user": { "nickname": nickname } }).to_string();
    done(button::RENAME, "/", Some(&ascii(&update)))
}

/// 303: a page that is loaded again repeats no change.
fn done(name: &str, back: &str, update: Option<&str>) -> Reply {
    let location = if back == "/" { format!("/?did={name}") } else { back.to_owned() };
    let mut reply = web::redirect(StatusCode::SEE_OTHER, &location);
    if let Some(Ok(update)) = update.map(HeaderValue::from_str) {
        reply.headers_mut().insert(X_SESSION_UPDATE, update);
    }
    reply
}

/// JSON with everything beyond ASCII escaped: it passes through any stack, whatever that thinks of
/// UTF-8 in headers.
fn ascii(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
