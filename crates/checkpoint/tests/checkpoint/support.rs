//! A server, clients of it, hand-made indexes, and a proxy that misbehaves on request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3dcp_checkpoint::{Index, IndexWriter, Location, Storage};
use s3dcp_s3::{Client, ClientConfig, ErrorKind, Payload, PutOptions, StaticCredentials};
use s3dcp_server::{Server, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

pub(crate) const BUCKET: &str = "bucket";

/// A running server with one bucket, and a client of it.
pub(crate) struct Bed {
    pub(crate) server: Server,
    pub(crate) client: Client,
}

impl Bed {
    pub(crate) async fn start() -> Bed {
        let mut config = ServerConfig::default();
        config.buckets = vec![BUCKET.into()];
        let server = Server::start(config).await.unwrap();
        let client = client_of(&server, server.endpoint_url(), 10);
        Bed { server, client }
    }

    /// A client that talks to the server through a proxy.
    pub(crate) async fn through(
        &self,
        max_attempts: u32,
        rule: impl Fn(&Head) -> Action + Send + Sync + 'static,
    ) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let upstream = self.server.address().to_string();
        let (rule, direct) = (Arc::new(rule), self.client.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (rule, direct, upstream) = (rule.clone(), direct.clone(), upstream.clone());
                tokio::spawn(async move { pass_one(stream, &upstream, &direct, &*rule).await });
            }
        });
        client_of(&self.server, url, max_attempts)
    }

    pub(crate) async fn put(&self, key: &str, body: impl Into<Bytes>) {
        let body = Payload::from(body.into());
        self.client.put_object(BUCKET, key, body, &PutOptions::default()).await.unwrap();
    }

    pub(crate) async fn exists(&self, key: &str) -> bool {
        match self.client.head_object(BUCKET, key).await {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Every key of the bucket.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let listing = self.client.list_objects(BUCKET, "", None).await.unwrap();
        listing.objects.into_iter().map(|object| object.key).collect()
    }
}

fn client_of(server: &Server, endpoint_url: String, max_attempts: u32) -> Client {
    let mut config = ClientConfig::default();
    config.region = Some(server.region().to_owned());
    config.endpoint_url = Some(endpoint_url);
    config.credentials = Some(StaticCredentials::new(server.access_key(), server.secret_key()));
    config.max_attempts = max_attempts;
    config.deadline = Duration::from_secs(60);
    Client::new(config).unwrap()
}

/// A request's method, path and headers (names in lower case).
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.0 == name).map(|header| &header.1[..])
    }
}

