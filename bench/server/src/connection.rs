//! One connection: requests in, answers out, bytes dropped, kept or sent at the connection's pace.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustls::ServerConfig;

use crate::answer::{Answer, Body};
use crate::pace::Pace;
use crate::request::Request;
use crate::service::Service;
use crate::store::Blob;
use crate::stream::Stream;

/// Longest head of a request, and longest line of a frame.
const MAX_HEAD: usize = 64 << 10;
/// Bytes copied at once into memory that is kept.
const COPY: usize = 256 << 10;

/// Serves a connection until the client leaves.
pub(crate) fn serve(
    socket: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    rate: Option<u64>,
    service: &Service,
) -> io::Result<()> {
    let stream = Stream::new(socket, tls)?;
    let mut connection = Connection { stream, unread: Vec::new(), pace: Pace::new(rate) };
    let mut counted = false;
    let outcome = loop {
        let request = match connection.request() {
            Ok(Some(request)) => request,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        if !counted && request.path != "_stats" {
            service.stats.opened();
            counted = true;
        }
        if let Err(error) = service.handle(&request, &mut connection) {
            break Err(error);
        }
    };
    if counted {
        service.stats.closed();
    }
    outcome
}

/// A socket with what was read from it too early.
pub(crate) struct Connection {
    stream: Stream,
    unread: Vec<u8>,
    pace: Pace,
}

impl Connection {
    /// Reads a little more; false at the end of the stream.
    fn fill(&mut self) -> io::Result<bool> {
        let held = self.unread.len();
        self.unread.resize(held + 16 * 1024, 0);
        let read = self.stream.read(&mut self.unread[held..]);
        self.unread.truncate(held + read.as_ref().map_or(0, |read| *read));
        Ok(read? > 0)
    }

    fn request(&mut self) -> io::Result<Option<Request>> {
        loop {
            if !self.unread.is_empty()
                && let Some((request, length)) = Request::parse(&self.unread)?
            {
                self.unread.drain(..length);
                return Ok(Some(request));
            }
            if self.unread.len() > MAX_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// Lets a client that waits for permission send its body.
    pub(crate) fn invite(&mut self) -> io::Result<()> {
        self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    }

    /// Receives a body of `length` bytes and drops it.
    fn discard(&mut self, length: u64) -> io::Result<()> {
        let early = length.min(self.unread.len() as u64);
        self.unread.drain(..early as usize);
        let mut left = length - early;
        while left > 0 {
            let most = left.min(self.pace.slice() as u64) as usize;
            let dropped = self.stream.discard(most)?;
            if dropped == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pace.spend(dropped);
            left -= dropped as u64;
        }
        Ok(())
    }

    /// Receives `length` bytes into `sink`.
    fn copy(&mut self, length: u64, sink: &mut impl Write) -> io::Result<()> {
        let early = length.min(self.unread.len() as u64) as usize;
        sink.write_all(&self.unread[..early])?;
        self.unread.drain(..early);
        let mut left = length - early as u64;
        let mut buffer = vec![0; COPY.min(left as usize)];
        while left > 0 {
            let most = left.min(buffer.len().min(self.pace.slice()) as u64) as usize;
            let read = self.stream.read(&mut buffer[..most])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            sink.write_all(&buffer[..read])?;
            self.pace.spend(read);
            left -= read as u64;
        }
        Ok(())
    }

    /// A line of an `aws-chunked` body, without its end.
    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|pair| pair == b"\r\n") {
                let line = String::from_utf8_lossy(&self.unread[..end]).into_owned();
                self.unread.drain(..end + 2);
                return Ok(line);
            }
            if self.unread.len() > MAX_HEAD || !self.fill()? {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }

    /// Takes the frames off a body, HTTP's or those of `aws-chunked`, which look the same:
    /// `<size in hex>[;...]`, that many bytes, ..., 0, trailers, an empty line.
    fn copy_frames(&mut self, sink: &mut impl Write) -> io::Result<()> {
        loop {
            let size = frame_size(&self.line()?)?;
            if size == 0 {
                while !self.line()?.is_empty() {}
                return Ok(());
            }
            self.copy(size, sink)?;
            self.line()?;
        }
    }

    /// Receives the body of `request` into a file in memory.
    pub(crate) fn keep(&mut self, request: &Request) -> io::Result<Blob> {
        let mut file = File::from(rustix::fs::memfd_create("body", MemfdFlags::CLOEXEC)?);
        self.receive(request, &mut file)?;
        let length = file.metadata()?.len();
        Ok(Blob { file: Some(Arc::new(file)), length })
    }

    /// Receives the body of `request` into `sink`.
    pub(crate) fn receive(&mut self, request: &Request, sink: &mut impl Write) -> io::Result<()> {
        match (request.is_chunked(), request.is_framed()) {
            (true, true) => {
                let mut framed = Vec::new();
                self.copy_frames(&mut framed)?;
                unframe(&framed, sink)
            }
            (false, false) => self.copy(request.number("content-length").unwrap_or(0), sink),
            _ => self.copy_frames(sink),
        }
    }

    /// Receives the body of `request` and drops it; how long it was, without its frames.
    pub(crate) fn drop_body(&mut self, request: &Request) -> io::Result<u64> {
        let length = request.number("content-length");
        if request.is_chunked() {
            self.copy_frames(&mut io::sink())?;
        } else {
            self.discard(length.unwrap_or(0))?;
        }
        Ok(request.number("x-amz-decoded-content-length").or(length).unwrap_or(0))
    }

    /// Sends an answer; `zeros` stands for what was dropped.
    pub(crate) fn send(&mut self, answer: &Answer, zeros: &File) -> io::Result<()> {
        let mut head = answer.head();
        if let Body::Text(text) = &answer.body {
            head += text;
        }
        self.stream.write_all(head.as_bytes())?;
        if let Body::Pieces(pieces) = &answer.body {
            for (blob, range) in pieces {
                match &blob.file {
                    Some(file) => self.send_range(file, range.clone())?,
                    None => self.send_zeros(zeros, range.end - range.start)?,
                }
            }
        }
        self.stream.flush()
    }

    fn send_range(&mut self, file: &File, range: Range<u64>) -> io::Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let most = (range.end - offset).min(self.pace.slice() as u64) as usize;
            let sent = self.stream.send_file(file, offset, most)?;
            if sent == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pace.spend(sent);
            offset += sent as u64;
        }
        Ok(())
    }

    fn send_zeros(&mut self, zeros: &File, length: u64) -> io::Result<()> {
        let size = zeros.metadata()?.len();
        let mut left = length;
        while left > 0 {
            let piece = left.min(size);
            self.send_range(zeros, 0..piece)?;
            left -= piece;
        }
        Ok(())
    }
}

/// The size that a frame's first line gives.
fn frame_size(line: &str) -> io::Result<u64> {
    let size = line.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Takes the frames off bytes that are all there.
fn unframe(mut framed: &[u8], sink: &mut impl Write) -> io::Result<()> {
    loop {
        let end = framed.windows(2).position(|pair| pair == b"\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let size = frame_size(&String::from_utf8_lossy(&framed[..end]))? as usize;
        if size == 0 {
            return Ok(());
        }
        let content =
            framed.get(end + 2..).and_then(|rest| rest.get(..size)).ok_or(io::ErrorKind::InvalidData)?;
        sink.write_all(content)?;
        framed = framed.get(end + 2 + size + 2..).ok_or(io::ErrorKind::InvalidData)?;
    }
}
