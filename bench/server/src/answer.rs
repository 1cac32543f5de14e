//! Answers: status, header fields and a body of text or of pieces of blobs.

use std::ops::Range;

use crate::store::Blob;

/// What goes behind the head.
pub(crate) enum Body {
    Text(String),
    Pieces(Vec<(Blob, Range<u64>)>),
    /// Nothing, though Content-Length speaks of `length` bytes: the answer to HEAD.
    Length(u64),
}

/// An answer, ready to be sent.
pub(crate) struct Answer {
    status: &'static str,
    headers: String,
    pub(crate) body: Body,
}

impl Answer {
    pub(crate) fn new(status: &'static str, body: Body) -> Self {
        Self { status, headers: String::new(), body }
    }

    pub(crate) fn empty(status: &'static str) -> Self {
        Self::new(status, Body::Text(String::new()))
    }

    /// 200 with a document `<name>content</name>`.
    pub(crate) fn xml(name: &str, content: &str) -> Self {
        let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{name}>{content}</{name}>");
        Self::new("200 OK", Body::Text(text)).with("Content-Type", "application/xml")
    }

    /// One of S3's errors.
    pub(crate) fn error(status: &'static str, code: &str, message: &str) -> Self {
        let content = format!("<Code>{code}</Code><Message>{message}</Message><RequestId>1</RequestId>");
        Self { status, ..Self::xml("Error", &content) }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers += &format!("{name}: {value}\r\n");
        self
    }

    /// Bytes of the body.
    pub(crate) fn length(&self) -> u64 {
        match &self.body {
            Body::Text(text) => text.len() as u64,
            Body::Pieces(pieces) => pieces.iter().map(|(_, range)| range.end - range.start).sum(),
            Body::Length(length) => *length,
        }
    }

    /// Status line and header fields, with the empty line.
    pub(crate) fn head(&self) -> String {
        // RFC 9110: 204 has no Content-Length.
        let length = match self.status {
            "204 No Content" => String::new(),
            _ => format!("Content-Length: {}\r\n", self.length()),
        };
        format!("HTTP/1.1 {}\r\n{length}x-amz-request-id: 1\r\n{}\r\n", self.status, self.headers)
    }
}
