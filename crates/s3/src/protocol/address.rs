//! Where a request goes: S3 URIs, endpoints, path or virtual-host style, and percent-encoding as SigV4 wants it.

use std::net::IpAddr;

use http::Uri;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::{Error, ErrorKind};

/// Everything but the characters that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// The same in a path, where `/` separates.
const ENCODED_IN_PATH: &AsciiSet = &ENCODED.remove(b'/');
/// S3's limit on a key, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 1024;

/// Splits `s3://bucket/key` into bucket and key; the key may be empty.
///
/// ```
/// let (bucket, key) = s3dcp_s3::parse_s3_uri("s3://models/run 7/step+1")?;
/// assert_eq!((bucket.as_str(), key.as_str()), ("models", "run 7/step+1"));
/// # Ok::<(), s3dcp_s3::Error>(())
/// ```
///
/// # Errors
/// `Config`, naming the value, when it does not start with `s3://` or names no bucket.
pub fn parse_s3_uri(uri: &str) -> Result<(String, String), Error> {
    let Some(rest) = uri.strip_prefix("s3://") else {
        return Err(config(format!("an S3 path must start with s3://, not {uri:?}")));
    };
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(config(format!("an S3 path must name a bucket (s3://bucket/key), not {uri:?}")));
    }
    check_bucket(bucket)?;
    Ok((bucket.to_owned(), key.to_owned()))
}

/// The key of `name` in a folder. A folder ends with a slash, which need not be given; "" is the bucket itself. A slash
/// more is an empty segment, which S3 keeps like any other.
///
/// ```
/// use s3dcp_s3::join_key;
/// assert_eq!(join_key("run", "x"), "run/x");
/// assert_eq!(join_key("run/", "x"), "run/x");
/// assert_eq!(join_key("run//", "x"), "run//x");
/// assert_eq!((join_key("", "x"), join_key("/", "x")), ("x".to_owned(), "/x".to_owned()));
/// ```
pub fn join_key(folder: &str, name: &str) -> String {
    let slash = if folder.is_empty() || folder.ends_with('/') { "" } else { "/" };
    format!("{folder}{slash}{name}")
}

/// Refuses a bucket name that would change the meaning of a URL.
pub(crate) fn check_bucket(bucket: &str) -> Result<(), Error> {
    let usable = (1..=255).contains(&bucket.len())
        && bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        && bucket != "."
        && bucket != "..";
    if !usable {
        return Err(config(format!(
            "a bucket name has letters, digits, '-', '.' and '_' only, at most 255 of them, not {bucket:?}"
        )));
    }
    if bucket.ends_with("--x-s3") {
        return Err(config(format!(
            "bucket {bucket:?} is an S3 Express directory bucket; these need session authentication, which is not supported"
        )));
    }
    Ok(())
}

/// Refuses a key that S3 would refuse.
pub(crate) fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(config(format!(
            "a key has 1 to {MAX_KEY_BYTES} bytes, not {}: {:?}",
            key.len(),
            key.chars().take(80).collect::<String>()
        )));
    }
    Ok(())
}

/// Percent-encodes a key for the path of a URL.
pub(crate) fn encode_key(key: &str) -> String {
    utf8_percent_encode(key, ENCODED_IN_PATH).to_string()
}

/// Percent-encodes one value of a query.
pub(crate) fn encode_query(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

/// The name that stands for AWS as a whole.
const GLOBAL: &str = "aws-global";

/// A region as it is written in settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Region {
    name: String,
    /// The endpoint with validated cryptography, by the old names that have `fips` in them.
    fips: bool,
}

impl Region {
    /// The region of this name; `source` is named in the error.
    pub(crate) fn parse(name: &str, source: &str) -> Result<Region, Error> {
        if !is_host_label(name) {
            return Err(config(format!("{source} must be a name like \"us-east-1\", not {name:?}")));
        }
        let plain = name.strip_prefix("fips-").or_else(|| name.strip_suffix("-fips"));
        Ok(Region { name: plain.unwrap_or(name).to_owned(), fips: plain.is_some() })
    }

    /// What requests are signed for.
    pub(crate) fn signed(&self) -> &str {
        if self.name == GLOBAL { "us-east-1" } else { &self.name }
    }
}

/// The domain of the AWS partition that a region belongs to, regions of the future included. A region of no known partition
/// counts as one of the first.
fn domain(region: &str) -> &'static str {
    let of = |prefix: &str| region.starts_with(prefix);
    match () {
        () if of("cn-") => "amazonaws.com.cn",
        () if of("eusc-") => "amazonaws.eu",
        () if of("us-iso-") => "c2s.ic.gov",
        () if of("us-isob-") => "sc2s.sgov.gov",
        () if of("eu-isoe-") => "cloud.adc-e.uk",
        () if of("us-isof-") => "csp.hci.ic.gov",
        () => "amazonaws.com",
    }
}

