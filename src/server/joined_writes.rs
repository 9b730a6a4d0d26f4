//! Joins the parts of a small response into one write.
//!
//! hyper can either copy each body into a buffer of the connection, or write head and body where
//! they are. The first holds a copy of a large body for each client that reads slowly; the second
//! costs a vectored write for each small one. [`JoinedWrites`] lets hyper do the second, and copies
//! only what is small, to the stack.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Maximum number of bytes that are copied. The answer to most requests has fewer.
const MAX_JOINED_BYTES: usize = 2048;

/// A stream that writes buffers of few bytes as one.
pub(super) struct JoinedWrites<S>(S);

impl<S> JoinedWrites<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for JoinedWrites<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for JoinedWrites<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        if length > MAX_JOINED_BYTES {
            return Pin::new(&mut self.0).poll_write_vectored(context, buffers);
        }
        let mut storage = [const { MaybeUninit::uninit() }; MAX_JOINED_BYTES];
        let mut joined = ReadBuf::uninit(&mut storage);
        for buffer in buffers {
            joined.put_slice(buffer);
        }
        Pin::new(&mut self.0).poll_write(context, joined.filled())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Records the lengths of its writes, and the buffers of the vectored ones.
    #[derive(Default)]
    struct Recorder {
        bytes: Vec<u8>,
        writes: Vec<usize>,
        vectored: Vec<Vec<usize>>,
    }

    impl AsyncWrite for Recorder {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.bytes.extend_from_slice(bytes);
            self.writes.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffers: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            for buffer in buffers {
                self.bytes.extend_from_slice(buffer);
            }
            let lengths: Vec<_> = buffers.iter().map(|buffer| buffer.len()).collect();
            self.vectored.push(lengths.clone());
            Poll::Ready(Ok(lengths.iter().sum()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    async fn write(parts: &[Vec<u8>]) -> Recorder {
        let mut stream = JoinedWrites::new(Recorder::default());
        let buffers: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written =
            poll_fn(|context| Pin::new(&mut stream).poll_write_vectored(context, &buffers)).await;
        assert_eq!(written.unwrap(), parts.concat().len());
        assert_eq!(stream.0.bytes, parts.concat());
        stream.0
    }

    #[tokio::test]
    async fn small_parts_are_one_write() {
        for parts in [
            vec![b"head".to_vec(), b"body".to_vec()],
            vec![vec![b'a'; 1000], Vec::new(), vec![b'b'; 1000], vec![b'c'; 48]],
            vec![vec![b'a'; MAX_JOINED_BYTES]],
        ] {
            let recorder = write(&parts).await;
            assert_eq!(recorder.writes, [parts.concat().len()]);
            assert!(recorder.vectored.is_empty());
        }
    }

    #[tokio::test]
    async fn large_parts_are_written_where_they_are() {
        for lengths in [[400, 1_500_000], [1, MAX_JOINED_BYTES], [MAX_JOINED_BYTES, 1]] {
            let recorder = write(&lengths.map(|length| vec![b'a'; length])).await;
            assert_eq!(recorder.vectored, [lengths.to_vec()]);
            assert!(recorder.writes.is_empty());
        }
    }
}
