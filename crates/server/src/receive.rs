//! Taking in a request's body: bytes to the back-end, checksums on the way, and refusal when either is not what
//! the client announced.

use bytes::Bytes;
use futures_util::StreamExt as _;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::StreamingBlob;
use s3s::{S3Error, S3ErrorCode, S3Result, StdError, TrailingHeaders, s3_error};

use crate::checksum::{Algorithm, Digest, Hasher, bad_digest};
use crate::object::Segment;
use crate::stats::Counters;
use crate::store::Store;

/// The largest body of one PutObject or UploadPart.
const MAX_BODY_BYTES: u64 = 5 << 30;

/// What a client says of a body before it sends it.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    pub(crate) size: Option<u64>,
    pub(crate) content_md5: Option<Vec<u8>>,
    /// Checksums in headers.
    pub(crate) digests: Vec<Digest>,
    /// Checksums that will come as trailers.
    pub(crate) trailers: Vec<Algorithm>,
    /// Checksums to compute although the client sends none.
    pub(crate) wanted: Option<Algorithm>,
    /// Whether to compute the MD5 although the client sends none.
    pub(crate) md5: bool,
}

impl Announced {
    /// Reads what the headers say. `checksums` are the `x-amz-checksum-*` headers.
    pub(crate) fn new(
        headers: &http::HeaderMap,
        size: Option<i64>,
        content_md5: Option<&str>,
        checksums: &[(Algorithm, &str)],
    ) -> S3Result<Self> {
        let size = size.and_then(|size| u64::try_from(size).ok());
        if size.is_some_and(|size| size > MAX_BODY_BYTES) {
            return Err(s3_error!(EntityTooLarge, "Your proposed upload exceeds the maximum allowed size"));
        }
        let content_md5 = content_md5
            .map(|value| match base64_simd::STANDARD.decode_to_vec(value) {
                Ok(md5) if md5.len() == 16 => Ok(md5),
                _ => Err(s3_error!(InvalidDigest, "The Content-MD5 you specified was invalid.")),
            })
            .transpose()?;
        let digests = checksums
            .iter()
            .map(|(algorithm, value)| Digest::parse(*algorithm, value))
            .collect::<S3Result<Vec<_>>>()?;
        if digests.len() > 1 {
            return Err(s3_error!(
                InvalidRequest,
                "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed."
            ));
        }
        let trailers = headers
            .get_all("x-amz-trailer")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| Algorithm::of_header(name.trim()))
            .collect();
        Ok(Self { size, content_md5, digests, trailers, wanted: None, md5: false })
    }

    /// The algorithm the client uses, if any.
    pub(crate) fn algorithm(&self) -> Option<Algorithm> {
        self.digests
            .first()
            .map(|digest| digest.algorithm)
            .or_else(|| self.trailers.first().copied())
            .or(self.wanted)
    }
}

/// A body that has been taken in whole and is what the client announced.
pub(crate) struct Received {
    pub(crate) segments: Vec<Segment>,
    pub(crate) size: u64,
    pub(crate) md5: Option<[u8; 16]>,
    pub(crate) digests: Vec<Digest>,
}

impl Received {
    pub(crate) fn digest(&self, algorithm: Algorithm) -> Option<&Digest> {
        self.digests.iter().find(|digest| digest.algorithm == algorithm)
    }
}

/// Takes in a body, to the back-end of `store`.
pub(crate) async fn receive(
    body: Option<StreamingBlob>,
    store: &Store,
    announced: Announced,
    trailing: Option<TrailingHeaders>,
    counters: &Counters,
) -> S3Result<Received> {
    let failure = |error| store.failure(&error);
    let mut writer = store.backend.writer(announced.size).await.map_err(failure)?;
    let mut hashers = hashers(&announced);
    let mut md5 = (announced.md5 || announced.content_md5.is_some()).then(Md5::new);
    let mut size = 0_u64;
    if let Some(mut body) = body {
        while let Some(frame) = body.next().await {
            let frame: Bytes = frame.map_err(|error| body_error(&error))?;
            counters.received(frame.len());
            size += frame.len() as u64;
            if size > MAX_BODY_BYTES {
                return Err(s3_error!(
                    EntityTooLarge,
                    "Your proposed upload exceeds the maximum allowed size"
                ));
            }
            for hasher in &mut hashers {
                hasher.update(&frame);
            }
            if let Some(md5) = &mut md5 {
                md5.update(&frame);
            }
            writer.write(frame).await.map_err(failure)?;
        }
    }
    if announced.size.is_some_and(|announced| announced != size) {
        return Err(s3_error!(
            IncompleteBody,
            "You did not provide the number of bytes specified by the Content-Length HTTP header"
        ));
    }
    let md5 = md5.map(Md5::finalize);
    if let (Some(expected), Some(actual)) = (&announced.content_md5, &md5)
        && expected[..] != actual[..]
    {
        return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
    }
    let digests: Vec<Digest> = hashers.into_iter().map(Hasher::finish).collect();
    for expected in announced.digests.iter().cloned().chain(trailing_digests(&announced, trailing.as_ref())?)
    {
        if !digests.contains(&expected) {
            return Err(bad_digest(expected.algorithm));
        }
    }
    let segments = writer.finish().await.map_err(failure)?;
    Ok(Received { segments, size, md5, digests })
}

fn hashers(announced: &Announced) -> Vec<Hasher> {
    let mut algorithms: Vec<Algorithm> = announced.digests.iter().map(|digest| digest.algorithm).collect();
    for algorithm in announced.trailers.iter().chain(&announced.wanted) {
        if !algorithms.contains(algorithm) {
            algorithms.push(*algorithm);
        }
    }
    algorithms.into_iter().map(Hasher::new).collect()
}

fn trailing_digests(announced: &Announced, trailing: Option<&TrailingHeaders>) -> S3Result<Vec<Digest>> {
    let headers = trailing.and_then(TrailingHeaders::take).unwrap_or_default();
    announced
        .trailers
        .iter()
        .map(|algorithm| {
            let name = format!("x-amz-checksum-{}", algorithm.name().to_ascii_lowercase());
            let value = headers.get(&name).and_then(|value| value.to_str().ok()).ok_or_else(|| {
                s3_error!(InvalidRequest, "The request contained trailing data that was not well-formed")
            })?;
            Digest::parse(*algorithm, value)
        })
        .collect()
}

/// The protocol crate keeps its stream errors to itself but for their text.
fn body_error(error: &StdError) -> S3Error {
    let text = error.to_string();
    if text.contains("SignatureMismatch") {
        s3_error!(SignatureDoesNotMatch, "The signature of a chunk does not match.")
    } else if text.contains("Sha256Mismatch") {
        let mut error = S3Error::with_message(
            S3ErrorCode::from_bytes(b"XAmzContentSHA256Mismatch").unwrap_or(S3ErrorCode::InvalidDigest),
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        );
        error.set_status_code(http::StatusCode::BAD_REQUEST);
        error
    } else {
        s3_error!(IncompleteBody, "The request body could not be read: {text}")
    }
}
