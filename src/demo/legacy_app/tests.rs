//! The app from outside: a request's headers go in, a page or an update comes out.

use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION};
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::*;

const HOSTILE: &str = "'\"><script>alert(1)</script>";

fn get(path: &str, headers: &[(&str, &[u8])]) -> Reply {
    let mut request = Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value).unwrap());
    }
    answer(&request.body(Bytes::new()).unwrap())
}

fn post(path: &str, form: &str) -> Reply {
    let request = Request::post(path).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    answer(&request.body(Bytes::from(form.to_owned())).unwrap())
}

fn text(reply: Reply) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bytes = runtime.block_on(reply.into_body().collect()).unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn home(session: &str) -> String {
    text(get("/", &[("x-forwarded-user", b"auth0|zoe"), ("x-session", session.as_bytes())]))
}

/// The text of the element with this id.
fn element(page: &str, id: &str) -> String {
    let after = page.split(&format!("id=\"{id}\"")).nth(1).unwrap_or_else(|| panic!("no {id}"));
    let (_, rest) = after.split_once('>').unwrap();
    rest.split('<').next().unwrap().to_owned()
}

fn update(reply: &Reply) -> Option<&str> {
    reply.headers().get(X_SESSION_UPDATE).map(|value| value.to_str().unwrap())
}

#[test]
fn the_page_says_who_the_user_is_and_what_the_session_holds() {
    let session = json!({
        "user": {"name": "Zoë", "nickname": "Z", "picture": "https://a.example/z.png"},
        "theme": "dark", "features": {"beta": true}, "pageViews": 3,
    });
    let page = home(&ascii(&session.to_string()));
    for (id, value) in [
        ("user", "auth0|zoe"),
        ("user-name", "Zoë"),
        ("nickname", "Z"),
        ("theme", "dark"),
        ("beta", "true"),
        ("page-views", "3"),
    ] {
        assert_eq!(element(&page, id), value, "{id}");
    }
    assert!(page.contains("<html lang=\"en\" data-theme=\"dark\">"));
    assert!(page.contains("src=\"https://a.example/z.png\""));
    assert!(element(&page, "session").contains("&quot;pageViews&quot;: 3"));
    assert!(page.contains("href=\"/auth/logout\""));
}

