//! HTTP proxies, as the environment names them: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case.
//!
//! A tunnel (CONNECT) leads to services with TLS. A service without it is asked by the proxy, which is told the whole URL. Which
//! hosts are left out, but for ports, and how a tunnel is asked for, is the HTTP library's. A password is in [`Intercept`] alone, whose `Debug` hides
//! it. What this does not do: proxies that speak TLS or SOCKS themselves, other authorisation than Basic.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::config::environment::Environment;
use crate::error::{Error, ErrorKind};
use crate::http::resolver::Resolver;

/// Why there is no tunnel.
pub(crate) type TunnelError = <Tunnel<HttpConnector> as Service<Uri>>::Error;

/// The proxies of the environment.
#[derive(Debug)]
pub(crate) struct Proxies {
    matcher: Matcher,
    /// What is left out on one port alone: a matcher that has no proxy for it.
    on_ports: Vec<(u16, Matcher)>,
    /// The variables that name them, for URIs without TLS and with it.
    sources: [&'static str; 2],
    /// URIs without TLS are reached without one.
    tls_only: bool,
}

/// A proxy, and the variable that names it.
#[derive(Clone)]
pub(crate) struct Proxy {
    intercept: Intercept,
    source: &'static str,
}

impl Proxies {
    /// The proxies that these variables name.
    ///
    /// # Errors
    /// `Config`, naming the variable and not its value, for what is no HTTP proxy.
    pub(crate) fn read(environment: &Environment) -> Result<Proxies, Error> {
        // A server hands the header `Proxy` of whoever asks to its CGI scripts as HTTP_PROXY.
        let for_http: &[&str] = match environment.get("REQUEST_METHOD")? {
            None => &["http_proxy", "HTTP_PROXY"],
            Some(_) => &["http_proxy"],
        };
        let all = proxy(environment, &["all_proxy", "ALL_PROXY"])?;
        let http = proxy(environment, for_http)?.or(all.clone());
        let https = proxy(environment, &["https_proxy", "HTTPS_PROXY"])?.or(all);
        let without = environment.first(&["no_proxy", "NO_PROXY"])?.unwrap_or_default().1;
        // The library takes this for the name of a host, which no address has.
        let nobody = without.split(',').any(|entry| entry.trim() == "*");
        let [(http_source, http), (https_source, https)] =
            [http, https].map(|proxy| proxy.filter(|_| !nobody).unwrap_or_default());
        let (on_ports, on_any): (Vec<_>, Vec<_>) = without
            .split(',')
            .map(|entry| no_proxy_entry(entry.trim()))
            .partition(|(_, port)| port.is_some());
        let on_any = on_any.into_iter().map(|(host, _)| host).collect::<Vec<_>>().join(",");
        let on_ports = on_ports.into_iter().filter_map(|(host, port)| {
            // Which proxy it would be does not matter: it is asked only whether there is one.
            Some((port?, Matcher::builder().all("http://proxy").no(host).build()))
        });
        let on_ports = on_ports.collect();
        let matcher = Matcher::builder().http(http).https(https).no(on_any).build();
        Ok(Proxies { matcher, on_ports, sources: [http_source, https_source], tls_only: false })
    }

    /// The same, for URIs with TLS alone.
    #[cfg(feature = "credential-chain")]
    pub(crate) fn with_tls_only(self) -> Proxies {
        Proxies { tls_only: true, ..self }
    }

    /// The proxy that a request to this URI goes by.
    pub(crate) fn of(&self, uri: &Uri) -> Option<Proxy> {
        let tls = uri.scheme() == Some(&Scheme::HTTPS);
        if self.tls_only && !tls {
            return None;
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        if self.on_ports.iter().any(|(only, hosts)| *only == port && hosts.intercept(uri).is_none()) {
            return None;
        }
        let source = self.sources[usize::from(tls)];
        self.matcher.intercept(uri).map(|intercept| Proxy { intercept, source })
    }
}

impl Proxy {
    /// What a request carries that the proxy itself is to answer, and not a tunnel.
    pub(crate) fn authorization(&self) -> Option<&HeaderValue> {
        self.intercept.basic_auth()
    }

    /// The variable that names it.
    pub(crate) fn source(&self) -> &'static str {
        self.source
    }

    /// Where it is, without user and password.
    pub(crate) fn url(&self) -> String {
        let uri = self.intercept.uri();
        format!("http://{}", uri.authority().map_or("", |authority| authority.as_str()))
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url(), self.source)
    }
}

