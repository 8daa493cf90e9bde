//! The GPUs and what this process does with them, behind one lock; the first call of any kind reads the environment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard};

use crate::settings::Settings;
use crate::shared::{Shared, Use};
use crate::spec::Spec;
use crate::state::{Counters, Live};

/// What a program is given to exit with where the environment cannot be understood, as for a bad command line.
const BAD_SETTINGS: i32 = 65;

/// The GPUs and what has become of them, for all of this process.
pub(crate) struct World {
    pub settings: Settings,
    /// Kernels launched, by place in the list.
    launches: Vec<AtomicU64>,
    /// `cuInit` has been called, or a call of the runtime.
    pub started: AtomicBool,
    live: Mutex<Live>,
}

static WORLD: LazyLock<World> = LazyLock::new(World::new);

/// The GPUs. The first call reads the environment; a process that cannot be played to ends there.
pub(crate) fn world() -> &'static World {
    &WORLD
}

extern "C" fn report_at_exit() {
    world().report();
}

fn give_up(why: &str) -> ! {
    eprintln!("vgpu: {why}");
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(BAD_SETTINGS) }
}

impl World {
    fn new() -> Self {
        let settings = Settings::from_environment().unwrap_or_else(|why| give_up(&why));
        let shared = settings
            .state
            .as_ref()
            .map(|path| match Shared::open(path) {
                Ok(shared) => shared,
                Err(error) => give_up(&format!("VGPU_STATE {}: {error}", path.display())),
            });
        if settings.report {
            // SAFETY: the function takes nothing and outlives the process's exit.
            unsafe { libc::atexit(report_at_exit) };
        }
        let count = settings.devices.len();
        World {
            launches: (0..count).map(|_| AtomicU64::new(0)).collect(),
            started: AtomicBool::new(false),
            live: Mutex::new(Live::new(count, shared)),
            settings,
        }
    }

    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn spec(&self, place: usize) -> Option<&Spec> {
        self.settings.devices.get(place)
    }

    /// The place of a CUDA device.
    pub fn cuda_place(&self, ordinal: i32) -> Option<usize> {
        self.settings
            .cuda
            .get(usize::try_from(ordinal).ok()?)
            .copied()
    }

    pub fn launched(&self, place: usize) {
        if let Some(count) = self.launches.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn launches(&self, place: usize) -> u64 {
        self.launches
            .get(place)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// A line of `VGPU_TRACE=1`; `place` is `None` for host memory.
    pub fn trace(&self, place: Option<usize>, line: impl FnOnce() -> String) {
        if self.settings.trace {
            match place {
                Some(place) => eprintln!("vgpu[{place}] {}", line()),
                None => eprintln!("vgpu[host] {}", line()),
            }
        }
    }

    /// The summary of `VGPU_REPORT`.
    pub fn report(&self) {
        let live = self.live();
        for (place, (device, spec)) in live.devices.iter().zip(&self.settings.devices).enumerate() {
            eprintln!(
                "vgpu[{place}] {}: cudaMalloc live {} peak {} (2MiB-rounded peak {}, {} calls), vmm live {} peak {}, kernels {}",
                spec.name,
                device.asked,
                device.asked_peak,
                device.rounded_peak,
                device.calls,
                device.vmm,
                device.vmm_peak,
                self.launches(place)
            );
        }
        eprintln!(
            "vgpu pinned host live {} peak {}",
            live.pinned, live.pinned_peak
        );
    }

    /// Free and total memory of a GPU, as CUDA answers.
    pub fn free_and_total(&self, place: usize) -> (u64, u64) {
        let live = self.live();
        let Some(spec) = self.spec(place) else {
            return (0, 0);
        };
        let own = live.devices.get(place).map_or(0, |device| device.charged);
        let others = live
            .shared
            .as_ref()
            .map_or(0, |shared| shared.others(place));
        (
            spec.free_bytes.saturating_sub(own.saturating_add(others)),
            spec.total_bytes,
        )
    }

    /// What each process uses of a GPU: this one alone without `VGPU_STATE`.
    pub fn uses(&self, place: usize) -> Vec<Use> {
        let live = self.live();
        if let Some(shared) = &live.shared {
            return shared.uses(place);
        }
        let own = |device: &Counters| Use {
            pid: std::process::id(),
            bytes: device.charged,
            contexts: device.contexts,
        };
        live.devices.get(place).map(own).into_iter().collect()
    }
}
