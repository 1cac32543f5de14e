//! What is logged, by this crate and by the libraries below it, at every level.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3dcp_s3::{Client, Payload, PutOptions, StaticCredentials, UploadOptions, WhenLate};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::{Act, Responder, Seen, config, error, pattern, response, with};

/// Writes every field of every span and event down.
#[derive(Clone, Default)]
struct Everything(Arc<Mutex<String>>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").unwrap();
    }
}

impl Everything {
    fn line(&self, metadata: &Metadata<'_>, record: impl FnOnce(&mut dyn Visit)) {
        let mut text = self.0.lock().unwrap();
        write!(text, "{} {} ", metadata.level(), metadata.target()).unwrap();
        record(&mut Line(&mut text));
        text.push('\n');
    }
}

impl Subscriber for Everything {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.line(span.metadata(), |line| span.record(line));
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Line(&mut self.0.lock().unwrap()));
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.line(event.metadata(), |line| event.record(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

const SECRET_KEY: &str = "the+secret/key+of/the+test";
const TOKEN: &str = "the+session/token+of/the+test==";

/// A service that works, but for the keys that name how it does not.
fn script(number: usize, seen: &Seen) -> Act {
    let failures = [
        ("/denied", "403 Forbidden", "AccessDenied"),
        ("/mismatch", "403 Forbidden", "SignatureDoesNotMatch"),
        ("/expired", "400 Bad Request", "ExpiredToken"),
        ("/busy", "503 Slow Down", "SlowDown"),
    ];
    for (name, status, code) in failures {
        if seen.target.contains(name) {
            return Act::Answer(error(status, code));
        }
    }
    match seen.method.as_str() {
        _ if seen.target.contains("/reset") => Act::ThenReset(Vec::new()),
        "POST" if seen.target.ends_with("?uploads") => {
            let body =
                b"<InitiateMultipartUploadResult><UploadId>U1</UploadId></InitiateMultipartUploadResult>";
            Act::Answer(response("200 OK", &[], body))
        }
        "GET" if seen.target.contains("list-type") => {
            Act::Answer(response("200 OK", &[], b"<ListBucketResult></ListBucketResult>"))
        }
        "GET" if number.is_multiple_of(2) => {
            Act::ThenClose(response("200 OK", &[], &pattern(100))[..80].to_vec())
        }
        "GET" => Act::Answer(response("200 OK", &[], &pattern(100))),
        _ => Act::Answer(response("200 OK", &[("ETag", "\"e1\"")], b"<Done><ETag>e1</ETag></Done>")),
    }
}

#[tokio::test]
async fn no_log_of_any_level_holds_a_secret_or_a_signature() {
    let server = Responder::start(script).await;
    let credentials = with(StaticCredentials::new("AKIDEXAMPLE", SECRET_KEY), |keys| {
        keys.session_token = Some(TOKEN.to_owned())
    });
    let settings = with(server.config(), |config| {
        config.credentials = Some(credentials);
        config.max_attempts = 2;
        config.deadline = Duration::from_secs(1);
    });
    let client = Client::new(settings).unwrap();
    let logged = Everything::default();
    let guard = tracing::subscriber::set_default(logged.clone());
    let mut shown = format!("{client:?}");
    for key in ["works", "denied", "mismatch", "expired", "busy", "reset"] {
        let put = client.put_object("bkt", key, Payload::from(pattern(10)), &PutOptions::default()).await;
        let get = client.get_object("bkt", key).await;
        let list = client.list_objects("bkt", key, None).await;
        let mut upload = client.upload(
            "bkt",
            key,
            with(UploadOptions::default(), |options| options.part_size = Some(5 << 20)),
        );
        for _ in 0..2 {
            upload.push(vec![7; 5 << 20], s3dcp_s3::crc32(&vec![7; 5 << 20])).await.ok();
        }
        let delete = client.delete_objects("bkt", &[key.to_owned()], WhenLate::Wait).await;
        shown += &format!("{put:?} {get:?} {list:?} {upload:?} {delete:?}");
        shown += &format!("{:?}", upload.finish().await);
    }
    drop(guard);
    shown += &logged.0.lock().unwrap();
    assert!(shown.contains("trying again") && shown.contains("aws_sigv4"), "both are heard");
    let signatures: Vec<String> = server
        .seen()
        .iter()
        .filter_map(|seen| Some(seen.header("authorization")?.split_once("Signature=")?.1.to_owned()))
        .collect();
    assert!(signatures.len() > 20 && server.seen()[0].header("x-amz-security-token") == Some(TOKEN));
    for secret in [SECRET_KEY, TOKEN].into_iter().chain(signatures.iter().map(String::as_str)) {
        let at = shown.find(secret);
        assert!(
            at.is_none(),
            "{}",
            shown[at.unwrap().saturating_sub(800)..].chars().take(900).collect::<String>()
        );
    }
}

const PROXY_PASSWORD: &str = "hunter2-of-the-proxy";

/// Requests by the proxy of the environment; prints all that was logged and shown.
#[tokio::test]
#[ignore = "run by the test below, in an environment that it makes"]
async fn by_a_proxy() {
    if std::env::var_os("SECRETS_TEST_CHILD").is_none() {
        return;
    }
    let logged = Everything::default();
    let guard = tracing::subscriber::set_default(logged.clone());
    let mut shown = String::new();
    for endpoint_url in ["http://store.test:9000", "https://store.test"] {
        let config = with(config(endpoint_url, "AKIDEXAMPLE", SECRET_KEY), |config| {
            config.max_attempts = 2;
            config.deadline = Duration::from_secs(5);
        });
        let client = Client::new(config).unwrap();
        for key in ["works", "reset", "refused"] {
            let put = client.put_object("bkt", key, Payload::from(pattern(10)), &PutOptions::default()).await;
            shown += &format!("{put:?} {:?} {client:?}\n", client.get_object("bkt", key).await);
        }
        shown += &format!("{:?} {:?}\n", client.settings(Some("bkt")).await, client.stats());
    }
    drop(guard);
    println!("{shown}{}", logged.0.lock().unwrap());
}

#[tokio::test]
async fn the_password_of_a_proxy_goes_to_the_proxy_and_nowhere_else() {
    // It answers for the service where it is told the whole URL, and gives no tunnel.
    let proxy = Responder::start(|number, seen| match seen.method.as_str() {
        "CONNECT" => Act::ThenClose(response("407 Proxy Authentication Required", &[], b"")),
        _ if seen.target.contains("/refused") => {
            Act::ThenClose(response("407 Proxy Authentication Required", &[], b""))
        }
        _ => script(number, seen),
    })
    .await;
    let address = proxy.url().strip_prefix("http://").unwrap();
    let url = format!("http://me:{PROXY_PASSWORD}@{address}");
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "secrets::by_a_proxy", "--ignored", "--nocapture"])
        .env_clear()
        .envs([("SECRETS_TEST_CHILD", "1"), ("HOME", "/nonexistent"), ("ALL_PROXY", url.as_str())])
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("aws_sigv4") && text.contains("trying again"), "all is heard: {text}");
    assert!(text.contains(&format!("the proxy http://{address} (ALL_PROXY)")), "{text}");
    let seen = proxy.seen();
    let authorization = seen[0].header("proxy-authorization").unwrap();
    let secret = authorization.strip_prefix("Basic ").unwrap();
    assert!(seen.iter().all(|seen| seen.header("proxy-authorization") == Some(authorization)));
    assert!(seen.iter().any(|seen| seen.method == "CONNECT" && seen.target == "bkt.store.test:443"));
    assert!(seen.iter().any(|seen| seen.target == "http://bkt.store.test:9000/works"));
    for secret in [PROXY_PASSWORD, secret] {
        assert!(!text.contains(secret), "{text}");
    }
    // A refusal is final: one request for each of two operations without TLS, and one tunnel for each of six with it.
    let refused = seen.iter().filter(|seen| seen.target.contains("/refused")).count();
    let tunnels = seen.iter().filter(|seen| seen.method == "CONNECT").count();
    assert_eq!((refused, tunnels), (2, 6));
}
