//! Work that computes or waits for a disk, off the threads that talk to clients.

use crate::problem::Problem;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{AcquireError, Semaphore, oneshot};
use tokio::task::spawn_blocking;
use vramfit::ggml::cuda::PoolKind;
use vramfit::{Device, Settings};

/// Tokens computed at once, above which a question is a long one: up to here an estimate was seen to take a tenth of
/// a second, with 32,768 tokens and more and a long context it took seconds.
pub const LONG_UBATCH: u32 = 8192;

/// GPUs, above which a question is a long one; CUDA's backend knows no more.
pub const LONG_GPUS: usize = 16;

/// llama-server's own.
const N_BATCH: u32 = 2048;
const N_UBATCH: u32 = 512;

/// How long a question may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// As good as no time.
    Short,
    /// Seconds: not all workers at once may have such a one.
    Long,
}

impl Length {
    /// By what drives it: the larger batch that is computed at once, the number of GPUs, and whether one has ggml-cuda's
    /// legacy pool, which is played through prompts that fill the context.
    pub fn of(settings: &Settings, gpus: &[Device]) -> Length {
        let n_batch = settings.n_batch.unwrap_or(N_BATCH);
        let n_ubatch = match settings.n_ubatch.unwrap_or(N_UBATCH) {
            0 => n_batch,
            n => n.min(n_batch),
        };
        let is_played = gpus.iter().any(|gpu| gpu.pool == PoolKind::Legacy);
        match n_ubatch > LONG_UBATCH || gpus.len() > LONG_GPUS || is_played {
            true => Length::Long,
            false => Length::Short,
        }
    }
}

/// Those who do it.
#[derive(Debug)]
pub struct Workers {
    turns: Arc<Semaphore>,
    /// One fewer, so that one worker is left for short questions.
    long_turns: Arc<Semaphore>,
    wait: Duration,
}

impl Workers {
    /// So many at once, each waiting for its turn no longer than `wait`.
    pub fn new(n: usize, wait: Duration) -> Workers {
        Workers {
            turns: Arc::new(Semaphore::new(n.max(1))),
            long_turns: Arc::new(Semaphore::new(n.saturating_sub(1).max(1))),
            wait,
        }
    }

    /// Does `task` when its turn has come. Once begun it is finished; `abandoned` gets what came of it where
    /// nobody waits for it any more.
    pub async fn run<T: Send + 'static>(
        &self,
        length: Length,
        task: impl FnOnce() -> Result<T, Problem> + Send + 'static,
        abandoned: impl FnOnce(Result<T, Problem>) + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = async {
            let long = match length {
                Length::Long => Some(self.long_turns.clone().acquire_owned().await?),
                Length::Short => None,
            };
            Ok::<_, AcquireError>((long, self.turns.clone().acquire_owned().await?))
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn long_questions_leave_a_worker_for_short_ones() {
        let workers = Arc::new(Workers::new(3, Duration::from_millis(200)));
        let (begun, begins) = mpsc::channel();
        let long = |end: mpsc::Receiver<()>| {
            let (workers, begun) = (Arc::clone(&workers), begun.clone());
            tokio::spawn(async move {
                let task = move || {
                    begun.send(()).unwrap();
                    // Until the test lets go of its end.
                    let _ = end.recv();
                    Ok(())
                };
                workers.run(Length::Long, task, drop).await
            })
        };
        let (ends, held): (Vec<_>, Vec<_>) = (0..4).map(|_| mpsc::channel::<()>()).unzip();
        let mut asked: Vec<_> = held.into_iter().map(long).collect();
        // They have all asked before this one.
        let shared = Arc::clone(&workers);
        let short = async move { shared.run(Length::Short, || Ok(()), drop).await };
        tokio::spawn(short).await.unwrap().unwrap();
        // Two are under way, and two wait in vain.
        for waits in asked.split_off(2) {
            assert_eq!(waits.await.unwrap().unwrap_err().status, 503);
        }
        for _ in 0..2 {
            begins.recv().unwrap();
        }
        assert!(begins.try_recv().is_err());
        drop(ends);
        for done in asked {
            done.await.unwrap().unwrap();
        }
    }

    #[test]
    fn what_takes_long() {
        let of = |json: &str, n: usize| {
            let gpus = vramfit::gpus(&format!("24GiBx{n}")).unwrap();
            Length::of(&Settings::from_json(json).unwrap(), &gpus)
        };
        for short in [
            "{}",
            r#"{"n_ubatch": 8192, "n_batch": 8192}"#,
            r#"{"n_batch": 1000000, "n_ctx": 1000000}"#,
            r#"{"n_ubatch": 1000000}"#,
            r#"{"n_ubatch": 0}"#,
        ] {
            assert_eq!(of(short, 16), Length::Short, "{short}");
            assert_eq!(of(short, 17), Length::Long, "{short}");
        }
        for long in [
            r#"{"n_ubatch": 8193, "n_batch": 8193}"#,
            r#"{"n_ubatch": 0, "n_batch": 100000}"#,
        ] {
            assert_eq!(of(long, 1), Length::Long, "{long}");
        }
        let legacy = vramfit::gpus("24GiB,24GiB:vmm=0").unwrap();
        assert_eq!(Length::of(&Settings::default(), &legacy), Length::Long);
    }
}