/// The first of these variables that is set, and its value where that names an HTTP proxy.
fn proxy(environment: &Environment, names: &[&'static str]) -> Result<Option<(&'static str, String)>, Error> {
    let Some((name, value)) = environment.first(names)? else { return Ok(None) };
    // Not the value: there may be a password in it.
    let refuse = |why: &str| Err(Error::new(ErrorKind::Config, format!("{name} {why}")));
    match value.split_once("://") {
        Some((scheme, _)) if !scheme.eq_ignore_ascii_case("http") => {
            return refuse(
                "must begin with http://: other kinds of proxies are not supported (NO_PROXY names the hosts to reach without one)",
            );
        }
        _ => {}
    }
    let uri = value.parse::<Uri>().ok().filter(|uri| matches!(uri.path(), "" | "/") && uri.query().is_none());
    match uri.as_ref().and_then(Uri::authority) {
        Some(authority) if names_a_host(authority) => Ok(Some((name, value))),
        _ => refuse(
            "must be http://host:port or http://user:password@host:port, where other characters than letters, digits and -._~ are \
             percent-encoded in user and password",
        ),
    }
}

/// The host and the port of an entry of `NO_PROXY`: `host`, `host:port`, an address of either version, `[address]:port`, or a network.
fn no_proxy_entry(entry: &str) -> (&str, Option<u16>) {
    let (host, port) = match entry.strip_prefix('[').and_then(|entry| entry.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':')),
        None => match entry.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (entry, None),
        },
    };
    match port.map(str::parse) {
        Some(Ok(port)) => (host, Some(port)),
        Some(Err(_)) => (entry, None),
        None => (host, None),
    }
}

/// Whether there is a host, with a port or without one, and at most one user before it.
fn names_a_host(authority: &Authority) -> bool {
    let (_, place) = authority.as_str().split_once('@').unwrap_or(("", authority.as_str()));
    let host = authority.host();
    !host.is_empty() && (place == host || authority.port_u16().is_some_and(|port| port > 0))
}

/// Opens connections to services, by a proxy where the environment says so.
#[derive(Clone)]
pub(crate) struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
    resolver: Arc<Resolver>,
}

