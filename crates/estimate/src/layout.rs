//! Which layer goes where (`llama_model_base::load_tensors`).

use vramfit_arch::TensorOverride;
use vramfit_ggml::cuda::PoolKind;
use vramfit_ggml::{BufferType, ComputeCapability};

/// A device as llama.cpp sees it, but for its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayoutDevice {
    /// Decides which kernels run.
    pub compute_capability: ComputeCapability,
    /// Shares the host's memory.
    pub integrated: bool,
    /// Streaming multiprocessors; `None` where not known: the runtime pool is then a bound.
    pub sm_count: Option<u32>,
    /// How its temporary buffers are kept.
    pub pool: PoolKind,
}

impl LayoutDevice {
    /// A card of its own memory.
    pub fn new(compute_capability: ComputeCapability) -> LayoutDevice {
        LayoutDevice {
            compute_capability,
            integrated: false,
            sm_count: None,
            pool: PoolKind::Vmm,
        }
    }
}

/// The placement to score: everything that llama.cpp's flags say about layers and devices.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Devices in use, in order. With `-sm none` the main GPU alone.
    pub devices: Vec<LayoutDevice>,
    /// `-ngl`: layers on devices, counted from the output layer back; `None` for all.
    pub n_gpu_layers: Option<u32>,
    /// `-ts`: shares of the devices. llama.cpp's own default is their free bytes. Ignored unless
    /// some share is above 0; then missing ones count as 0.
    pub tensor_split: Vec<f32>,
    /// `-ot`, `-cmoe`, `-ncmoe`, in order; the first match counts.
    pub overrides: Vec<TensorOverride>,
    /// `-sm tensor`: the devices are one to the scheduler, and tensors are shared out over them.
    pub split_tensors: bool,
}

impl Layout {
    /// Everything on the host.
    pub fn host() -> Layout {
        Layout::default()
    }

    /// `n_gpu_layers()` of a model of `n_layer_all` layers and an output layer.
    pub fn gpu_layers(&self, n_layer_all: usize) -> usize {
        self.n_gpu_layers.map_or(n_layer_all + 1, |n| n as usize)
    }

    /// Shares as llama.cpp cumulates and normalises them, in its own precision.
    fn split_points(&self) -> Vec<f32> {
        let n = self.devices.len();
        let given = self.tensor_split.iter().any(|&x| x != 0.0);
        let share = |i: usize| {
            if given {
                self.tensor_split.get(i).copied().unwrap_or(0.0)
            } else {
                1.0
            }
        };
        let mut sum = 0.0f32;
        let mut points: Vec<f32> = (0..n)
            .map(|i| {
                sum += share(i);
                sum
            })
            .collect();
        points.iter_mut().for_each(|p| *p /= sum);
        points
    }

    /// Memory of each layer; the output layer is the last entry.
    pub fn layer_buffers(&self, n_layer_all: usize) -> Vec<BufferType> {
        let n_gpu_layers = self.gpu_layers(n_layer_all);
        let points = match self.split_tensors {
            true if !self.devices.is_empty() => vec![1.0],
            _ => self.split_points(),
        };
        let first = (n_layer_all + 1).saturating_sub(n_gpu_layers);
        let active = if points.is_empty() {
            0
        } else {
            n_gpu_layers.min(n_layer_all + 1)
        };
        let buffer = |il: usize| {
            if il < first || il - first >= active {
                return BufferType::HOST;
            }
            let at = (il - first) as f32 / active as f32;
            // upper_bound: the first device whose share ends behind this layer
            let device = points.partition_point(|&p| p <= at);
            BufferType::device(device.min(points.len() - 1))
        };
        (0..=n_layer_all).map(buffer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(n_devices: usize, ngl: Option<u32>, split: &[f32]) -> Layout {
        let device = LayoutDevice {
            compute_capability: ComputeCapability(860),
            integrated: false,
            sm_count: None,
            pool: PoolKind::Vmm,
        };
        Layout {
            devices: vec![device; n_devices],
            n_gpu_layers: ngl,
            tensor_split: split.to_vec(),
            ..Layout::default()
        }
    }

    fn counts(layout: &Layout, n_layer: usize) -> Vec<usize> {
        let buffers = layout.layer_buffers(n_layer);
        let on = |b| buffers.iter().filter(|&&x| x == b).count();
        let devices = (0..layout.devices.len()).map(|i| on(BufferType::device(i)));
        devices.chain([on(BufferType::HOST)]).collect()
    }

    #[test]
    fn layers_follow_the_shares() {
        // 48 blocks and the output layer are 49 placements
        assert_eq!(counts(&layout(1, None, &[]), 48), [49, 0]);
        assert_eq!(counts(&layout(2, None, &[25.0, 24.0]), 48), [25, 24, 0]);
        assert_eq!(counts(&layout(2, Some(10), &[1.0, 0.0]), 48), [10, 0, 39]);
        assert_eq!(counts(&layout(0, None, &[]), 48), [49]);
    }

    #[test]
    fn whole_shares_are_exact_for_every_count() {
        for a in 0..=97u8 {
            let shares = [f32::from(a), f32::from(97 - a)];
            let want = [usize::from(a), usize::from(97 - a), 0];
            assert_eq!(counts(&layout(2, None, &shares), 96), want);
        }
    }
}
