//! Tunnels through a proxy (CONNECT), by hand: hyper-util's `Tunnel` does not tell with which status a proxy refuses.
//!
//! What is sent through a tunnel is its user's. Nothing but the status is read of a proxy's answer.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tower_service::Service as _;

/// Longest head of a proxy's answer.
const LONGEST_ANSWER: usize = 8 << 10;

/// Why there is no tunnel.
#[derive(Debug)]
pub(crate) enum TunnelError {
    /// The proxy itself cannot be reached.
    NoProxy(Box<dyn StdError + Send + Sync>),
    /// The proxy says no, with this status.
    Refused(u16),
    /// The connection to the proxy ended, or what came is no answer.
    Broken(io::Error),
}

impl TunnelError {
    /// Whether the proxy would say the same to the next attempt: 403 and 407 are its rules.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, TunnelError::Refused(403 | 407))
    }
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TunnelError::NoProxy(_) => write!(f, "the proxy cannot be reached"),
            TunnelError::Refused(status) => write!(f, "the proxy answers CONNECT with {status}"),
            TunnelError::Broken(_) => write!(f, "the proxy gives no answer to CONNECT"),
        }
    }
}

impl StdError for TunnelError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            TunnelError::NoProxy(error) => Some(&**error),
            TunnelError::Refused(_) => None,
            TunnelError::Broken(error) => Some(error),
        }
    }
}

/// A connection to the host and port of `to` through the proxy at `proxy`.
pub(crate) async fn open(
    mut tcp: HttpConnector,
    proxy: Uri,
    authorization: Option<HeaderValue>,
    to: Uri,
) -> Result<TokioIo<TcpStream>, TunnelError> {
    let connected = tcp.call(proxy).await.map_err(|error| TunnelError::NoProxy(error.into()))?;
    let mut stream = connected.into_inner();
    match ask(&mut stream, authorization, &to).await.map_err(TunnelError::Broken)? {
        200..=299 => Ok(TokioIo::new(stream)),
        status => Err(TunnelError::Refused(status)),
    }
}

/// Asks for a tunnel; the status of the answer.
async fn ask(stream: &mut TcpStream, authorization: Option<HeaderValue>, to: &Uri) -> io::Result<u16> {
    let place = format!("{}:{}", to.host().unwrap_or_default(), to.port_u16().unwrap_or(443));
    let mut request = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n").into_bytes();
    if let Some(authorization) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    let mut answer = Vec::new();
    // Behind a good answer nothing comes before the client speaks, which TLS begins with.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= LONGEST_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its head is too long"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            break;
        }
        // A refusal may have a body, which nobody wants.
        if status(&answer).is_some_and(|status| !(200..300).contains(&status)) {
            break;
        }
    }
    status(&answer).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The status of an answer whose first line is there.
fn status(answer: &[u8]) -> Option<u16> {
    let line = &answer[..answer.iter().position(|byte| *byte == b'\r')?];
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_that_of_a_whole_first_line() {
        for (answer, found) in [
            ("HTTP/1.1 200 Connection established\r\n", Some(200)),
            ("HTTP/1.0 403 \r\nContent-Length: 5\r\n\r\nx", Some(403)),
            ("HTTP/1.1 407\r\n", Some(407)),
            ("HTTP/1.1 20", None),
            ("SSH-2.0-OpenSSH\r\n", None),
            ("HTTP/1.1 many\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(answer.as_bytes()), found, "{answer}");
        }
    }

    #[test]
    fn only_a_rule_of_the_proxy_is_final() {
        for (status, is_final) in [(403, true), (407, true), (502, false), (503, false), (429, false)] {
            assert_eq!(TunnelError::Refused(status).is_final(), is_final);
        }
    }
}