impl Connector {
    pub(crate) fn new(tcp: HttpConnector, proxies: Arc<Proxies>, resolver: Arc<Resolver>) -> Connector {
        Connector { tcp, proxies, resolver }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self.proxies.of(&uri) {
            Some(proxy) if uri.scheme() == Some(&Scheme::HTTPS) => {
                let mut tunnel = Tunnel::new(proxy.intercept.uri().clone(), self.tcp.clone());
                if let Some(authorization) = proxy.authorization() {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                let opening = tunnel.call(uri);
                Box::pin(async move { Ok(opening.await?) })
            }
            proxy => {
                let to = proxy.map_or(uri, |proxy| proxy.intercept.uri().clone());
                Box::pin(Arc::clone(&self.resolver).connect(self.tcp.clone(), to))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Proxies, Error> {
        Proxies::read(&Environment::of(pairs))
    }

    /// The proxy of a URI, as errors name it; empty where there is none.
    fn of(pairs: &[(&str, &str)], uri: &str) -> String {
        let proxy = read(pairs).unwrap().of(&uri.parse().unwrap());
        proxy.map_or_else(String::new, |proxy| proxy.to_string())
    }

    #[test]
    fn a_proxy_is_that_of_the_scheme_then_that_of_all_and_small_letters_win() {
        let all = ("ALL_PROXY", "http://all:1");
        let pairs = [all, ("HTTP_PROXY", "plain:2"), ("HTTPS_PROXY", "http://tls:3/ ")];
        assert_eq!(of(&pairs, "http://store"), "http://plain:2 (HTTP_PROXY)");
        assert_eq!(of(&pairs, "https://store"), "http://tls:3 (HTTPS_PROXY)");
        assert_eq!(of(&pairs[..1], "http://store:9000/x"), "http://all:1 (ALL_PROXY)");
        assert_eq!(of(&pairs[..1], "https://store"), "http://all:1 (ALL_PROXY)");
        assert_eq!(of(&pairs[1..2], "https://store"), "");
        assert_eq!(of(&[all, ("all_proxy", "small:1")], "http://store"), "http://small:1 (all_proxy)");
        assert_eq!(of(&[all, ("http_proxy", "small:1")], "http://store"), "http://small:1 (http_proxy)");
        assert_eq!(of(&[("HTTP_PROXY", " ")], "http://store"), "");
        assert_eq!(of(&[], "http://store"), "");
    }

    #[test]
    fn a_cgi_script_is_not_sent_by_the_proxy_of_whoever_asks() {
        let pairs = [("REQUEST_METHOD", "GET"), ("HTTP_PROXY", "evil:1"), ("https_proxy", "mine:2")];
        assert_eq!(of(&pairs, "http://store"), "");
        assert_eq!(of(&pairs, "https://store"), "http://mine:2 (https_proxy)");
    }

    #[test]
    #[cfg(feature = "credential-chain")]
    fn who_hands_out_credentials_is_asked_directly_where_there_is_no_tls() {
        let proxies = read(&[("ALL_PROXY", "http://proxy")]).unwrap().with_tls_only();
        assert!(proxies.of(&"http://169.254.169.254/latest".parse().unwrap()).is_none());
        assert!(proxies.of(&"https://sts.us-east-1.amazonaws.com".parse().unwrap()).is_some());
    }

    #[test]
    fn hosts_are_left_out_by_name_domain_address_and_network() {
        for (without, uri, by_proxy) in [
            ("store.test", "http://store.test:9000/b", false),
            ("store.test", "https://bkt.store.test", false),
            (".store.test", "https://bkt.store.test", false),
            ("STORE.test", "https://bkt.Store.TEST", false),
            ("store.test", "https://otherstore.test", true),
            ("other.test, store.test ,x", "http://store.test", false),
            ("10.0.0.0/8", "http://10.1.2.3:9000", false),
            ("10.0.0.0/8", "http://11.1.2.3:9000", true),
            ("127.0.0.1", "http://127.0.0.1:9000", false),
            ("127.0.0.1", "http://127.0.0.2:9000", true),
            ("::1", "http://[::1]:9000", false),
            ("fd00::/8", "http://[fd00::5]:9000", false),
            ("*", "https://store.test", false),
            ("other.test, *", "http://10.1.2.3", false),
            ("", "https://store.test", true),
            ("store.test:9000", "http://store.test:9000/b", false),
            ("store.test:9000", "http://bkt.store.test:9000", false),
            ("store.test:9000", "http://store.test:9001", true),
            ("store.test:9000", "http://store.test", true),
            ("store.test:443", "https://store.test", false),
            ("store.test:80", "http://store.test", false),
            ("x.test,10.0.0.0/8:9000", "http://10.1.2.3:9000", false),
            ("10.1.2.3:9000", "http://10.1.2.3:9001", true),
            ("[::1]:9000", "http://[::1]:9000", false),
            ("[::1]:9000", "http://[::1]:9001", true),
            ("[::1]", "http://[::1]:9000", false),
            ("a.test:1,store.test", "http://store.test:9000", false),
            ("store.test:port", "http://store.test:9000", true),
        ] {
            for name in ["NO_PROXY", "no_proxy"] {
                let found = of(&[("ALL_PROXY", "http://proxy"), (name, without)], uri);
                assert_eq!(!found.is_empty(), by_proxy, "{without} {uri}");
            }
        }
        let both = [("ALL_PROXY", "http://proxy"), ("NO_PROXY", "a.test"), ("no_proxy", "b.test")];
        assert_eq!(of(&both, "http://b.test"), "");
        assert_ne!(of(&both, "http://a.test"), "");
    }

    #[test]
    fn user_and_password_are_for_the_proxy_alone() {
        let pairs = [("ALL_PROXY", "http://me:hunter%3A2@proxy.test:3128")];
        let proxies = read(&pairs).unwrap();
        let proxy = proxies.of(&"https://store.test".parse().unwrap()).unwrap();
        assert_eq!(proxy.authorization().unwrap(), "Basic bWU6aHVudGVyOjI=");
        assert!(proxy.authorization().unwrap().is_sensitive());
        let shown = format!("{proxy} {} {:?} {:?}", proxy.url(), proxy.intercept, proxies.matcher);
        assert!(
            shown.contains("proxy.test:3128") && !shown.contains("hunter") && !shown.contains("bWU6"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_no_http_proxy_is_refused_by_its_variable_and_without_its_value() {
        for value in [
            "socks5://me:hunter2@proxy",
            "https://me:hunter2@proxy",
            "http://me:hunter2@",
            "http://me:hunter2@proxy:port",
            "http://me:hunter2@x@proxy",
            "http://me:hunter2/@proxy",
            "http://me:22/hunter2@proxy",
            "http://proxy:22?hunter2",
            "http://proxy:0",
            "me hunter2",
            "/hunter2",
        ] {
            for name in ["HTTPS_PROXY", "http_proxy", "ALL_PROXY"] {
                let error = read(&[(name, value)]).map(|_| ()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Config);
                assert!(error.message().starts_with(name), "{error}");
                assert!(!format!("{error:?}").contains("hunter2"), "{error}");
            }
        }
    }
}
