//! The provider's answer: held against its attempt, its code taken in, its ID token checked; then
//! there is a session.

use http::{Response, StatusCode};

use super::attempt::Attempt;
use super::id_token::Expected;
use super::parameters::{Parameters, bad_request};
use super::provider::ProviderError;
use super::{Asked, Login, provider_unavailable, see_other, sessions_unavailable};
use crate::body::Body;
use crate::error::Failure;
use crate::observe::metrics::LoginOutcome;
use crate::session::{Change, CommitRefused, Visit};

impl Login {
    /// `GET callback`.
    pub(super) async fn callback(
        &self,
        asked: Asked<'_>,
        visit: &mut Visit,
    ) -> Result<Response<Body>, Failure> {
        let parameters = Parameters::of(asked.request)?;
        let state = parameters.get("state").ok_or_else(bad_request)?;
        let fields = &asked.request.headers;
        let Some(attempt) = Attempt::find(&self.sealer, fields, state, asked.now) else {
            return self.without_attempt(asked, visit, state);
        };
        let answer = self.answered(asked, visit, &parameters, &attempt).await;
        let outcome = match &answer {
            Ok(_) => LoginOutcome::Succeeded,
            Err(failure) if failure.status.is_client_error() => LoginOutcome::Refused,
            Err(_) => LoginOutcome::Failed,
        };
        self.metrics.login(outcome);
        let mut response = answer?;
        Attempt::forget(state, fields, response.headers_mut());
        Ok(response)
    }

    /// The back button, a bookmark, a cookie that was lost: nothing is known of this login.
    fn without_attempt(
        &self,
        asked: Asked<'_>,
        visit: &Visit,
        state: &str,
    ) -> Result<Response<Body>, Failure> {
        if visit.session().is_some() {
            return Ok(see_other("/"));
        }
        if Attempt::was_again(state) {
            self.metrics.login(LoginOutcome::Refused);
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "login_lost",
                "Your browser did not keep the sign-in's cookie. Allow cookies for this site and try again.",
            ));
        }
        self.begin_again(asked)
    }

    async fn answered(
        &self,
        asked: Asked<'_>,
        visit: &mut Visit,
        parameters: &Parameters,
        attempt: &Attempt,
    ) -> Result<Response<Body>, Failure> {
        let discovered = self.provider.discovered().map_err(provider_unavailable)?;
        // SECURITY: RFC 9207: an answer of another provider is not ours (mix-up).
        let issuer = parameters.get("iss");
        let must = discovered.metadata.authorization_response_iss_parameter_supported;
        if issuer.is_some_and(|issuer| issuer != self.config.provider.issuer)
            || (must && issuer.is_none())
        {
            return Err(bad_request().because("the answer's iss is not the provider's"));
        }
        if let Some(error) = parameters.get("error") {
            return Err(refused(error, parameters.get("error_description")));
        }
        let code = parameters.get("code").ok_or_else(bad_request)?;
        let expected = Expected {
            nonce: Some(&attempt.nonce),
            max_age: attempt.max_age,
            organization: attempt.organization.as_deref(),
            ..Expected::default()
        };
        let redirect_uri = self.redirect_uri(asked);
        let (identity, tokens) = self
            .provider
            .redeem(code, &attempt.verifier, &redirect_uri, expected, asked.now)
            .await
            .map_err(failed)?;
        self.sessions
            .commit(visit, Change::Start { identity, tokens }, asked.now)
            .await
            .map_err(not_kept)?;
        Ok(see_other(attempt.return_to.as_str()))
    }
}

/// The provider said no (RFC 6749, section 4.1.2.1). Its words go to the log alone.
fn refused(error: &str, description: Option<&str>) -> Failure {
    let clean = |text: &str| -> String {
        text.chars().filter(|character| !character.is_control()).take(200).collect()
    };
    let cause = format!("the provider said {}: {}", clean(error), clean(description.unwrap_or("")));
    let failure = match error {
        "server_error" | "temporarily_unavailable" => return provider_unavailable(cause),
        "login_required" | "interaction_required" | "consent_required" => Failure::new(
            StatusCode::UNAUTHORIZED,
            "login_refused",
            "You are not signed in. Open the app again to sign in.",
        ),
        _ => Failure::new(
            StatusCode::FORBIDDEN,
            "login_refused",
            "The sign-in was cancelled or refused. Open the app again to try once more.",
        ),
    };
    failure.because(cause)
}

fn failed(error: ProviderError) -> Failure {
    if error.is_refusal() {
        return Failure::new(
            StatusCode::BAD_REQUEST,
            "login_failed",
            "The sign-in could not be completed. Open the app again to try once more.",
        )
        .because(error);
    }
    match error {
        error @ (ProviderError::Undiscovered | ProviderError::Call { .. }) => {
            provider_unavailable(error)
        }
        error => Failure::new(
            StatusCode::BAD_GATEWAY,
            "login_failed",
            "The sign-in service gave an answer that cannot be used. Try again in a moment.",
        )
        .because(error),
    }
}

fn not_kept(refused: CommitRefused) -> Failure {
    if let CommitRefused::Unavailable(cause) = refused {
        return sessions_unavailable(cause);
    }
    Failure::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "session_too_large",
        "You are known, but the session could not be kept. Tell whoever runs this site.",
    )
    .because(refused)
}
