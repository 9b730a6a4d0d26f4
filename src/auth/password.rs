//! Password hashes: argon2id on threads of their own.
//!
//! A hash takes 19 MiB and tens of milliseconds. Their own few threads, at low priority and behind a
//! bounded queue, keep a rush of sign-ins from slowing API keys down or eating the memory.

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
    env::Env,
    model::{email::Email, password::Password},
};

/// OWASP's recommendation for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// The niceness of hashing threads: a tenth of the weight of a thread that serves requests. Not `SCHED_IDLE`, which
/// yields sooner: on a machine whose cores are all busy it gets next to nothing, and no sign-in ended in time.
const NICENESS: i32 = 10;

type Job = Box<dyn FnOnce(&Argon2<'static>) + Send>;

/// Hashes and verifies passwords. Cheap to clone.
#[derive(Clone)]
pub struct PasswordHasher {
    jobs: mpsc::SyncSender<Job>,
    env: Env,
    waiting: Arc<AtomicUsize>,
    /// What an unknown address is verified against, so that it takes the same time.
    decoy: Arc<SecretString>,
}

/// A job that is waited for.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Relaxed);
        Self(Arc::clone(waiting))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Half of the cores: a hash fills their caches, whatever its priority.
fn threads(settings: Passwords) -> usize {
    match settings.threads {
        0 => thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
        threads => threads,
    }
}

/// What came of a verification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// Wrong, or there is nothing to be right about.
    Wrong,
    /// Right.
    Right,
    /// Right, and hashed with weaker parameters than are asked for today.
    RightButWeak,
}

impl PasswordHasher {
    /// Starts the threads. They end when the last clone is dropped.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(settings: Passwords, env: &Env) -> Result<Self, String> {
        let argon2 = argon2()?;
        let salt: [u8; 16] = env.entropy.bytes();
        let password: [u8; 16] = env.entropy.bytes();
        let decoy = hash(&argon2, &password, &salt).ok_or("cannot hash passwords")?;
        let (jobs, queue) = mpsc::sync_channel::<Job>(settings.queue);
        let queue = Arc::new(std::sync::Mutex::new(queue));
        for number in 0..threads(settings) {
            let (queue, argon2) = (Arc::clone(&queue), argon2.clone());
            thread::Builder::new()
                .name(format!("argon2-{number}"))
                .spawn(move || work(&queue, &argon2))
                .map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        Ok(Self { jobs, env: env.clone(), waiting: Arc::default(), decoy: Arc::new(decoy) })
    }

    /// The PHC string of a password that a person chooses in this field, if they may.
    ///
    /// # Errors
    /// [`AuthError::Invalid`] where it is too short, common or the like, [`AuthError::Busy`] where too
    /// many wait already.
    pub async fn hash_chosen(
        &self,
        field: &'static str,
        password: &Password,
        email: &Email,
        full_name: Option<&str>,
    ) -> Result<SecretString, AuthError> {
        let (chosen, email) = (password.clone(), email.clone());
        let full_name = full_name.map(str::to_owned);
        // Looking it up among the common ones takes its time too.
        let checked = self.run(move |_| chosen.check_policy(&email, full_name.as_deref())).await?;
        checked.map_err(|why| AuthError::invalid(field, why))?;
        self.hash(password).await
    }

    /// The PHC string of a password under a fresh salt.
    ///
    /// # Errors
    /// [`AuthError::Busy`] where too many wait already.
    pub async fn hash(&self, password: &Password) -> Result<SecretString, AuthError> {
        let salt: [u8; 16] = self.env.entropy.bytes();
        let password = password.clone();
        self.run(move |argon2| hash(argon2, password.expose().as_bytes(), &salt))
            .await?
            .ok_or(AuthError::Internal("cannot hash a password"))
    }

