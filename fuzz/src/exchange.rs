//! Answers of a service: documents in good HTTP, and bytes that need not be HTTP at all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use s3dcp_s3::{
    Client, Condition, CopySource, Error, ErrorKind, MIN_PART_SIZE, Payload, PutOptions, RangeRead,
    RangeSink, Space, UploadOptions, WhenLate, crc32,
};

use crate::service::{ATTEMPTS, Answer, BUCKET, OTHER_FORMS, Request, run};

const KEY: &str = "run/__0_0.distcp";
/// What is to be deleted.
const KEYS: [&str; 3] = ["run/0", "run/1", "run/2"];
/// Stands between two answers.
const NEXT: u8 = 0x1e;
/// The same, and the connection is closed there.
const CLOSED: u8 = 0x1c;
/// The client gets what stands before this, then what stands after.
const PIECE: u8 = 0x1f;
/// Statuses of answers to [`answers`], in the order of the letters.
const STATUSES: [u16; 20] =
    [200, 204, 206, 301, 307, 400, 401, 403, 404, 405, 409, 411, 412, 416, 429, 500, 501, 502, 503, 504];
/// Longest line that an error may be.
const LONGEST_ERROR: usize = 8 << 10;

/// A letter for what the client does, then answers: each a letter for its status, and a document. Whatever they say, no
/// key is deleted but those that were to be.
pub fn answers(data: &[u8]) {
    let Some((&operation, rest)) = data.split_first() else { return };
    let mut documents: VecDeque<Vec<u8>> = rest.split(|&byte| byte == NEXT).map(<[u8]>::to_vec).collect();
    let answer = move |request: &Request| {
        let document = documents.pop_front()?;
        let (letter, document) = document.split_first().unwrap_or((&b'a', &[]));
        let status = STATUSES[usize::from(letter.wrapping_sub(b'a')) % STATUSES.len()];
        let document = if request.method == "HEAD" || status == 204 { &[] } else { document };
        let head = format!(
            "HTTP/1.1 {status} S\r\nETag: \"e1\"\r\nx-amz-request-id: R1\r\nContent-Length: {}\r\n\r\n",
            document.len()
        );
        Some(Answer { pieces: vec![head.into_bytes(), document.to_vec()], closes: false })
    };
    let ((), requests) = run(answer, |client| operate(client, operation, data.len()));
    let asked = requests.iter().flat_map(|request| request.body.split(|&byte| byte == b'<'));
    for key in asked.filter_map(|element| element.strip_prefix(b"Key>")) {
        assert!(KEYS.iter().any(|known| known.as_bytes() == key), "{}", String::from_utf8_lossy(key));
    }
}

/// A letter for what the client does, then what comes over the connection.
pub fn wire(data: &[u8]) {
    let Some((&operation, mut rest)) = data.split_first() else { return };
    let mut answers = VecDeque::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| [NEXT, CLOSED].contains(byte));
        let (answer, closes) = end.map_or((rest, true), |end| (&rest[..end], rest[end] == CLOSED));
        let pieces = answer.split(|&byte| byte == PIECE).map(<[u8]>::to_vec).collect();
        answers.push_back(Answer { pieces, closes });
        rest = end.map_or(&[], |end| &rest[end + 1..]);
    }
    run(move |_: &Request| answers.pop_front(), |client| operate(client, operation, data.len()));
}

/// One operation of the client, and what must hold of its outcome when so many bytes came at most.
async fn operate(client: Client, letter: u8, most: usize) {
    let outcome = match letter {
        b'a' => assemble(&client).await,
        b'c' => client.copy_object(&copied(), BUCKET, KEY).await,
        b'd' => delete(&client).await,
        b'g' => get(&client, most).await,
        b'h' => client.head_object(BUCKET, KEY).await.map(|info| assert_eq!(info.key, KEY)),
        b'l' => list(&client, most).await,
        b'm' => list_uploads(&client, most).await,
        b'p' => put(&client).await,
        b'r' => get_range(&client).await,
        b'u' => upload(&client).await,
        b'x' => client.abort_multipart_upload(BUCKET, KEY, "id").await,
        _ => download(&client).await,
    };
    if let Err(error) = outcome {
        check(&error, client.stats().throttled);
    }
}

/// An error says in one line of readable length what happened to which object, and hides no panic. Answers that ask for
/// fewer requests do not count as attempts, nor does finding out what the service takes.
fn check(error: &Error, throttled: u64) {
    assert_ne!(error.kind(), ErrorKind::Interrupted, "{error}");
    assert_eq!(error.bucket(), Some(BUCKET), "{error}");
    assert!(u64::from(error.attempts()) <= u64::from(ATTEMPTS + OTHER_FORMS) + throttled, "{error}");
    let line = error.to_string();
    assert!(line.len() <= LONGEST_ERROR, "{} bytes: {line:.200}", line.len());
    assert!(!line.chars().any(char::is_control), "{line:?}");
}

async fn delete(client: &Client) -> Result<(), Error> {
    let failures = client.delete_objects(BUCKET, &KEYS.map(str::to_owned), WhenLate::Wait).await?;
    assert!(failures.iter().all(|failure| !failure.key.is_empty() && !failure.code.is_empty()));
    Ok(())
}

