//! `graph_optimize` of the CUDA backend: operations it will fuse read their sources until the last
//! of them is done, so the allocator must keep those alive. Nothing is reordered.

use crate::graph::Tensor;
use crate::{Flags, Graph, Op, TensorId, Type, Unary};
use std::ops::Range;

/// Most experts of a token that the fused sum takes.
const MAX_REDUCED_EXPERTS: i64 = 15;

/// Whether [`graph_optimize`] has anything to look for.
pub(crate) fn has_experts(graph: &Graph, nodes: &[(usize, TensorId)]) -> bool {
    nodes.iter().any(|&(_, t)| graph[t].op == Op::MulMatId)
}

/// Adds `(position of the node to wait for, tensor to keep)` for the nodes of one split. `uses`
/// counts the users of each tensor in the graph as built, before copies.
pub(crate) fn graph_optimize(
    graph: &Graph,
    nodes: &[TensorId],
    split: Range<usize>,
    uses: &[u32],
    kept: &mut Vec<(usize, TensorId)>,
) {
    let matcher = Matcher { graph, uses };
    let mut i = split.start;
    while i < split.end {
        if graph[nodes[i]].op == Op::Mul
            && let Some(sum) = matcher.weighted_sum(&nodes[i..split.end])
        {
            let last = i + sum.n_nodes - 1;
            kept.extend(
                [Some(sum.experts), Some(sum.weights), sum.scale]
                    .iter()
                    .flatten()
                    .map(|&t| (last, t)),
            );
            i = last;
        }
        if let Some(n) = matcher.top_k(&nodes[i..split.end]) {
            // Until the node behind the fused ones, even where the next split begins.
            let after = i + n;
            if after < nodes.len() {
                for &node in &nodes[i..after] {
                    kept.push((after, node));
                    kept.extend(graph[node].sources().iter().map(|&s| (after, s)));
                }
            }
            i = after - 1;
        }
        i += 1;
    }
}

struct WeightedSum {
    experts: TensorId,
    weights: TensorId,
    scale: Option<TensorId>,
    n_nodes: usize,
}

struct Matcher<'a> {
    graph: &'a Graph,
    uses: &'a [u32],
}

fn is_plain_f32(t: &Tensor) -> bool {
    t.ty == Type::F32 && t.is_contiguous()
}

