//! Work that computes or waits for a disk, off the threads that talk to clients.

use crate::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;

/// Those who do it.
#[derive(Debug)]
pub struct Workers {
    turns: Arc<Semaphore>,
    wait: Duration,
}

impl Workers {
    /// So many at once, each waiting for its turn no longer than `wait`.
    pub fn new(n: usize, wait: Duration) -> Workers {
        Workers {
            turns: Arc::new(Semaphore::new(n.max(1))),
            wait,
        }
    }

    /// Does `task` when its turn has come. Once begun it is finished; `abandoned` gets what came of it where
    /// nobody waits for it any more.
    pub async fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> Result<T, Problem> + Send + 'static,
        abandoned: impl FnOnce(Result<T, Problem>) + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = self.turns.clone().acquire_owned();
        let turn = match tokio::time::timeout(self.wait, turn).await {
            Ok(Ok(turn)) => turn,
            _ => return Err(Problem::busy("its turn did not come in time")),
        };
        let (send, receive) = oneshot::channel();
        spawn_blocking(move || {
            let _turn = turn;
            if let Err(unheard) = send.send(task()) {
                abandoned(unheard);
            }
        });
        let answer = receive.await;
        answer.unwrap_or_else(|_| {
            Err(Problem::internal(
                "the request was dropped: this is a fault of vramfit",
            ))
        })
    }
}

/// Short work on the ledger, which may wait for a disk.
pub async fn quick<T: Send + 'static>(
    task: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let done = spawn_blocking(task).await;
    done.unwrap_or_else(|_| {
        Err(Problem::internal(
            "the request was dropped: this is a fault of vramfit",
        ))
    })
}
