//! The end of a session: here at once, whatever the provider does; then at the provider.

use http::{HeaderValue, Response};

use super::metadata::LogoutAddress;
use super::parameters::Parameters;
use super::return_to::ReturnTo;
use super::{Asked, Login, see_other};
use crate::body::Body;
use crate::error::Failure;
use crate::observe::metrics::LoginOutcome;
use crate::session::{Change, Visit};

/// A longer ID token is not sent along, in bytes: many servers take no longer address, and the
/// provider asks the user instead.
const LONGEST_HINT: usize = 4096;

impl Login {
    /// `GET logout`.
    pub(super) async fn logout(
        &self,
        asked: Asked<'_>,
        visit: &mut Visit,
    ) -> Result<Response<Body>, Failure> {
        let parameters = Parameters::of(asked.request)?;
        let after = self.config.auth.after_logout.as_str();
        let return_to = ReturnTo::parse(parameters.get("return_to").unwrap_or(after));
        let return_to = return_to.outside(&self.config.auth.prefix);
        let location = match visit.session() {
            Some(session) => {
                if let Some(token) = session.tokens.refresh_token.clone() {
                    self.revoke_later(token, asked);
                }
                let id_token = session.tokens.id_token.clone();
                self.metrics.login(LoginOutcome::LoggedOut);
                self.provider_logout(&return_to, Some(&id_token), asked)
            }
            // Its tokens stay unread.
            None if visit.ended_unread() => {
                self.metrics.login(LoginOutcome::LoggedOut);
                self.provider_logout(&return_to, None, asked)
            }
            None => None,
        };
        // An end is never refused: here it holds at once, and the store goes on trying.
        let _ = self.sessions.commit(visit, Change::End, asked.now).await;
        let mut response = see_other(&location.unwrap_or_else(|| return_to.as_str().to_owned()));
        // The back button shows nothing of the session (Clear Site Data, section 3.2).
        response.headers_mut().insert("clear-site-data", HeaderValue::from_static("\"cache\""));
        Ok(response)
    }

    /// Where the provider ends its own session, if it is known and has such a place.
    fn provider_logout(
        &self,
        return_to: &ReturnTo,
        id_token: Option<&str>,
        asked: Asked<'_>,
    ) -> Option<String> {
        let discovered = self.provider.discovered().ok()?;
        let client_id = &self.config.provider.client_id;
        let back = return_to.on(asked.origin);
        let url = match discovered.metadata.logout()? {
            LogoutAddress::EndSession(mut url) => {
                if let Some(id_token) = id_token.filter(|token| token.len() <= LONGEST_HINT) {
                    url.query_pairs_mut().append_pair("id_token_hint", id_token);
                }
                url.query_pairs_mut()
                    .append_pair("post_logout_redirect_uri", &back)
                    .append_pair("client_id", client_id);
                url
            }
            LogoutAddress::Auth0(mut url) => {
                url.query_pairs_mut()
                    .append_pair("client_id", client_id)
                    .append_pair("returnTo", &back);
                url
            }
        };
        Some(url.into())
    }

    /// In the background: nobody waits for a provider in order to be signed out here.
    fn revoke_later(&self, refresh_token: String, asked: Asked<'_>) {
        let (provider, now) = (self.provider.clone(), asked.now);
        tokio::task::spawn_local(async move {
            if let Err(error) = provider.revoke(&refresh_token, now).await {
                tracing::warn!(%error, "a refresh token could not be revoked");
            }
        });
    }
}