/// The service's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    tls: bool,
    /// Host, with the port where it is not the scheme's.
    authority: String,
    /// Path prefix without a trailing slash, mostly empty.
    prefix: String,
    path_style: bool,
    custom: bool,
}

/// What a request needs of the endpoint.
pub(crate) struct Address {
    pub(crate) uri: Uri,
    pub(crate) host: String,
}

impl Endpoint {
    /// AWS's own endpoint of a region.
    pub(crate) fn aws(region: &Region, force_path_style: bool) -> Endpoint {
        let service = if region.fips { "s3-fips" } else { "s3" };
        let authority = match &*region.name {
            GLOBAL => format!("{service}.amazonaws.com"),
            name => format!("{service}.{name}.{}", domain(name)),
        };
        Endpoint { tls: true, authority, prefix: String::new(), path_style: force_path_style, custom: false }
    }

    /// Whether both lead to one service, be it in other regions: to AWS, or to the same address.
    pub(crate) fn is_of_same_service(&self, other: &Endpoint) -> bool {
        let place = |endpoint: &Endpoint| (endpoint.tls, endpoint.authority.clone(), endpoint.prefix.clone());
        match (self.custom, other.custom) {
            (false, false) => true,
            (true, true) => place(self) == place(other),
            _ => false,
        }
    }

    /// A given endpoint; `source` names where the URL comes from.
    pub(crate) fn custom(url: &str, source: &str, force_path_style: bool) -> Result<Endpoint, Error> {
        let refuse = |why: &str| config(format!("{source} {why}, not {:?}", without_user_info(url)));
        let (tls, rest) = if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else {
            return Err(refuse("must start with http:// or https://"));
        };
        let uri: Uri = url.parse().map_err(|_| refuse("must be a URL"))?;
        if rest.contains(['?', '#']) {
            return Err(refuse("must have no query"));
        }
        let authority = uri.authority().ok_or_else(|| refuse("must name a host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("must have no user or password"));
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(refuse("must name a host"));
        }
        let port = match authority.as_str().strip_prefix(host) {
            Some("") => None,
            _ => Some(
                authority
                    .port_u16()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| refuse("must have a valid port"))?,
            ),
        };
        let scheme_port = if tls { 443 } else { 80 };
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let local = literal.parse::<IpAddr>().is_ok() || host == "localhost";
        Ok(Endpoint {
            tls,
            authority: match port {
                Some(port) if port != scheme_port => format!("{host}:{port}"),
                _ => host.to_owned(),
            },
            prefix: uri.path().trim_end_matches('/').to_owned(),
            path_style: force_path_style || local,
            custom: true,
        })
    }

    /// Whether it was given, and is not AWS's.
    pub(crate) fn is_custom(&self) -> bool {
        self.custom
    }

    /// Whether a request for this host has the bucket in its name.
    pub(crate) fn is_below(&self, host: &str) -> bool {
        host != self.authority
    }

    /// Whether requests go over TLS.
    pub(crate) fn tls(&self) -> bool {
        self.tls
    }

    /// The endpoint as a person would write it.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.prefix)
    }

    fn bucket_in_path(&self, bucket: &str) -> bool {
        let dns_safe = bucket.len() >= 3
            && bucket.len() <= 63
            && bucket
                .split('.')
                .all(|label| is_host_label(label) && !label.bytes().any(|b| b.is_ascii_uppercase()));
        self.path_style || !dns_safe || (self.tls && bucket.contains('.'))
    }

    /// The address of an object (or of the bucket, without a key), with this query.
    ///
    /// # Errors
    /// `Config`, when no URL can be made of it.
    pub(crate) fn address(&self, bucket: &str, key: Option<&str>, query: &str) -> Result<Address, Error> {
        let key = key.map(encode_key).unwrap_or_default();
        let (host, path) = if self.bucket_in_path(bucket) {
            let slash = if key.is_empty() { "" } else { "/" };
            (self.authority.clone(), format!("{}/{bucket}{slash}{key}", self.prefix))
        } else {
            (format!("{bucket}.{}", self.authority), format!("{}/{key}", self.prefix))
        };
        let scheme = if self.tls { "https" } else { "http" };
        let question = if query.is_empty() { "" } else { "?" };
        let text = format!("{scheme}://{host}{path}{question}{query}");
        let uri = text
            .parse()
            .map_err(|error| config(format!("no URL can be made of {text:?}: {error}")).with_source(error))?;
        Ok(Address { uri, host })
    }
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// A URL without the `user:password@` that someone may have put there, whatever characters are in it.
pub(crate) fn without_user_info(url: &str) -> String {
    let authority = url.find("://").map_or(0, |at| at + 3);
    match url[authority..].rfind('@') {
        Some(at) => format!("{}{}", &url[..authority], &url[authority + at + 1..]),
        None => url.to_owned(),
    }
}

