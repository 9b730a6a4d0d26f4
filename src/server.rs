//! The accept loop: HTTP/1.1 by hyper, with what `axum::serve` lacks: timeouts for request heads,
//! idle connections and slow readers, and limits on the number of connections.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, warn};

use crate::{config, model::address};

/// Maximum size of a request's head, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// An HTTP server that calls a function with the peer's address and the request.
pub struct Server<F> {
    service: F,
    http: http1::Builder,
    connections: Arc<Semaphore>,
    max_connections: u32,
    clients: ConnectionCounts,
    write_timeout: Duration,
    shutdown_timeout: Duration,
}

impl<F, A> Server<F>
where
    F: Fn(IpAddr, Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
{
    /// Creates a server with the limits and timeouts of `[server]`.
    #[must_use]
    pub fn new(settings: &config::Server, service: F) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            // Write head and body in one buffer: copying a small body is cheaper than a vectored
            // write.
            .writev(false)
            .keep_alive(true);
        Self {
            service,
            http,
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            max_connections: settings.max_connections.try_into().unwrap_or(u32::MAX),
            clients: ConnectionCounts::new(settings),
            write_timeout: settings.write_timeout,
            shutdown_timeout: settings.shutdown_timeout,
        }
    }

    /// Accepts connections until `stop` completes, then waits for requests in flight, at most for
    /// `server.shutdown_timeout_seconds`.
    ///
    /// # Errors
    /// None at present: after a failed accept the loop pauses and tries again.
    pub async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (stopping, _) = watch::channel(false);
        let mut stop = pin!(stop);
        loop {
            // Acquire the permit first: beyond the limit, connections wait in the kernel's queue.
            let permit = tokio::select! {
                permit = Arc::clone(&self.connections).acquire_owned() => permit,
                () = &mut stop => break,
            };
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Most likely out of file descriptors, which is temporary.
                        warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = &mut stop => break,
            };
            // A single client must not take all connections.
            let Some(client_permit) = self.clients.admit(peer.ip()) else { continue };
            let connection = self.serve(stream, peer.ip(), stopping.subscribe());
            tokio::spawn(async move {
                connection.await;
                drop((permit, client_permit));
            });
        }
        drop(listener);
        stopping.send_replace(true);
        let all_done = self.connections.acquire_many(self.max_connections);
        if timeout(self.shutdown_timeout, all_done).await.is_err() {
            warn!("requests in flight were aborted");
        }
        Ok(())
    }

    fn serve(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        mut stopping: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<F, A> {
        stream.set_nodelay(true).ok();
        let service = self.service.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let request: Request = request.map(Body::new);
            let response = service(peer, request);
            async { Ok::<_, Infallible>(response.await) }
        });
        // A client that does not read its response would otherwise hold the connection forever.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        let stream = Box::pin(stream);
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        async move {
            let mut connection = pin!(connection);
            let stopped = async move { stopping.wait_for(|stopping| *stopping).await.is_ok() };
            let outcome = tokio::select! {
                outcome = connection.as_mut() => outcome,
                _ = stopped => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = outcome {
                debug!(%error, "a connection failed");
            }
        }
    }
}

/// The number of connections of each client (IPv6: each /64).
struct ConnectionCounts {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    max: usize,
    trusted: Vec<IpNet>,
}

/// A counted connection of a client; dropping it decrements the count.
struct ConnectionPermit {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    client: IpNet,
}

impl ConnectionCounts {
    fn new(settings: &config::Server) -> Self {
        Self {
            counts: Arc::default(),
            max: settings.max_connections_per_address,
            trusted: settings.trusted_proxies.clone(),
        }
    }

    /// Counts a connection; `None` if the client has reached its limit.
    fn admit(&self, ip: IpAddr) -> Option<ConnectionPermit> {
        let ip = ip.to_canonical();
        let client = address::client_subnet(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        // A trusted proxy carries the connections of many clients.
        if *count >= self.max && !self.trusted.iter().any(|net| net.contains(&ip)) {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { counts: Arc::clone(&self.counts), client })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.client);
            }
        }
    }
}
