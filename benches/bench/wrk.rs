//! The load: `wrk`, with one thread, and what it tells.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

/// A line of a file of keys: the key and the end of the line.
pub(crate) const KEY_LINE: usize = "sk_call2me_live_".len() + 36 + 1;

/// How a line with the numbers begins.
const MARK: &str = "measured";

/// Prints the numbers in one line, once, at the end: it costs the load nothing.
const DONE: &str = r#"
done = function(summary, latency, requests)
  local errors = summary.errors
  print(string.format("measured %d %d %d %d %d %d", summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"#;

/// What is asked of a server.
#[derive(Clone)]
pub(crate) enum Traffic {
    /// The same `GET` again and again; it costs the generator the least.
    Same { path: &'static str, bearer: String },
    /// `POST`s, one after the other and then from the first again.
    Posts { path: &'static str, bodies: Vec<String> },
    /// `GET /v1/auth/verify`, each time with a key of a file: any of them.
    AnyKey { file: PathBuf, keys: usize },
    /// The same, with one after the other from a place on.
    NextKey { file: PathBuf, first: usize, keys: usize },
}

/// What was measured.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outcome {
    /// Answers.
    pub(crate) requests: u64,
    /// Microseconds that it took.
    pub(crate) micros: u64,
    /// Answers with a status of 400 or more.
    pub(crate) refused: u64,
    /// Connections that failed, and time-outs.
    pub(crate) broken: u64,
    /// Microseconds of the median answer.
    pub p50: u64,
    /// Microseconds within which 99 of 100 answers came.
    pub p99: u64,
}

impl Traffic {
    /// The traffic of a round, counted from zero: each has its own part of a file of keys.
    pub(crate) fn of_round(&self, round: usize) -> Self {
        let mut own = self.clone();
        if let Self::NextKey { first, keys, .. } = &mut own {
            *first = round * *keys;
        }
        own
    }

    fn script(&self) -> String {
        let mut text = String::new();
        match self {
            Self::Same { path, bearer } => {
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
            Self::AnyKey { file, keys } => {
                let next = "at = math.random(#requests)";
                text = keys_script(file, 0, *keys, next);
            }
            Self::NextKey { file, first, keys } => {
                let next = "at = at % #requests + 1";
                text = keys_script(file, *first, *keys, next);
            }
        }
        text + DONE
    }
}

/// All requests are made before the load begins.
fn keys_script(file: &Path, first: usize, keys: usize, next: &str) -> String {
    let (path, skip) = (file.display(), first * KEY_LINE);
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
) -> Result<Outcome, String> {
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
        .find_map(|line| line.strip_prefix(MARK))
        .into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|number| number.parse().ok())
        .collect();
    let [requests, micros, refused, broken, p50, p99] = numbers[..] else {
        return Err(format!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr)));
    };
    Ok(Outcome { requests, micros, refused, broken, p50, p99 })
}
