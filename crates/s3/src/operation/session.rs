//! CreateSession: the credentials of a session with a directory bucket.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use http::Method;

use crate::admission::Outcome;
use crate::admission::retry::Class;
use crate::auth::credentials::CredentialCache;
use crate::auth::provider::{LoadFailure, Outlook};
use crate::client::Client;
use crate::error::Error;
use crate::operation::attempt::{Operation, WholeResponse};
use crate::operation::call::Call;
use crate::protocol::dates::parse_iso8601;
use crate::protocol::error_response::server_time;
use crate::protocol::xml;

impl Client {
    /// The session with a directory bucket, which is created when it is first wanted.
    pub(crate) fn express_session(&self, bucket: &str) -> Arc<CredentialCache> {
        self.inner.express_sessions.with(bucket, || {
            // The client holds the session, not the other way round.
            let (inner, bucket) = (Arc::downgrade(&self.inner), bucket.to_owned());
            Box::new(move || {
                let (client, bucket) = (inner.upgrade().map(|inner| Client { inner }), bucket.clone());
                Box::pin(async move { client.expect("a request waits for it").create_session(&bucket).await })
            })
        })
    }

    /// Creates a session, of the widest rights that the bucket gives. Tried once: who waits for it has it tried again.
    async fn create_session(&self, bucket: &str) -> Result<Credentials, LoadFailure> {
        let explained = |error: Error| {
            let message = format!("no session with directory bucket {bucket:?}: {}", error.message());
            error.with_message(message)
        };
        let refused = |error| LoadFailure { error: explained(error), outlook: Outlook::Refused };
        let call = self.session_call(bucket).map_err(refused)?;
        let mut operation = Operation::default();
        loop {
            match self.attempt_whole(&call, &mut operation).await {
                Ok(response) => {
                    response.permit.answered(Outcome::Admitted);
                    return self.session_of(&response).ok_or_else(|| LoadFailure {
                        error: explained(call.malformed("no credentials")),
                        outlook: Outlook::Attempts(self.inner.config.max_attempts),
                    });
                }
                Err(failure) if matches!(failure.class, Class::Once(_)) => {
                    self.recover(&call, &mut operation, failure).await.map_err(refused)?;
                }
                Err(failure) => {
                    let outlook = match failure.class {
                        Class::Transient => Outlook::Attempts(self.inner.config.max_attempts),
                        Class::Throttled => Outlook::Passing,
                        Class::Final | Class::Once(_) => Outlook::Refused,
                    };
                    let error =
                        call.locate(failure.error).with_attempts(operation.attempts(), Duration::ZERO);
                    return Err(LoadFailure { error: explained(error), outlook });
                }
            }
        }
    }

    fn session_call(&self, bucket: &str) -> Result<Call, Error> {
        let mut call = Call::new("CreateSession", Method::GET, bucket, None)?.flag("session");
        call.is_waited_for = true;
        // Objects of a session have its encryption, whatever their own requests say.
        self.with_encryption(call.outside_sessions())
    }

    /// What a response gives, its end told by this machine's clock.
    fn session_of(&self, response: &WholeResponse) -> Option<Credentials> {
        let root = xml::parse(&response.body).ok()?;
        let credentials = root.child("Credentials")?;
        let text = |name| credentials.text_of(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let expiration = parse_iso8601(credentials.text_of("Expiration")?)?;
        let now = self.service_time();
        let lifetime = expiration.duration_since(server_time(&response.headers).unwrap_or(now));
        let expiry: SystemTime = now + lifetime.unwrap_or(Duration::ZERO);
        Some(Credentials::new(
            text("AccessKeyId")?,
            text("SecretAccessKey")?,
            Some(text("SessionToken")?),
            Some(expiry),
            "directory bucket",
        ))
    }
}
