//! Node lists, the engine's and ours, in one form: what is compared, and where they part.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use vramfit_estimate::{NodeRow, RowKind};

/// Rows by kind and number; a dependency has its node's.
pub type Table = BTreeMap<(RowKind, usize), Line>;

/// One row: what is compared of it, and ggml's name of the tensor, which ours has not.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub name: String,
    pub op: String,
    pub ty: String,
    pub ne: String,
    pub flags: String,
    pub view: String,
    pub sources: String,
    pub backend: String,
}

impl PartialEq for Line {
    fn eq(&self, other: &Line) -> bool {
        self.cells() == other.cells()
    }
}

impl Line {
    fn cells(&self) -> [&str; 7] {
        [
            &self.op,
            &self.ty,
            &self.ne,
            &self.flags,
            &self.view,
            &self.sources,
            &self.backend,
        ]
    }

    /// For a person to read.
    pub fn text(&self) -> String {
        let cells = self.cells().map(|cell| match cell {
            "" => "-",
            cell => cell,
        });
        format!("{} {}", cells.join("  "), self.name)
            .trim_end()
            .to_string()
    }
}

/// Both passes as the engine built them, from the compact form of `fixtures/graphs`: the generation
/// pass is stored as what differs.
pub fn engine_tables(text: &str) -> [Table; 2] {
    let mut prompt: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut generation = None;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let f: Vec<&str> = line.split('\t').collect();
        if f[1] == "graph" {
            continue;
        }
        if f[0] == "pp" {
            let count = counts.entry(f[1].to_string()).or_default();
            let id = if f[2].is_empty() {
                format!("{}{count}", &f[1][..1])
            } else {
                f[2].into()
            };
            *count += 1;
            let row = f[3..].iter().map(|s| s.to_string()).collect();
            prompt.insert((f[1].to_string(), id), row);
            continue;
        }
        if f[0] != "tg" {
            continue;
        }
        let table = generation.get_or_insert_with(|| prompt.clone());
        match f[1] {
            "=" => {
                let kind = if f[2].starts_with('l') {
                    "leaf"
                } else {
                    "node"
                };
                let row = table
                    .get_mut(&(kind.to_string(), f[2].to_string()))
                    .unwrap();
                (row[3], row[5]) = (f[3].to_string(), f[4].to_string());
            }
            "-" => {
                table.remove(&(f[2].to_string(), f[3].to_string()));
            }
            kind => {
                let row = f[3..].iter().map(|s| s.to_string()).collect();
                table.insert((kind.to_string(), f[2].to_string()), row);
            }
        }
    }
    let generation = generation.unwrap_or_else(|| prompt.clone());
    [prompt, generation].map(|t| {
        t.iter()
            .map(|((kind, id), row)| line(kind, id, row))
            .collect()
    })
}

fn line(kind: &str, id: &str, row: &[String]) -> ((RowKind, usize), Line) {
    let [op, name, ty, ne, flags, view, sources, backend] = row else {
        panic!("{row:?}")
    };
    let given = |s: &str| {
        if s == "-" {
            String::new()
        } else {
            s.to_string()
        }
    };
    let sources = given(sources);
    let number = id[1..].parse().unwrap();
    let split = |op: &str| Line {
        op: op.to_string(),
        sources: sources.clone(),
        backend: backend.clone(),
        ..Line::default()
    };
    match kind {
        "split" => ((RowKind::Split, number), split(name)),
        "dep" => {
            // The copy of a tensor on another backend has no row, and so no number.
            let known = |id: &str| if id.starts_with('?') { "" } else { id }.to_string();
            let numbers: Vec<String> = sources.split(',').map(known).collect();
            let line = Line {
                sources: numbers.join(","),
                backend: String::new(),
                ..split("")
            };
            ((RowKind::Dependency, number), line)
        }
        _ => {
            let kind = if kind == "leaf" {
                RowKind::Leaf
            } else {
                RowKind::Node
            };
            let flags: Vec<&str> = flags.split(',').filter(|f| *f != "nocompute").collect();
            let (view, _) = view.split_once('+').unwrap_or((view, ""));
            let line = Line {
                name: name.clone(),
                op: op.clone(),
                ty: ty.clone(),
                ne: ne.clone(),
                flags: given(&flags.join(",")),
                view: given(view),
                sources,
                backend: given(backend),
            };
            ((kind, number), line)
        }
    }
}

/// What vramfit built, in the same form.
pub fn our_table(rows: &[NodeRow]) -> Table {
    let line = |r: &NodeRow| {
        let sources = r.sources.join(",");
        let tensor = matches!(r.kind, RowKind::Leaf | RowKind::Node);
        let line = Line {
            name: String::new(),
            op: r.op.clone(),
            ty: r.ty.clone(),
            ne: if tensor {
                r.ne.map(|n| n.to_string()).join(",")
            } else {
                String::new()
            },
            flags: r.flags.join(","),
            view: r.view.clone().unwrap_or_default(),
            sources,
            backend: if r.kind == RowKind::Dependency {
                String::new()
            } else {
                r.backend.clone()
            },
        };
        ((r.kind, r.id[1..].parse().unwrap()), line)
    };
    rows.iter().map(line).collect()
}

/// Where two node lists part: the first node, else the first leaf, split or dependency.
pub fn first_difference(engine: &Table, ours: &Table) -> Option<(RowKind, usize)> {
    // One leaf more shifts the numbers of all that follow, so what a leaf is stands for its number at first.
    let spelled = |table: &Table, node: &Line| {
        let leaf = |id: &str| {
            let number: Option<usize> = id.strip_prefix('l').and_then(|n| n.parse().ok());
            let leaf = number.and_then(|n| table.get(&(RowKind::Leaf, n)));
            leaf.map_or_else(
                || id.to_string(),
                |l| format!("{}:{}:{}:{}", l.ty, l.ne, l.flags, l.backend),
            )
        };
        let sources: Vec<String> = node.sources.split(',').map(leaf).collect();
        Line {
            sources: sources.join(","),
            view: leaf(&node.view),
            ..node.clone()
        }
    };
    let all = || {
        let mut keys: Vec<_> = engine.keys().chain(ours.keys()).copied().collect();
        keys.sort();
        keys.dedup();
        keys
    };
    let by_content = all()
        .into_iter()
        .filter(|k| k.0 == RowKind::Node)
        .find(|k| match (engine.get(k), ours.get(k)) {
            (Some(theirs), Some(our)) => spelled(engine, theirs) != spelled(ours, our),
            _ => true,
        });
    by_content.or_else(|| {
        let mut differing = all().into_iter().filter(|k| engine.get(k) != ours.get(k));
        differing.next()
    })
}

/// The rows around `at` on both sides, those that are equal once.
pub fn around(engine: &Table, ours: &Table, at: (RowKind, usize), context: usize) -> String {
    let (kind, number) = at;
    let prefix = match kind {
        RowKind::Leaf => "l",
        RowKind::Node => "n",
        RowKind::Split => "s",
        RowKind::Dependency => "dep n",
    };
    let mut text = String::new();
    let mut put = |who: &str, n: usize, line: Option<&Line>| {
        let line = line.map_or_else(|| "nothing".to_string(), Line::text);
        let _ = writeln!(text, "  {who:<6} {prefix}{n:<5} {line}");
    };
    for n in number.saturating_sub(context)..=number + context {
        match (engine.get(&(kind, n)), ours.get(&(kind, n))) {
            (None, None) if n != number => {}
            (theirs, our) if theirs == our => put("both", n, theirs),
            (theirs, our) => {
                put("engine", n, theirs);
                put("ours", n, our);
            }
        }
    }
    text
}
