//! Where a request goes: AWS's host names and other endpoints, path or virtual-host style.
//!
//! The names and what cannot be combined are those of AWS's public endpoint rules, which a test asks botocore for.

use std::net::IpAddr;

use http::Uri;

use crate::error::{Error, invalid};
use crate::protocol::address::encode_key;
use crate::protocol::bucket::{AccessPoint, can_be_in_host, is_host_label, zone_of};

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
            return Err(invalid(format!("{source} must be a name like \"us-east-1\", not {name:?}")));
        }
        let plain = name.strip_prefix("fips-").or_else(|| name.strip_suffix("-fips"));
        Ok(Region { name: plain.unwrap_or(name).to_owned(), fips: plain.is_some() })
    }

    /// What requests are signed for.
    pub(crate) fn signed(&self) -> &str {
        if self.name == GLOBAL { "us-east-1" } else { &self.name }
    }

    /// The name of its partition, and the domain of that.
    pub(crate) fn partition(&self) -> (&'static str, &'static str) {
        partition(&self.name)
    }
}

/// The AWS partition that a region belongs to, regions of the future included, and its domain. A region of no known partition
/// counts as one of the first.
fn partition(region: &str) -> (&'static str, &'static str) {
    let of = |prefix: &str| region.starts_with(prefix);
    match () {
        () if of("cn-") => ("aws-cn", "amazonaws.com.cn"),
        () if of("us-gov-") => ("aws-us-gov", "amazonaws.com"),
        () if of("eusc-") => ("aws-eusc", "amazonaws.eu"),
        () if of("us-iso-") => ("aws-iso", "c2s.ic.gov"),
        () if of("us-isob-") => ("aws-iso-b", "sc2s.sgov.gov"),
        () if of("eu-isoe-") => ("aws-iso-e", "cloud.adc-e.uk"),
        () if of("us-isof-") => ("aws-iso-f", "csp.hci.ic.gov"),
        () => ("aws", "amazonaws.com"),
    }
}

/// Where the name of a bucket stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Style {
    /// In the host's name, but for endpoints and buckets that cannot have it there.
    #[default]
    Auto,
    /// In the path.
    Path,
    /// In the host's name, on `localhost` too.
    Virtual,
}

/// How a service is addressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Addressing {
    pub(crate) style: Style,
    /// AWS's endpoints with validated cryptography.
    pub(crate) fips: bool,
    /// AWS's endpoints that IPv6 reaches too.
    pub(crate) dual_stack: bool,
    /// AWS's endpoints near the client.
    pub(crate) accelerate: bool,
    /// An access point may be of another region than the client's.
    pub(crate) use_arn_region: bool,
}

impl Default for Addressing {
    fn default() -> Addressing {
        Addressing {
            style: Style::Auto,
            fips: false,
            dual_stack: false,
            accelerate: false,
            use_arn_region: true,
        }
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
    addressing: Addressing,
    region: Option<Region>,
    /// Which setting the URL comes from; `None` for AWS's own.
    source: Option<String>,
}

/// What a request needs of the endpoint.
pub(crate) struct Address {
    pub(crate) uri: Uri,
    pub(crate) host: String,
    /// The region of an access point, which the request is signed for instead of the client's.
    pub(crate) region: Option<String>,
}

impl Endpoint {
    /// AWS's own endpoint of a region.
    ///
    /// # Errors
    /// `Config`, for what AWS does not have.
    pub(crate) fn aws(region: &Region, mut addressing: Addressing) -> Result<Endpoint, Error> {
        addressing.fips |= region.fips;
        let (partition, _) = region.partition();
        let refuse = |why: &str| Err(invalid(format!("use_accelerate_endpoint cannot be used {why}")));
        match &addressing {
            Addressing { accelerate: true, fips: true, .. } => refuse("with use_fips_endpoint")?,
            Addressing { accelerate: true, style: Style::Path, .. } => {
                refuse("with the bucket in the path (force_path_style, addressing_style)")?
            }
            Addressing { accelerate: true, .. } if partition == "aws-cn" => refuse("in China")?,
            Addressing { fips: true, .. } if partition == "aws-cn" => {
                return Err(invalid("use_fips_endpoint cannot be used in China"));
            }
            _ => {}
        }
        let authority = match &*region.name {
            _ if addressing.accelerate => host("s3-accelerate", "", &addressing, region),
            GLOBAL if !addressing.fips && !addressing.dual_stack => host("s3", "", &addressing, region),
            _ => host("s3", region.signed(), &addressing, region),
        };
        Ok(Endpoint {
            tls: true,
            authority,
            prefix: String::new(),
            addressing,
            region: Some(region.clone()),
            source: None,
        })
    }

