//! Load from `wrk` with one thread, and its results.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

/// The length of a line in a key file: the key and the line break.
pub(crate) const KEY_LINE_BYTES: usize = "sk_call2me_live_".len() + 36 + 1;

/// The prefix of the line with the results.
const RESULT_PREFIX: &str = "measured";

/// Prints the results in one line at the end, which does not affect the load.
const REPORT_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("measured %d %d %d %d %d %d", summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"#;

/// The requests that are sent to a server.
#[derive(Clone)]
pub(crate) enum Traffic {
    /// The same `GET` every time, which costs the load generator the least.
    SameRequest { path: &'static str, bearer: String },
    /// These `POST`s in order, and then again from the first.
    Posts { path: &'static str, bodies: Vec<String> },
    /// `GET /v1/auth/verify`, each time with a random key of a file.
    RandomKey { file: PathBuf, keys: usize },
    /// `GET /v1/auth/verify` with the keys of a file in order, from a position on.
    SequentialKeys { file: PathBuf, first: usize, keys: usize },
}

/// The result of a run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WrkResult {
    /// The number of responses.
    pub(crate) requests: u64,
    /// The duration in microseconds.
    pub(crate) micros: u64,
    /// Responses with a status of 400 or more.
    pub(crate) error_responses: u64,
    /// Failed connections and timeouts.
    pub(crate) connection_errors: u64,
    /// The median latency in microseconds.
    pub p50: u64,
    /// The 99th percentile of the latency in microseconds.
    pub p99: u64,
}

impl Traffic {
    /// Returns the traffic of a round, counted from zero. Each round has its own part of a key
    /// file.
    pub(crate) fn for_round(&self, round: usize) -> Self {
        let mut traffic = self.clone();
        if let Self::SequentialKeys { first, keys, .. } = &mut traffic {
            *first = round * *keys;
        }
        traffic
    }

    fn script(&self) -> String {
        let mut text = String::new();
        match self {
            Self::SameRequest { path, bearer } => {
                writeln!(text, "wrk.path = {path:?}").ok();
                writeln!(text, "wrk.headers[\"Authorization\"] = \"Bearer {bearer}\"").ok();
            }
            Self::Posts { path, bodies } => {
                writeln!(text, "wrk.headers[\"Content-Type\"] = \"application/json\"").ok();
                writeln!(text, "local bodies, at = {{}}, 0").ok();
                for body in bodies {
                    writeln!(text, "bodies[#bodies + 1] = [[{body}]]").ok();
                }
                writeln!(text, "request = function() at = at % #bodies + 1").ok();
                writeln!(text, "return wrk.format(\"POST\", {path:?}, nil, bodies[at]) end").ok();
            }
            Self::RandomKey { file, keys } => {
                let next = "at = math.random(#requests)";
                text = keys_script(file, 0, *keys, next);
            }
            Self::SequentialKeys { file, first, keys } => {
                let next = "at = at % #requests + 1";
                text = keys_script(file, *first, *keys, next);
            }
        }
        text + REPORT_SCRIPT
    }
}

/// Returns a script that builds all requests before the load starts.
fn keys_script(file: &Path, first: usize, keys: usize, next: &str) -> String {
    let (path, skip) = (file.display(), first * KEY_LINE_BYTES);
    format!(
        r#"
local requests, at = {{}}, 0
init = function()
  local file = io.open("{path}")
  file:seek("set", {skip})
  for number = 1, {keys} do
    local key = file:read("*l")
    if not key then break end
    requests[number] = "GET /v1/auth/verify HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer "
      .. key .. "\r\n\r\n"
  end
  file:close()
  math.randomseed({skip} + os.time())
end
request = function()
  {next}
  return requests[at]
end
"#
    )
}

/// Loads a port for some seconds.
pub(crate) async fn run(
    folder: &Path,
    port: u16,
    traffic: &Traffic,
    connections: usize,
    seconds: u64,
) -> Result<WrkResult, String> {
    let script = folder.join("wrk.lua");
    fs::write(&script, traffic.script()).map_err(|error| format!("cannot write: {error}"))?;
    let output = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{seconds}s"), "--timeout", "10s"])
        .arg("-s")
        .arg(&script)
        .arg(format!("http://127.0.0.1:{port}/"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("cannot run wrk: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = text
        .lines()
        .find_map(|line| line.strip_prefix(RESULT_PREFIX))
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|number| number.parse().ok())
        .collect();
    let [requests, micros, refused, broken, p50, p99] = numbers[..] else {
        return Err(format!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr)));
    };
    Ok(WrkResult {
        requests,
        micros,
        error_responses: refused,
        connection_errors: broken,
        p50,
        p99,
    })
}
