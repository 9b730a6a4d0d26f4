//! Password hashing with argon2id, on dedicated threads.
//!
//! A hash takes 19 MiB and tens of milliseconds. A few low-priority threads behind a bounded queue
//! keep a burst of sign-ins from slowing down API requests or exhausting memory. New passwords are
//! checked against the policy and hashed by a thread of their own, so that sign-ins never wait for
//! registrations.
//!
//! Callers hash one password of an account at a time: see [`PasswordHasher::lock_account`].

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::PasswordHash,
};
use rustix::process::setpriority_process;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::oneshot;

use super::AuthError;
use crate::{
    config::Passwords,
    env::{Env, PasswordCost},
    keyed_semaphores::{KeyedPermit, KeyedSemaphores},
    model::{ValidationError, email::Email, password::Password},
};

/// Lanes of a hash, which could be computed in parallel.
const LANES: u32 = 1;

/// Niceness of the hashing threads: a tenth of the weight of a thread that serves requests. Not
/// `SCHED_IDLE`, although that yields sooner: on a machine with all cores busy it gets almost no
/// CPU time, and every sign-in timed out.
const NICENESS: i32 = 10;

/// The error of argon2, which never happens with valid parameters.
const CANNOT_HASH: AuthError = AuthError::Internal("cannot hash a password");

type Job = Box<dyn FnOnce(&Argon2<'static>) + Send>;

/// Hashes and verifies passwords. Cheap to clone.
#[derive(Clone)]
pub struct PasswordHasher {
    hashes: mpsc::SyncSender<Job>,
    new_passwords: mpsc::SyncSender<Job>,
    /// One permit for each account, by the digest of its address, and kind of work.
    accounts: KeyedSemaphores<([u8; 32], AccountWork)>,
    env: Env,
    pending: Arc<AtomicUsize>,
    /// The hash that passwords of unknown addresses are verified against, so that they take the
    /// same time.
    dummy_hash: Arc<SecretString>,
}

/// Work for an account of which only one request does each kind at a time: so requests for one
/// account fill neither the queue nor the connection pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccountWork {
    /// Look up the state of the account before a sign-in.
    Lookup,
    /// Hash a password.
    Password,
    /// Hash a password for a request from a network that is new to the account. The account's owner
    /// does not wait for it.
    StrangersPassword,
}

/// Permits work for one account: see [`PasswordHasher::lock_account`].
pub type AccountPermit = KeyedPermit<([u8; 32], AccountWork)>;

/// Counts a job as pending until it is dropped.
struct PendingJob(Arc<AtomicUsize>);

impl PendingJob {
    fn new(pending: &Arc<AtomicUsize>) -> Self {
        pending.fetch_add(1, Relaxed);
        Self(Arc::clone(pending))
    }
}

impl Drop for PendingJob {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Number of hashing threads; by default half of the cores, because a hash evicts their CPU caches
/// at any priority.
fn thread_count(settings: Passwords) -> usize {
    match settings.threads {
        0 => thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        threads => threads,
    }
}

/// The result of verifying a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasswordVerification {
    /// The password is wrong, or there is no hash.
    Wrong,
    /// The password is correct.
    Correct,
    /// The password is correct, but its hash has weaker parameters than the current ones.
    CorrectNeedsRehash,
}

impl PasswordHasher {
    /// Starts the hashing threads. They end when the last clone is dropped.
    ///
    /// # Errors
    /// A message for the operator, if a thread cannot be started.
    pub fn start(settings: Passwords, env: &Env) -> Result<Self, String> {
        let argon2 = argon2(env.password_cost)?;
        let salt: [u8; 16] = env.entropy.bytes();
        let password: [u8; 16] = env.entropy.bytes();
        let dummy_hash = hash(&argon2, &password, &salt).ok_or("cannot hash passwords")?;
        let capacity = settings.queue_capacity;
        Ok(Self {
            hashes: start_workers("argon2", thread_count(settings), capacity, &argon2)?,
            new_passwords: start_workers("new-passwords", 1, capacity, &argon2)?,
            accounts: KeyedSemaphores::new(1),
            env: env.clone(),
            pending: Arc::default(),
            dummy_hash: Arc::new(dummy_hash),
        })
    }

    /// Waits until no other request does this work for the account, and keeps others waiting until
    /// the permit is dropped. The account need not exist.
    pub async fn lock_account(&self, email: &Email, work: AccountWork) -> AccountPermit {
        self.accounts.acquire((email.digest(), work)).await
    }

