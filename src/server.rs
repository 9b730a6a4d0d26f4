//! The accept loop: HTTP/1.1 by hyper, with what `axum::serve` lacks: timeouts for request heads,
//! idle connections and slow readers, limits on the number of connections and on the memory of
//! each, and a check of the framing of requests.
//!
//! A client that reads slowly, or not at all, must cost little. hyper writes bodies where they are
//! (`joined_writes.rs`), so clients that read the same static body share it. The kernel holds at
//! most `MAX_UNSENT_BYTES` that it has not sent yet.

mod connection_counts;
pub(crate) mod descriptors;
mod framing_check;
mod joined_writes;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
    response::Response,
};
use connection_counts::ConnectionCounts;
use framing_check::FramingCheck;
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown},
};
use joined_writes::JoinedWrites;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    task::{JoinError, JoinSet},
    time::{Instant, sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, error, warn};

use crate::config;

/// Maximum size of a request's head, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Maximum number of bytes of a request body that are read after the response is known.
const MAX_UNREAD_BYTES: usize = 256 * 1024;

/// Maximum time to read the rest of a request body.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time to drop the requests that are aborted at shutdown.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of bytes of a connection that the kernel accepts from the service before it can
/// send them. It does not limit the bytes in flight, and so not the throughput.
const MAX_UNSENT_BYTES: u32 = 64 * 1024;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Minimum time between two log entries on failed accepts.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Responds to requests. Functions of these parameters do too.
pub trait Respond: Clone + Send + Sync + 'static {
    /// Responds to a request from the peer's address.
    fn respond(
        self,
        peer: IpAddr,
        request: Request,
    ) -> impl Future<Output = Response> + Send + 'static;
}

impl<F, A> Respond for F
where
    F: Fn(IpAddr, Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
{
    fn respond(
        self,
        peer: IpAddr,
        request: Request,
    ) -> impl Future<Output = Response> + Send + 'static {
        self(peer, request)
    }
}

/// An HTTP server for one service.
pub struct Server<S> {
    service: S,
    http: http1::Builder,
    /// One for each connection.
    permits: Arc<Semaphore>,
    clients: ConnectionCounts,
    write_timeout: Duration,
    shutdown_timeout: Duration,
    accept_failures: Mutex<FailureLog>,
}

impl<S: Respond> Server<S> {
    /// Creates a server with the limits and timeouts of `[server]`.
    #[must_use]
    pub fn new(settings: &config::Server, service: S) -> Self {
        Self {
            service,
            http: http_builder(settings.header_timeout),
            permits: Arc::new(Semaphore::new(settings.max_connections)),
            clients: ConnectionCounts::new(settings),
            write_timeout: settings.write_timeout,
            shutdown_timeout: settings.shutdown_timeout,
            accept_failures: Mutex::default(),
        }
    }

