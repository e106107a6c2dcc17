//! What the demo says when it is up: what to open, who can sign in, what to try, how to stop. It
//! reads the setting and writes text; it starts nothing.

use std::io::{self, Write};

use super::certificate::Found;
use super::identity_provider::User;
use super::legacy_app;
use super::setting::Setting;
use crate::config::{Access, Route};
use crate::server::Addresses;

/// Writes it.
pub(super) fn print(
    setting: &Setting,
    addresses: &Addresses,
    out: &mut impl Write,
) -> io::Result<()> {
    let Some(origin) = setting.config.server.public_urls.first() else { return Ok(()) };
    writeln!(out, "Vestibule's demo is running on {}.\n", addresses.https)?;
    writeln!(out, "  open     {origin}/")?;
    certificate(setting, out)?;
    let users: Vec<_> = User::samples().iter().map(|user| user.display_name().to_owned()).collect();
    writeln!(out, "  sign in  as {}, or anybody you name; no password", users.join(" or "))?;
    writeln!(
        out,
        "\n  The app behind it knows only headers. Each of its buttons answers with one:"
    )?;
    for (label, update) in legacy_app::buttons() {
        writeln!(out, "           {label:<16} X-Session-Update: {update}")?;
    }
    writeln!(out, "\n  Its pages, and who may have them:")?;
    for route in &setting.config.routes {
        writeln!(out, "           {:<32} {}", format!("{origin}{}", route.path), who(route))?;
    }
    writeln!(out, "\n  Around it:")?;
    if let Some(http) = addresses.http {
        // The public host: the redirect knows no other either.
        let http = format!("http://{}:{}/", origin.host, http.port());
        writeln!(out, "           {http:<32} sends browsers to https")?;
    }
    if let Some(admin) = addresses.admin {
        writeln!(out, "           {:<32} numbers", format!("http://{admin}/metrics"))?;
        writeln!(out, "           {:<32} can users log in?", format!("http://{admin}/readyz"))?;
    }
    writeln!(out, "           {:<32} the provider", setting.options.issuer)?;
    let app = format!("http://{}/", setting.app);
    writeln!(out, "           {app:<32} the app, without the gateway")?;
    writeln!(out, "           {:<32} all that the gateway was told", setting.file.display())?;
    for name in &setting.drawn {
        writeln!(out, "\n  {name} is not set: it has a random value until the demo ends.")?;
    }
    writeln!(out, "\n  stop     Ctrl-C\n")?;
    out.flush()
}

fn certificate(setting: &Setting, out: &mut impl Write) -> io::Result<()> {
    let Some(certificate) = setting.config.server.certificates.first() else { return Ok(()) };
    let cert = certificate.cert.display();
    match setting.certificate {
        Found::Made => writeln!(
            out,
            "           The browser will warn: the certificate is self-signed, made just now.\n\
             \x20          Go on all the same, or trust {cert}"
        ),
        Found::There => writeln!(
            out,
            "           The certificate is {cert}. If the demo made it, it is\n\
             \x20          self-signed and the browser will warn: go on all the same, or trust it."
        ),
    }
}

fn who(route: &Route) -> String {
    let mut text = match route.access {
        Access::Login => "whoever signs in",
        Access::Api => "programs of whoever is signed in, others get 401",
        Access::Optional => "anybody; the app is told who",
        Access::Public => "anybody",
    }
    .to_owned();
    for rule in &route.require {
        text += &format!(", with {} in {}", rule.any_of.join(" or "), rule.claim);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::setting::tests::example;

    #[test]
    fn the_banner_says_what_to_open_who_can_sign_in_and_how_to_stop() {
        let setting = example();
        let addresses = Addresses {
            https: setting.config.server.https,
            http: setting.config.server.http,
            admin: setting.config.server.admin,
        };
        let mut out = Vec::new();
        print(&setting, &addresses, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let port = setting.config.server.https.port();
        for said in [
            &format!("open     https://localhost:{port}/\n"),
            "self-signed",
            "Zoë Okafor or Bob Lindqvist",
            r#"X-Session-Update: {"theme":"dark"}"#,
            r#"X-Session-Update: {"user":{"nickname":"…"}}"#,
            "/admin",
            "with admin in roles",
            "http://localhost:8080/",
            "http://127.0.0.1:9090/metrics",
            "VESTIBULE_SECRET is not set",
            "Ctrl-C",
        ] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let secret = &setting.options.client_secret;
        assert!(!text.contains(secret.as_str()), "{text}");
    }
}
