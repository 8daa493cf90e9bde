//! The tables of what pools grew to in real decodes.

/// What was measured of a GPU: pool and workspace, or both together.
#[derive(Clone, Copy, Debug)]
pub enum Measured {
    Apart([u64; 2]),
    Together(u64),
}

impl Measured {
    fn max(self, other: Measured) -> Measured {
        match (self, other) {
            (Measured::Apart([a, b]), Measured::Apart([c, d])) => {
                Measured::Apart([a.max(c), b.max(d)])
            }
            (Measured::Together(a), Measured::Together(b)) => Measured::Together(a.max(b)),
            _ => panic!("figures of two kinds"),
        }
    }

    pub fn read(text: &str) -> Measured {
        match text.split_once('/') {
            Some((pool, workspace)) => {
                Measured::Apart([pool, workspace].map(|n| n.parse().unwrap()))
            }
            None => Measured::Together(text.parse().unwrap()),
        }
    }
}

/// The figures of a table: a row's line, and what was measured of each GPU unless the engine stopped. Rows that differ
/// in the sequences that were decoded alone, one or all side by side, are one figure: the most.
pub fn figures(text: &str) -> Vec<(&str, Option<Vec<Measured>>)> {
    let mut all: Vec<(&str, Option<Vec<Measured>>)> = Vec::new();
    let mut last = None;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let measured = measured(line);
        // all that is before the prompts' tokens
        let of = line.split_once(" --decode-seqs ");
        let of = of.and_then(|(before, _)| before.rsplit_once(' '));
        match all.last_mut() {
            Some((_, most)) if of.is_some() && of.map(|o| o.0) == last => {
                *most = most.take().zip(measured).map(|(a, b)| {
                    let pairs = a.into_iter().zip(b);
                    pairs.map(|(a, b)| a.max(b)).collect()
                });
            }
            _ => all.push((line, measured)),
        }
        last = of.map(|o| o.0);
    }
    all
}

fn measured(line: &str) -> Option<Vec<Measured>> {
    let (_, runtime) = line.rsplit_once('\t').unwrap();
    let stopped = ["crashed", "refused"]
        .iter()
        .any(|word| runtime.starts_with(word));
    (!stopped).then(|| runtime.split(' ').map(Measured::read).collect())
}