    /// Checks a newly chosen password against the policy and hashes it, one at a time for each
    /// account. Returns a PHC string. `field` names the request field in errors.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] if the policy rejects the password; [`AuthError::PasswordQueueFull`]
    /// if the queue is full.
    pub async fn hash_new_password(
        &self,
        field: &'static str,
        password: &Password,
        email: &Email,
        full_name: Option<&str>,
    ) -> Result<SecretString, AuthError> {
        let _permit = self.lock_account(email, AccountWork::Password).await;
        let (chosen, email) = (password.clone(), email.clone());
        let full_name = full_name.map(str::to_owned);
        let salt: [u8; 16] = self.env.entropy.bytes();
        let check_and_hash = move |argon2: &Argon2<'static>| {
            chosen.check_policy(&email, full_name.as_deref())?;
            Ok(hash(argon2, chosen.expose().as_bytes(), &salt))
        };
        let checked: Result<_, ValidationError> =
            self.run(&self.new_passwords, check_and_hash).await?;
        checked.map_err(|reason| AuthError::invalid(field, reason))?.ok_or(CANNOT_HASH)
    }

    /// Hashes a password with a new salt, in the queue of sign-ins. Returns a PHC string.
    ///
    /// # Errors
    /// [`AuthError::PasswordQueueFull`] if the queue is full.
    pub async fn hash(&self, password: &Password) -> Result<SecretString, AuthError> {
        let salt: [u8; 16] = self.env.entropy.bytes();
        let password = password.clone();
        self.run(&self.hashes, move |argon2| hash(argon2, password.expose().as_bytes(), &salt))
            .await?
            .ok_or(CANNOT_HASH)
    }

    /// Verifies a password against a hash. Without a hash this takes as long and returns
    /// [`PasswordVerification::Wrong`].
    ///
    /// # Errors
    /// [`AuthError::PasswordQueueFull`] if the queue is full.
    pub async fn verify(
        &self,
        password: &Password,
        hash: Option<SecretString>,
    ) -> Result<PasswordVerification, AuthError> {
        let has_hash = hash.is_some();
        let hash = hash.unwrap_or_else(|| (*self.dummy_hash).clone());
        // An overlong password cannot have been accepted. Verify an empty one instead, to take the
        // same time.
        let password =
            if password.is_hashable() { password.clone() } else { Password::new(String::new()) };
        let verify = move |argon2: &_| verify(argon2, &password, &hash);
        let verified = self.run(&self.hashes, verify).await?;
        Ok(if has_hash { verified } else { PasswordVerification::Wrong })
    }

    /// Number of hashes that are queued or being computed.
    pub(super) fn pending_count(&self) -> usize {
        self.pending.load(Relaxed)
    }

    async fn run<T: Send + 'static>(
        &self,
        queue: &mpsc::SyncSender<Job>,
        job: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let (reply, result) = oneshot::channel();
        let pending_job = PendingJob::new(&self.pending);
        let job: Job = Box::new(move |argon2| {
            let _pending_job = pending_job;
            // Skip the job if its client disconnected while it was queued.
            if !reply.is_closed() {
                reply.send(job(argon2)).ok();
            }
        });
        queue.try_send(job).map_err(|_| AuthError::PasswordQueueFull)?;
        result.await.map_err(|_| AuthError::Internal("a hashing thread has stopped"))
    }
}

impl std::fmt::Debug for PasswordHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHasher(…)")
    }
}

/// Starts the threads of one queue. They end when the queue is dropped.
fn start_workers(
    name: &str,
    count: usize,
    capacity: usize,
    argon2: &Argon2<'static>,
) -> Result<mpsc::SyncSender<Job>, String> {
    let (jobs, queue) = mpsc::sync_channel::<Job>(capacity);
    let queue = Arc::new(std::sync::Mutex::new(queue));
    for number in 0..count {
        let (queue, argon2) = (Arc::clone(&queue), argon2.clone());
        thread::Builder::new()
            .name(format!("{name}-{number}"))
            .spawn(move || run_worker(&queue, &argon2))
            .map_err(|error| format!("cannot start a thread: {error}"))?;
    }
    Ok(jobs)
}

fn run_worker(queue: &std::sync::Mutex<mpsc::Receiver<Job>>, argon2: &Argon2<'static>) {
    // On Linux this applies to the calling thread only.
    setpriority_process(None, NICENESS).ok();
    loop {
        // The lock is held while waiting for a job; the other threads wait for the lock.
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        match job {
            // A panicking job drops its reply channel, and the thread continues.
            Ok(job) => drop(catch_unwind(AssertUnwindSafe(|| job(argon2)))),
            Err(mpsc::RecvError) => return,
        }
    }
}