impl Matcher<'_> {
    /// `ggml_can_fuse_subgraph_ext`: nodes but the outputs are needed by each other alone.
    fn can_fuse(&self, nodes: &[TensorId], outputs: &[usize]) -> bool {
        nodes.iter().enumerate().all(|(i, &t)| {
            if outputs.contains(&i) {
                return true;
            }
            let node = &self.graph[t];
            let users = nodes[i + 1..].iter().flat_map(|&n| self.graph[n].sources());
            let inner = users.filter(|&&s| s == t).count();
            let view_is_inner = node
                .view_src()
                .is_none_or(|v| nodes.contains(&v) || self.graph[v].flags.contains(Flags::WEIGHT));
            !node.flags.contains(Flags::OUTPUT)
                && inner as u32 == self.uses[t.index()]
                && view_is_inner
        })
    }

    /// The two sources of `product = full * column`, whichever way round they stand.
    fn full_and_column(&self, product: TensorId) -> Option<(TensorId, TensorId)> {
        let &[a, b] = self.graph[product].sources() else {
            return None;
        };
        let ne = self.graph[product].ne;
        let is_full = |t: TensorId| is_plain_f32(&self.graph[t]) && self.graph[t].ne == ne;
        let is_column = |t: TensorId| {
            let x = &self.graph[t];
            is_plain_f32(x) && x.ne[0] == 1 && x.ne[1..] == ne[1..]
        };
        if is_full(a) && is_column(b) {
            Some((a, b))
        } else if is_full(b) && is_column(a) {
            Some((b, a))
        } else {
            None
        }
    }

    /// Experts times their weights (and before that, perhaps, a scale), summed over the experts:
    /// MUL, [MUL], then a VIEW an expert and the ADDs between them.
    fn weighted_sum(&self, nodes: &[TensorId]) -> Option<WeightedSum> {
        if !is_plain_f32(&self.graph[nodes[0]]) {
            return None;
        }
        let (weighted, n_muls, experts, weights, scale) = self.weighting(nodes)?;
        let w = &self.graph[weighted];
        let (n_used, n_tokens) = (w.ne[1], w.ne[2].saturating_mul(w.ne[3]));
        if !(2..=MAX_REDUCED_EXPERTS).contains(&n_used) || n_tokens <= 0 {
            return None;
        }
        let n_nodes = n_muls + 2 * n_used as usize - 1;
        let sum = self.sum_of_views(nodes.get(n_muls..n_nodes)?, weighted)?;
        let sum = &self.graph[sum];
        let fits = sum.is_contiguous() && sum.ne == [w.ne[0], n_tokens, 1, 1];
        (fits && self.can_fuse(&nodes[..n_nodes], &[n_nodes - 1])).then_some(WeightedSum {
            experts,
            weights,
            scale,
            n_nodes,
        })
    }

    /// One or two chained products: the last, how many, experts, weights and scale.
    #[allow(clippy::type_complexity)]
    fn weighting(
        &self,
        nodes: &[TensorId],
    ) -> Option<(TensorId, usize, TensorId, TensorId, Option<TensorId>)> {
        if let Some(&second) = nodes.get(1)
            && self.graph[second].op == Op::Mul
            && is_plain_f32(&self.graph[second])
            && let Some((scaled, weights)) = self.full_and_column(second)
            && scaled == nodes[0]
            && let Some((experts, scale)) = self.full_and_column(nodes[0])
        {
            return Some((second, 2, experts, weights, Some(scale)));
        }
        let (experts, weights) = self.full_and_column(nodes[0])?;
        Some((nodes[0], 1, experts, weights, None))
    }

    /// `nodes` are one VIEW an expert of `weighted` and ADDs that sum them in order.
    fn sum_of_views(&self, nodes: &[TensorId], weighted: TensorId) -> Option<TensorId> {
        let w = &self.graph[weighted];
        let (n_used, n_tokens) = (w.ne[1] as usize, w.ne[2].saturating_mul(w.ne[3]));
        let (mut views, mut sum, mut n_adds) = (Vec::with_capacity(n_used), None, 0);
        for &node in nodes {
            let t = &self.graph[node];
            match t.op {
                Op::View => {
                    let is_expert = t.source(0) == Some(weighted)
                        && t.view_src() == Some(weighted)
                        && t.ne == [w.ne[0], n_tokens, 1, 1]
                        && t.nb[0] == w.nb[0]
                        && t.nb[1] == w.nb[2];
                    if views.len() >= n_used || !is_expert {
                        return None;
                    }
                    views.push(node);
                }
                Op::Add => {
                    let left = sum.or(views.first().copied())?;
                    let right = *views.get(n_adds + 1)?;
                    if t.sources() != [left, right] || t.ty != Type::F32 {
                        return None;
                    }
                    sum = Some(node);
                    n_adds += 1;
                }
                _ => return None,
            }
        }
        if views.len() == n_used && n_adds + 1 == n_used {
            sum
        } else {
            None
        }
    }

    /// `ggml_cuda_topk_moe_fusion`: probabilities, their top k and the weights made of them. The
    /// number of nodes that are fused.
    fn top_k(&self, nodes: &[TensorId]) -> Option<usize> {
        let gate = &self.graph[nodes[0]];
        let at = Chain {
            graph: self.graph,
            nodes,
        };
        let (probs, n) = match gate.op {
            Op::SoftMax | Op::Unary(Unary::Sigmoid) => (nodes[0], 1),
            Op::Unary(Unary::Softplus) => (at.next(1, Op::Sqrt, &[nodes[0]])?, 2),
            _ => return None,
        };
        let flat = at.next(n, Op::Reshape, &[probs])?;
        let biased = at.next(n + 1, Op::Add, &[probs]);
        let mut i = n + 1 + biased.is_some() as usize;
        let sorted = at.next(i, Op::Argsort, &[biased.unwrap_or(probs)])?;
        let ids_at = i + 1;
        let ids = at.next(ids_at, Op::View, &[sorted])?;
        let mut weights = at.next(i + 2, Op::GetRows, &[flat, ids])?;
        i += 3;
        if let Some(normed) = at.normalisation(i, weights) {
            weights = normed;
            i += 5;
        }
        if let Some(scaled) = at.next(i, Op::Scale, &[weights]) {
            weights = scaled;
            i += 1;
        }
        let fits =
            self.can_fuse(&nodes[..i], &[ids_at, i - 1]) && self.kernel_exists(gate, weights, ids);
        fits.then_some(i)
    }

    /// `ggml_cuda_should_use_topk_moe`.
    fn kernel_exists(&self, gate: &Tensor, weights: TensorId, ids: TensorId) -> bool {
        let ids = &self.graph[ids];
        let n_expert = ids.nb[1] / ids.nb[0].max(1);
        let Some(logits) = gate.source(0) else {
            return false;
        };
        let plain_softmax = gate.op != Op::SoftMax || gate.sources().len() == 1;
        ((n_expert.is_power_of_two() && n_expert <= 512) || n_expert == 288 || n_expert == 576)
            && self.graph[weights].is_contiguous()
            && self.graph[logits].is_contiguous()
            && plain_softmax
    }
}

/// Consecutive nodes, matched by operation and sources.
struct Chain<'a> {
    graph: &'a Graph,
    nodes: &'a [TensorId],
}

impl Chain<'_> {
    /// The i-th node, if it is `op` of just these first sources.
    fn next(&self, i: usize, op: Op, src: &[TensorId]) -> Option<TensorId> {
        let &node = self.nodes.get(i)?;
        let t = &self.graph[node];
        (t.op == op && t.sources().starts_with(src)).then_some(node)
    }

    /// RESHAPE, SUM_ROWS, CLAMP, DIV, RESHAPE: weights that add up to one.
    fn normalisation(&self, i: usize, weights: TensorId) -> Option<TensorId> {
        let flat = self.next(i, Op::Reshape, &[weights])?;
        let sum = self.next(i + 1, Op::SumRows, &[flat])?;
        let clamped = self.next(i + 2, Op::Clamp, &[sum])?;
        let normed = self.next(i + 3, Op::Div, &[flat, clamped])?;
        self.next(i + 4, Op::Reshape, &[normed])
    }
}
