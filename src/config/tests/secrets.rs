//! Secrets, from wherever they are taken, and that none of them is ever shown: neither in what is
//! said of a file nor in the debug form of what was read.

use super::*;

/// Everything said of `source`, right or wrong.
fn all_said(site: &Site, source: &str) -> String {
    match site.read(source) {
        Ok(Loaded { config, warnings }) => {
            let said: String = warnings.iter().map(ToString::to_string).collect();
            format!("{said}{config:?}{warnings:?}")
        }
        Err(wrong) => format!("{wrong}{wrong:?}"),
    }
}

#[test]
fn a_literal_secret_works_and_draws_a_warning_that_does_not_show_it() {
    let site = Site::new();
    let source = least().replace("{ env = 'CLIENT' }", "\"hunter2\"");
    assert_eq!(
        site.warned(&source),
        "gateway.toml:7:17: warning: provider.client_secret: is written out: whoever can read this file has the secret\n\
         7 | client_secret = *********\n  |                 ^^^^^^^^^\n  \
         = write { env = \"NAME\" } or { file = \"path\" }\n"
    );
    let ClientAuthentication::Secret(secret) = site.right(&source).provider.authentication else {
        panic!()
    };
    assert_eq!(secret.expose(), b"hunter2");
}

#[test]
fn no_way_to_write_a_secret_wrongly_shows_it() {
    let site = Site::new();
    let client = |text: &str| least().replace("client_secret = { env = 'CLIENT' }", text);
    let seal = |text: &str| least().replace("secrets = [{ env = 'SEAL' }]", text);
    for source in [
        // Right, but for a warning.
        client("client_secret = 'hunter2'"),
        client("client_secret = \"\"\"\nhunter2\n\"\"\""),
        seal("secrets = ['hunter2-0123456789abcdef0123456789abcdef']"),
        // Of another type or shape.
        client("client_secret = ['hunter2']"),
        client("client_secret = [\n'hunter2']"),
        client("client_secret = { hunter = 'hunter2' }"),
        client("client_secret = { env = 'hunter2 ' }"),
        client("client_secret = { env = 'CLIENT', value = 'hunter2' }"),
        client("client_secret = { env = ['hunter2'] }"),
        client("client_secret = { file = 7, x = 'hunter2' }"),
        client("private_key = 'hunter2'"),
        client(
            "private_key = '''\n-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n'''",
        ),
        seal("secrets = 'hunter2-0123456789abcdef0123456789abcdef'"),
        seal("secrets = ['hunter2']"),
        seal("secrets = [['hunter2']]"),
        seal("secrets = { a = 'hunter2' }"),
        seal("secrets = [{ env = 'SHORT' }]"),
        // Misspelt, or in the wrong place.
        client("client_sercet = 'hunter2'"),
        client("secret = 'hunter2'"),
        client("clientsecret = { env = 'CLIENT', x = 'hunter2' }"),
        client("client_secret.value = 'hunter2'"),
        seal("secret = ['hunter2']"),
        seal("secrets = [{ env = 'SEAL' }]\ncookie = { secret = 'hunter2' }"),
        format!("client_secret = 'hunter2'\n{}", least()),
        // Not TOML.
        client("client_secret = 'hunter2"),
        client("client_secret = hunter2"),
        client("client_secret = \"hunter2\\q\""),
        client("client_secret = \"a\" \"hunter2\""),
        client("client_secret 'hunter2'"),
        client("client_secret: hunter2"),
        client("hunter2"),
        client("client_secret = 'a'\nclient_secret = 'hunter2'"),
        client("client_secret = \"\"\"\nhunter2\\q = \"hunter2\"\n\"\"\""),
        client("client_secret = '''\nhunter2\u{1}=\n'''"),
        client("client_secret = { env = 'hunter2'"),
        seal("secrets = [\n  hunter2,\n]"),
        seal("secrets = [\n  'hunter2\n]"),
        // A password in a URL.
        least().replace("domain = 't.example'", "issuer = 'https://me:hunter2@t.example/'"),
        least().replace("'http://127.0.0.1:9000'", "'http://me:hunter2@127.0.0.1:9000'"),
        least().replace("'http://127.0.0.1:9000'", "['http://me:hunter2@127.0.0.1:9000']"),
        with("server", "public_urls = ['https://me:hunter2@localhost']"),
        with("session.redis", "url = 'redis://:hunter2@127.0.0.1'"),
        with("session.redis", "url = ['redis://a', 'redis://me:hunter2@127.0.0.1']"),
        with("session.redis", "url = 'redis://a'\npassword = 'hunter2'\nusername = 7"),
        with("session.redis", "url = 'redis://a'\npasword = 'hunter2'"),
        with("session.redis", "url = 'redis://a'\npassword = ['hunter2']"),
        with("session.redis", "url = 'redis://a'\nsentinel_password = 'hunter2'"),
    ] {
        let said = all_said(&site, &source);
        assert!(!said.contains("hunter2"), "{said}\n{source}");
    }
}

