//! A small HTTP/1.1 client with little overhead: one connection, one request at a time.

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, Ipv4Addr},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::stats::duration_micros;

/// A connection that stays open.
pub(crate) struct Client {
    stream: TcpStream,
    port: u16,
    buffer: Vec<u8>,
    is_closing: bool,
}

/// A response.
pub(crate) struct Response {
    /// The status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// Returns the body as JSON. Fails if the status is not 2xx.
    pub(crate) fn json(&self) -> Result<Value, String> {
        if !(200..300).contains(&self.status) {
            let text = String::from_utf8_lossy(&self.body);
            return Err(format!("the service responded with {}: {text}", self.status));
        }
        serde_json::from_slice(&self.body)
            .map_err(|error| format!("the response is not JSON: {error}"))
    }
}

/// Formats a request.
pub(crate) fn format_request(
    method: &str,
    path: &str,
    bearer: Option<&str>,
    body: Option<&Value>,
) -> String {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    if let Some(bearer) = bearer {
        write!(text, "Authorization: Bearer {bearer}\r\n").ok();
    }
    match body.map(Value::to_string) {
        Some(body) => {
            let length = body.len();
            text.push_str("Content-Type: application/json\r\n");
            write!(text, "Content-Length: {length}\r\n\r\n{body}").ok();
        }
        None => text.push_str("\r\n"),
    }
    text
}

/// Adds the header of a proxy that forwards a request of this client address.
pub(crate) fn forwarded_from(address: IpAddr, request: &str) -> String {
    let (line, rest) = request.split_once("\r\n").unwrap_or((request, ""));
    format!("{line}\r\nX-Forwarded-For: {address}\r\n{rest}")
}

impl Client {
    /// Connects to a port of this machine.
    pub(crate) async fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, port, buffer: Vec::new(), is_closing: false })
    }

    /// Sends a request and waits for the response. After a failure, the next request opens a new
    /// connection.
    pub(crate) async fn send(&mut self, request: &str) -> io::Result<Response> {
        if self.is_closing {
            *self = Self::connect(self.port).await?;
        }
        self.is_closing = true;
        self.stream.write_all(request.as_bytes()).await?;
        let (answer, close) = self.receive().await?;
        self.is_closing = close;
        Ok(answer)
    }

    /// Sends a request. Returns the response and its latency in microseconds.
    pub(crate) async fn send_timed(&mut self, request: &str) -> Result<(Response, f64), String> {
        let start = Instant::now();
        let answer = self.send(request).await.map_err(|error| error.to_string())?;
        Ok((answer, duration_micros(start.elapsed())))
    }

    async fn receive(&mut self) -> io::Result<(Response, bool)> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed response");
        let head_len = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_more().await?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..head_len]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let header = |name| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length = match header("content-length:") {
            Some(text) => text.parse().map_err(|_| malformed())?,
            None if header("transfer-encoding:").is_some() => return Err(malformed()),
            None => 0,
        };
        let close = header("connection:") == Some("close");
        while self.buffer.len() < head_len + length {
            self.read_more().await?;
        }
        let body = self.buffer[head_len..head_len + length].to_vec();
        self.buffer.drain(..head_len + length);
        Ok((Response { status: status.ok_or_else(malformed)?, body }, close))
    }

    async fn read_more(&mut self) -> io::Result<()> {
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// Sends one request over a new connection.
pub(crate) async fn send_once(port: u16, request: &str) -> Result<Response, String> {
    let mut client = Client::connect(port).await.map_err(|error| error.to_string())?;
    client.send(request).await.map_err(|error| error.to_string())
}