async fn get(client: &Client, most: usize) -> Result<(), Error> {
    let output = client.get_object(BUCKET, KEY).await?;
    assert!(output.body.len() <= most);
    assert_eq!(output.info.size, output.body.len() as u64);
    Ok(())
}

async fn get_range(client: &Client) -> Result<(), Error> {
    let bytes = client.get_range(BUCKET, KEY, 3..40).await?;
    assert_eq!(bytes.len(), 37);
    Ok(())
}

/// A listing tells no more than came.
async fn list(client: &Client, most: usize) -> Result<(), Error> {
    let listing = client.list_objects(BUCKET, "run/", Some("/")).await?;
    let mut text: usize = listing.common_prefixes.iter().map(String::len).sum();
    for object in &listing.objects {
        assert!(!object.key.is_empty());
        text += object.key.len() + object.etag.as_ref().map_or(0, String::len);
    }
    assert!(text <= most, "{text} bytes of {most}");
    Ok(())
}

async fn list_uploads(client: &Client, most: usize) -> Result<(), Error> {
    let uploads = client.list_multipart_uploads(BUCKET, "run/").await?;
    assert!(uploads.iter().all(|upload| !upload.key.is_empty() && !upload.upload_id.is_empty()));
    let text: usize = uploads.iter().map(|upload| upload.key.len() + upload.upload_id.len()).sum();
    assert!(text <= most, "{text} bytes of {most}");
    Ok(())
}

async fn put(client: &Client) -> Result<(), Error> {
    let mut options = PutOptions::default();
    options.condition = Condition::IfMatch("\"e1\"".to_owned());
    let output = client.put_object(BUCKET, KEY, Payload::from(b"body".to_vec()), &options).await?;
    assert_eq!(output.crc32, crc32(b"body"));
    Ok(())
}

/// A part, and one byte more.
async fn upload(client: &Client) -> Result<(), Error> {
    static PART: [u8; MIN_PART_SIZE as usize] = [0; MIN_PART_SIZE as usize];
    let mut upload = client.upload(BUCKET, KEY, UploadOptions::default());
    for segment in [&PART[..], b"."] {
        if let Err(error) = upload.push(Bytes::from_static(segment), crc32(segment)).await {
            upload.abort().await;
            return Err(error);
        }
    }
    let output = upload.finish().await?;
    assert_eq!((output.size, output.parts), (MIN_PART_SIZE + 1, 2));
    Ok(())
}

fn copied() -> CopySource {
    CopySource { bucket: BUCKET.to_owned(), key: "run/0".to_owned(), etag: Some("\"e1\"".to_owned()) }
}

/// A part that the service copies, and one byte more.
async fn assemble(client: &Client) -> Result<(), Error> {
    let mut assembly = client.assemble(BUCKET, KEY);
    let pushed = match assembly.copy(&copied(), 0..MIN_PART_SIZE) {
        Ok(()) => assembly.push(Payload::from(b".".to_vec()), crc32(b".")).await,
        refused => refused,
    };
    if let Err(error) = pushed {
        assembly.abort().await;
        return Err(error);
    }
    assert_eq!(assembly.finish().await?.size, MIN_PART_SIZE + 1);
    Ok(())
}

/// Every sink gets its range, no byte more at any time, and is let go of.
async fn download(client: &Client) -> Result<(), Error> {
    let finished: Arc<Mutex<usize>> = Arc::default();
    let read = |range: std::ops::Range<u64>| RangeRead {
        key: KEY.to_owned(),
        sink: Box::new(Sink {
            memory: vec![0; (range.end - range.start) as usize],
            filled: 0,
            offered: 0,
            turn: 0,
            finished: Arc::clone(&finished),
        }),
        range,
    };
    let outcome = client.download(BUCKET, vec![read(0..64), read(100..137)]).await;
    assert_eq!(Arc::strong_count(&finished), 1, "a sink is still held");
    outcome?;
    assert_eq!(*finished.lock().unwrap_or_else(PoisonError::into_inner), 2);
    Ok(())
}

/// In turns through memory and through `write`.
struct Sink {
    memory: Vec<u8>,
    filled: usize,
    offered: usize,
    turn: usize,
    finished: Arc<Mutex<usize>>,
}

impl RangeSink for Sink {
    fn space(&mut self) -> Space<'_> {
        self.turn += 1;
        let left = self.memory.len() - self.filled;
        if self.turn.is_multiple_of(2) || left == 0 {
            return Space::Write(5);
        }
        self.offered = left.min(11);
        Space::Memory(&mut self.memory[self.filled..][..self.offered])
    }

    fn filled(&mut self, count: usize) -> Result<(), Error> {
        assert!(count <= self.offered);
        self.filled += count;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert!(self.filled + bytes.len() <= self.memory.len(), "more bytes than the range has");
        self.memory[self.filled..][..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        Ok(())
    }

    fn restart(&mut self) {
        self.filled = 0;
    }

    fn finish(&mut self) -> Result<(), Error> {
        assert_eq!(self.filled, self.memory.len());
        *self.finished.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Ok(())
    }
}
