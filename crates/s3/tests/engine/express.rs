//! Directory buckets (S3 Express One Zone): sessions, listings, and what they do not have.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3dcp_s3::{
    Client, ClientConfig, Error, ErrorKind, Payload, PutOptions, ServerSideEncryption, StaticCredentials,
    Support, UploadOptions, WhenLate, crc32,
};
use s3dcp_server::{Server, ServerConfig};

use crate::support::{Act, Responder, config, error, pattern, response, source, with};

const BUCKET: &str = "models--use1-az4--x-s3";
/// What a renewal costs a request that finds its session ended.
const EXPIRED: &str = "error:ExpiredToken on=PutObject";

async fn server(faults: &[&str]) -> Server {
    started(faults, Duration::from_secs(300)).await
}

async fn started(faults: &[&str], session_lifetime: Duration) -> Server {
    let mut config = ServerConfig::default();
    config.buckets = vec![BUCKET.to_owned(), "plain".to_owned()];
    config.faults = faults.iter().map(|rule| rule.parse().unwrap()).collect();
    config.session_lifetime = session_lifetime;
    Server::start(config).await.unwrap()
}

fn settings(server: &Server) -> ClientConfig {
    config(&server.endpoint_url(), server.access_key(), server.secret_key())
}

fn client(server: &Server) -> Client {
    Client::new(settings(server)).unwrap()
}

fn requests(server: &Server, operation: &str) -> u64 {
    server.stats().requests.get(operation).copied().unwrap_or(0)
}

fn small() -> Payload {
    Payload::from(Bytes::from_static(b"small"))
}

async fn put(client: &Client, key: &str) -> Result<(), Error> {
    client.put_object(BUCKET, key, small(), &PutOptions::default()).await.map(drop)
}

/// As many objects at once, each with a key of its own.
async fn put_many(client: &Client, count: usize) {
    let tasks: Vec<_> = (0..count)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { put(&client, &format!("many/{number}")).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn every_operation_works_in_a_directory_bucket() {
    let server = server(&[]).await;
    let client = client(&server);
    put(&client, "run/a b+c").await.unwrap();
    assert_eq!(&client.get_object(BUCKET, "run/a b+c").await.unwrap().body[..], b"small");
    let mut upload = client.upload(
        BUCKET,
        "run/large",
        with(UploadOptions::default(), |options| {
            options.part_size = Some(5 << 20);
        }),
    );
    let body = pattern((11 << 20) + 7);
    let mut rest = Bytes::from(body.clone());
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(upload.part_remaining() as usize));
        let crc = crc32(&piece);
        upload.push(piece, crc).await.unwrap();
    }
    upload.finish().await.unwrap();
    assert_eq!(client.get_object(BUCKET, "run/large").await.unwrap().body, body);
    // Copies are signed with the client's own keys, into and out of it.
    client.copy_object(&source(BUCKET, "run/large"), "plain", "copy").await.unwrap();
    client.copy_object(&source("plain", "copy"), BUCKET, "run/copy").await.unwrap();
    assert_eq!(client.head_object(BUCKET, "run/copy").await.unwrap().size, body.len() as u64);
    assert!(
        client.delete_objects(BUCKET, &["run/copy".to_owned()], WhenLate::Wait).await.unwrap().is_empty()
    );
    client.delete_object(BUCKET, "run/large").await.unwrap();
    let found = client.conditions(BUCKET, "run/probe").await.conditions;
    assert!(
        matches!((&found.if_none_match, &found.if_match), (Support::Honoured, Support::Honoured)),
        "{found:?}"
    );
    let keys: Vec<String> = client
        .list_objects(BUCKET, "", None)
        .await
        .unwrap()
        .objects
        .into_iter()
        .map(|info| info.key)
        .collect();
    assert_eq!(keys, ["run/a b+c"]);
    assert_eq!(requests(&server, "CreateSession"), 1);
}

#[tokio::test]
async fn many_connections_wait_for_one_session() {
    let server = server(&["delay:100ms on=CreateSession"]).await;
    let client = Client::new(with(settings(&server), |config| config.max_connections = Some(64))).unwrap();
    put_many(&client, 64).await;
    assert_eq!((requests(&server, "CreateSession"), requests(&server, "PutObject")), (1, 64));
}

#[tokio::test]
async fn a_session_takes_no_connection_from_those_that_wait_for_it() {
    let server = server(&[]).await;
    let client = Client::new(with(settings(&server), |config| config.max_connections = Some(1))).unwrap();
    put_many(&client, 8).await;
    assert_eq!(requests(&server, "CreateSession"), 1);
}