    /// Accepts connections until `stop` completes, then waits for requests in flight, at most for
    /// `server.shutdown_timeout_seconds`. Those that take longer are dropped.
    ///
    /// # Errors
    /// None at present: after a failed accept the loop pauses and tries again.
    pub async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        self.limit_unread_bytes(&listener);
        let (shutdown, mut connections) = (GracefulShutdown::new(), JoinSet::new());
        let mut stop = pin!(stop);
        loop {
            let (stream, peer, permits) = tokio::select! {
                () = &mut stop => break,
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    continue;
                }
                accepted = self.accept(&listener) => accepted,
            };
            let connection = shutdown.watch(self.connection(stream, peer));
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    debug!(%error, "a connection failed");
                }
                drop(permits);
            });
        }
        drop(listener);
        if timeout(self.shutdown_timeout, shutdown.shutdown()).await.is_err() {
            warn!("requests in flight were aborted");
        }
        // For a request that is aborted this is the same as a client that disconnects: its
        // transaction ends, and its audit event is queued.
        timeout(ABORT_TIMEOUT, connections.shutdown()).await.ok();
        Ok(())
    }

    /// Limits what the kernel holds for a client that does not read. Connections inherit the
    /// options from their listener.
    fn limit_unread_bytes(&self, listener: &TcpListener) {
        let socket = SockRef::from(listener);
        socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES).ok();
        // Also ends a connection that was closed here, while the client had not read everything.
        socket.set_tcp_user_timeout(Some(self.write_timeout)).ok();
    }

    /// Accepts a connection; returns it with its permits, to hold until it is closed.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, IpAddr, impl Send + use<S>) {
        loop {
            // Acquire the permit first: beyond the limit, connections wait in the kernel's queue.
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The client has already closed it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    // Most likely out of file descriptors, which is temporary. Without a pause, the
                    // connection that waits would be tried again at once.
                    self.log_accept_failure(&error);
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A single client must not take all connections.
            if let Some(client_permit) = self.clients.admit(peer.ip()) {
                return (stream, peer.ip(), (permit, client_permit));
            }
        }
    }

    /// Logs a failed accept, unless another one was logged just before.
    fn log_accept_failure(&self, error: &io::Error) {
        let mut failures = self.accept_failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.is_due(Instant::now()) {
            warn!(%error, "cannot accept a connection");
        }
    }

    /// Serves a connection. The future ends when the connection is closed.
    fn connection(
        &self,
        stream: TcpStream,
        peer: IpAddr,
    ) -> impl GracefulConnection<Error = hyper::Error> + use<S> {
        stream.set_nodelay(true).ok();
        let service = self.service.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            // `FramingCheck` does not follow the chunks to the next request.
            let is_last = request.headers().contains_key(header::TRANSFER_ENCODING);
            // Such a client waits for the response before it sends the body.
            let expects_continue = request.headers().contains_key(header::EXPECT);
            let (body_return, mut unread) = oneshot::channel();
            let request: Request = request.map(|body| ReturningBody::wrap(body, body_return));
            let response = service.clone().respond(peer, request);
            async move {
                let mut response = response.await;
                // If the response closes the connection, its body need not be read.
                let is_closing = response.headers().contains_key(header::CONNECTION);
                let is_unread = match unread.try_recv() {
                    Ok(body) if !is_closing => expects_continue || !read_rest(body).await,
                    _ => false,
                };
                if is_last || is_unread {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            }
        });
        // A client that does not read its response would otherwise hold the connection forever.
        let mut stream = TimeoutStream::new(JoinedWrites::new(stream));
        stream.set_write_timeout(Some(self.write_timeout));
        let stream = FramingCheck::new(Box::pin(stream));
        self.http.serve_connection(TokioIo::new(stream), service)
    }
}

/// Returns the settings of a connection.
fn http_builder(header_timeout: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        // The size of the buffer is compared only while the head is incomplete. Without this limit,
        // hyper accepts a larger head that the last read completes, which `FramingCheck` has not
        // checked.
        .max_header_size(MAX_HEAD_BYTES)
        // Without a copy of the body for each connection.
        .writev(true)
        .keep_alive(true);
    http
}

/// A request body that returns itself to the server if it is dropped before its end.
///
/// A request that is refused early has a body that was not read. hyper closes such a connection
/// after the response, without telling the client; the next request on it then fails.
struct ReturningBody {
    body: Option<Incoming>,
    body_return: Option<oneshot::Sender<Incoming>>,
}

impl ReturningBody {
    fn wrap(body: Incoming, body_return: oneshot::Sender<Incoming>) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Self { body: Some(body), body_return: Some(body_return) })
    }
}

impl hyper::body::Body for ReturningBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for ReturningBody {
    fn drop(&mut self) {
        if let (Some(body), Some(body_return)) = (self.body.take(), self.body_return.take())
            && !body.is_end_stream()
        {
            body_return.send(body).ok();
        }
    }
}

/// Reads a request body to its end, so that the connection can be used again. Returns false if it
/// is too long or too slow.
async fn read_rest(mut body: Incoming) -> bool {
    let read = async {
        let mut bytes = 0;
        while bytes <= MAX_UNREAD_BYTES {
            match body.frame().await {
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => return false,
                None => return true,
            }
        }
        false
    };
    timeout(UNREAD_TIMEOUT, read).await.unwrap_or(false)
}

/// Decides which of many failures are logged.
#[derive(Default)]
struct FailureLog {
    logged_at: Option<Instant>,
}

impl FailureLog {
    /// True if a failure at this time is to be logged: the first one, and then one in each
    /// [`ACCEPT_LOG_INTERVAL`].
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.logged_at.is_none_or(|at| now >= at + ACCEPT_LOG_INTERVAL);
        if is_due {
            self.logged_at = Some(now);
        }
        is_due
    }
}

/// Logs the panic of a connection. Those of handlers are caught before.
fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        error!(%error, "a connection panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_failures_are_logged_once_in_an_interval() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        let times = (0..600).map(|number| start + ACCEPT_PAUSE * number);
        assert_eq!(times.filter(|time| log.is_due(*time)).count(), 3);
    }
}
