//! What the tests of this crate share: clients, and a responder that misbehaves on purpose.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use s3dcp_s3::{Client, ClientConfig, CopySource, Error, RangeRead, RangeSink, Space, StaticCredentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The same, changed.
pub(crate) fn with<T>(mut settings: T, change: impl FnOnce(&mut T)) -> T {
    change(&mut settings);
    settings
}

/// An object to copy from, whatever it is by then.
pub(crate) fn source(bucket: &str, key: &str) -> CopySource {
    CopySource { bucket: bucket.to_owned(), key: key.to_owned(), etag: None }
}

/// Settings for a server at this address.
pub(crate) fn config(endpoint_url: &str, access_key: &str, secret_key: &str) -> ClientConfig {
    with(ClientConfig::default(), |config| {
        config.region = Some("us-east-1".to_owned());
        config.endpoint_url = Some(endpoint_url.to_owned());
        config.credentials = Some(StaticCredentials::new(access_key, secret_key));
    })
}

/// One request as the responder saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// The how-manieth connection it came on, from 1.
    pub(crate) connection: usize,
}

impl Seen {
    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn content_length(&self) -> usize {
        self.header("content-length").map_or(0, |text| text.parse().unwrap())
    }
}

/// What the responder does with one request.
pub(crate) enum Act {
    /// Reads the body, answers, and goes on with the connection.
    Answer(Vec<u8>),
    /// Answers without reading the body, and closes.
    AnswerEarly(Vec<u8>),
    /// Reads the body, writes these bytes, and closes the connection properly.
    ThenClose(Vec<u8>),
    /// Reads the body, writes these bytes, and resets the connection.
    ThenReset(Vec<u8>),
    /// Reads the body and says nothing.
    Silence,
    /// Reads the body and answers after this time.
    Late(Duration, Vec<u8>),
    /// Reads the body and answers in this many pieces, with this pause after each.
    Slowly(Vec<u8>, usize, Duration),
}

/// An HTTP response.
pub(crate) fn response(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// An error as S3 writes it.
pub(crate) fn error(status: &str, code: &str) -> Vec<u8> {
    let body =
        format!("<Error><Code>{code}</Code><Message>Scripted.</Message><RequestId>R1</RequestId></Error>");
    response(status, &[], body.as_bytes())
}

/// A server that does what the script says for the n-th request (from 0).
pub(crate) struct Responder {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Responder {
    pub(crate) async fn start(script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static) -> Responder {
        Responder::listen(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    /// The same where somebody listens already.
    pub(crate) fn listen(
        listener: TcpListener,
        script: impl Fn(usize, &Seen) -> Act + Send + Sync + 'static,
    ) -> Responder {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let (script, log, count) = (Arc::new(script), Arc::clone(&seen), Arc::clone(&connections));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let connection = count.fetch_add(1, Ordering::SeqCst) + 1;
                let (script, log) = (Arc::clone(&script), Arc::clone(&log));
                tokio::spawn(async move { serve(stream, connection, &*script, &log).await });
            }
        });
        Responder { url, seen, connections, task }
    }

    pub(crate) fn config(&self) -> ClientConfig {
        config(&self.url, "AKIDEXAMPLE", "SECRET-OF-THE-TEST")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.config()).unwrap()
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many connections were made so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until a request with this method and a target that contains this text has come.
    pub(crate) async fn wait_for(&self, method: &str, target: &str) {
        for _ in 0..2000 {
            if self.seen().iter().any(|seen| seen.method == method && seen.target.contains(target)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no {method} {target} among {:?}", self.seen());
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    script: &(dyn Fn(usize, &Seen) -> Act + Send + Sync),
    log: &Mutex<Vec<Seen>>,
) {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
        buffer.drain(..head_end + 4);
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let mut seen = Seen { method, target, head, body: Vec::new(), connection };
        let (number, act) = {
            let mut log = log.lock().unwrap();
            let number = log.len();
            log.push(seen.clone());
            (number, script(number, &seen))
        };
        if !matches!(act, Act::AnswerEarly(_)) {
            while buffer.len() < seen.content_length() {
                if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            seen.body = buffer.drain(..seen.content_length()).collect();
            log.lock().unwrap()[number].body.clone_from(&seen.body);
        }
        if let Act::Late(time, _) = act {
            tokio::time::sleep(time).await;
        }
        match act {
            Act::Answer(bytes) | Act::Late(_, bytes) => {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Act::AnswerEarly(bytes) | Act::ThenClose(bytes) => {
                stream.write_all(&bytes).await.ok();
                stream.shutdown().await.ok();
                return;
            }
            Act::ThenReset(bytes) => {
                stream.write_all(&bytes).await.ok();
                stream.flush().await.ok();
                // Let the bytes arrive before the reset overtakes them.
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.set_zero_linger().unwrap();
                return;
            }
            Act::Slowly(bytes, pieces, pause) => {
                for piece in bytes.chunks(bytes.len().div_ceil(pieces)) {
                    if stream.write_all(piece).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(pause).await;
                }
            }
            Act::Silence => {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What a sink has been through.
#[derive(Debug, Default, Clone)]
pub(crate) struct Fed {
    pub(crate) bytes: Vec<u8>,
    pub(crate) restarts: u32,
    pub(crate) finished: u32,
    pub(crate) dropped: bool,
}

/// A sink that keeps what it gets, in turns through memory and through `write`; `verdict` answers the n-th `finish`
/// (from 0).
pub(crate) struct Sink {
    pub(crate) fed: Arc<Mutex<Fed>>,
    pub(crate) verdict: fn(u32) -> Result<(), Error>,
    memory: [u8; 97],
    turn: usize,
}

impl RangeSink for Sink {
    fn space(&mut self) -> Space<'_> {
        self.turn += 1;
        match self.turn % 2 {
            0 => Space::Memory(&mut self.memory),
            _ => Space::Write(31),
        }
    }

    fn filled(&mut self, count: usize) -> Result<(), Error> {
        self.fed.lock().unwrap().bytes.extend_from_slice(&self.memory[..count]);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.fed.lock().unwrap().bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) {
        let mut fed = self.fed.lock().unwrap();
        fed.bytes.clear();
        fed.restarts += 1;
    }

    fn finish(&mut self) -> Result<(), Error> {
        let mut fed = self.fed.lock().unwrap();
        fed.finished += 1;
        (self.verdict)(fed.finished - 1)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.fed.lock().unwrap().dropped = true;
    }
}

/// A read of a range, and what its sink will have seen.
pub(crate) fn read(key: &str, range: std::ops::Range<u64>) -> (RangeRead, Arc<Mutex<Fed>>) {
    read_with(key, range, |_| Ok(()))
}

/// The same with a verdict of its own.
pub(crate) fn read_with(
    key: &str,
    range: std::ops::Range<u64>,
    verdict: fn(u32) -> Result<(), Error>,
) -> (RangeRead, Arc<Mutex<Fed>>) {
    let fed: Arc<Mutex<Fed>> = Arc::default();
    let sink = Box::new(Sink { fed: Arc::clone(&fed), verdict, memory: [0; 97], turn: 0 });
    (RangeRead { key: key.to_owned(), range, sink }, fed)
}

/// Bytes that differ everywhere.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
