//! What caused an error can be asked for, as a type and not as a text.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use s3dcp_s3::{Client, Error, ErrorKind, Payload, PutOptions};

use crate::support::{Act, Responder, config, error, response, with};

/// The first of this type among an error's causes. What an I/O error wraps, its `source` passes over.
fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.downcast_ref().or_else(|| cause(error.source()?)).or_else(|| cause(wrapped?))
}

async fn failure(client: &Client) -> Error {
    client.head_object("bkt", "k").await.map(|_| ()).unwrap_err()
}

#[tokio::test]
async fn a_connection_that_is_refused_has_the_systems_error_as_its_cause() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = with(config(&format!("http://{nobody}"), "a", "b"), |config| config.max_attempts = 1);
    let error = failure(&Client::new(settings).unwrap()).await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert_eq!(cause::<io::Error>(&error).map(io::Error::kind), Some(io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn a_connection_that_breaks_has_the_http_librarys_error_as_its_cause() {
    let server = Responder::start(|_, _| Act::ThenClose(b"HTTP/1.1 200".to_vec())).await;
    let client = Client::new(with(server.config(), |config| config.max_attempts = 1)).unwrap();
    let error = failure(&client).await;
    assert!(cause::<hyper::Error>(&error).is_some_and(hyper::Error::is_incomplete_message), "{error}");
}

#[tokio::test]
async fn a_listing_that_is_no_xml_has_the_parsers_error_as_its_cause() {
    let server = Responder::start(|_, _| Act::Answer(response("200 OK", &[], b"<a></b>"))).await;
    let error = server.client().list_objects("bkt", "", None).await.map(|_| ()).unwrap_err();
    assert!(cause::<quick_xml::Error>(&error).is_some(), "{error}");
}

#[tokio::test]
async fn a_bundle_that_cannot_be_read_has_the_systems_error_as_its_cause() {
    let settings = with(config("https://127.0.0.1:1", "a", "b"), |config| {
        config.ca_bundle = Some("/no/such/file".into())
    });
    let error = failure(&Client::new(settings).unwrap()).await;
    assert_eq!(cause::<io::Error>(&error).map(io::Error::kind), Some(io::ErrorKind::NotFound));
}

#[tokio::test]
async fn what_the_service_answered_has_no_cause() {
    let server = Responder::start(|_, _| Act::Answer(error("404 Not Found", "NoSuchKey"))).await;
    assert!(failure(&server.client()).await.source().is_none());
}

/// Memory that counts who holds it.
fn counted(bytes: usize) -> (Payload, Arc<Vec<u8>>) {
    struct Shared(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Shared {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    let memory = Arc::new(vec![7; bytes]);
    (Payload::from(Bytes::from_owner(Shared(Arc::clone(&memory)))), memory)
}

#[tokio::test]
async fn a_body_is_let_go_of_when_its_request_is_refused_before_it_was_sent() {
    let server = Responder::start(|_, _| Act::AnswerEarly(error("403 Forbidden", "AccessDenied"))).await;
    let (body, memory) = counted(64 << 20);
    let result = server.client().put_object("bkt", "k", body, &PutOptions::default()).await;
    assert!(matches!(result.unwrap_err().kind(), ErrorKind::Denied | ErrorKind::Connection));
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[tokio::test]
async fn a_body_is_let_go_of_when_nobody_waits_for_its_request_any_more() {
    let server = Responder::start(|_, _| Act::Silence).await;
    let (body, memory) = counted(64 << 20);
    let client = server.client();
    let options = PutOptions::default();
    let request = client.put_object("bkt", "k", body, &options);
    assert!(tokio::time::timeout(Duration::from_millis(200), request).await.is_err());
    assert_eq!(Arc::strong_count(&memory), 1);
}
