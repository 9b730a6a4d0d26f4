//! Rejects requests whose framing is ambiguous (RFC 9112, sections 2.2, 6.1 and 6.3), which hyper
//! accepts: a proxy in front may find the end of such a request elsewhere, and then takes a part of
//! one client's body for the request of another client (request smuggling).
//!
//! [`FramingCheck`] reads the same bytes as hyper, and follows the framing only as far as it is
//! certain. A NUL in a head makes hyper answer 400 and close the connection. So the check rejects a
//! head by a NUL in place of the line feed that is wrong, or that ends the head.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection that rejects request heads with a bare line feed, and those with both
/// `Content-Length` and `Transfer-Encoding`.
///
/// After a request with `Transfer-Encoding` the check does not know where the next one begins. The
/// server closes the connection after the response to it.
pub(super) struct FramingCheck<S> {
    stream: S,
    position: Position,
    /// The part of the current head that was read.
    head: Vec<u8>,
}

/// The place of the next byte in the stream of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// In a head.
    Head,
    /// In a body that has this many more bytes.
    Body(u64),
    /// In the last request of the connection.
    LastRequest,
}

impl<S> FramingCheck<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, position: Position::Head, head: Vec::new() }
    }

    /// Checks bytes that were read from the connection.
    fn check(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let length = match self.position {
                Position::LastRequest => return,
                Position::Body(left) => {
                    let read = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - read as u64;
                    self.position = if left == 0 { Position::Head } else { Position::Body(left) };
                    read
                }
                Position::Head => self.check_line(bytes),
            };
            bytes = &mut bytes[length..];
        }
    }

    /// Checks the next line of a head, as far as it was read. Returns its length.
    fn check_line(&mut self, bytes: &mut [u8]) -> usize {
        let Some(at) = bytes.iter().position(|byte| *byte == b'\n') else {
            self.head.extend_from_slice(bytes);
            return self.bounded(bytes.len());
        };
        self.head.extend_from_slice(&bytes[..=at]);
        let is_accepted = if !self.head.ends_with(b"\r\n") {
            false
        } else if self.head == b"\r\n" {
            // An empty line before a request is ignored (RFC 9112, section 2.2).
            self.head.clear();
            true
        } else if self.head.ends_with(b"\r\n\r\n") {
            let position = position_after(&self.head);
            self.head.clear();
            self.position = position.unwrap_or(Position::LastRequest);
            position.is_some()
        } else {
            true
        };
        if !is_accepted {
            bytes[at] = b'\0';
            self.position = Position::LastRequest;
        }
        self.bounded(at + 1)
    }

    /// Stops at a head that is too large: hyper rejects it with 431, also if it is complete.
    fn bounded(&mut self, read: usize) -> usize {
        if self.head.len() > super::MAX_HEAD_BYTES {
            self.position = Position::LastRequest;
        }
        if self.position == Position::LastRequest {
            self.head = Vec::new();
        }
        read
    }
}