#[tokio::test]
async fn each_bucket_has_a_session_of_its_own() {
    let server = server(&[]).await;
    server.create_bucket("other--use1-az4--x-s3").unwrap();
    let client = client(&server);
    for bucket in [BUCKET, "other--use1-az4--x-s3", "plain", BUCKET] {
        client.put_object(bucket, "k", small(), &PutOptions::default()).await.unwrap();
    }
    assert_eq!(requests(&server, "CreateSession"), 2);
}

#[tokio::test]
async fn a_session_that_has_ended_is_renewed_once_for_all() {
    let server = started(&[], Duration::from_secs(1)).await;
    let client = client(&server);
    put(&client, "first").await.unwrap();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(1100)).await;
        put_many(&client, 32).await;
    }
    let created = requests(&server, "CreateSession");
    // Its end may come while the many are under way, whatever the time.
    assert!((3..=6).contains(&created), "{created}");
}

#[tokio::test]
async fn an_answer_that_the_session_has_ended_leads_to_one_renewal_and_the_request_again() {
    for code in ["ExpiredToken", "InvalidToken", "InvalidAccessKeyId"] {
        let server = server(&[&format!("error:{code} on=PutObject times=1")]).await;
        let client = client(&server);
        put(&client, "k").await.unwrap();
        put(&client, "l").await.unwrap();
        assert_eq!((requests(&server, "CreateSession"), client.stats().retries), (2, 1), "{code}");
    }
    // A HEAD's response has no body to say why.
    for fault in
        ["error:ExpiredToken on=HeadObject times=1", "error:InvalidAccessKeyId on=HeadObject times=1"]
    {
        let server = server(&[fault]).await;
        let client = client(&server);
        put(&client, "k").await.unwrap();
        assert_eq!(client.head_object(BUCKET, "k").await.unwrap().size, 5);
        assert_eq!(requests(&server, "CreateSession"), 2, "{fault}");
    }
}

#[tokio::test]
async fn a_session_that_is_refused_again_is_the_error() {
    let server = server(&[EXPIRED]).await;
    let client = client(&server);
    let error = put(&client, "k").await.unwrap_err();
    assert_eq!((error.kind(), error.code(), error.attempts()), (ErrorKind::Denied, Some("ExpiredToken"), 2));
    assert_eq!(requests(&server, "CreateSession"), 2);
}

#[tokio::test]
async fn a_session_that_cannot_be_created_is_an_error_that_says_so() {
    let server = server(&["error:AccessDenied on=CreateSession times=1"]).await;
    let client = client(&server);
    let error = put(&client, "k").await.unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::Denied, Some("AccessDenied")));
    for word in ["no session with directory bucket", BUCKET, "CreateSession"] {
        assert!(error.message().contains(word), "{error}");
    }
    assert_eq!(requests(&server, "PutObject"), 0);
    put(&client, "k").await.unwrap();
    let gone = client.put_object("gone--use1-az4--x-s3", "k", small(), &PutOptions::default()).await;
    assert_eq!(gone.unwrap_err().code(), Some("NoSuchBucket"));
}

#[tokio::test]
async fn what_passes_is_waited_for_by_whoever_wants_the_session() {
    for fault in ["error:InternalError", "error:SlowDown", "drop", "truncate:100"] {
        let server = server(&[&format!("{fault} on=CreateSession times=2")]).await;
        put_many(&client(&server), 16).await;
        assert!(requests(&server, "CreateSession") >= 1, "{fault}");
    }
    // A service that does not come round is one error before the deadline.
    let server = server(&["error:InternalError on=CreateSession"]).await;
    let client =
        Client::new(with(settings(&server), |config| config.deadline = Duration::from_secs(1))).unwrap();
    let error = put(&client, "k").await.unwrap_err();
    assert!(error.message().contains("no session") && error.elapsed() < Duration::from_secs(10), "{error}");
    // Nor before it has been asked as often as anything is.
    let server = self::server(&["error:InternalError on=CreateSession"]).await;
    let client = Client::new(with(settings(&server), |config| config.max_attempts = 2)).unwrap();
    for attempts in [2, 4] {
        let error = put(&client, "k").await.unwrap_err();
        assert!(error.message().contains("no session") && error.attempts() == 2, "{error}");
        assert_eq!(server.faults()[0].1, attempts);
    }
}

