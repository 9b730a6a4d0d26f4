//! The operating-system user of the PostgreSQL server: never root, which PostgreSQL refuses.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::geteuid;

/// The user that PostgreSQL runs as.
pub struct ProcessUser {
    /// Uid, gid and name of the user to switch to; `None` to stay the current user.
    user: Option<(u32, u32, &'static str)>,
    /// True if the user needs `CAP_DAC_READ_SEARCH` to reach the folder through directories that
    /// only root may enter.
    needs_read_search: bool,
}

impl ProcessUser {
    /// Chooses a user that can enter `folder`.
    ///
    /// # Errors
    /// A message of one line for the operator.
    pub fn for_folder(folder: &Path) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Ok(Self { user: None, needs_read_search: false });
        }
        let user = ["postgres", "nobody"].into_iter().find_map(|name| {
            let (uid, gid) = lookup_user(name)?;
            Some((uid, gid, name))
        });
        let user = user.ok_or(
            "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as",
        )?;
        let mut identity = Self { user: Some(user), needs_read_search: false };
        // Other users may pass through the data folder, but not read it.
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).ok();
        for needs_read_search in [false, true] {
            identity.needs_read_search = needs_read_search;
            let mut command = identity.command(Path::new("test"));
            let status = command.arg("-d").arg(folder.join(".")).stderr(Stdio::null()).status();
            if status.is_ok_and(|status| status.success()) {
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
            None => (geteuid().as_raw(), "the current user"),
        };
        if owner == uid {
            return Ok(());
        }
        Err(format!(
            "{} belongs to uid {owner}, but PostgreSQL would run as {name} (uid {uid}): \
             run as its owner, or choose another --data-dir",
            data.display()
        ))
    }

    /// Makes the user the owner of a file or folder.
    ///
    /// # Errors
    /// [`io::Error`] of the system call.
    pub fn chown_to_user(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some((uid, gid, _)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }

    /// Builds a command that runs a program as this user.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = if self.user.is_some() {
            let mut command = Command::new("setpriv");
            self.add_flags(&mut command);
            command.arg(program);
            command
        } else {
            Command::new(program)
        };
        // The user may have no access to the current directory.
        command.current_dir("/");
        command
    }

    /// Builds a command that runs a program as this user, and that gets SIGINT, the signal of a
    /// fast shutdown, when the parent dies.
    #[must_use]
    pub fn command_with_parent_death_signal(&self, program: &Path) -> Command {
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
        if self.needs_read_search {
            // Enough to pass through directories that only root may enter, such as /root or a
            // temporary one. The data itself belongs to the user.
            command.args(["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]);
        }
    }
}

/// Looks up the uid and gid of a user.
fn lookup_user(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}