/// The position after a complete head; `None` if the head is ambiguous.
fn position_after(head: &[u8]) -> Option<Position> {
    let (mut length, mut has_coding) = (None, false);
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            length = Some(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            has_coding = true;
        }
    }
    match (length, has_coding) {
        (Some(_), true) => None,
        (None, true) => Some(Position::LastRequest),
        (None, false) => Some(Position::Head),
        // hyper rejects a length that is no number, and lengths that differ.
        (Some(length), false) => {
            let length = std::str::from_utf8(length).ok().and_then(|text| text.parse().ok());
            Some(match length {
                None => Position::LastRequest,
                Some(0) => Position::Head,
                Some(length) => Position::Body(length),
            })
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FramingCheck<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.check(&mut buffer.filled_mut()[filled..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FramingCheck<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use axum::body::Body;
    use hyper::{Response, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::yield_now,
    };

    use super::*;
    use crate::server::{MAX_HEAD_BYTES, http_builder};

    /// Sends a stream to a server, which reads each piece before the next one is sent. Returns the
    /// status codes of its responses.
    async fn serve(pieces: &[&str]) -> Vec<String> {
        let (mut client, server) = tokio::io::duplex(1024 * 1024);
        let respond = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let stream = TokioIo::new(FramingCheck::new(server));
        let connection = http_builder(Duration::from_mins(1)).serve_connection(stream, respond);
        let exchange = async {
            for piece in pieces {
                client.write_all(piece.as_bytes()).await.unwrap();
                for _ in 0..10 {
                    yield_now().await;
                }
            }
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let connection = async {
            // An error is a response to the client.
            connection.await.ok();
        };
        let (answer, ()) = tokio::join!(exchange, connection);
        let heads = answer.split("HTTP/1.1 ").skip(1);
        heads.map(|head| head[..3].to_owned()).collect()
    }

    /// Passes a stream through the check in pieces of this size.
    fn check(stream: &str, size: usize) -> String {
        let mut check = FramingCheck::new(());
        let mut bytes = stream.as_bytes().to_vec();
        bytes.chunks_mut(size).for_each(|piece| check.check(piece));
        String::from_utf8(bytes).unwrap()
    }

    #[track_caller]
    fn assert_accepted(stream: &str) {
        for size in [1, 2, 7, stream.len()] {
            assert_eq!(check(stream, size), stream, "pieces of {size}");
        }
    }

    /// `stream` has a `¶` in place of the line feed that is rejected.
    #[track_caller]
    fn assert_rejected(stream: &str) {
        let (sent, expected) = (stream.replace('¶', "\n"), stream.replace('¶', "\0"));
        for size in [1, 2, 7, sent.len()] {
            assert_eq!(check(&sent, size), expected, "pieces of {size}");
        }
    }

    #[test]
    fn unambiguous_requests_are_unchanged() {
        assert_accepted("GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n");
        assert_accepted(
            "\r\nPOST / HTTP/1.1\r\ncontent-length: 4\r\n\r\na\nb\nGET / HTTP/1.1\r\n\r\n",
        );
        assert_accepted(
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\n\n\r\n0\r\n\r\n",
        );
        assert_accepted("POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n\n");
        assert_accepted("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert_accepted(&format!("GET / HTTP/1.1\r\nx: {}\r\n\n", "a".repeat(40_000)));
    }

    #[test]
    fn bare_line_feed_in_head_is_rejected() {
        assert_rejected("GET / HTTP/1.1¶host: a\n\n");
        assert_rejected("GET / HTTP/1.1\r\nhost: a¶x: b\r\n\r\n");
        assert_rejected("GET / HTTP/1.1\r\nhost: a\r\n¶");
        assert_rejected("¶GET / HTTP/1.1\r\n\r\n");
        // In the second request, after a body.
        assert_rejected(
            "POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n\nGET / HTTP/1.1¶host: a\r\n\r\n",
        );
    }

    /// hyper compares the size of its buffer with the limit only while a head is incomplete.
    #[tokio::test]
    async fn head_that_exceeds_limit_with_last_read_is_rejected() {
        let start = "POST / HTTP/1.1\r\nhost: a\r\n";
        let padding = format!("x: {}\r\n", "a".repeat(MAX_HEAD_BYTES - 100));
        let more = format!("y: {}\r\n", "b".repeat(1000));
        let last = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        let below_limit = format!("{start}{padding}");
        for end in [
            format!("{more}\r\n{last}"),
            format!("{more}x: y\nz: 1\r\n\r\n{last}"),
            format!("{more}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{last}"),
            format!("{more}\n{last}"),
            // A second request behind a large one was not checked either.
            format!("{more}\r\nGET / HTTP/1.1\r\nhost: a\r\nx: y\nz: 1\r\n\r\n"),
        ] {
            for pieces in [&[below_limit.as_str(), &end][..], &[start, &padding, &end]] {
                assert_eq!(serve(pieces).await, ["431"], "{:?}", &end[1000..]);
            }
        }
        // A head below the limit is served, also in pieces, and then the next one is.
        assert_eq!(serve(&[&below_limit, "\r\n", last]).await, ["200", "200"]);
        assert_eq!(serve(&[&below_limit, "x: y\nz: 1\r\n\r\n"]).await, ["400"]);
    }

    #[test]
    fn length_with_transfer_coding_is_rejected() {
        for headers in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "transfer-encoding: chunked\r\nx: y\r\ncontent-length: 1",
            "TRANSFER-ENCODING:identity\r\nCONTENT-LENGTH:0",
        ] {
            assert_rejected(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r¶0\r\n\r\n"));
            let first = "GET / HTTP/1.1\r\n\r\n";
            assert_rejected(&format!("{first}POST / HTTP/1.1\r\n{headers}\r\n\r¶0\r\n\r\n"));
        }
    }
}
