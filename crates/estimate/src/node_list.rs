//! The graph that llama.cpp would build, row by row: to be held against the engine's own dump.

use crate::breakdown::Pass;
use crate::simulate::Context;
use crate::{EngineProfile, Error, Layout, RunConfig};
use vramfit_arch::{Model, build};
use vramfit_ggml::{BackendId, Flags, Graph, Schedule, Scheduler, TensorId};

/// What a row stands for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RowKind {
    /// A tensor without an operation.
    Leaf,
    /// An operation.
    Node,
    /// Nodes that run on one backend without a break.
    Split,
    /// Tensors that are kept until a node is done.
    Dependency,
}

/// One row. Tensors are `l0, l1, ..` and `n0, n1, ..` in the order of the graph.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRow {
    /// What it stands for.
    pub kind: RowKind,
    /// Its own id; of a dependency the node that is waited for.
    pub id: String,
    /// ggml's name of the operation; of a split its first and last node.
    pub op: String,
    /// Element type.
    pub ty: String,
    /// Elements.
    pub ne: [i64; 4],
    /// `input`, `output`, `held` (has memory before the graph is built), in that order.
    pub flags: Vec<&'static str>,
    /// What it is a view of.
    pub view: Option<String>,
    /// Sources as built; the inputs of a split; what is kept.
    pub sources: Vec<String>,
    /// `CUDA<i>` by the layout's devices, or `CPU`.
    pub backend: String,
}

/// The rows of one pass.
pub fn node_list(
    model: &Model,
    run: &RunConfig,
    layout: &Layout,
    profile: &EngineProfile,
    pass: Pass,
) -> Result<Vec<NodeRow>, Error> {
    let context = Context::new(model, run, layout, profile)?;
    let mut graph = build(
        context.model,
        &context.params,
        &context.weights,
        context.batch(pass),
    )?
    .graph;
    let scheduler = Scheduler {
        backends: &context.backends,
        n_copies: context.n_copies,
        op_offload: context.params.op_offload,
    };
    Ok(rows(&mut graph, &scheduler))
}

/// The rows of a graph, split by `scheduler`.
pub(crate) fn rows(graph: &mut Graph, scheduler: &Scheduler<'_>) -> Vec<NodeRow> {
    let ids = Ids::of(graph);
    let mut rows = tensor_rows(graph, &ids);
    let schedule = scheduler.split(graph);
    let backend = |b: BackendId| match scheduler.backends[b.index()].buffer_type().device_index() {
        Some(i) => format!("CUDA{i}"),
        None => "CPU".to_string(),
    };
    for (row, &t) in rows.iter_mut().zip(graph.leafs.iter().chain(&graph.nodes)) {
        row.backend = schedule.backend_of(t).map_or_else(String::new, backend);
    }
    rows.extend(schedule_rows(graph, &schedule, &ids, &backend));
    rows
}

/// Names of tensors by index.
struct Ids(Vec<String>);

impl Ids {
    fn of(graph: &Graph) -> Ids {
        let mut ids = vec![String::new(); graph.tensors().len()];
        for (prefix, list) in [("l", &graph.leafs), ("n", &graph.nodes)] {
            for (i, t) in list.iter().enumerate() {
                ids[t.index()] = format!("{prefix}{i}");
            }
        }
        Ids(ids)
    }

    fn get(&self, t: TensorId) -> String {
        self.0.get(t.index()).cloned().unwrap_or_default()
    }
}

fn tensor_rows(graph: &Graph, ids: &Ids) -> Vec<NodeRow> {
    let kinds = graph.leafs.iter().map(|&t| (RowKind::Leaf, t));
    let kinds = kinds.chain(graph.nodes.iter().map(|&t| (RowKind::Node, t)));
    kinds
        .map(|(kind, t)| {
            let tensor = &graph[t];
            let memory = tensor.view_src().map_or(tensor.buffer, |v| graph[v].buffer);
            let marks = [
                ("input", tensor.flags.contains(Flags::INPUT)),
                ("output", tensor.flags.contains(Flags::OUTPUT)),
                ("held", memory.is_some()),
            ];
            NodeRow {
                kind,
                id: ids.get(t),
                op: tensor.op.name().to_string(),
                ty: tensor.ty.name().to_string(),
                ne: tensor.ne,
                flags: marks
                    .iter()
                    .filter(|(_, set)| *set)
                    .map(|(name, _)| *name)
                    .collect(),
                view: tensor.view_src().map(|v| ids.get(v)),
                sources: tensor.sources().iter().map(|&s| ids.get(s)).collect(),
                backend: String::new(),
            }
        })
        .collect()
}

fn schedule_rows(
    graph: &Graph,
    schedule: &Schedule,
    ids: &Ids,
    backend: &impl Fn(BackendId) -> String,
) -> Vec<NodeRow> {
    let row = |kind, id, op, sources: Vec<String>, backend| NodeRow {
        kind,
        id,
        op,
        ty: String::new(),
        ne: [0; 4],
        flags: Vec::new(),
        view: None,
        sources,
        backend,
    };
    let mut rows = Vec::new();
    for (i, split) in schedule.splits.iter().enumerate() {
        let op = format!(
            "n{}..n{}",
            split.nodes.start,
            split.nodes.end.saturating_sub(1)
        );
        let inputs = split.inputs.iter().map(|&t| ids.get(t)).collect();
        rows.push(row(
            RowKind::Split,
            format!("s{i}"),
            op,
            inputs,
            backend(split.backend),
        ));
    }
    let mut dependencies = schedule.dependencies.as_slice();
    while let Some(&(until, _)) = dependencies.first() {
        let n = dependencies.iter().take_while(|(u, _)| *u == until).count();
        let mut kept: Vec<String> = Vec::new();
        for &(_, t) in &dependencies[..n] {
            let id = ids.get(t);
            if !kept.contains(&id) {
                kept.push(id);
            }
        }
        let node = graph.nodes[until];
        let home = schedule.backend_of(node).map_or_else(String::new, backend);
        rows.push(row(
            RowKind::Dependency,
            ids.get(node),
            String::new(),
            kept,
            home,
        ));
        dependencies = &dependencies[n..];
    }
    rows
}
