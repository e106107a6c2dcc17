//! The provider's pages for people: the login, the question before a logout, and sentences. They
//! are plain HTML without scripts; all that is not written here is escaped.

use std::fmt::Write as _;

use http::StatusCode;

use super::authorize::Asked;
use super::users::{MAX_NAME, User};
use super::{IdentityProvider, Options};
use crate::demo::web::{self, Escaped, Parameters, Reply};

/// Users that the login page offers as buttons; the others are reached by typing their name.
const MAX_BUTTONS: usize = 12;

const STYLE: &str = "\
:root{color-scheme:light dark;--accent:#b4442c;--line:#8884}\
*{box-sizing:border-box}\
body{margin:0;min-height:100vh;display:grid;place-items:center;padding:1.5rem;\
font:1rem/1.5 system-ui,sans-serif;background:light-dark(#f3efe9,#191714)}\
main{width:100%;max-width:25rem;padding:2rem;border-radius:1rem;\
background:light-dark(#fff,#24211d);box-shadow:0 1px 3px #0003,0 12px 40px #0002}\
h1{margin:0 0 .25rem;font-size:1.5rem;line-height:1.2}\
p{margin:.5rem 0 1.25rem}form{margin:0 0 .75rem}\
button,input{width:100%;font:inherit;padding:.65rem .9rem;border:1px solid var(--line);\
border-radius:.6rem;background:transparent;color:inherit}\
button{cursor:pointer}button:hover{border-color:var(--accent)}\
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}\
.main{background:var(--accent);border-color:var(--accent);color:#fff;font-weight:600}\
.user{display:flex;gap:.9rem;align-items:center;text-align:left}\
.user img{border-radius:50%}.user small,.note{opacity:.7}.user span{min-width:0;overflow-wrap:anywhere}\
.user small{display:block;font-size:.85rem}\
label{display:block;margin:1.25rem 0 .35rem;font-size:.9rem}\
.row{display:flex;gap:.6rem}.row button{width:auto}\
.or{display:flex;align-items:center;gap:.8rem;opacity:.6;font-size:.85rem}\
.or::before,.or::after{content:'';flex:1;border-top:1px solid var(--line)}\
.error{padding:.6rem .9rem;border-radius:.6rem;border:1px solid #c33;margin:0 0 1rem}\
.quiet{border-color:transparent;opacity:.75}.note{font-size:.85rem;margin:1rem 0 0}";

/// The login page for a request that is in order; with a sentence if the last try went wrong.
pub(super) fn login(
    provider: &IdentityProvider,
    asked: &Asked,
    parameters: &Parameters,
    sentence: Option<&str>,
) -> Reply {
    // The request comes back with the form, to be checked again.
    let query = parameters.encode();
    let action = format!("/authorize?{}", Escaped(&query));
    let title = if asked.sign_up { "Sign up" } else { "Sign in" };
    let mut body =
        format!("<h1>{title}</h1>\n<p>to <b>{}</b>", Escaped(&provider.options.client_id));
    if let Some(organization) = &asked.organization {
        let _ = write!(body, " with <b id=\"organization\">{}</b>", Escaped(organization));
    }
    body += "</p>\n";
    if let Some(sentence) = sentence {
        let _ = writeln!(body, "<p class=\"error\" role=\"alert\">{}</p>", Escaped(sentence));
    }
    let users: Vec<User> = provider.memory().users.iter().take(MAX_BUTTONS).cloned().collect();
    for user in &users {
        body += &user_button(&action, user, provider.options());
    }
    let hint = asked.login_hint.as_deref().unwrap_or_default();
    let _ = writeln!(
        body,
        "<div class=\"or\">or as anybody else</div>\n\
         <form method=\"post\" action=\"{action}\">\n\
         <label for=\"name\">A name of your choice</label>\n\
         <div class=\"row\"><input id=\"name\" name=\"user\" value=\"{}\" maxlength=\"{MAX_NAME}\" \
         placeholder=\"Ada Lovelace\" autocomplete=\"off\" required>\n\
         <button class=\"main\" id=\"continue\">Continue</button></div>\n</form>\n\
         <form method=\"post\" action=\"{action}\">\
         <button class=\"quiet\" id=\"cancel\" name=\"cancel\" value=\"1\">Cancel</button></form>\n\
         <p class=\"note\">This is a development provider. It asks for no password and runs on \
         this machine only.</p>",
        Escaped(hint)
    );
    web::page(StatusCode::OK, document(title, &body))
}

/// 400 with a sentence: the browser is sent nowhere.
pub(super) fn error(sentence: &str) -> Reply {
    let body = format!("<h1>That did not work</h1>\n<p id=\"error\">{}</p>", Escaped(sentence));
    web::page(StatusCode::BAD_REQUEST, document("That did not work", &body))
}

/// Asks whether a logout is meant that may not be.
pub(super) fn confirm_logout(parameters: &Parameters) -> Reply {
    let query = parameters.encode();
    let body = format!(
        "<h1>Sign out?</h1>\n<p>A site would like to sign you out of the development provider.</p>\n\
         <form method=\"post\" action=\"/oidc/logout?{}\">\
         <button class=\"main\" id=\"confirm\" name=\"confirm\" value=\"1\">Sign out</button></form>",
        Escaped(&query)
    );
    web::page(StatusCode::OK, document("Sign out?", &body))
}

/// After a logout that leads nowhere else.
pub(super) fn signed_out() -> Reply {
    let body = "<h1>Signed out</h1>\n<p id=\"signed-out\">You are no longer signed in here.</p>";
    web::page(StatusCode::OK, document("Signed out", body))
}

/// What the provider's own address shows.
pub(super) fn start() -> Reply {
    let body = "<h1>A development provider</h1>\n\
        <p>It speaks OpenID Connect, asks for no password, and runs on this machine only.</p>\n\
        <p><a href=\"/.well-known/openid-configuration\">What it offers</a> · \
        <a href=\"/.well-known/jwks.json\">its keys</a> · <a href=\"/v2/logout\">sign out</a></p>";
    web::page(StatusCode::OK, document("A development provider", body))
}

fn user_button(action: &str, user: &User, options: &Options) -> String {
    let claims = user.released(&options.issuer, &["profile".to_owned()]);
    let picture = claims.get("picture").and_then(|picture| picture.as_str()).unwrap_or_default();
    let email = user.email().map(|email| format!("<small>{}</small>", Escaped(email)));
    format!(
        "<form method=\"post\" action=\"{action}\">\
         <button class=\"user\" id=\"user-{}\" name=\"user\" value=\"{}\">\
         <img src=\"{}\" alt=\"\" width=\"44\" height=\"44\"><span>{}{}</span></button></form>\n",
        user.short_name(),
        Escaped(&user.sub),
        Escaped(picture),
        Escaped(user.display_name()),
        email.unwrap_or_default(),
    )
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <link rel=\"icon\" href=\"/pictures/id.svg\">\n<style>{STYLE}</style>\n<main>\n{body}\n</main>\n</html>\n"
    )
}
