//! Files that are fit for the demo, and those that are not.

use std::os::unix::fs::PermissionsExt as _;

use tempfile::TempDir;

use super::*;

const NOW: Timestamp = Timestamp(1_800_000_000);

/// The repository's own file.
fn own() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.toml");
    fs::read_to_string(path).unwrap()
}

fn read_in(
    directory: &TempDir,
    text: &str,
    listen: Option<SocketAddr>,
) -> Result<Setting, DemoError> {
    let file = directory.path().join("gateway.toml");
    fs::write(&file, text).unwrap();
    Setting::read(&file, listen, &Environment::new(|_| None), NOW)
}

fn read(text: &str) -> Result<Setting, DemoError> {
    read_in(&tempfile::tempdir().unwrap(), text, None)
}

/// The repository's file on ports that are free.
pub(in crate::demo) fn example() -> Setting {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (provider, app) = (free(), free());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let text = own()
        .replace("127.0.0.1:9080", &format!("127.0.0.1:{}", port(&provider)))
        .replace("127.0.0.1:9000", &format!("127.0.0.1:{}", port(&app)));
    let listen = "127.0.0.1:0".parse().unwrap();
    read_in(&tempfile::tempdir().unwrap(), &text, Some(listen)).unwrap()
}

/// The repository's file with one text in the place of another.
fn changed(from: &str, to: &str) -> String {
    let own = own();
    assert!(own.contains(from), "{from}");
    own.replace(from, to)
}

#[test]
fn the_repositorys_own_file_is_fit_and_draws_no_warning() {
    let setting = read(&own()).unwrap();
    assert!(setting.warnings.is_empty(), "{:?}", setting.warnings);
    assert_eq!(setting.config.server.https, "127.0.0.1:8443".parse().unwrap());
    assert_eq!(setting.provider, "127.0.0.1:9080".parse().unwrap());
    assert_eq!(setting.app, "127.0.0.1:9000".parse().unwrap());
    assert_eq!(setting.certificate, Found::Made);
    assert_eq!(setting.options.issuer, "http://127.0.0.1:9080/");
    assert_eq!(setting.options.redirect_uris, ["https://localhost:8443/auth/callback"]);
    for page in ["/", "/public"] {
        let uri = format!("https://localhost:8443{page}");
        assert!(setting.options.logout_uris.contains(&uri), "{page}");
    }
}

#[test]
fn the_secrets_that_the_process_lacks_are_drawn_and_differ() {
    let setting = read(&own()).unwrap();
    assert_eq!(setting.drawn, ["AUTH0_CLIENT_SECRET", "VESTIBULE_SECRET"]);
    let again = read(&own()).unwrap();
    let secret = |setting: &Setting| setting.config.session.secrets[0].expose().to_vec();
    assert_ne!(secret(&setting), secret(&again));
    assert_ne!(secret(&setting), setting.options.client_secret.as_bytes());
}

#[test]
fn the_secrets_of_the_process_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.toml");
    fs::write(&file, own()).unwrap();
    let process = |name: &str| Some(format!("{name} of at least thirty-two bytes"));
    let setting = Setting::read(&file, None, &Environment::new(process), NOW).unwrap();
    assert!(setting.drawn.is_empty());
    assert!(setting.options.client_secret.starts_with("AUTH0_CLIENT_SECRET of"));
}

#[test]
fn a_variable_that_is_named_twice_is_drawn_once() {
    let environment = Environment::new(|_| None);
    assert_eq!(environment.get("A"), environment.get("A"));
    assert_ne!(environment.get("A"), environment.get("B"));
}

#[test]
fn what_is_not_on_loopback_is_refused_by_its_key() {
    for (from, to, key) in [
        ("https = \"127.0.0.1:8443\"", "https = \"0.0.0.0:8443\"", "server.https"),
        ("https = \"127.0.0.1:8443\"", "https = \"[::]:8443\"", "server.https"),
        ("http = \"127.0.0.1:8080\"", "http = \"192.0.2.1:8080\"", "server.http"),
        ("admin = \"127.0.0.1:9090\"", "admin = \"0.0.0.0:9090\"", "server.admin"),
        ("http://127.0.0.1:9080/", "https://tenant.eu.auth0.com/", "provider.issuer"),
        ("http://127.0.0.1:9080/", "https://127.0.0.1:9080/", "provider.issuer"),
        ("http://127.0.0.1:9000", "http://192.0.2.1:9000", "route.upstream"),
        ("http://127.0.0.1:9000", "http://app.example:9000", "route.upstream"),
        ("http://127.0.0.1:9000", "https://10.0.0.1", "route.upstream"),
        ("http://127.0.0.1:9000", "http://localhost.example:9000", "route.upstream"),
    ] {
        let error = read(&changed(from, to)).unwrap_err();
        assert!(matches!(error, DemoError::NotLoopback { .. }), "{to}: {error}");
        assert!(error.to_string().starts_with(&format!("{key}: ")), "{to}: {error}");
    }
    for (from, to) in [
        ("127.0.0.1:9000", "localhost:9000"),
        ("127.0.0.1:9000", "[::1]:9000"),
        ("127.0.0.1:9080", "localhost:9080"),
        ("127.0.0.1:9080", "[::1]:9080"),
        ("http = \"127.0.0.1:8080\"", "http = \"[::1]:8080\""),
    ] {
        assert!(read(&changed(from, to)).is_ok(), "{to}");
    }
}

