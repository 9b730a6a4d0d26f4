//! Whom PostgreSQL runs as: never root.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::geteuid;

/// Whom PostgreSQL runs as.
pub(super) struct Identity {
    /// Uid and gid to become; none: it runs as whoever we are.
    user: Option<(u32, u32, &'static str)>,
    /// Whether that user needs the capability to get to the folder past directories of root's own.
    through_closed_folders: bool,
}

impl Identity {
    pub(super) fn for_folder(folder: &Path) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Ok(Self { user: None, through_closed_folders: false });
        }
        let user = ["postgres", "nobody"].into_iter().find_map(|name| {
            let (uid, gid) = account(name)?;
            Some((uid, gid, name))
        });
        let user = user.ok_or(
            "PostgreSQL does not run as root, and there is neither a user postgres nor nobody",
        )?;
        let mut identity = Self { user: Some(user), through_closed_folders: false };
        // Our own folder may be passed through; what is in it stays closed.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).ok();
        for through_closed_folders in [false, true] {
            identity.through_closed_folders = through_closed_folders;
            let mut command = identity.command(Path::new("test"));
            let reached = command.arg("-d").arg(folder.join(".")).stderr(Stdio::null()).status();
            if reached.is_ok_and(|status| status.success()) {
                return Ok(identity);
            }
        }
        Err(format!(
            "PostgreSQL runs as {} and cannot enter {}: choose another --data-dir",
            user.2,
            folder.display()
        ))
    }

    pub(super) fn check_owner(&self, data: &Path) -> Result<(), String> {
        let owner = fs::metadata(data)
            .map_err(|error| format!("cannot read {}: {error}", data.display()))?
            .uid();
        let (uid, name) = match self.user {
            Some((uid, _, name)) => (uid, name),
            None => (geteuid().as_raw(), "you"),
        };
        if owner == uid {
            return Ok(());
        }
        Err(format!(
            "{} belongs to uid {owner}, but PostgreSQL would run as {name} (uid {uid}): \
             start as its owner, or choose another --data-dir",
            data.display()
        ))
    }

    pub(super) fn give(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some((uid, gid, _)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// A program, run as this identity.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = if self.user.is_some() {
            let mut command = Command::new("setpriv");
            self.add_flags(&mut command);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        // Where we are, the user may not be allowed to be.
        command.current_dir("/");
        command
    }

    /// A program, run as this identity, that gets the signal of a fast shutdown when we die.
    pub(super) fn dying_with_parent(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]);
        self.add_flags(&mut command);
        command.arg(program).current_dir("/");
        command
    }

    fn add_flags(&self, command: &mut Command) {
        if let Some((uid, gid, _)) = self.user {
            command
                .args([format!("--reuid={uid}"), format!("--regid={gid}")])
                .arg("--clear-groups");
        }
        if self.through_closed_folders {
            // Enough to pass through folders that only root may enter, such as /root or a
            // temporary one: the data itself belongs to the user.
            command.args(["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]);
        }
    }
}

/// Uid and gid of a user.
fn account(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}