    /// Whether a password belongs to a hash. Without a hash it takes as long, and is wrong.
    ///
    /// # Errors
    /// [`AuthError::Busy`] where too many wait already.
    pub async fn verify(
        &self,
        password: &Password,
        hash: Option<SecretString>,
    ) -> Result<Verification, AuthError> {
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| (*self.decoy).clone());
        // Too long to have been accepted: as wrong as any, in the same time.
        let password =
            if password.is_hashable() { password.clone() } else { Password::new(String::new()) };
        let verified = self.run(move |argon2| verify(argon2, &password, &hash)).await?;
        Ok(if known { verified } else { Verification::Wrong })
    }

    /// How many hashes wait or are computed.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Argon2<'static>) -> T + Send + 'static,
    ) -> Result<T, AuthError> {
        let (answer, result) = oneshot::channel();
        let counted = Counted::new(&self.waiting);
        let job: Job = Box::new(move |argon2| {
            let _counted = counted;
            // Whoever asked may have hung up while the job waited: then it is not worth doing.
            if !answer.is_closed() {
                answer.send(job(argon2)).ok();
            }
        });
        self.jobs.try_send(job).map_err(|_| AuthError::Busy)?;
        result.await.map_err(|_| AuthError::Internal("a hashing thread is gone"))
    }
}

impl std::fmt::Debug for PasswordHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordHasher(…)")
    }
}

fn work(queue: &std::sync::Mutex<mpsc::Receiver<Job>>, argon2: &Argon2<'static>) {
    // On Linux this is of the calling thread alone.
    setpriority_process(None, NICENESS).ok();
    loop {
        // Held while waiting: the next thread waits for the lock instead of the queue.
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        match job {
            // A job that panics answers nobody, and the thread goes on.
            Ok(job) => drop(catch_unwind(AssertUnwindSafe(|| job(argon2)))),
            Err(mpsc::RecvError) => return,
        }
    }
}

fn argon2() -> Result<Argon2<'static>, String> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None)
        .map_err(|error| format!("cannot set up argon2: {error}"))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(argon2: &Argon2<'static>, password: &[u8], salt: &[u8]) -> Option<SecretString> {
    let hash = argon2.hash_password_with_salt(password, salt).ok()?;
    Some(hash.to_string().into())
}

fn verify(argon2: &Argon2<'static>, password: &Password, hash: &SecretString) -> Verification {
    let Ok(parsed) = PasswordHash::new(hash.expose_secret()) else { return Verification::Wrong };
    // The parameters are those of the hash, not today's.
    if argon2.verify_password(password.expose().as_bytes(), &parsed).is_err() {
        return Verification::Wrong;
    }
    let weak = Params::try_from(&parsed).is_ok_and(|used| {
        used.m_cost() < MEMORY_KIB || used.t_cost() < PASSES || used.p_cost() < LANES
    });
    if weak { Verification::RightButWeak } else { Verification::Right }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher(queue: usize) -> PasswordHasher {
        PasswordHasher::start(Passwords { threads: 1, queue }, &Env::system()).unwrap()
    }

    fn password(text: &str) -> Password {
        Password::new(text.into())
    }

    #[tokio::test]
    async fn a_password_is_right_for_its_own_hash_only() {
        let hasher = hasher(8);
        let hash = hasher.hash(&password("correct horse battery")).await.unwrap();
        assert!(hash.expose_secret().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        let [right, wrong] = ["correct horse battery", "Correct horse battery"].map(password);
        let verified = hasher.verify(&right, Some(hash.clone())).await.unwrap();
        assert_eq!(verified, Verification::Right);
        assert_eq!(hasher.verify(&wrong, Some(hash)).await.unwrap(), Verification::Wrong);
        assert_eq!(hasher.verify(&right, None).await.unwrap(), Verification::Wrong);
    }

    #[tokio::test]
    async fn a_weaker_hash_asks_to_be_renewed() {
        let weak = Argon2::new(
            Algorithm::Argon2id,
            Version::V0x13,
            Params::new(1024, 1, 1, None).unwrap(),
        );
        let hash = super::hash(&weak, b"correct horse battery", &[1; 16]).unwrap();
        let verified = hasher(8).verify(&password("correct horse battery"), Some(hash)).await;
        assert_eq!(verified.unwrap(), Verification::RightButWeak);
    }

    #[tokio::test]
    async fn a_full_queue_refuses() {
        let hasher = hasher(1);
        let (release, held) = mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        hasher
            .jobs
            .send(Box::new(move |_| {
                started.send(()).ok();
                held.recv().ok();
            }))
            .unwrap();
        running.await.unwrap();
        hasher.jobs.send(Box::new(|_| ())).unwrap();
        assert!(matches!(hasher.hash(&password("x")).await, Err(AuthError::Busy)));
        release.send(()).unwrap();
    }
}
