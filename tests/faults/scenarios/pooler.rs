use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Stdio},
};

use tempfile::TempDir;

use crate::{
    faults::fixture::{Server, wait_until},
    fixture::free_port,
};

/// The time for which pgbouncer gives a server connection to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Until the client disconnects.
    Session,
    /// For one transaction.
    Transaction,
}

impl PoolMode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Transaction => "transaction",
        }
    }
}

/// A pgbouncer in front of a server. It stops when dropped.
pub struct Pooler {
    process: Child,
    port: u16,
    _folder: TempDir,
}

impl Pooler {
    /// The program, which is a Debian package of the same name.
    pub const PROGRAM: &str = "/usr/sbin/pgbouncer";

    pub async fn start(server: &Server, mode: PoolMode) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (port, to) = (free_port(), server.port());
        let path = folder.path().join("pgbouncer.ini");
        let configuration = format!(
            "[databases]\n\
             call2me = host=127.0.0.1 port={to} user=call2me_auth_app password=test\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {}\ndefault_pool_size = 60\n\
             ignore_startup_parameters = options,extra_float_digits\n",
            mode.name()
        );
        fs::write(&path, configuration).unwrap();
        let mut command = server.command_as_user(folder.path(), Path::new(Self::PROGRAM));
        let log = fs::File::create(folder.path().join("log")).unwrap();
        command.arg(&path).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let process = command.spawn().unwrap();
        let pooler = Self { process, port, _folder: folder };
        wait_until("pgbouncer listens", || TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
        pooler
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the URL for nodes.
    pub fn url(&self, server: &Server) -> String {
        let [from, to] = [server.port(), self.port].map(|port| format!(":{port}/"));
        server.node_url().replace(&from, &to)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
