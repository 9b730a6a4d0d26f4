use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};

use super::{
    deployment::{Deployment, WORKSPACE},
    figures::{Figures, Recovery},
};
use crate::faults::{
    fixture::Server,
    histories::{Action, Client, Credential, Operation, Reply, recovery_time},
};

/// The number of good credentials that a worker keeps, and of revoked ones.
const KEPT: usize = 5;
/// The pause between two steps of a worker. It leaves CPU time for the faults.
const PAUSE: Duration = Duration::from_millis(20);
/// The longest time that a worker tries to revoke one credential.
const REVOCATION_LIMIT: Duration = Duration::from_secs(30);
/// Steps of the first worker between two sign-ins, which cost more than other operations.
const STEPS_PER_SIGN_IN: usize = 20;

/// Clients that create, use, refresh and revoke keys, sessions and grants on both nodes.
pub struct CredentialLoad {
    is_stopping: Arc<AtomicBool>,
    workers: JoinSet<Worker>,
}

struct Worker {
    clients: [Client; 2],
    owner: Credential,
    number: usize,
    good: VecDeque<Credential>,
    revoked: VecDeque<Credential>,
    is_stopping: Arc<AtomicBool>,
}

impl CredentialLoad {
    /// Starts workers. The first one also signs in, and has these sessions and grants.
    pub fn start(deployment: &Deployment, count: usize, tokens: Vec<Credential>) -> Self {
        let is_stopping = Arc::<AtomicBool>::default();
        let mut workers = JoinSet::new();
        let mut tokens = Some(tokens);
        for number in 0..count {
            let worker = Worker {
                clients: deployment.clients.clone(),
                owner: deployment.owner.clone(),
                number,
                good: tokens.take().unwrap_or_default().into(),
                revoked: VecDeque::new(),
                is_stopping: Arc::clone(&is_stopping),
            };
            workers.spawn(worker.run());
        }
        Self { is_stopping, workers }
    }

    /// Stops the workers. Returns their credentials: the good ones, and the revoked ones.
    pub async fn finish(self) -> [Vec<Credential>; 2] {
        self.is_stopping.store(true, SeqCst);
        let workers = self.workers.join_all().await;
        let (mut good, mut revoked) = (Vec::new(), Vec::new());
        for worker in workers {
            good.extend(worker.good);
            revoked.extend(worker.revoked);
        }
        [good, revoked]
    }

    /// Waits for the recovery from a fault on one server, stops the workers, and uses their
    /// credentials once more. Returns the figures of the scenario.
    pub async fn finish_scenario(
        self,
        title: impl Into<String>,
        deployment: &Deployment,
        server: &Server,
        fault: Duration,
    ) -> Figures {
        let has_recovered = deployment.wait_until_recovered().await;
        let until = deployment.recorder.now();
        let credentials = self.finish().await.concat();
        deployment.observe(&credentials, Duration::ZERO).await;
        let (history, events) = deployment.finish(&[server]).await;
        let recovery = recovery_time(&history, fault, until).filter(|_| has_recovered);
        Figures::of(title, &history, Some(&events), Recovery::from(recovery))
    }
}

/// True for an acknowledged revocation.
pub fn is_revocation(operation: &Operation) -> bool {
    (operation.action, operation.reply) == (Action::Revoke, Reply::Accepted)
}

impl Worker {
    async fn run(mut self) -> Self {
        let mut step = self.number;
        while !self.is_stopping.load(SeqCst) {
            step += 1;
            self.work(step).await;
            sleep(PAUSE).await;
        }
        self
    }

    async fn work(&mut self, step: usize) {
        let client = self.clients[step / 4 % 2].clone();
        if self.number == 0 && step.is_multiple_of(STEPS_PER_SIGN_IN) {
            self.good.extend(client.sign_in(WORKSPACE).await);
        }
        match step % 4 {
            0 => self.good.extend(client.create_key(&self.owner, "load").await),
            1 if self.good.len() > KEPT => self.revoke_oldest(&client).await,
            2 => {
                let credential = self.good.iter_mut().find(|credential| credential.can_refresh());
                if let Some(credential) = credential {
                    client.refresh(credential).await;
                }
            }
            _ => {}
        }
        for credentials in [&self.good, &self.revoked] {
            if credentials.is_empty() {
                continue;
            }
            let credential = &credentials[step / 4 % credentials.len()];
            let [a, b] = &self.clients;
            tokio::join!(a.use_credential(credential), b.use_credential(credential));
        }
    }

    async fn revoke_oldest(&mut self, client: &Client) {
        let Some(credential) = self.good.pop_front() else { return };
        if client.revoke(&self.owner, &credential, REVOCATION_LIMIT).await {
            self.revoked.push_back(credential);
            if self.revoked.len() > KEPT {
                self.revoked.pop_front();
            }
        }
    }
}
