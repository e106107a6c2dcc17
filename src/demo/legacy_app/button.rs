//! The buttons of the app's page: what each is called, what it asks of the gateway, and what to
//! look for afterwards.

/// The name of the one button that has a field beside it.
pub(super) const RENAME: &str = "rename";

/// A button that always asks for the same change.
pub(super) struct Button {
    /// Its name: the end of its address, and its id on the page.
    pub(super) name: &'static str,
    /// What stands on it.
    pub(super) label: &'static str,
    /// The value of `X-Session-Update`.
    pub(super) update: &'static str,
    /// The page to go back to.
    pub(super) back: &'static str,
    /// What happened, in a sentence.
    pub(super) afterwards: &'static str,
}

/// All of them.
pub(super) const BUTTONS: [Button; 7] = [
    Button {
        name: "set-dark",
        label: "Dark",
        update: r#"{"theme":"dark"}"#,
        back: "/",
        afterwards: "The session holds the theme now, and the page reads it there.",
    },
    Button {
        name: "set-light",
        label: "Light",
        update: r#"{"theme":"light"}"#,
        back: "/",
        afterwards: "The session holds the theme now, and the page reads it there.",
    },
    Button {
        name: "beta-on",
        label: "Beta on",
        update: r#"{"features":{"beta":true}}"#,
        back: "/",
        afterwards: "Objects merge deep: whatever else features holds is still there.",
    },
    Button {
        name: "beta-off",
        label: "Beta off",
        update: r#"{"features":{"beta":false}}"#,
        back: "/",
        afterwards: "Objects merge deep: whatever else features holds is still there.",
    },
    Button {
        name: "count",
        label: "Count",
        update: r#"{"pageViews":{"$add":1}}"#,
        back: "/",
        afterwards: "One was added where the number is kept: counts of parallel requests add up.",
    },
    Button {
        name: "malformed",
        label: "Send nonsense",
        update: r#"{"theme":"#,
        back: "/",
        afterwards: "That was no JSON: nothing has changed, this page came through all the same, \
                     and the gateway's log has a warning.",
    },
    Button {
        name: "end-session",
        label: "End the session",
        update: "null",
        back: "/public",
        afterwards: "The app has ended the session.",
    },
];

impl Button {
    /// The button of this name.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        BUTTONS.iter().find(|button| button.name == name)
    }
}