    /// A given endpoint; `source` names where the URL comes from.
    pub(crate) fn custom(
        url: &str,
        source: &str,
        region: Option<&Region>,
        mut addressing: Addressing,
    ) -> Result<Endpoint, Error> {
        let refuse = |why: &str| invalid(format!("{source} {why}, not {:?}", without_user_info(url)));
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
        for (setting, on) in [
            ("use_fips_endpoint", addressing.fips),
            ("use_dualstack_endpoint", addressing.dual_stack),
            ("use_accelerate_endpoint", addressing.accelerate),
        ] {
            if on {
                let url = without_user_info(url);
                return Err(invalid(format!(
                    "{setting} chooses among AWS's endpoints, and {source} is {url:?}: set one of the two"
                )));
            }
        }
        let scheme_port = if tls { 443 } else { 80 };
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let alone = host == "localhost" && addressing.style != Style::Virtual;
        if literal.parse::<IpAddr>().is_ok() || alone {
            addressing.style = Style::Path;
        }
        Ok(Endpoint {
            tls,
            authority: match port {
                Some(port) if port != scheme_port => format!("{host}:{port}"),
                _ => host.to_owned(),
            },
            prefix: uri.path().trim_end_matches('/').to_owned(),
            addressing,
            region: region.cloned(),
            source: Some(source.to_owned()),
        })
    }

    /// Whether it was given, and is not AWS's.
    pub(crate) fn is_custom(&self) -> bool {
        self.source.is_some()
    }

    /// Whether both lead to one service, be it in other regions: to one partition of AWS, or to the same address.
    pub(crate) fn is_of_same_service(&self, other: &Endpoint) -> bool {
        let partition = |endpoint: &Endpoint| endpoint.region.as_ref().map(|region| region.partition().0);
        let place = |endpoint: &Endpoint| (endpoint.tls, endpoint.authority.clone(), endpoint.prefix.clone());
        match (self.is_custom(), other.is_custom()) {
            (false, false) => partition(self) == partition(other),
            (true, true) => place(self) == place(other),
            _ => false,
        }
    }

