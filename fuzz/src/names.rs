//! Texts that become buckets, keys and hosts: S3 URIs, endpoints, relative paths of an index, prefixes.

use s3dcp_checkpoint::Layout;
use s3dcp_prefix::{MAX_KEY_BYTES, PrefixStrategy, RoundRobinPrefixStrategy};
use s3dcp_s3::{Client, ClientConfig, ErrorKind, join_key, parse_s3_uri};

/// The first line is a URI, an endpoint and a folder, the rest a relative path and a prefix.
pub fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    uri(first);
    endpoint(first);
    relative_path(first, rest);
    prefix(rest);
}

/// What is read of a URI is all of it.
fn uri(text: &str) {
    let Ok((bucket, key)) = parse_s3_uri(text) else { return };
    assert!(bucket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)));
    let again = format!("s3://{bucket}/{key}");
    assert!(again == text || again == format!("{text}/"));
    assert_eq!(parse_s3_uri(&again).expect("the same again"), (bucket, key));
}

/// An endpoint that cannot work is a matter of configuration, said in one line.
fn endpoint(url: &str) {
    let mut config = ClientConfig::default();
    config.endpoint_url = Some(url.to_owned());
    if let Err(error) = Client::new(config) {
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(!error.to_string().chars().any(char::is_control), "{error:?}");
    }
}

/// A key lies in the folder that its path climbs to.
fn relative_path(base: &str, relative: &str) {
    let Ok(key) = Layout::new(base).resolve(relative) else { return };
    assert!((1..=MAX_KEY_BYTES).contains(&key.len()));
    let folder = join_key(base, "");
    let mut folders: Vec<&str> = folder.split('/').collect();
    assert_eq!(folders.pop(), Some(""));
    let mut rest = relative;
    while let Some(after) = rest.strip_prefix("../") {
        folders.pop().expect("a folder to climb out of");
        rest = after;
    }
    folders.push(rest);
    assert_eq!(key, folders.join("/"));
}

/// Where a prefix may be used, what is written under it can be read.
fn prefix(text: &str) {
    let Ok(strategy) = RoundRobinPrefixStrategy::new([text], Some(7)) else { return };
    let prefix = strategy.generate_prefix(3);
    assert_eq!(prefix, format!("{text}/epoch_7/__3_"));
    let name = format!("{prefix}0.distcp");
    if "run/".len() + name.len() <= MAX_KEY_BYTES {
        assert_eq!(Layout::new("run").resolve(&name).expect("a readable name"), format!("run/{name}"));
    }
}
