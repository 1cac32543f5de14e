//! Signature version 4. The body of an object is never hashed: its CRC-32 travels in a signed header, which protects
//! it at a hundredth of the cost.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings,
    UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use crate::error::{Error, ErrorKind};

/// What a signature is for, besides its request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: Service,
    pub(crate) time: SystemTime,
}

/// As what S3 takes the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    S3,
    /// About a directory bucket, with the client's own credentials.
    Express,
    /// About a directory bucket, within a session.
    ExpressSession,
}

/// Adds date, payload hash, session token and signature to the headers, which must hold `host` already.
pub(crate) fn sign_request(
    credentials: &Credentials,
    scope: Scope<'_>,
    method: &Method,
    uri: &Uri,
    headers: &mut HeaderMap,
    body: SignableBody<'_>,
) -> Result<(), Error> {
    let failed = |why: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Config, format!("cannot sign the request: {why}"))
    };
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    if scope.service == Service::ExpressSession {
        settings.session_token_name_override = Some("x-amz-s3session-token");
    }
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(scope.region)
        .name(if scope.service == Service::S3 { "s3" } else { "s3express" })
        .time(scope.time)
        .settings(settings)
        .build()
        .map_err(|error| failed(&error).with_source(error))?
        .into();
    let mut pairs = Vec::with_capacity(headers.len());
    for (name, value) in headers.iter() {
        let value = value.to_str().map_err(|_| failed(&format!("header {name} is not ASCII")))?;
        pairs.push((name.as_str(), value));
    }
    let request = SignableRequest::new(method.as_str(), uri.to_string(), pairs.into_iter(), body)
        .map_err(|error| failed(&error).with_source(error))?;
    let (instructions, _) =
        sign(request, &params).map_err(|error| failed(&error).with_source(error))?.into_parts();
    let (signed, _) = instructions.into_parts();
    for header in signed {
        let mut value = HeaderValue::from_str(header.value())
            .map_err(|_| failed(&format!("header {} is not valid", header.name())))?;
        value.set_sensitive(header.sensitive());
        headers.insert(HeaderName::from_static(header.name()), value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_signature_is_that_of_the_published_example() {
        // "GET Object" of the Amazon S3 API reference, "Signature calculations for the authorization header".
        let credentials = Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            None,
            None,
            "test",
        );
        let uri: Uri = "https://examplebucket.s3.amazonaws.com/test.txt".parse().unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
        headers.insert("range", HeaderValue::from_static("bytes=0-9"));
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        sign_request(
            &credentials,
            Scope { region: "us-east-1", service: Service::S3, time },
            &Method::GET,
            &uri,
            &mut headers,
            SignableBody::empty(),
        )
        .unwrap();
        assert_eq!(headers["x-amz-date"], "20130524T000000Z");
        assert_eq!(
            headers["authorization"],
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, \
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
    }

    #[test]
    fn a_session_token_is_signed_and_hidden_under_the_name_that_the_service_has_for_it() {
        for (service, name, token) in [
            (Service::S3, "s3", "x-amz-security-token"),
            (Service::Express, "s3express", "x-amz-security-token"),
            (Service::ExpressSession, "s3express", "x-amz-s3session-token"),
        ] {
            let credentials =
                Credentials::new("AKID", "SECRET", Some("TOKEN-SECRET".to_owned()), None, "test");
            let uri: Uri = "http://127.0.0.1:9000/b/k".parse().unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("host", HeaderValue::from_static("127.0.0.1:9000"));
            let body = SignableBody::UnsignedPayload;
            let scope = Scope { region: "us-east-1", service, time: SystemTime::UNIX_EPOCH };
            sign_request(&credentials, scope, &Method::PUT, &uri, &mut headers, body).unwrap();
            assert_eq!(headers["x-amz-content-sha256"], "UNSIGNED-PAYLOAD");
            let authorization = headers["authorization"].to_str().unwrap();
            assert!(authorization.contains(&format!("/us-east-1/{name}/aws4_request")), "{authorization}");
            assert!(authorization.contains(token), "{authorization}");
            assert_eq!(headers.keys().filter(|name| name.as_str().ends_with("-token")).count(), 1);
            assert!(!format!("{headers:?}").contains("TOKEN-SECRET"));
        }
    }
}