/// What the proxy does with a request.
pub(crate) enum Action {
    Forward,
    /// Forward once the gate is open.
    Hold(Arc<Semaphore>),
    /// Forward, and close the connection instead of answering.
    LoseReply,
    /// Close the connection at once.
    Hang,
    /// Answer with this status and S3 code; the server hears nothing.
    Answer(u16, &'static str),
    /// Delete the object first, so that `If-None-Match: *` holds whatever was there.
    MakeConditionHold,
    /// Put this object first.
    PutBefore(&'static str, Bytes),
    /// Forward, and answer with this made of the server's answer, of the same length.
    Rewrite(fn(String) -> String),
    /// Forward, and answer with another last byte.
    FlipLast,
    /// Forward, and answer with ETags that are weak.
    WeakenEtags,
}

async fn pass_one(
    mut stream: TcpStream,
    upstream: &str,
    direct: &Client,
    rule: &(dyn Fn(&Head) -> Action + Send + Sync),
) {
    let mut request = Vec::new();
    let mut chunk = [0; 16 << 10];
    let (head, end) = loop {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&chunk[..count]),
        }
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            break (parse(&request[..end]), end);
        }
    };
    let length: usize = head.header("content-length").map_or(0, |text| text.parse().unwrap());
    while request.len() < end + 4 + length {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return,
            Ok(count) => request.extend_from_slice(&chunk[..count]),
        }
    }
    let action = rule(&head);
    match action {
        Action::Hang => return,
        Action::Answer(status, code) => {
            let body = format!("<Error><Code>{code}</Code><Message>by the proxy</Message></Error>");
            let answer = format!(
                "HTTP/1.1 {status} Answer\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes()).await;
            return;
        }
        Action::MakeConditionHold => {
            let key = head.path.trim_start_matches('/').split_once('/').unwrap().1;
            direct.delete_object(BUCKET, key).await.unwrap();
        }
        Action::PutBefore(key, ref body) => {
            let body = Payload::from(body.clone());
            direct.put_object(BUCKET, key, body, &PutOptions::default()).await.unwrap();
        }
        Action::Hold(ref gate) => drop(gate.acquire().await.unwrap()),
        Action::Forward | Action::LoseReply | Action::Rewrite(_) | Action::FlipLast | Action::WeakenEtags => {
        }
    }
    // one request per connection
    request.splice(end..end, b"\r\nconnection: close".iter().copied());
    let mut server = TcpStream::connect(upstream).await.unwrap();
    server.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    let _ = server.read_to_end(&mut answer).await;
    if let Action::Rewrite(change) = action {
        answer = change(String::from_utf8(answer).unwrap()).into_bytes();
    }
    if matches!(action, Action::FlipLast)
        && let Some(last) = answer.last_mut()
    {
        *last ^= 1;
    }
    if matches!(action, Action::WeakenEtags)
        && let Some(at) = answer.windows(7).position(|bytes| bytes == b"etag: \"")
    {
        answer.splice(at + 6..at + 6, *b"W/");
    }
    if !matches!(action, Action::LoseReply) {
        let _ = stream.write_all(&answer).await;
    }
}

fn parse(head: &[u8]) -> Head {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let header = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Head { method, path, headers: lines.map(header).collect() }
}

/// An index of one item in each of these files.
pub(crate) fn index(save_id: &str, epoch: Option<u8>, files: &[&str]) -> Index {
    let mut writer = IndexWriter::new();
    let object = |writer: &mut IndexWriter, module: &str, class: &str| {
        writer.pickle.global(module, class);
        writer.pickle.new_object();
        writer.pickle.empty_dict();
        writer.pickle.mark();
    };
    object(&mut writer, "torch.distributed.checkpoint.metadata", "Metadata");
    writer.pickle.text("storage_data");
    writer.pickle.empty_dict();
    writer.pickle.mark();
    for (place, file) in files.iter().enumerate() {
        writer.pickle.int(place as i64);
        object(&mut writer, "torch.distributed.checkpoint.filesystem", "_StorageInfo");
        writer.pickle.text("relative_path");
        writer.shard_file(file);
        writer.pickle.set_items();
        writer.pickle.build();
    }
    writer.pickle.set_items();
    writer.pickle.text("storage_meta");
    object(&mut writer, "torch.distributed.checkpoint.metadata", "StorageMeta");
    writer.pickle.text("save_id");
    writer.pickle.text(save_id);
    writer.pickle.text("s3dcp");
    writer.pickle.empty_dict();
    writer.pickle.mark();
    writer.pickle.text("ranks");
    writer.pickle.int(1);
    writer.pickle.text("epoch");
    match epoch {
        Some(epoch) => writer.pickle.int(epoch.into()),
        None => writer.pickle.none(),
    }
    writer.pickle.set_items();
    for _object in ["storage_meta", "metadata"] {
        writer.pickle.set_items();
        writer.pickle.build();
    }
    writer.finish(save_id)
}

/// The bytes of such an index.
pub(crate) fn stored(save_id: &str, epoch: Option<u8>, files: &[&str]) -> Bytes {
    index(save_id, epoch, files).seal("").to_vec().into()
}

/// Where a save to `run` goes.
pub(crate) fn location(epoch: Option<u8>, rank: Option<u64>) -> Location {
    Location {
        bucket: BUCKET.into(),
        path_key: "run".into(),
        epoch: epoch.map(|epoch| epoch.to_string()),
        folder: None,
        rank,
    }
}

/// The test bucket, asked through `client`.
pub(crate) fn storage(client: &Client) -> Storage {
    Storage::bucket(client, BUCKET)
}
