//! A legacy pool whose requests are known, and not their order.

use super::legacy::{GRANULARITY, LOOK_AHEAD, Routes, new_buffer, operation};
use super::{Attention, Buffers, Cuda};
use crate::{Graph, TensorId};
use std::collections::BTreeSet;

/// What operations ask for, where it is not known in which order.
///
/// A new buffer means that none of those in the pool that were not in use was large enough. So of
/// any buffers, one more than an operation holds at once, the smallest is smaller than some request
/// that made another: by their size the buffers fall, in steps of that many, at least as fast as
/// requests that each outgrow the buffer of the one before.
#[derive(Clone, Debug, Default)]
pub struct AnyOrder {
    pub(super) sizes: BTreeSet<u64>,
    most_at_once: usize,
}

impl AnyOrder {
    /// `nodes` are among what is computed.
    pub fn compute(
        &mut self,
        cuda: &Cuda,
        graph: &Graph,
        nodes: impl IntoIterator<Item = TensorId>,
    ) {
        let mut attention = Attention::new(cuda);
        for node in nodes {
            let operate = |buffers: Buffers, _| {
                self.sizes.extend(buffers.iter());
                self.hold_at_once(buffers.n);
            };
            operation(
                cuda,
                graph,
                node,
                Routes::Ascending,
                &mut attention,
                operate,
            );
        }
    }

    /// What `other` asked for was asked for, too.
    pub fn join(&mut self, other: &AnyOrder) {
        self.sizes.extend(&other.sizes);
        self.hold_at_once(other.most_at_once);
    }

    /// The largest request, bytes.
    pub fn largest(&self) -> u64 {
        self.sizes.last().copied().unwrap_or(0)
    }

    /// The largest request that only one of both has, bytes.
    pub fn largest_apart(&self, other: &AnyOrder) -> u64 {
        let apart = self.sizes.symmetric_difference(&other.sizes);
        apart.max().copied().unwrap_or(0)
    }

    /// Some operation holds `n` buffers at once.
    pub fn hold_at_once(&mut self, n: usize) {
        self.most_at_once = self.most_at_once.max(n);
    }

    /// The most that a pool holds when beside what was counted anything up to `any_bytes` may be
    /// asked for.
    pub fn bytes(&self, any_bytes: u64) -> u64 {
        let (mut sum, mut last) = (0u64, u64::MAX);
        for &bytes in self
            .sizes
            .iter()
            .rev()
            .take_while(|&&bytes| bytes > any_bytes)
        {
            let new = new_buffer(bytes);
            if new < last {
                sum = sum.saturating_add(new);
                last = bytes;
            }
        }
        self.at_once(sum.saturating_add(ladder(any_bytes)))
    }

    /// What it cannot do without, see [`Demands::least`].
    pub fn least(&self, any_bytes: u64) -> u64 {
        self.at_once(new_buffer(self.largest().max(any_bytes)))
    }

    fn at_once(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.most_at_once as u64)
    }
}

/// Buffers for requests up to `bytes` that each outgrow the buffer of the one before.
fn ladder(bytes: u64) -> u64 {
    let (mut sum, mut request) = (0u64, bytes);
    while request > 0 {
        sum = sum.saturating_add(new_buffer(request));
        // the largest whose buffer is smaller than this request
        request = request.saturating_sub(1) / GRANULARITY * GRANULARITY;
        request = (request as f64 / LOOK_AHEAD) as u64;
    }
    sum
}
