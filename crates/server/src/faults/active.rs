//! One fault striking one request.

use std::future::pending;
use std::ops::ControlFlow;

use http::header::{CONTENT_LENGTH, ETAG};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use s3s::Body;

use super::body::{Dropped, Ending, Flipped, Shortened};
use super::rule::Action;
use crate::connection::Connection;

/// An error to answer with.
pub(crate) struct InjectedError {
    pub(crate) status: StatusCode,
    pub(crate) code: String,
}

pub(crate) struct ActiveFault {
    action: Action,
    /// Where chance decides within the request: which bit flips.
    random: u64,
}

impl ActiveFault {
    pub(super) fn new(action: Action, random: u64) -> Self {
        Self { action, random }
    }

    /// The request as it goes on, or what it is answered with instead.
    pub(crate) async fn before(
        &self,
        request: Request<Body>,
        connection: &Connection,
    ) -> Result<ControlFlow<InjectedError, Request<Body>>, Dropped> {
        match &self.action {
            Action::Error(status, code) => {
                return Ok(ControlFlow::Break(InjectedError { status: *status, code: code.clone() }));
            }
            Action::Drop => return Err(Dropped),
            Action::ResetRequest(bytes) => {
                drain(request.into_body(), *bytes).await;
                connection.reset();
                return Err(Dropped);
            }
            Action::Silence => {
                drain(request.into_body(), u64::MAX).await;
                return pending().await;
            }
            Action::FlipRequest => {
                let length = content_length(request.headers());
                return Ok(ControlFlow::Continue(request.map(|body| flipped(body, length, self.random))));
            }
            Action::Delay(time) => tokio::time::sleep(*time).await,
            Action::Late(_)
            | Action::Lose
            | Action::Reset(_)
            | Action::Cut(_)
            | Action::Stall(_)
            | Action::Truncate(_)
            | Action::Flip
            | Action::Etag(_) => {}
        }
        Ok(ControlFlow::Continue(request))
    }

    /// The response as it is sent, to a request that was carried out.
    pub(crate) async fn after(
        &self,
        response: Response<Body>,
        connection: &Connection,
        is_head: bool,
    ) -> Result<Response<Body>, Dropped> {
        let length = content_length(response.headers()).or(response.body().size_hint().exact());
        let is_empty = is_head || length == Some(0);
        let shortened = |response: Response<Body>, at, ending| {
            response.map(|body| Body::http_body_unsync(Shortened::new(body, at, ending)))
        };
        match self.action {
            Action::Late(time) => {
                tokio::time::sleep(time).await;
                Ok(response)
            }
            Action::Lose => Err(Dropped),
            Action::Cut(_) if is_empty => Err(Dropped),
            Action::Reset(_) if is_empty => {
                connection.reset();
                Err(Dropped)
            }
            Action::Stall(_) if is_empty => pending().await,
            Action::Reset(at) => Ok(shortened(response, at, Ending::Reset(connection.clone()))),
            Action::Cut(at) => Ok(shortened(response, at, Ending::Cut)),
            Action::Stall(at) => Ok(shortened(response, at, Ending::Stall)),
            Action::Truncate(at) if length.is_none_or(|length| at < length) && !is_empty => {
                let mut response = shortened(response, at, Ending::Proper);
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(at));
                Ok(response)
            }
            Action::Etag(form) => {
                let mut response = response;
                if let Some(etag) = response.headers_mut().remove(ETAG)
                    && let Some(etag) = etag.to_str().ok().and_then(|etag| form.of(etag))
                    && let Ok(etag) = HeaderValue::try_from(etag)
                {
                    response.headers_mut().insert(ETAG, etag);
                }
                Ok(response)
            }
            Action::Flip if !is_empty => Ok(response.map(|body| flipped(body, length, self.random))),
            _ => Ok(response),
        }
    }
}

fn flipped(body: Body, length: Option<u64>, random: u64) -> Body {
    // Without a length the bit is in what surely is there: the first byte.
    let bits = 8 * length.unwrap_or(1).max(1);
    Body::http_body_unsync(Flipped::new(body, random % bits))
}

fn content_length(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads `bytes` bytes of a body, or all of it.
async fn drain(mut body: Body, bytes: u64) {
    let mut read = 0;
    while read < bytes {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => break,
        }
    }
}