#[test]
fn a_secret_that_is_not_there_is_an_error_that_says_where_it_was_looked_for() {
    let site = Site::new();
    site.write("empty", "\n");
    site.write("large", vec![b'x'; 64 * 1024 + 1]);
    site.write("binary", b"hunter2\xff");
    let none = site.path("none");
    for (reference, said) in [
        (
            "{ env = 'NOWHERE' }",
            "provider.client_secret.env: is a variable that the environment does not have",
        ),
        ("{ env = 'EMPTY' }", "provider.client_secret: is empty"),
        ("{ env = 'a-b' }", "provider.client_secret.env: is no name of a variable"),
        ("{ env = '' }", "provider.client_secret.env: is no name of a variable"),
        ("{ env = 'LINES' }", "provider.client_secret: is a secret that is not printable text"),
        ("{ file = 'binary' }", "provider.client_secret: is a secret that is not printable text"),
        ("{ file = 'empty' }", "provider.client_secret: is empty"),
        ("{ file = 'large' }", "provider.client_secret.file: is a file of more than 64 KiB"),
        (
            "{ file = 'none' }",
            &format!("provider.client_secret.file: {} cannot be read", none.display()),
        ),
        ("{}", "provider.client_secret: has to name either a variable or a file"),
        (
            "{ env = 'CLIENT', file = 'a.key' }",
            "provider.client_secret: has to name either a variable or a file",
        ),
        ("''", "provider.client_secret: is empty"),
        ("7", "provider.client_secret: is a whole number"),
    ] {
        let found = site.wrong(&least().replace("{ env = 'CLIENT' }", reference));
        assert!(found.contains(said), "{found}");
        assert!(!found.contains("hunter2"), "{found}");
    }
}

#[test]
fn a_secret_that_seals_has_32_bytes() {
    let site = Site::new();
    for (bytes, right) in [(31, false), (32, true)] {
        site.write("seal", "x".repeat(bytes) + "\r\n");
        let source = least().replace("{ env = 'SEAL' }", "{ file = 'seal' }");
        assert_eq!(site.read(&source).is_ok(), right, "{bytes}");
    }
    let said = site.wrong(&least().replace("{ env = 'SEAL' }", ""));
    assert!(said.contains("session.secrets: is empty"), "{said}");
}

#[test]
fn a_private_key_must_be_one_that_signs_what_providers_take() {
    use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
    let site = Site::new();
    let random = ring::rand::SystemRandom::new();
    let p384 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let pem = base64_simd::STANDARD.encode_to_string(p384.as_ref());
    site.write("p384", format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n"));
    let source = |file: &str| {
        let key = format!("private_key = {{ file = '{file}' }}");
        least().replace("client_secret = { env = 'CLIENT' }", &key)
    };
    site.right(&source("a.key"));
    for file in ["a.pem", "p384"] {
        let said = site.wrong(&source(file));
        assert!(said.contains("provider.private_key: is no private key that can sign"), "{said}");
    }
}