#[test]
fn a_fresh_session_shows_what_is_not_set() {
    let page = home(r#"{"user":{"sub":"auth0|zoe"}}"#);
    assert_eq!(element(&page, "user-name"), "auth0|zoe");
    for (id, value) in [("theme", "not set"), ("beta", "not set"), ("page-views", "0")] {
        assert_eq!(element(&page, id), value, "{id}");
    }
    assert!(page.contains("<html lang=\"en\">") && !page.contains("<img"));
}

#[test]
fn each_button_asks_for_its_change_and_goes_back_to_the_page() {
    for (name, asked) in [
        ("set-dark", r#"{"theme":"dark"}"#),
        ("set-light", r#"{"theme":"light"}"#),
        ("beta-on", r#"{"features":{"beta":true}}"#),
        ("beta-off", r#"{"features":{"beta":false}}"#),
        ("count", r#"{"pageViews":{"$add":1}}"#),
        ("malformed", r#"{"theme":"#),
        ("end-session", "null"),
    ] {
        let reply = post(&format!("/do/{name}"), "");
        assert_eq!(reply.status(), StatusCode::SEE_OTHER);
        assert_eq!(update(&reply), Some(asked), "{name}");
        let location = reply.headers()[LOCATION].to_str().unwrap().to_owned();
        let page = text(get(&location, &[]));
        if name != "end-session" {
            assert!(page.contains("id=\"note\""), "{name}");
        }
        let home = home("{}");
        assert!(home.contains(&format!("action=\"/do/{name}\"><button id=\"{name}\">")), "{name}");
    }
}

#[test]
fn only_the_nonsense_is_no_json() {
    for button in button::BUTTONS {
        let json = serde_json::from_str::<Value>(button.update);
        assert_eq!(json.is_err(), button.name == "malformed", "{}", button.name);
    }
}

#[test]
fn a_nickname_is_sent_in_ascii_whatever_it_is() {
    for nickname in ["Zoë 😀", "a\"b\\c", "</script>", "\u{7f}x"] {
        let form: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("nickname", nickname)
            .finish();
        let reply = post("/do/rename", &form);
        if nickname.contains('\u{7f}') {
            assert_eq!(update(&reply), None);
            continue;
        }
        let sent = update(&reply).unwrap();
        assert!(sent.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{sent}");
        let sent: Value = serde_json::from_str(sent).unwrap();
        assert_eq!(sent, json!({"user": {"nickname": nickname}}));
        assert_eq!(reply.status(), StatusCode::SEE_OTHER);
    }
}

#[test]
fn a_nickname_that_is_none_changes_nothing() {
    let long = format!("nickname={}", "x".repeat(MAX_NICKNAME + 1));
    for form in
        ["", "nickname=", "nickname=+", "nickname=a%0d%0aX:1", "nickname=a&nickname=b", &long]
    {
        let reply = post("/do/rename", form);
        assert_eq!((reply.status(), update(&reply)), (StatusCode::SEE_OTHER, None), "{form}");
        assert_eq!(reply.headers()[LOCATION], "/?did=not-renamed");
    }
}

#[test]
fn a_page_that_is_looked_at_changes_nothing() {
    for path in ["/", "/public", "/admin", "/api/session", "/?did=count", "/do/count", "/do/rename"]
    {
        let reply = get(path, &[("x-session", b"{}")]);
        assert_eq!(update(&reply), None, "{path}");
    }
    assert_eq!(get("/do/count", &[]).status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(post("/", "").status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(post("/do/nope", "").status(), StatusCode::NOT_FOUND);
    assert_eq!(get("/nope", &[]).status(), StatusCode::NOT_FOUND);
}

#[test]
fn markup_in_any_header_stays_text() {
    let session = json!({
        "user": {"name": HOSTILE, "nickname": HOSTILE, "picture": format!("https://{HOSTILE}")},
        "theme": HOSTILE, "features": {"beta": HOSTILE}, "pageViews": HOSTILE, HOSTILE: HOSTILE,
    })
    .to_string();
    let headers = [
        ("x-session", session.as_bytes()),
        ("x-forwarded-user", HOSTILE.as_bytes()),
        ("x-forwarded-email", HOSTILE.as_bytes()),
        ("x-forwarded-groups", HOSTILE.as_bytes()),
        ("x-made-up", HOSTILE.as_bytes()),
        ("authorization", HOSTILE.as_bytes()),
        ("cookie", b"<script>=1; '\"><script>alert(1)</script>"),
    ];
    let query = url::form_urlencoded::byte_serialize(HOSTILE.as_bytes()).collect::<String>();
    for path in ["/", "/public", "/admin", &format!("/?did={query}")] {
        let page = text(get(path, &headers));
        assert!(!page.contains("<script") && !page.contains("'\">"), "{path}: {page}");
        assert!(page.contains("&lt;script&gt;"), "{path}");
    }
}

#[test]
fn malformed_headers_are_shown_and_hurt_nobody() {
    let deep = "[".repeat(5_000);
    for session in
        [b"\xff\xfe".as_slice(), b"{\"theme\":", b"[1,2]", b"null", b"7", deep.as_bytes()]
    {
        let headers =
            [("x-session", session), ("x-forwarded-user", b"\xff|x"), ("x-session-omitted", b"x")];
        let reply = get("/", &headers);
        assert_eq!(reply.status(), StatusCode::OK);
        let page = text(reply);
        assert_eq!(element(&page, "user"), "\u{fffd}|x");
        assert!(page.contains("id=\"omitted\""));
    }
    let page = text(get("/", &[("x-session", b"{\"theme\":")]));
    assert_eq!(element(&page, "session"), "(it cannot be read)");
    assert_eq!(element(&text(get("/", &[])), "session"), "(none)");
}

#[test]
fn a_picture_is_an_address_on_the_web() {
    for picture in ["javascript:alert(1)", "data:image/svg+xml,x", "//evil.example/x"] {
        let page = home(&json!({"user": {"picture": picture}}).to_string());
        assert!(!page.contains("<img"), "{picture}");
    }
}

#[test]
fn every_line_is_in_the_table_and_no_token_in_full() {
    let page = text(get(
        "/",
        &[("x-one", b"1"), ("x-one", b"2"), ("authorization", b"Bearer the.secret.token")],
    ));
    assert_eq!(page.matches("<th>x-one</th>").count(), 2);
    assert!(page.contains("<td>Bearer … (16 characters)</td>") && !page.contains("the.secret"));
}

#[test]
fn what_the_gateway_says_is_at_the_top_of_the_table() {
    let page = text(get("/", &[("accept", b"*/*"), ("x-forwarded-user", b"auth0|zoe")]));
    let place = |name: &str| page.find(&format!("<th>{name}</th>")).unwrap();
    assert!(place("x-forwarded-user") < place("accept"));
}

#[test]
fn nothing_on_a_page_can_run() {
    for path in ["/", "/public", "/admin"] {
        let policy = get(path, &[]).headers()[CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        assert!(policy.starts_with("default-src 'none';"), "{policy}");
        assert!(!policy.contains("script-src"), "{policy}");
    }
}

#[test]
fn the_api_says_the_same_as_json() {
    let headers =
        [("x-forwarded-user", b"auth0|zoe".as_slice()), ("x-session", b"{\"theme\":\"dark\"}")];
    let reply = get("/api/session", &headers);
    assert_eq!(reply.headers()[CONTENT_TYPE], "application/json");
    let answer: Value = serde_json::from_str(&text(reply)).unwrap();
    assert_eq!(answer, json!({"user": "auth0|zoe", "session": {"theme": "dark"}}));
}
