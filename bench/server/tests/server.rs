//! The built program, spoken to over a socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

/// A running server; it ends with the test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(mode: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_s3dcp-bench-server"))
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, address: line.trim().strip_prefix("http://").unwrap().to_owned() }
    }

    /// Sends a request with `body`; status line and body of the answer.
    fn ask(&self, head: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut socket = TcpStream::connect(&self.address).unwrap();
        write!(socket, "{head}\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        socket.write_all(body).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let status = String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned();
        (status, answer.split_off(end + 4))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its standard input ends, and so does it.
        drop(self.process.stdin.take());
        self.process.wait().unwrap();
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| ((n * 31) >> 3) as u8).collect()
}

#[test]
fn what_is_stored_comes_back_range_by_range() {
    let server = Server::start("store");
    let bytes = pattern(3 << 20);
    assert_eq!(server.ask("PUT /b/k HTTP/1.1", &bytes).0, "HTTP/1.1 200 OK");
    assert_eq!(server.ask("GET /b/k HTTP/1.1", b"").1, bytes);
    let (status, range) = server.ask("GET /b/k HTTP/1.1\r\nRange: bytes=1000-2000999", b"");
    assert_eq!(status, "HTTP/1.1 206 Partial Content");
    assert_eq!(range, bytes[1000..2_001_000]);
}

#[test]
fn frames_of_a_body_are_taken_off() {
    let server = Server::start("store");
    let framed =
        b"5;chunk-signature=x\r\nhello\r\n7\r\n, world\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    server.ask("PUT /b/k HTTP/1.1\r\nContent-Encoding: aws-chunked", framed);
    assert_eq!(server.ask("GET /b/k HTTP/1.1", b"").1, b"hello, world");
}

#[test]
fn frames_within_frames_are_taken_off() {
    let server = Server::start("store");
    let inner = "5\r\nhello\r\n7\r\n, world\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n";
    let (first, second) = inner.split_at(9);
    let body = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    let head = "PUT /b/k HTTP/1.1\r\nContent-Encoding: aws-chunked\r\nTransfer-Encoding: chunked";
    let mut socket = TcpStream::connect(&server.address).unwrap();
    write!(socket, "{head}\r\n\r\n{body}").unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    socket.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(server.ask("GET /b/k HTTP/1.1", b"").1, b"hello, world");
}

#[test]
fn what_is_discarded_reads_as_zeros_and_an_index_is_kept() {
    let server = Server::start("discard");
    server.ask("PUT /b/k HTTP/1.1", &pattern(1 << 20));
    assert_eq!(server.ask("GET /b/k HTTP/1.1", b"").1, vec![0; 1 << 20]);
    server.ask("PUT /b/p/.metadata HTTP/1.1", b"index");
    assert_eq!(server.ask("GET /b/p/.metadata HTTP/1.1", b"").1, b"index");
}

#[test]
fn a_conditional_write_loses_to_what_is_there() {
    let server = Server::start("store");
    let create = "PUT /b/k HTTP/1.1\r\nIf-None-Match: *";
    assert_eq!(server.ask(create, b"one").0, "HTTP/1.1 200 OK");
    assert_eq!(server.ask(create, b"two").0, "HTTP/1.1 412 Precondition Failed");
    assert_eq!(server.ask("GET /b/k HTTP/1.1", b"").1, b"one");
}