fn argon2(cost: PasswordCost) -> Result<Argon2<'static>, String> {
    let params = Params::new(cost.memory_kib, cost.passes, LANES, None)
        .map_err(|error| format!("cannot set up argon2: {error}"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(argon2: &Argon2<'static>, password: &[u8], salt: &[u8]) -> Option<SecretString> {
    let hash = argon2.hash_password_with_salt(password, salt).ok()?;
    Some(hash.to_string().into())
}

fn verify(
    argon2: &Argon2<'static>,
    password: &Password,
    hash: &SecretString,
) -> PasswordVerification {
    let Ok(parsed) = PasswordHash::new(hash.expose_secret()) else {
        return PasswordVerification::Wrong;
    };
    // Verification uses the parameters in the hash, not the current ones.
    if argon2.verify_password(password.expose().as_bytes(), &parsed).is_err() {
        return PasswordVerification::Wrong;
    }
    let current = argon2.params();
    let is_outdated = Params::try_from(&parsed).is_ok_and(|used| {
        used.m_cost() < current.m_cost()
            || used.t_cost() < current.t_cost()
            || used.p_cost() < current.p_cost()
    });
    if is_outdated {
        PasswordVerification::CorrectNeedsRehash
    } else {
        PasswordVerification::Correct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher(queue: usize) -> PasswordHasher {
        PasswordHasher::start(Passwords { threads: 1, queue_capacity: queue }, &Env::system())
            .unwrap()
    }

    fn password(text: &str) -> Password {
        Password::new(text.into())
    }

    #[tokio::test]
    async fn password_matches_its_own_hash_only() {
        let hasher = hasher(8);
        let hash = hasher.hash(&password("correct horse battery")).await.unwrap();
        assert!(hash.expose_secret().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let [right, wrong] = ["correct horse battery", "Correct horse battery"].map(password);
        let verified = hasher.verify(&right, Some(hash.clone())).await.unwrap();
        assert_eq!(verified, PasswordVerification::Correct);
        assert_eq!(hasher.verify(&wrong, Some(hash)).await.unwrap(), PasswordVerification::Wrong);
        assert_eq!(hasher.verify(&right, None).await.unwrap(), PasswordVerification::Wrong);
    }

    #[tokio::test]
    async fn weak_hash_is_reported_for_rehashing() {
        let weak = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(1024, 1, 1, None).unwrap(),
        );
        let hash = super::hash(&weak, b"correct horse battery", &[1; 16]).unwrap();
        let verified = hasher(8).verify(&password("correct horse battery"), Some(hash)).await;
        assert_eq!(verified.unwrap(), PasswordVerification::CorrectNeedsRehash);
    }

    #[tokio::test]
    async fn full_queue_rejects_jobs() {
        let hasher = hasher(1);
        let release = occupy(&hasher.hashes).await;
        hasher.hashes.send(Box::new(|_| ())).unwrap();
        assert!(matches!(hasher.hash(&password("x")).await, Err(AuthError::PasswordQueueFull)));
        drop(release);
    }

    /// Keeps the thread of a queue busy until the sender is used or dropped.
    async fn occupy(queue: &mpsc::SyncSender<Job>) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let job = move |_: &Argon2<'static>| {
            started.send(()).ok();
            held.recv().ok();
        };
        queue.send(Box::new(job)).unwrap();
        running.await.unwrap();
        release
    }

    #[tokio::test]
    async fn sign_in_does_not_wait_for_new_passwords() {
        let hasher = hasher(1);
        let release = occupy(&hasher.new_passwords).await;
        // The queue is full, too.
        hasher.new_passwords.send(Box::new(|_| ())).unwrap();
        let verified = hasher.verify(&password("x"), None).await.unwrap();
        assert_eq!(verified, PasswordVerification::Wrong);
        drop(release);
    }

    #[tokio::test]
    async fn new_password_does_not_wait_for_sign_ins() {
        let hasher = hasher(1);
        let release = occupy(&hasher.hashes).await;
        let email = Email::parse("dana@acme.example").unwrap();
        let [good, weak] = ["correct horse battery", "passwordpassword"].map(password);
        let stored = hasher.hash_new_password("password", &good, &email, None).await.unwrap();
        assert!(stored.expose_secret().starts_with("$argon2id$"));
        let rejected = hasher.hash_new_password("password", &weak, &email, None).await;
        assert!(matches!(rejected, Err(AuthError::Invalid { .. })));
        drop(release);
        let verified = hasher.verify(&good, Some(stored)).await.unwrap();
        assert_eq!(verified, PasswordVerification::Correct);
    }
}
