//! Keys through XML, out and back.

use s3dcp_s3::{DeleteFailure, WhenLate};

use crate::service::{Answer, BUCKET, Request, run};

/// Most keys of one request here.
const KEYS: usize = 20;
/// S3's limit on a key.
const MAX_KEY_BYTES: usize = 1024;

/// The input is keys with a byte between them that no text holds. The service says of each, as it was written to it,
/// that it could not be deleted: then just these keys were not.
pub fn keys(data: &[u8]) {
    let mut keys: Vec<String> = data
        .split(|&byte| byte == 0xff)
        .filter_map(|key| String::from_utf8(key.to_vec()).ok())
        .filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()))
        .take(KEYS)
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let asked = keys.clone();
    let (failures, _) =
        run(refuse_all, |client| async move { client.delete_objects(BUCKET, &asked, WhenLate::Wait).await });
    let failures = failures.expect("an answer in good order");
    let refused: Vec<String> = failures.into_iter().map(|DeleteFailure { key, .. }| key).collect();
    assert_eq!(refused, keys);
}

fn refuse_all(request: &Request) -> Option<Answer> {
    let document = String::from_utf8(request.body.clone()).expect("XML is text");
    let mut errors = String::new();
    for object in document.split("<Key>").skip(1) {
        let (key, _) = object.split_once("</Key>").expect("a key ends");
        errors.push_str(&format!("<Error><Key>{key}</Key><Code>AccessDenied</Code></Error>"));
    }
    let body = format!("<DeleteResult>{errors}</DeleteResult>");
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    Some(Answer { pieces: vec![(head + &body).into_bytes()], closes: false })
}
