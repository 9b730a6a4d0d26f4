//! Background tasks: started in groups, supervised, and stopped group by group.
//!
//! A token asks a task to stop. The task checks it between its steps, so that no step is cut off.
//! Only a task that does not stop in time is dropped.
//!
//! A panic is logged. Then the task starts again or, if the service cannot run without it, the
//! service shuts down. The order in which groups stop is in [`crate::app`].

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::SetOnce,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

/// Pause before a task starts again after a panic.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// Maximum time to drop the tasks that did not stop in time.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// The first critical task that failed, if any. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct CriticalFailure(Arc<SetOnce<&'static str>>);

impl CriticalFailure {
    /// Waits until a critical task fails.
    pub async fn wait(&self) {
        self.0.wait().await;
    }

    /// Returns the name of the critical task that failed.
    #[must_use]
    pub fn task(&self) -> Option<&'static str> {
        self.0.get().copied()
    }
}

/// Tasks that stop together.
#[derive(Debug, Default)]
pub struct TaskGroup {
    /// Asks the tasks to stop.
    stopping: CancellationToken,
    /// Drops the tasks that did not stop in time.
    overdue: CancellationToken,
    tracker: TaskTracker,
    failure: CriticalFailure,
}

impl TaskGroup {
    /// Creates an empty group. `failure` reports the panic of a critical task.
    #[must_use]
    pub fn new(failure: &CriticalFailure) -> Self {
        Self { failure: failure.clone(), ..Self::default() }
    }

    /// Starts a task. After a panic it starts again. `start` gets the token that asks the task to
    /// stop.
    pub fn spawn<T>(
        &self,
        name: &'static str,
        start: impl Fn(CancellationToken) -> T + Send + 'static,
    ) where
        T: Future<Output = ()> + Send + 'static,
    {
        let stopping = self.stopping.clone();
        self.track(name, async move {
            while has_panicked(name, start(stopping.clone())).await {
                if stopping.run_until_cancelled(sleep(RESTART_PAUSE)).await.is_none() {
                    return;
                }
            }
        });
    }

    /// Starts a task that the service cannot run without. A panic is reported as a
    /// [`CriticalFailure`].
    pub fn spawn_critical<T>(&self, name: &'static str, start: impl FnOnce(CancellationToken) -> T)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        let (task, failure) = (start(self.stopping.clone()), self.failure.clone());
        self.track(name, async move {
            if has_panicked(name, task).await {
                // Fails if another task has failed before.
                failure.0.set(name).ok();
            }
        });
    }

    fn track(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let overdue = self.overdue.clone();
        self.tracker.spawn(async move {
            if overdue.run_until_cancelled(task).await.is_none() {
                warn!(task = name, "a background task did not stop in time");
            }
        });
    }

    /// Asks the tasks to stop and waits for them. Drops those that run for longer than `within`.
    pub async fn stop(&self, within: Duration) {
        self.stopping.cancel();
        self.tracker.close();
        if timeout(within, self.tracker.wait()).await.is_err() {
            self.overdue.cancel();
            timeout(DROP_TIMEOUT, self.tracker.wait()).await.ok();
        }
    }
}

/// Runs a task. Logs its panic, and returns true if it has panicked.
async fn has_panicked(name: &'static str, task: impl Future<Output = ()>) -> bool {
    let Err(panic) = AssertUnwindSafe(task).catch_unwind().await else { return false };
    error!(task = name, reason = panic_message(&*panic), "a background task panicked");
    true
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&'static str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::sync::{Notify, oneshot};

    use super::*;

    const LONG: Duration = Duration::from_mins(10);

    #[tokio::test]
    async fn stopping_group_waits_for_the_current_step() {
        let tasks = TaskGroup::default();
        let (started, is_started) = oneshot::channel();
        let (finish, finished) = oneshot::channel();
        let steps = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&steps);
        tasks.spawn_critical("step", |stopping| async move {
            started.send(()).unwrap();
            stopping.cancelled().await;
            finished.await.unwrap();
            counter.fetch_add(1, SeqCst);
        });
        is_started.await.unwrap();
        let (stopping, finishing) = (tasks.stop(LONG), async {
            tokio::task::yield_now().await;
            finish.send(()).unwrap();
        });
        tokio::join!(stopping, finishing);
        assert_eq!(steps.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn overdue_task_is_dropped() {
        struct DropSignal(Option<oneshot::Sender<()>>);
        impl Drop for DropSignal {
            fn drop(&mut self) {
                self.0.take().unwrap().send(()).ok();
            }
        }
        let tasks = TaskGroup::default();
        let (dropped, is_dropped) = oneshot::channel();
        let signal = DropSignal(Some(dropped));
        tasks.spawn_critical("endless", |_| async move {
            let _signal = signal;
            std::future::pending::<()>().await;
        });
        tasks.stop(Duration::ZERO).await;
        is_dropped.await.unwrap();
    }

    #[tokio::test]
    async fn panicked_task_starts_again() {
        let failure = CriticalFailure::default();
        let tasks = TaskGroup::new(&failure);
        let (starts, running) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (counter, signal) = (Arc::clone(&starts), Arc::clone(&running));
        tasks.spawn("restarted", move |stopping| {
            let (counter, signal) = (Arc::clone(&counter), Arc::clone(&signal));
            async move {
                assert!(counter.fetch_add(1, SeqCst) > 0, "as a test");
                signal.notify_one();
                stopping.cancelled().await;
            }
        });
        running.notified().await;
        assert_eq!(starts.load(SeqCst), 2);
        tasks.stop(LONG).await;
        assert_eq!(failure.task(), None);
    }

    #[tokio::test]
    async fn panic_of_critical_task_is_reported() {
        let failure = CriticalFailure::default();
        let tasks = TaskGroup::new(&failure);
        tasks.spawn_critical("first", |_| async { panic!("as a test") });
        failure.wait().await;
        tasks.spawn_critical("second", |_| async { panic!("as a test") });
        tasks.stop(LONG).await;
        assert_eq!(failure.task(), Some("first"));
    }
}