#[test]
fn what_the_demo_cannot_play_is_refused_by_its_key() {
    for (from, to, key) in [
        ("http://127.0.0.1:9080/", "http://127.0.0.1:9080", "provider.issuer"),
        ("http://127.0.0.1:9080/", "http://127.0.0.1:9080/realm/", "provider.issuer"),
        ("http://127.0.0.1:9000", "unix:/run/app.sock", "route.upstream"),
        ("http://127.0.0.1:9000", "https://127.0.0.1:9000", "route.upstream"),
    ] {
        let error = read(&changed(from, to)).unwrap_err();
        assert!(matches!(error, DemoError::Unfit { .. }), "{to}: {error}");
        assert!(error.to_string().starts_with(&format!("{key}: ")), "{to}: {error}");
    }
}

#[test]
fn a_file_that_is_refused_has_nothing_put_beside_it() {
    for text in [
        changed("\"127.0.0.1:8443\"", "\"0.0.0.0:8443\""),
        changed("[server]\n", "[server]\nnope = 1\n"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        read_in(&directory, &text, None).unwrap_err();
        let beside: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(beside.len(), 1, "{beside:?}");
    }
}

#[test]
fn a_certificate_that_was_there_is_used_and_survives_a_refusal() {
    let directory = tempfile::tempdir().unwrap();
    read_in(&directory, &own(), None).unwrap();
    let key = directory.path().join("certs/localhost.key");
    let before = fs::read(&key).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(read_in(&directory, &own(), None).unwrap().certificate, Found::There);
    read_in(&directory, &changed("\"127.0.0.1:8443\"", "\"0.0.0.0:8443\""), None).unwrap_err();
    assert_eq!(fs::read(&key).unwrap(), before);
}

#[test]
fn half_a_certificate_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("certs")).unwrap();
    fs::write(directory.path().join("certs/localhost.key"), "theirs").unwrap();
    let error = read_in(&directory, &own(), None).unwrap_err();
    assert!(matches!(error, DemoError::Certificate(_)), "{error}");
}

#[test]
fn a_file_that_is_wrong_or_not_there_is_told_as_serving_tells_it() {
    for text in ["", "[server", "[server]\ncertificate = 5\n"] {
        assert!(matches!(read(text), Err(DemoError::Config(_))), "{text}");
    }
    let none = Setting::read(Path::new("no/such.toml"), None, &Environment::new(|_| None), NOW);
    assert!(none.unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn listen_takes_the_place_of_https_and_of_its_port_in_the_public_urls() {
    let directory = tempfile::tempdir().unwrap();
    let listen = "[::1]:9443".parse().unwrap();
    let setting = read_in(&directory, &own(), Some(listen)).unwrap();
    assert_eq!(setting.config.server.https, listen);
    assert_eq!(setting.config.server.public_urls[0].to_string(), "https://localhost:9443");
    assert_eq!(setting.options.redirect_uris, ["https://localhost:9443/auth/callback"]);

    let wide = read_in(&directory, &own(), Some("0.0.0.0:9443".parse().unwrap()));
    assert!(wide.unwrap_err().to_string().starts_with("server.https: 0.0.0.0:9443"));
    // A file whose own address is refused is fit with another.
    let text = changed("\"127.0.0.1:8443\"", "\"0.0.0.0:8443\"");
    assert!(read_in(&directory, &text, Some(listen)).is_ok());
}

#[test]
fn port_0_becomes_a_free_one_that_the_provider_knows() {
    let directory = tempfile::tempdir().unwrap();
    let setting = read_in(&directory, &own(), Some("127.0.0.1:0".parse().unwrap())).unwrap();
    let port = setting.config.server.https.port();
    assert_ne!(port, 0);
    let callback = format!("https://localhost:{port}/auth/callback");
    assert_eq!(setting.options.redirect_uris, [callback]);
}