/// Whether the text can be one label of a host name.
fn is_host_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(endpoint: &Endpoint, bucket: &str, key: &str) -> String {
        endpoint.address(bucket, Some(key), "").unwrap().uri.to_string()
    }

    #[test]
    fn an_s3_uri_splits_at_the_first_slash() {
        for (uri, bucket, key) in [
            ("s3://b", "b", ""),
            ("s3://b/", "b", ""),
            ("s3://b/a/b c", "b", "a/b c"),
            ("s3://b//a", "b", "/a"),
            ("s3://b/a/", "b", "a/"),
        ] {
            assert_eq!(parse_s3_uri(uri).unwrap(), (bucket.to_owned(), key.to_owned()));
        }
    }

    #[test]
    fn what_is_no_s3_uri_is_named_in_the_error() {
        for uri in [
            "",
            "b/k",
            "/tmp/x",
            "S3://b/k",
            "gs://b/k",
            "s3:/b/k",
            "s3://",
            "s3:///k",
            "s3://a b/k",
            "s3://../k",
        ] {
            let error = parse_s3_uri(uri).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(!uri.starts_with("s3:///") || error.message().contains(uri), "{error}");
        }
        assert!(parse_s3_uri("/tmp/x").unwrap_err().message().contains("\"/tmp/x\""));
    }

    #[test]
    fn keys_are_encoded_as_the_signature_wants_them() {
        let endpoint = Endpoint::custom("http://127.0.0.1:9000", "endpoint_url", false).unwrap();
        for (key, path) in [
            ("a b", "/bkt/a%20b"),
            ("a+b", "/bkt/a%2Bb"),
            ("ä/é", "/bkt/%C3%A4/%C3%A9"),
            ("日本", "/bkt/%E6%97%A5%E6%9C%AC"),
            ("a//b", "/bkt/a//b"),
            ("a/../b", "/bkt/a/../b"),
            ("~-._A9", "/bkt/~-._A9"),
            ("a%20b?c#d&e=f", "/bkt/a%2520b%3Fc%23d%26e%3Df"),
            ("(1)*'!", "/bkt/%281%29%2A%27%21"),
            ("line\nbreak", "/bkt/line%0Abreak"),
        ] {
            assert_eq!(url(&endpoint, "bkt", key), format!("http://127.0.0.1:9000{path}"));
        }
    }

    fn aws(region: &str, force_path_style: bool) -> Endpoint {
        Endpoint::aws(&Region::parse(region, "region").unwrap(), force_path_style)
    }

    #[test]
    fn one_service_is_aws_in_all_its_regions_or_one_address() {
        let custom = |url| Endpoint::custom(url, "endpoint_url", true).unwrap();
        let here = custom("http://127.0.0.1:9000/s3");
        assert!(aws("us-east-1", false).is_of_same_service(&aws("eu-west-1", true)));
        assert!(here.is_of_same_service(&custom("http://127.0.0.1:9000/s3/")));
        for other in ["http://127.0.0.1:9001/s3", "http://127.0.0.1:9000", "https://127.0.0.1:9000/s3"] {
            assert!(!here.is_of_same_service(&custom(other)), "{other}");
        }
        assert!(!aws("us-east-1", false).is_of_same_service(&here));
        assert!(!here.is_of_same_service(&aws("us-east-1", false)));
    }

    /// As AWS's own rules have it, which are in each of its SDKs: STS is at `sts.<region>.<domain>`.
    #[tokio::test]
    async fn a_region_is_at_the_domain_of_its_partition() {
        use aws_sdk_sts::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
        for (region, host, signed) in [
            ("us-east-1", "s3.us-east-1.amazonaws.com", "us-east-1"),
            ("ap-southeast-9", "s3.ap-southeast-9.amazonaws.com", "ap-southeast-9"),
            ("us-gov-west-1", "s3.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("cn-north-1", "s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("cn-east-7", "s3.cn-east-7.amazonaws.com.cn", "cn-east-7"),
            ("eusc-de-east-1", "s3.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
            ("eusc-de-west-9", "s3.eusc-de-west-9.amazonaws.eu", "eusc-de-west-9"),
            ("us-iso-east-1", "s3.us-iso-east-1.c2s.ic.gov", "us-iso-east-1"),
            ("us-isob-east-1", "s3.us-isob-east-1.sc2s.sgov.gov", "us-isob-east-1"),
            ("eu-isoe-west-1", "s3.eu-isoe-west-1.cloud.adc-e.uk", "eu-isoe-west-1"),
            ("us-isof-south-1", "s3.us-isof-south-1.csp.hci.ic.gov", "us-isof-south-1"),
            ("nowhere", "s3.nowhere.amazonaws.com", "nowhere"),
            ("aws-global", "s3.amazonaws.com", "us-east-1"),
            ("fips-us-west-2", "s3-fips.us-west-2.amazonaws.com", "us-west-2"),
            ("us-gov-west-1-fips", "s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ] {
            assert_eq!(aws(region, false).url(), format!("https://{host}"));
            assert_eq!(Region::parse(region, "region").unwrap().signed(), signed);
            if region == signed {
                let params = Params::builder().region(region).build().unwrap();
                let sts = DefaultResolver::new().resolve_endpoint(&params).await.unwrap();
                assert_eq!(sts.url(), format!("https://sts.{region}.{}", domain(region)));
            }
        }
        let error = Region::parse("evil.com/x", "AWS_REGION").unwrap_err();
        assert!(error.message().contains("AWS_REGION") && error.message().contains("evil.com/x"), "{error}");
    }

    #[test]
    fn the_style_follows_host_bucket_and_scheme() {
        let aws_endpoint = aws("eu-west-1", false);
        assert_eq!(url(&aws_endpoint, "bkt", "k"), "https://bkt.s3.eu-west-1.amazonaws.com/k");
        assert_eq!(url(&aws_endpoint, "a.bkt", "k"), "https://s3.eu-west-1.amazonaws.com/a.bkt/k");
        assert_eq!(url(&aws_endpoint, "Bkt_1", "k"), "https://s3.eu-west-1.amazonaws.com/Bkt_1/k");
        assert_eq!(url(&aws("eu-west-1", true), "bkt", "k"), "https://s3.eu-west-1.amazonaws.com/bkt/k");
        assert_eq!(
            url(&aws("cn-north-1", false), "bkt", "k"),
            "https://bkt.s3.cn-north-1.amazonaws.com.cn/k"
        );
        let custom = |url: &str, force| Endpoint::custom(url, "endpoint_url", force).unwrap();
        assert_eq!(url(&custom("http://localhost:9000/", false), "bkt", "k"), "http://localhost:9000/bkt/k");
        assert_eq!(url(&custom("http://[::1]:9000", false), "bkt", "k"), "http://[::1]:9000/bkt/k");
        assert_eq!(url(&custom("http://store:80", false), "a.bkt", "k"), "http://a.bkt.store/k");
        assert_eq!(url(&custom("https://store:8443/s3/", true), "bkt", "k"), "https://store:8443/s3/bkt/k");
        assert_eq!(url(&custom("https://store", false), "bkt", "/k"), "https://bkt.store//k");
    }

    #[test]
    fn the_bucket_alone_is_its_own_address() {
        let endpoint = Endpoint::custom("http://127.0.0.1:9000", "endpoint_url", false).unwrap();
        let address = endpoint.address("bkt", None, "list-type=2").unwrap();
        assert_eq!(address.uri.to_string(), "http://127.0.0.1:9000/bkt?list-type=2");
        assert_eq!(address.host, "127.0.0.1:9000");
        let address = aws("us-east-1", false).address("bkt", None, "").unwrap();
        assert_eq!(address.uri.to_string(), "https://bkt.s3.us-east-1.amazonaws.com/");
    }

    #[test]
    fn a_bad_endpoint_names_itself_and_hides_a_password() {
        for url in [
            "host:9000",
            "ftp://host",
            "http://",
            "http://host:99999",
            "http://host?x=1",
            "http://u:hunter2@host",
            "http://u:hunter2/1@host",
            "http://u:hunter2?1@host",
            "u:hunter2@host",
        ] {
            let error = Endpoint::custom(url, "AWS_ENDPOINT_URL", false).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains("AWS_ENDPOINT_URL"), "{error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_key_is_bounded_in_bytes() {
        assert!(check_key(&"ä".repeat(512)).is_ok());
        assert!(check_key(&"ä".repeat(513)).unwrap_err().message().contains("1026"));
        assert!(check_key("").is_err());
    }

    #[test]
    fn a_directory_bucket_is_refused_by_name() {
        assert!(check_bucket("b--usw2-az1--x-s3").unwrap_err().message().contains("S3 Express"));
    }
}
