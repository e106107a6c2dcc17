//! What is to be said on a stream before its response. Whoever says it does so while the stream's
//! task asks for the response, and the task sends it then; so all streams of a connection share one
//! place for it, and none has to be told of.

use std::cell::{Cell, RefCell};

use http::{HeaderMap, Response, StatusCode};

/// The place.
#[derive(Default)]
pub(in crate::server) struct Aside {
    /// Whether a task listens. What an exchange says that goes on without its client, nobody hears.
    listens: Cell<bool>,
    has_heard: Cell<bool>,
    heads: RefCell<Vec<Response<()>>>,
}

impl Aside {
    /// Says it on the stream whose task listens.
    pub(in crate::server) fn say(&self, status: StatusCode, fields: HeaderMap) {
        if self.listens.get() {
            let mut head = Response::new(());
            *head.status_mut() = status;
            *head.headers_mut() = fields;
            self.heads.borrow_mut().push(head);
            self.has_heard.set(true);
        }
    }

    /// Listens while `ask` runs.
    pub(super) fn listen<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.listens.set(true);
        let asked = ask();
        self.listens.set(false);
        asked
    }

    /// Whether something was said.
    pub(super) fn has_heard(&self) -> bool {
        self.has_heard.get()
    }

    /// What was said.
    pub(super) fn take(&self) -> Vec<Response<()>> {
        if self.has_heard.replace(false) { self.heads.take() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SECURITY: or one client's hints would go to another's stream.
    #[test]
    fn what_is_said_while_nobody_listens_is_heard_by_nobody() {
        let aside = Aside::default();
        aside.say(StatusCode::EARLY_HINTS, HeaderMap::new());
        assert!(!aside.has_heard());
        aside.listen(|| aside.say(StatusCode::PROCESSING, HeaderMap::new()));
        aside.say(StatusCode::EARLY_HINTS, HeaderMap::new());
        assert!(aside.has_heard());
        let heard: Vec<StatusCode> = aside.take().iter().map(Response::status).collect();
        assert_eq!(heard, [StatusCode::PROCESSING]);
        assert!(!aside.has_heard() && aside.take().is_empty());
    }
}
