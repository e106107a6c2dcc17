//! What the gateway sends on means the same to everybody: three servers read every request that an
//! app gets of the corpus, and of some thousand others, and find the same in it.

use super::readers::{Readers, Reading};
use super::script::stories;
use crate::support::dice::Dice;
use crate::support::{App, Ask, Gateway, PROTOCOLS, Protocol, Provider, Raw, raw};

/// Drawn over HTTP/1.1, and as many over HTTP/2.
const DRAWN: usize = 1500;

async fn before(app: &App) -> (Provider, Gateway) {
    let provider = Provider::start().await;
    let gateway = Gateway::with(&provider)
        .limits("header_time = \"1s\"")
        .route_with("/", app, r#"access = "public""#)
        // Paths are read strictly.
        .route_with("/admin", app, r#"access = "api""#)
        .start()
        .await;
    (provider, gateway)
}

/// Holds every reading against the app's own.
async fn compare(readers: &Readers, app: &App) -> usize {
    let (mut refused, all) = (0, app.seen());
    for seen in &all {
        let own = Reading::of(seen);
        for (name, reading) in readers.read(&seen.raw).await {
            match reading {
                Some(reading) => assert_eq!(reading, own, "{name}"),
                // nginx takes no method in lower case, Python not as many fields.
                None if name != "hyper" => refused += 1,
                None => panic!("{name} refuses {}", String::from_utf8_lossy(&seen.raw)),
            }
        }
    }
    eprintln!("{} requests, {refused} times refused", all.len());
    assert!(refused < 10, "{refused}");
    all.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_of_the_corpus_means_the_same_to_three_servers() {
    let app = App::plain().await;
    let (_provider, gateway) = before(&app).await;
    for story in stories(include_str!("http1.txt")) {
        let mut client = Raw::open(&gateway).await;
        client.send(story.bytes()).await;
        client.bytes_for(std::time::Duration::from_millis(20)).await;
    }
    let read = compare(&Readers::start().await, &app).await;
    assert!(read > 30, "{read}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_drawn_by_lot_means_the_same_to_three_servers() {
    let app = App::plain().await;
    let (_provider, gateway) = before(&app).await;
    let mut dice = Dice::rolled();
    let mut accepted = 0;
    let mut client = Raw::open(&gateway).await;
    for _ in 0..DRAWN {
        client.send(drawn(&mut dice)).await;
        match raw::status(&client.response().await) {
            200 => accepted += 1,
            // What is refused may close the connection.
            _ => client = Raw::open(&gateway).await,
        }
    }
    let browser = gateway.browser_over(Protocol::Http2);
    for _ in 0..DRAWN {
        accepted += usize::from(browser.ask(ask(&mut dice)).await.status == 200);
    }
    assert!(accepted > DRAWN * PROTOCOLS.len() / 2, "{accepted} were accepted");
    assert_eq!(compare(&Readers::start().await, &app).await, accepted);
}

/// A part of one of these, or several.
fn some(dice: &mut Dice, most: usize, of: &[&str]) -> String {
    (0..dice.below(most + 1)).map(|_| of[dice.below(of.len())]).collect()
}

const METHODS: [&str; 8] =
    ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "M-SEARCH", "VERSION_CONTROL"];
const PATH: [&str; 24] = [
    "a", "B", "/b", "/c.d", "/~", "-", "_", ".", "!", "$", "&", "'", "(", ")", "*", "+", ",", "=",
    ":", "@", "%20", "%C3%A9", "%7e", ";x=y",
];
const QUERY: [&str; 12] = ["a", "=", "&", "?", "/", "//", "..", "%2f", "%00", "+", ";", "%"];
const NAME: [&str; 14] =
    ["X", "-", "_", ".", "a", "B", "9", "!", "~", "Accept", "'", "`", "|", "Content"];
const VALUE: [&str; 16] = [
    "a", "b c", ",", ";", "\"", "\t", "  ", "=", "\u{e9}", ":", "%0d%0a", "\\", "chunked",
    "\u{85}", "\u{a0}", "close",
];

fn target(dice: &mut Dice) -> String {
    let query =
        if dice.below(2) == 0 { String::new() } else { "?".to_owned() + &some(dice, 5, &QUERY) };
    format!("/{}{query}", some(dice, 6, &PATH))
}

/// A field that frames nothing.
fn field(dice: &mut Dice) -> (String, Vec<u8>) {
    let name = format!("X{}", some(dice, 4, &NAME));
    let value = some(dice, 5, &VALUE);
    (name, value.chars().map(|letter| u8::try_from(letter).unwrap()).collect())
}

fn body(dice: &mut Dice) -> Vec<u8> {
    let length = dice.below(300);
    (0..length).map(|_| b"ab\r\n0 :;\0\xff"[dice.below(10)]).collect()
}

/// A request as bytes, framed in one of the ways there are.
fn drawn(dice: &mut Dice) -> Vec<u8> {
    let method = METHODS[dice.below(METHODS.len())];
    let target = target(dice);
    let form = if dice.below(8) == 0 { "http://localhost" } else { "" };
    let mut lines = vec![b"Host: localhost".to_vec()];
    for _ in 0..dice.below(6) {
        let (name, value) = field(dice);
        let blank = [":", ": ", ":\t", ":  "][dice.below(4)];
        lines.push(
            [name.as_bytes(), blank.as_bytes(), &value, [&b""[..], b" "][dice.below(2)]].concat(),
        );
    }
    let connection =
        ["Connection: keep-alive", "Connection: X, x-a", "TE: trailers", "Connection: TE"];
    lines.extend((dice.below(4) == 0).then(|| connection[dice.below(4)].as_bytes().to_vec()));
    let (body, framing) = (body(dice), dice.below(3));
    let mut sent = Vec::new();
    match framing {
        0 => {}
        1 => {
            lines.push(format!("Content-Length: {}", body.len()).into_bytes());
            sent = body;
        }
        _ => {
            lines.push(b"Transfer-Encoding: chunked".to_vec());
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(1 + dice.below(rest.len()));
                let extension = ["", ";a", ";a=\"b\"", " "][dice.below(4)];
                let zeros = "0".repeat(dice.below(3));
                sent.extend(format!("{zeros}{:X}{extension}\r\n", chunk.len()).as_bytes());
                sent.extend([chunk, b"\r\n"].concat());
                rest = after;
            }
            let trailer = ["", "X-Trailer: a\r\n", "Host: evil\r\nContent-Length: 3\r\n"];
            sent.extend(format!("0\r\n{}\r\n", trailer[dice.below(3)]).as_bytes());
        }
    }
    dice.shuffle(&mut lines);
    let head = format!("{method} {form}{target} HTTP/1.1\r\n");
    [head.as_bytes(), &lines.join(&b"\r\n"[..]), b"\r\n\r\n", &sent].concat()
}

/// The same, for HTTP/2.
fn ask(dice: &mut Dice) -> Ask {
    let method = METHODS[dice.below(METHODS.len())].parse().unwrap();
    let mut ask = Ask { method, ..Ask::fetch(&target(dice)) };
    for _ in 0..dice.below(6) {
        let (name, value) = field(dice);
        if http::HeaderValue::from_bytes(&value).is_ok() {
            ask = ask.header(&name, value.trim_ascii());
        }
    }
    if dice.below(2) == 0 {
        ask = ask.body(body(dice));
    }
    // HTTP/2 allows only so many empty frames, which is what a body of nothing before trailers is.
    let trails = !ask.body.is_empty() && dice.below(4) == 0;
    if trails { ask.trailer("x-trailer", "a") } else { ask }
}
