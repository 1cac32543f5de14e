//! A service on loopback that answers what it is told to, and a client of it, on one thread.
//!
//! Nothing here waits for a timeout: the service closes a connection on which nothing more comes, and the pauses between
//! a client's attempts are drawn from a generator that the service seeds so that they are short.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use s3dcp_s3::{Client, ClientConfig, MIN_PART_SIZE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::yield_now;

pub(crate) const BUCKET: &str = "bucket";
/// Most requests that the client sends for one operation.
pub(crate) const ATTEMPTS: u32 = 3;
/// Other forms that it tries besides: without checksum headers, and with a Content-MD5.
pub(crate) const OTHER_FORMS: u32 = 2;
/// Bytes of a request's body that are kept.
const KEPT_BODY: usize = 64 << 10;
/// How often the client may have its turn before the service takes it that it has nothing to say.
const TURNS: usize = 32;

/// A request, as far as answers depend on it.
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) body: Vec<u8>,
}

/// The bytes of an answer, in the pieces in which they are sent, and whether the connection ends with them.
pub(crate) struct Answer {
    pub(crate) pieces: Vec<Vec<u8>>,
    pub(crate) closes: bool,
}

/// What `operation` comes to with a client whose requests are answered so (with `None` the connection is closed), and
/// the requests.
pub(crate) fn run<T, F: Future<Output = T>>(
    mut answer: impl FnMut(&Request) -> Option<Answer> + Send + 'static,
    operation: impl FnOnce(Client) -> F,
) -> (T, Vec<Request>) {
    let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
    let log = Arc::clone(&seen);
    let answer = move |request: Request| {
        let answer = answer(&request);
        log.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        answer
    };
    let answer = Arc::new(Mutex::new(answer));
    // Events are looked for after every step.
    let runtime = Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime");
    let outcome = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().expect("its address");
        let mut config = ClientConfig::default();
        config.region = Some("us-east-1".to_owned());
        config.endpoint_url = Some(format!("http://{address}"));
        config.unsigned = true;
        config.max_attempts = ATTEMPTS;
        config.deadline = Duration::from_secs(5);
        config.read_timeout = Duration::from_secs(2);
        config.max_connections = Some(2);
        config.part_size = Some(MIN_PART_SIZE);
        let client = Client::new(config);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                tokio::spawn(connection(stream, move |request| {
                    answer.lock().unwrap_or_else(PoisonError::into_inner)(request)
                }));
            }
        });
        operation(client.expect("a client")).await
    });
    drop(runtime);
    (outcome, std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner)))
}

async fn connection(
    mut stream: TcpStream,
    mut answer: impl FnMut(Request) -> Option<Answer>,
) -> io::Result<()> {
    stream.set_zero_linger()?; // of thousands a second none is left in TIME_WAIT
    let mut came = Vec::new();
    while let Some(request) = next_request(&mut stream, &mut came).await? {
        fastrand::seed(seed_of_short_pauses());
        let Some(Answer { pieces, closes }) = answer(request) else { break };
        for piece in pieces {
            stream.write_all(&piece).await?;
            yield_now().await;
        }
        if closes || !more_comes(&stream, &mut came).await? {
            break;
        }
    }
    stream.shutdown().await?;
    // The client reads what was sent before it closes; closed from here, it could miss it.
    while stream.read(&mut [0; 1024]).await? > 0 {}
    Ok(())
}

/// `None` at the end of the connection.
async fn next_request(stream: &mut TcpStream, came: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let head_end = loop {
        if let Some(at) = came.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(came).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&came[..head_end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let mut left: usize = length.map_or(0, |length| length.trim().parse().expect("a length"));
    let method = head.split(' ').next().unwrap_or_default().to_ascii_uppercase();
    came.drain(..head_end);
    let mut body = Vec::new();
    while left > 0 {
        if came.is_empty() && stream.read_buf(came).await? == 0 {
            return Ok(None);
        }
        let count = left.min(came.len());
        body.extend(came.drain(..count).take(KEPT_BODY.saturating_sub(body.len())));
        left -= count;
    }
    Ok(Some(Request { method, body }))
}

async fn more_comes(stream: &TcpStream, came: &mut Vec<u8>) -> io::Result<bool> {
    for _ in 0..TURNS {
        match stream.try_read_buf(came) {
            Ok(count) => return Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => yield_now().await,
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// The first number drawn after it is next to zero.
fn seed_of_short_pauses() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let is_short = |seed: &u64| fastrand::Rng::with_seed(*seed).f64() < 1e-4;
        (0..).find(is_short).expect("one of ten thousand")
    })
}
