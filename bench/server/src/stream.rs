//! A socket, plain or behind TLS. Only the plain one can let the kernel drop or send bytes without a copy.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::net::RecvFlags;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Bytes copied at once where they must be copied.
const COPY: usize = 256 << 10;

/// One accepted connection.
pub(crate) enum Stream {
    Plain { socket: TcpStream, scratch: Vec<u8> },
    Tls { stream: Box<StreamOwned<ServerConnection, TcpStream>>, scratch: Vec<u8> },
}

impl Stream {
    pub(crate) fn new(socket: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(match tls {
            // Zeroed memory that nobody writes to costs no page: the kernel truncates into nothing.
            None => Self::Plain { socket, scratch: vec![0; 4 << 20] },
            Some(config) => {
                let session = ServerConnection::new(config).map_err(io::Error::other)?;
                Self::Tls { stream: Box::new(StreamOwned::new(session, socket)), scratch: vec![0; COPY] }
            }
        })
    }

    /// Receives and drops up to `most` bytes; the number dropped, 0 at the end of the stream.
    pub(crate) fn discard(&mut self, most: usize) -> io::Result<usize> {
        match self {
            Self::Plain { socket, scratch } => {
                let most = most.min(scratch.len());
                let (_, dropped) = rustix::net::recv(&*socket, &mut scratch[..most], RecvFlags::TRUNC)?;
                Ok(dropped)
            }
            Self::Tls { stream, scratch } => {
                let most = most.min(scratch.len());
                stream.read(&mut scratch[..most])
            }
        }
    }

    /// Sends up to `most` bytes of `file` from `offset`; the number sent, 0 at the end of the file.
    pub(crate) fn send_file(&mut self, file: &File, offset: u64, most: usize) -> io::Result<usize> {
        match self {
            Self::Plain { socket, .. } => {
                let mut at = offset;
                Ok(rustix::fs::sendfile(&*socket, file, Some(&mut at), most)?)
            }
            Self::Tls { stream, scratch } => {
                let most = most.min(scratch.len());
                let read = file.read_at(&mut scratch[..most], offset)?;
                stream.write_all(&scratch[..read])?;
                Ok(read)
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain { socket, .. } => socket.read(buffer),
            Self::Tls { stream, .. } => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain { socket, .. } => socket.write(bytes),
            Self::Tls { stream, .. } => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain { socket, .. } => socket.flush(),
            Self::Tls { stream, .. } => stream.flush(),
        }
    }
}