    /// The endpoint and the setting it comes from, for errors.
    pub(crate) fn told(&self) -> String {
        match &self.source {
            Some(source) => format!("{} ({source})", self.url()),
            None => self.url(),
        }
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

    /// The endpoint's own address.
    ///
    /// # Errors
    /// `Config`, when no URL can be made of it.
    pub(crate) fn uri(&self) -> Result<Uri, Error> {
        uri_of(&self.url())
    }

    fn bucket_in_path(&self, bucket: &str) -> bool {
        self.addressing.style == Style::Path || !can_be_in_host(bucket) || (self.tls && bucket.contains('.'))
    }

    /// The address of an object (or of the bucket, without a key), with this query.
    ///
    /// # Errors
    /// `Config`, when no URL can be made of it, or the bucket cannot be reached through this endpoint.
    pub(crate) fn address(&self, bucket: &str, key: Option<&str>, query: &str) -> Result<Address, Error> {
        let key = key.map(encode_key).unwrap_or_default();
        let access_point = AccessPoint::of(bucket)?;
        let (host, path) = if let Some(access_point) = access_point {
            (self.host_of(&access_point, bucket)?, format!("{}/{key}", self.prefix))
        } else if let (Some(zone), Some(region), None) = (zone_of(bucket), &self.region, &self.source) {
            (self.zonal_host(bucket, zone, region)?, format!("/{key}"))
        } else if !self.bucket_in_path(bucket) {
            (format!("{bucket}.{}", self.authority), format!("{}/{key}", self.prefix))
        } else if self.addressing.accelerate {
            let why = "cannot stand in a host name, which use_accelerate_endpoint asks for";
            return Err(invalid(format!("bucket {bucket:?} {why}")));
        } else {
            let slash = if key.is_empty() { "" } else { "/" };
            (self.authority.clone(), format!("{}/{bucket}{slash}{key}", self.prefix))
        };
        let scheme = if self.tls { "https" } else { "http" };
        let question = if query.is_empty() { "" } else { "?" };
        let uri = uri_of(&format!("{scheme}://{host}{path}{question}{query}"))?;
        Ok(Address { uri, host, region: access_point.map(|point| point.region.to_owned()) })
    }

    /// AWS's host of a directory bucket, which is one of its zone.
    fn zonal_host(&self, bucket: &str, zone: &str, region: &Region) -> Result<String, Error> {
        let Addressing { style, fips, dual_stack, accelerate, .. } = self.addressing;
        let refuse = |setting: &str| {
            Err(invalid(format!(
                "bucket {bucket:?} is a directory bucket, which {setting} cannot be used with"
            )))
        };
        if style == Style::Path {
            return refuse("the bucket in the path (force_path_style, addressing_style)");
        }
        if accelerate {
            return refuse("use_accelerate_endpoint");
        }
        let fips = if fips { "fips-" } else { "" };
        let dual_stack = if dual_stack { ".dualstack" } else { "" };
        let (_, domain) = region.partition();
        Ok(format!("{bucket}.s3express-{fips}{zone}{dual_stack}.{}.{domain}", region.signed()))
    }

    /// The host of an access point, of which `arn` is the ARN.
    fn host_of(&self, access_point: &AccessPoint<'_>, arn: &str) -> Result<String, Error> {
        let refuse = |why: String| Err(invalid(format!("bucket {arn:?} {why}")));
        if self.addressing.style == Style::Path {
            return refuse(format!("has a host name of its own, and {} cannot stand in one", self.url()));
        }
        if self.addressing.accelerate {
            return refuse(
                "is an access point, which use_accelerate_endpoint cannot be used with".to_owned(),
            );
        }
        let there = Region { name: access_point.region.to_owned(), fips: false };
        if let Some(here) = &self.region {
            let (partition, _) = here.partition();
            if partition != access_point.partition || partition != there.partition().0 {
                return refuse(format!("is in another partition than region {:?}", here.signed()));
            }
            if !self.addressing.use_arn_region && here.signed() != access_point.region {
                let why =
                    format!("is in another region than {:?}, and use_arn_region is false", here.signed());
                return refuse(why);
            }
        }
        let label = access_point.label();
        Ok(match self.source {
            Some(_) => format!("{label}.{}", self.authority),
            None => format!("{label}.{}", host("s3-accesspoint", there.signed(), &self.addressing, &there)),
        })
    }
}

/// A host of AWS's: `service[-fips][.dualstack][.region].domain`.
fn host(service: &str, within: &str, addressing: &Addressing, region: &Region) -> String {
    let (_, domain) = region.partition();
    let fips = if addressing.fips { "-fips" } else { "" };
    let dual_stack = if addressing.dual_stack { ".dualstack" } else { "" };
    let dot = if within.is_empty() { "" } else { "." };
    format!("{service}{fips}{dual_stack}{dot}{within}.{domain}")
}

fn uri_of(text: &str) -> Result<Uri, Error> {
    text.parse()
        .map_err(|error| invalid(format!("no URL can be made of {text:?}: {error}")).with_source(error))
}

/// A URL without the `user:password@` that someone may have put there, whatever characters are in it.
pub(crate) fn without_user_info(url: &str) -> String {
    let authority = url.find("://").map_or(0, |at| at + 3);
    match url[authority..].rfind('@') {
        Some(at) => format!("{}{}", &url[..authority], &url[authority + at + 1..]),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn url(endpoint: &Endpoint, bucket: &str, key: &str) -> String {
        endpoint.address(bucket, Some(key), "").unwrap().uri.to_string()
    }

    #[test]
    fn keys_are_encoded_as_the_signature_wants_them() {
        let endpoint = custom("http://127.0.0.1:9000", false);
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

    fn style(force_path_style: bool) -> Addressing {
        let style = if force_path_style { Style::Path } else { Style::Auto };
        Addressing { style, ..Addressing::default() }
    }

    fn aws(region: &str, force_path_style: bool) -> Endpoint {
        Endpoint::aws(&Region::parse(region, "region").unwrap(), style(force_path_style)).unwrap()
    }

    fn custom(url: &str, force_path_style: bool) -> Endpoint {
        Endpoint::custom(url, "endpoint_url", None, style(force_path_style)).unwrap()
    }

    #[test]
    fn one_service_is_a_partition_of_aws_or_one_address() {
        let here = custom("http://127.0.0.1:9000/s3", true);
        assert!(aws("us-east-1", false).is_of_same_service(&aws("eu-west-1", true)));
        assert!(!aws("us-east-1", false).is_of_same_service(&aws("cn-north-1", false)));
        assert!(here.is_of_same_service(&custom("http://127.0.0.1:9000/s3/", true)));
        for other in ["http://127.0.0.1:9001/s3", "http://127.0.0.1:9000", "https://127.0.0.1:9000/s3"] {
            assert!(!here.is_of_same_service(&custom(other, true)), "{other}");
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
                assert_eq!(sts.url(), format!("https://sts.{region}.{}", partition(region).1));
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
        assert_eq!(url(&custom("http://localhost:9000/", false), "bkt", "k"), "http://localhost:9000/bkt/k");
        assert_eq!(url(&custom("http://[::1]:9000", false), "bkt", "k"), "http://[::1]:9000/bkt/k");
        assert_eq!(url(&custom("http://store:80", false), "a.bkt", "k"), "http://a.bkt.store/k");
        assert_eq!(url(&custom("https://store:8443/s3/", true), "bkt", "k"), "https://store:8443/s3/bkt/k");
        assert_eq!(url(&custom("https://store", false), "bkt", "/k"), "https://bkt.store//k");
    }

    #[test]
    fn the_bucket_alone_is_its_own_address() {
        let endpoint = custom("http://127.0.0.1:9000", false);
        let address = endpoint.address("bkt", None, "list-type=2").unwrap();
        assert_eq!(address.uri.to_string(), "http://127.0.0.1:9000/bkt?list-type=2");
        assert_eq!(address.host, "127.0.0.1:9000");
        let address = aws("us-east-1", false).address("bkt", None, "").unwrap();
        assert_eq!(address.uri.to_string(), "https://bkt.s3.us-east-1.amazonaws.com/");
    }

    #[test]
    fn addressing_style_virtual_holds_on_localhost_and_not_on_an_address() {
        let addressing = Addressing { style: Style::Virtual, ..Addressing::default() };
        for (at, expected) in [
            ("http://localhost:9000", "http://bkt.localhost:9000/k"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/bkt/k"),
            ("http://store", "http://bkt.store/k"),
        ] {
            let endpoint = Endpoint::custom(at, "endpoint_url", None, addressing.clone()).unwrap();
            assert_eq!(url(&endpoint, "bkt", "k"), expected);
        }
    }

    /// The same table is held to botocore in Python's tests.
    #[test]
    fn variants_of_aws_have_hosts_of_their_own() {
        let on = |fips, dual_stack, accelerate| Addressing {
            fips,
            dual_stack,
            accelerate,
            ..Addressing::default()
        };
        let arn = "arn:aws:s3:eu-west-3:123456789012:accesspoint/models";
        let zonal = "bkt--euw1-az2--x-s3";
        for (addressing, bucket, host) in [
            (
                on(false, false, false),
                zonal,
                "bkt--euw1-az2--x-s3.s3express-euw1-az2.eu-west-1.amazonaws.com",
            ),
            (
                on(true, false, false),
                zonal,
                "bkt--euw1-az2--x-s3.s3express-fips-euw1-az2.eu-west-1.amazonaws.com",
            ),
            (
                on(true, true, false),
                zonal,
                "bkt--euw1-az2--x-s3.s3express-fips-euw1-az2.dualstack.eu-west-1.amazonaws.com",
            ),
            (on(true, false, false), "bkt", "bkt.s3-fips.eu-west-1.amazonaws.com"),
            (on(false, true, false), "bkt", "bkt.s3.dualstack.eu-west-1.amazonaws.com"),
            (on(true, true, false), "bkt", "bkt.s3-fips.dualstack.eu-west-1.amazonaws.com"),
            (on(false, false, true), "bkt", "bkt.s3-accelerate.amazonaws.com"),
            (on(false, true, true), "bkt", "bkt.s3-accelerate.dualstack.amazonaws.com"),
            (on(false, false, false), arn, "models-123456789012.s3-accesspoint.eu-west-3.amazonaws.com"),
            (
                on(true, true, false),
                arn,
                "models-123456789012.s3-accesspoint-fips.dualstack.eu-west-3.amazonaws.com",
            ),
        ] {
            let region = Region::parse("eu-west-1", "region").unwrap();
            let address = Endpoint::aws(&region, addressing).unwrap().address(bucket, Some("k"), "").unwrap();
            assert_eq!(address.uri.to_string(), format!("https://{host}/k"));
            assert_eq!(address.region.as_deref(), (bucket == arn).then_some("eu-west-3"));
        }
    }

    #[test]
    fn what_aws_does_not_combine_is_refused_by_the_names_of_the_settings() {
        let region = |name: &str| Region::parse(name, "region").unwrap();
        let default = Addressing::default;
        for (name, addressing, words) in [
            (
                "us-east-1",
                Addressing { accelerate: true, fips: true, ..default() },
                ["use_accelerate_endpoint", "use_fips_endpoint"],
            ),
            (
                "fips-us-east-1",
                Addressing { accelerate: true, ..default() },
                ["use_accelerate_endpoint", "use_fips_endpoint"],
            ),
            (
                "us-east-1",
                Addressing { accelerate: true, style: Style::Path, ..default() },
                ["use_accelerate_endpoint", "force_path_style"],
            ),
            (
                "cn-north-1",
                Addressing { accelerate: true, ..default() },
                ["use_accelerate_endpoint", "China"],
            ),
            ("cn-north-1", Addressing { fips: true, ..default() }, ["use_fips_endpoint", "China"]),
        ] {
            let error = Endpoint::aws(&region(name), addressing).unwrap_err();
            assert!(words.iter().all(|word| error.message().contains(word)), "{error}");
        }
        for (setting, addressing) in [
            ("use_fips_endpoint", Addressing { fips: true, ..default() }),
            ("use_dualstack_endpoint", Addressing { dual_stack: true, ..default() }),
            ("use_accelerate_endpoint", Addressing { accelerate: true, ..default() }),
        ] {
            let error = Endpoint::custom("http://store", "AWS_ENDPOINT_URL", None, addressing).unwrap_err();
            assert!(
                [setting, "AWS_ENDPOINT_URL", "http://store"]
                    .iter()
                    .all(|word| error.message().contains(word)),
                "{error}"
            );
        }
        let arn = "arn:aws:s3:eu-west-3:123456789012:accesspoint/models";
        for (name, addressing, bucket, word) in [
            ("us-east-1", Addressing { accelerate: true, ..default() }, "a.bkt", "use_accelerate_endpoint"),
            ("us-east-1", Addressing { accelerate: true, ..default() }, arn, "use_accelerate_endpoint"),
            ("us-east-1", Addressing { use_arn_region: false, ..default() }, arn, "use_arn_region"),
            ("us-east-1", style(true), arn, "cannot stand"),
            ("us-east-1", style(true), "b--use1-az4--x-s3", "force_path_style"),
            (
                "us-east-1",
                Addressing { accelerate: true, ..default() },
                "b--use1-az4--x-s3",
                "use_accelerate_endpoint",
            ),
            ("cn-north-1", default(), arn, "partition"),
            ("us-gov-west-1", default(), arn, "partition"),
        ] {
            let endpoint = Endpoint::aws(&region(name), addressing).unwrap();
            let error = endpoint.address(bucket, Some("k"), "").map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains(word) && error.message().contains(bucket), "{error}");
        }
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
            let error = Endpoint::custom(url, "AWS_ENDPOINT_URL", None, style(false)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.message().contains("AWS_ENDPOINT_URL"), "{error}");
            assert!(!error.message().contains("hunter2"), "{error}");
        }
    }
}
