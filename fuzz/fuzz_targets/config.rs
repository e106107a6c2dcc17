//! A gateway.toml of any content: a fault is shown where it is and without a secret, and a file that
//! is taken means the same twice, and nothing that the gateway's parts could not bear.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vestibule::config::diagnostic::{Diagnostic, Severity};
use vestibule::config::{Config, Loaded};
use vestibule::route::Routes;
use vestibule_fuzz::load;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    // A file that never ends, or is never there, is whoever names it's own affair.
    if ["/dev", "/proc", "/sys"].iter().any(|place| text.contains(place)) {
        return;
    }
    match load(&text) {
        Ok(Loaded { config, warnings }) => {
            warnings.iter().for_each(|warning| shown(warning, &text));
            assert!(warnings.iter().all(|warning| warning.severity == Severity::Warning));
            sound(&config);
            let again = load(&format!("{text}\n# the end")).expect("a comment changes nothing");
            assert_eq!(format!("{:?}", again.config), format!("{config:?}"));
        }
        Err(faults) => {
            assert!(faults.list.iter().any(|fault| fault.severity == Severity::Error));
            faults.list.iter().for_each(|fault| shown(fault, &text));
            let places: Vec<_> = faults
                .list
                .iter()
                .filter_map(|fault| fault.place.as_ref().map(|place| (place.line, place.column)))
                .collect();
            assert!(places.is_sorted(), "not in the file's order");
            assert_eq!(load(&text).expect_err("as before").to_string(), faults.to_string());
        }
    }
});

fn shown(fault: &Diagnostic, text: &str) {
    assert!(!fault.message.is_empty() && !fault.remedy.is_empty(), "{fault}");
    let whole = fault.to_string();
    assert!(
        !whole.chars().any(|c| c.is_control() && c != '\n'),
        "a terminal would obey: {whole:?}"
    );
    if let Some(place) = &fault.place {
        let lines: Vec<_> = text.split('\n').collect();
        assert!((1..=lines.len()).contains(&place.line), "no such line: {whole}");
        let columns = lines[place.line - 1].chars().count();
        assert!((1..=columns + 1).contains(&place.column), "no such column: {whole}");
    }
}

/// What everything behind takes for granted.
fn sound(config: &Config) {
    let server = &config.server;
    assert!(!server.public_urls.is_empty() && !server.certificates.is_empty());
    assert!(server.workers > 0 && server.limits.connections > 0 && server.limits.streams > 0);
    for origin in &server.public_urls {
        assert!(!origin.host.is_empty() && !origin.host.ends_with('.') && origin.port > 0);
        assert_eq!(origin.host, origin.host.to_ascii_lowercase());
    }
    let session = &config.session;
    assert!(session.secrets.iter().all(|secret| secret.expose().len() >= 32));
    assert!(!session.secrets.is_empty() && !session.absolute.is_zero());
    assert!(session.inactivity.is_none_or(|time| !time.is_zero()));
    let prefix = &config.auth.prefix;
    assert!(prefix.starts_with('/') && !prefix.ends_with('/'), "{prefix}");
    assert!(config.auth.after_logout.starts_with('/'));
    assert!(!config.auth.after_logout.starts_with("//"));
    assert!(!config.routes.is_empty());
    for route in &config.routes {
        assert!(route.path.starts_with('/') && !route.path.contains(['?', '#', '%', '\\', ';']));
        assert!(!route.path.contains("//") && !route.upstream.is_empty());
        let known = |host: &String| server.public_urls.iter().any(|origin| origin.host == *host);
        assert!(route.host.as_ref().is_none_or(known), "a route for nobody");
        for (name, _) in &route.headers {
            let name = name.as_str();
            assert!(!name.starts_with("x-session") && !name.starts_with("x-forwarded-"));
            assert!(!name.contains(['_', '.']), "{name}");
        }
    }
    drop(Routes::new(config));
}
