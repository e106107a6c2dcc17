//! What is said of files: certificates, a gateway.toml that is no text or no TOML, a hostile one, and
//! one that works but should be looked at.

use super::*;

#[test]
fn a_certificate_that_cannot_be_served_is_an_error() {
    let site = Site::new();
    site.certificate("b", &["localhost"]);
    site.write("large.pem", vec![b'x'; 1024 * 1024 + 1]);
    let said = |from: &str, to: &str| only_fault(&site, &least().replace(from, to));
    let missing = said("'a.pem'", "'none.pem'");
    assert!(
        missing.starts_with("server.certificate.cert: ")
            && missing.contains("none.pem cannot be read"),
        "{missing}"
    );
    let missing = said("'a.key'", "'none.key'");
    assert!(
        missing.starts_with("server.certificate.key: ")
            && missing.contains("none.key cannot be read"),
        "{missing}"
    );
    assert!(said("'a.key'", "'b.key'").contains("cannot be used together"));
    assert!(said("'a.pem'", "'a.key'").contains("holds no certificate in PEM"));
    assert!(said("'a.key'", "'a.pem'").contains("holds no private key in PEM"));
    assert!(said("'a.pem'", "'large.pem'").contains("cannot be read"));
    assert!(said("'a.pem'", "'.'").contains("cannot be read"));

    let said = |ca: &str| {
        only_fault(&site, &with("server", &format!("client_certificates = {{ ca = '{ca}' }}")))
    };
    for (ca, why) in [("none.pem", "cannot be read"), ("a.key", "holds no certificate in PEM")] {
        let wrong = said(ca);
        assert!(wrong.starts_with("server.client_certificates.ca: ") && wrong.contains(why));
    }
    site.write("junk.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(said("junk.pem").contains("holds what is no certificate"));
}

#[test]
fn what_works_but_should_be_looked_at_is_a_warning() {
    let site = Site::new();
    assert_eq!(site.warned(&least()), "");
    assert_eq!(
        site.warned(&with("session", "absolute = '1h'\ninactivity = '2h'")),
        "gateway.toml:11:1: warning: session.inactivity: is longer than absolute, and so without effect\n\
         11 | inactivity = '2h'\n   | ^^^^^^^^^^\n   = write less, or false\n"
    );
    let said =
        site.warned(&with("server", "public_urls = ['https://localhost', 'https://b.example']"));
    assert_eq!(
        said,
        "gateway.toml:2:1: warning: server.public_urls: has a host that no certificate is good for: b.example\n\
         2 | public_urls = ['https://localhost', 'https://b.example']\n  | ^^^^^^^^^^^\n  \
         = add a [[server.certificate]] for it\n"
    );
    let said = site.warned(&with("session", "cookie.same_site = 'none'"));
    assert!(said.contains("lets other sites send requests as the user"), "{said}");
}

#[test]
fn a_file_that_is_no_text_is_refused_whole() {
    let site = Site::new();
    let path = site.path("gateway.toml");
    let name = path.display();
    let load = || load_with(&path, &environment).unwrap_err().to_string();
    let missing = load();
    assert!(missing.starts_with(&format!("{name}: cannot be read: ")), "{missing}");
    assert!(missing.ends_with("\n   = name the file with -c FILE\n"), "{missing}");
    site.write("gateway.toml", vec![b'#'; 2 * 1024 * 1024]);
    assert_eq!(
        load(),
        format!("{name}: is larger than 1 MiB\n   = name the right file with -c FILE\n")
    );
    site.write("gateway.toml", b"# one\n# tw\xff\n");
    assert_eq!(load(), format!("{name}: is not UTF-8 in line 2\n   = save it as UTF-8\n"));
    site.write("gateway.toml", least());
    assert!(load_with(&path, &environment).is_ok());
}

#[test]
fn what_is_not_toml_is_shown_where_it_stops_being_it() {
    let site = Site::new();
    let said = site.wrong("[server\nhttps = \n[log]\nformat = 'text'\nformat = 'json'\n");
    let places: Vec<_> = said.lines().filter(|line| line.starts_with("gateway.toml:")).collect();
    // A key without a value goes on to the next line, and what is wrong there is its echo.
    assert_eq!(places.len(), 2, "{said}");
    for (place, line) in places.iter().zip([1, 5]) {
        assert!(place.starts_with(&format!("gateway.toml:{line}:")), "{said}");
        assert!(place.contains(": is not TOML: "), "{said}");
    }
    assert!(said.contains(" = see https://toml.io for how TOML is written\n"), "{said}");
}

#[test]
fn a_hostile_file_is_read_in_no_time() {
    let site = Site::new();
    let begun = std::time::Instant::now();
    for source in [
        "[".repeat(30_000),
        "a = ".to_owned() + &"[".repeat(30_000),
        "a = ".to_owned() + &"{a=".repeat(30_000),
        "a.".repeat(30_000) + "a = 1",
        "x = 1\n".repeat(5_000),
        (0..5_000).map(|at| format!("x{at} = 1\n")).collect(),
        "\u{0}".repeat(30_000),
    ] {
        let said = site.wrong(&source);
        assert!(said.len() < 200_000, "{}", said.len());
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

#[test]
fn every_file_that_is_named_is_known_also_if_it_is_not_there() {
    let site = Site::new();
    let secret = SESSION.replace("{ env = 'SEAL' }", "{ file = 'none.secret' }");
    site.write("gateway.toml", [SERVER, PROVIDER, &secret, ROUTE].concat());
    let Read { outcome, files } = read_with(&site.path("gateway.toml"), &environment);
    assert!(outcome.unwrap_err().to_string().contains("none.secret cannot be read"));
    let expected = ["gateway.toml", "a.pem", "a.key", "none.secret"];
    assert_eq!(files, expected.map(|name| SourceFile::look(&site.path(name))));
}