#[tokio::test]
async fn listings_have_any_prefix_and_are_in_order() {
    let server = server(&[]).await;
    let client = Arc::new(client(&server));
    let mut keys: Vec<String> = (0..1200).map(|number| format!("run/__{number}_0.distcp")).collect();
    keys.extend(
        ["run/.metadata", "run/epoch_1/.metadata", "run/epoch_10/.metadata", "runs/x", "top"]
            .map(str::to_owned),
    );
    for batch in keys.chunks(64) {
        let puts: Vec<_> = batch
            .iter()
            .map(|key| {
                let (client, key) = (Arc::clone(&client), key.clone());
                tokio::spawn(async move { put(&client, &key).await })
            })
            .collect();
        for put in puts {
            put.await.unwrap().unwrap();
        }
    }
    keys.sort();
    for (prefix, delimiter) in [
        ("", None),
        ("run/", None),
        ("run/__1", None),
        ("run", None),
        ("run/__11_0.distcp", None),
        ("to", None),
        ("none/x", None),
        ("", Some("/")),
        ("run/", Some("/")),
        ("run/epoch_1", Some("/")),
        ("ru", Some("/")),
    ] {
        let listing = client.list_objects(BUCKET, prefix, delimiter).await.unwrap();
        let below = |key: &String| key[prefix.len()..].find('/').filter(|_| delimiter.is_some());
        let wanted: Vec<&String> = keys.iter().filter(|key| key.starts_with(prefix)).collect();
        let mut common: Vec<String> = wanted
            .iter()
            .filter_map(|key| below(key).map(|at| key[..=prefix.len() + at].to_owned()))
            .collect();
        common.dedup();
        let objects: Vec<&String> = wanted.into_iter().filter(|key| below(key).is_none()).collect();
        let found: Vec<&String> = listing.objects.iter().map(|info| &info.key).collect();
        assert_eq!((found, listing.common_prefixes), (objects, common), "{prefix:?} {delimiter:?}");
    }
    let few = client.list_first(BUCKET, "run/__1", None, 3).await.unwrap();
    assert!(few.objects.len() >= 3 && few.objects.iter().all(|info| info.key.starts_with("run/__1")));
    let error = client.list_objects(BUCKET, "run/", Some("_")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Config && error.message().contains("delimiter"), "{error}");
}

#[tokio::test]
async fn uploads_are_listed_page_by_page_without_their_ids() {
    let server = Responder::start(|_, seen| {
        let target = &seen.target;
        let uploads = |keys: &[&str], next: &str| {
            let uploads: String =
                keys.iter().map(|key| format!("<Upload><Key>{key}</Key><UploadId>u-{key}</UploadId></Upload>")).collect();
            let page = format!(
                "<ListMultipartUploadsResult>{uploads}<IsTruncated>{}</IsTruncated><NextKeyMarker>{next}</NextKeyMarker>\
                 </ListMultipartUploadsResult>",
                !next.is_empty()
            );
            Act::Answer(response("200 OK", &[], page.as_bytes()))
        };
        match () {
            () if target.contains("?session") => Act::Answer(response("200 OK", &[], SESSION.as_bytes())),
            () if target.contains("key-marker=opaque") => uploads(&["run/__0_0", "run/a"], ""),
            () if target.contains("uploads") => uploads(&["run/__0_1", "run/b"], "opaque"),
            () => Act::Answer(error("400 Bad Request", "InvalidRequest")),
        }
    })
    .await;
    let found = server.client().list_multipart_uploads(BUCKET, "run/__0_").await.unwrap();
    let keys: Vec<String> = found.into_iter().map(|upload| upload.key).collect();
    assert_eq!(keys, ["run/__0_0", "run/__0_1"]);
    let targets: Vec<String> = server.seen().into_iter().map(|seen| seen.target).collect();
    assert!(targets[1].contains("prefix=run%2F&") || targets[1].ends_with("prefix=run%2F"), "{targets:?}");
    assert!(targets.iter().all(|target| !target.contains("upload-id-marker")), "{targets:?}");
}

const SESSION: &str = "<CreateSessionResult><Credentials><AccessKeyId>SESSIONKEY</AccessKeyId>\
    <SecretAccessKey>SESSION-SECRET</SecretAccessKey><SessionToken>SESSION-TOKEN</SessionToken>\
    <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></CreateSessionResult>";

