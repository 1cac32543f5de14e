//! Which bucket a `Host` header names.
//!
//! `<bucket>.<domain>` names a bucket; every other host, known or not, is taken as path style, so that the server
//! also answers under a container's or a machine's name.

use std::borrow::Cow;

use http::Request;
use http::header::HOST;
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

#[derive(Debug, Clone)]
pub(crate) struct Domains(Vec<String>);

impl Domains {
    /// `localhost` and, if given, the configured domain (a port in it is ignored).
    pub(crate) fn new(domain: Option<&str>) -> Self {
        let configured = domain.map(|domain| without_port(domain).to_ascii_lowercase());
        Self(configured.into_iter().chain(["localhost".to_owned()]).collect())
    }

    /// The bucket that a host names.
    pub(crate) fn bucket(&self, host: &str) -> Option<String> {
        let host = without_port(host).to_ascii_lowercase();
        let bucket = self
            .0
            .iter()
            .find_map(|domain| host.strip_suffix(domain.as_str()).and_then(|rest| rest.strip_suffix('.')))?;
        (!bucket.is_empty()).then(|| bucket.to_owned())
    }
}

/// The bucket that a request is about, and the key as it is written.
pub(crate) fn bucket_and_key<'a, B>(request: &'a Request<B>, domains: &Domains) -> (Cow<'a, str>, &'a str) {
    let path = request.uri().path().trim_start_matches('/');
    let host = request.headers().get(HOST).and_then(|value| value.to_str().ok());
    match (host.and_then(|host| domains.bucket(host)), path.split_once('/')) {
        (Some(bucket), _) => (Cow::Owned(bucket), path),
        (None, Some((bucket, key))) => (Cow::Borrowed(bucket), key),
        (None, None) => (Cow::Borrowed(path), ""),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let known = VirtualHost::new(host);
        Ok(match self.bucket(host) {
            Some(bucket) => known.with_bucket(bucket),
            None => known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_what_stands_before_a_known_domain() {
        let domains = Domains::new(Some("s3.example.test:9000"));
        for (host, bucket) in [
            ("checkpoints.localhost:9000", Some("checkpoints")),
            ("a.b.localhost", Some("a.b")),
            ("Checkpoints.S3.Example.Test", Some("checkpoints")),
            ("localhost:9000", None),
            ("s3.example.test", None),
            (".localhost", None),
            ("notlocalhost", None),
            ("trainer-7:9000", None),
        ] {
            assert_eq!(domains.bucket(host).as_deref(), bucket, "{host}");
        }
    }
}
