//! The accept loop: HTTP/1.1 by hyper, with what `axum::serve` lacks: a time-out on request heads and
//! idle connections, and a bound on their number.

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

/// The largest head of a request, in bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;

/// Serves what a function answers to the requests of a peer.
pub struct Server<F> {
    service: F,
    http: http1::Builder,
    connections: Arc<Semaphore>,
    max_connections: u32,
    clients: Clients,
    write_timeout: Duration,
    shutdown_timeout: Duration,
}

impl<F, A> Server<F>
where
    F: Fn(IpAddr, Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
{
    /// As configured.
    #[must_use]
    pub fn new(settings: &config::Server, service: F) -> Self {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            // Head and body in one piece: copying a small body is cheaper than a vectored write.
            .writev(false)
            .keep_alive(true);
        Self {
            service,
            http,
            connections: Arc::new(Semaphore::new(settings.max_connections)),
            max_connections: settings.max_connections.try_into().unwrap_or(u32::MAX),
            clients: Clients::new(settings),
            write_timeout: settings.write_timeout,
            shutdown_timeout: settings.shutdown_timeout,
        }
    }

    /// Accepts connections until `stop` is ready, then lets requests under way finish.
    ///
    /// # Errors
    /// Never so far: a failure to accept is waited out.
    pub async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (stopping, _) = watch::channel(false);
        let mut stop = pin!(stop);
        loop {
            // A place first: who finds none waits in the kernel's queue.
            let place = tokio::select! {
                place = Arc::clone(&self.connections).acquire_owned() => place,
                () = &mut stop => break,
            };
            let (stream, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Most likely out of file descriptors, which pass.
                        warn!(%error, "cannot accept a connection");
                        sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                () = &mut stop => break,
            };
            // One client alone must not take all places.
            let Some(share) = self.clients.admit(peer.ip()) else { continue };
            let connection = self.serve(stream, peer.ip(), stopping.subscribe());
            tokio::spawn(async move {
                connection.await;
                drop((place, share));
            });
        }
        drop(listener);
        stopping.send_replace(true);
        let all_done = self.connections.acquire_many(self.max_connections);
        if timeout(self.shutdown_timeout, all_done).await.is_err() {
            warn!("requests under way were cut off");
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
            let answer = service(peer, request);
            async { Ok::<_, Infallible>(answer.await) }
        });
        // Whoever asks and does not read would hold the connection for ever.
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
                debug!(%error, "a connection broke");
            }
        }
    }
}

/// How many connections each client has.
struct Clients {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    max: usize,
    trusted: Vec<IpNet>,
}

/// A connection of a client, counted for as long as this lives.
struct Share {
    counts: Arc<Mutex<HashMap<IpNet, usize>>>,
    client: IpNet,
}

impl Clients {
    fn new(settings: &config::Server) -> Self {
        Self {
            counts: Arc::default(),
            max: settings.max_connections_per_address,
            trusted: settings.trusted_proxies.clone(),
        }
    }

    /// None where the client has too many.
    fn admit(&self, ip: IpAddr) -> Option<Share> {
        let ip = ip.to_canonical();
        let client = address::subnet(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(client).or_default();
        // A proxy brings the connections of many.
        if *count >= self.max && !self.trusted.iter().any(|net| net.contains(&ip)) {
            return None;
        }
        *count += 1;
        Some(Share { counts: Arc::clone(&self.counts), client })
    }
}

impl Drop for Share {
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