/// As AWS's reference of CreateSession has it.
#[tokio::test]
async fn requests_are_signed_for_the_service_of_directory_buckets() {
    let server = Responder::start(|_, seen| match seen.target.contains("?session") {
        true => Act::Answer(response("200 OK", &[], SESSION.as_bytes())),
        false => Act::Answer(response(
            "200 OK",
            &[("ETag", "\"e\""), ("x-amz-server-side-encryption", "AES256")],
            b"<CopyObjectResult/>",
        )),
    })
    .await;
    let config = with(server.config(), |config| {
        let keys = with(StaticCredentials::new("AKIDEXAMPLE", "SECRET-OF-THE-TEST"), |keys| {
            keys.session_token = Some("TOKEN-OF-THE-ROLE".to_owned());
        });
        config.credentials = Some(keys);
        config.server_side_encryption = Some(ServerSideEncryption::Aes256);
        config.storage_class = Some("EXPRESS_ONEZONE".to_owned());
    });
    let client = Client::new(config).unwrap();
    put(&client, "k").await.unwrap();
    client.copy_object(&source("plain", "k"), BUCKET, "copy").await.unwrap();
    let [session, put, copy] = &server.seen()[..] else { panic!("{:?}", server.seen()) };
    for (seen, key, token) in [
        (session, "AKIDEXAMPLE", Some("TOKEN-OF-THE-ROLE")),
        (put, "SESSIONKEY", None),
        (copy, "AKIDEXAMPLE", Some("TOKEN-OF-THE-ROLE")),
    ] {
        let authorization = seen.header("authorization").unwrap();
        assert!(authorization.contains(&format!("Credential={key}/")), "{authorization}");
        assert!(authorization.contains("/us-east-1/s3express/aws4_request"), "{authorization}");
        assert_eq!(seen.header("x-amz-security-token"), token);
        assert_eq!(seen.header("x-amz-s3session-token"), token.is_none().then_some("SESSION-TOKEN"));
        assert_eq!(seen.header("x-amz-server-side-encryption"), Some("AES256"));
    }
    assert_eq!((&*session.method, &*session.target), ("GET", &*format!("/{BUCKET}?session")));
    // The widest mode that there is needs no header, and a role that may only read has a session too.
    assert_eq!(session.header("x-amz-create-session-mode"), None);
}

#[tokio::test]
async fn no_md5_is_sent_whatever_the_answer() {
    let wanted = "<Error><Code>InvalidRequest</Code><Message>Content-MD5 is required</Message></Error>";
    let server = Responder::start(move |_, seen| match &*seen.method {
        "GET" => Act::Answer(response("200 OK", &[], SESSION.as_bytes())),
        "POST" => Act::Answer(response("200 OK", &[], b"<DeleteResult/>")),
        _ => Act::Answer(response("400 Bad Request", &[], wanted.as_bytes())),
    })
    .await;
    let client = Client::new(with(server.config(), |config| config.checksum_headers = Some(false))).unwrap();
    assert_eq!(put(&client, "k").await.unwrap_err().code(), Some("InvalidRequest"));
    client.delete_objects(BUCKET, &["k".to_owned()], WhenLate::Wait).await.unwrap();
    let seen = server.seen();
    assert!(seen.iter().all(|seen| seen.header("content-md5").is_none()));
    // One of the two has to be there.
    assert!(seen.last().unwrap().header("x-amz-checksum-crc32").is_some());
}

#[tokio::test]
async fn what_directory_buckets_do_not_have_is_refused_by_the_name_of_the_setting() {
    let server = server(&[]).await;
    type Change = fn(&mut ClientConfig);
    let cases: [(&str, Change); 3] = [
        ("unsigned", |config| (config.unsigned, config.credentials) = (true, None)),
        ("requester_pays", |config| config.requester_pays = true),
        ("storage_class", |config| config.storage_class = Some("STANDARD_IA".to_owned())),
    ];
    for (setting, change) in cases {
        let client = Client::new(with(settings(&server), change)).unwrap();
        let error = put(&client, "k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.message().contains(setting) && error.to_string().contains(BUCKET), "{error}");
    }
    assert_eq!(server.stats().requests.values().sum::<u64>(), 0);
    // What writes with another class may read there.
    put(&client(&server), "k").await.unwrap();
    let reader = Client::new(with(settings(&server), |config| {
        config.storage_class = Some("STANDARD_IA".to_owned());
    }));
    assert_eq!(&reader.unwrap().get_object(BUCKET, "k").await.unwrap().body[..], b"small");
}
