//! The figures in the README's words, counted in the tables that stand behind them.

use super::drafts::{Pair, pair};
use super::fixture;
use super::pools;
use super::table::TABLES;
use super::truth::{self, Row, Status};
use regex::{Captures, Regex};
use std::collections::BTreeSet;
use std::path::PathBuf;
use vramfit_gguf::Header;

/// Words of the README in which each `#` is a figure, and the figures. A blank is any white space.
pub struct Claim {
    words: &'static str,
    figures: Vec<u64>,
}

/// Numbers between these headings are all claims or settings.
const SECTION: [&str; 2] = ["\n## How sure it is\n", "\n<details>\n"];
/// Figures of the VMM kind of pool that are a granule above what the engine took for the batches that it was asked
/// for: `tests/pool.rs` counts them, and finds none further off.
pub const VMM_ABOVE: u64 = 22;
/// Figures of the legacy kind that are above the engine's, by how much at most, and bounds of caches that are compressed or
/// chosen from: it counts those as well.
pub const LEGACY_ABOVE: u64 = 11;
pub const LEGACY_ABOVE_MIB: f64 = 4.1;
pub const LEGACY_BOUNDS: u64 = 9;
/// Of histories of prompts: after which a legacy pool keeps more than is shown, after which it cannot do without more, and by
/// what part of it at most, per cent: it counts those, too.
pub const HISTORIES_MORE: u64 = 7;
pub const HISTORIES_STARVED: u64 = 1;
pub const HISTORIES_PER_CENT: [u64; 2] = [8, 8];
/// What is no count.
const SETTINGS: [&str; 18] = [
    // `tests/pool.rs` counts them
    "of 285 figures of real decodes on 1 to 4 GPUs none is below, 39 are equal, the median is 8 MiB above",
    "vmm=0",
    "at most 4.1 MiB",
    "a granule of 2 MiB",
    "Tesla K80",
    "compute capability 3.7 to 12.0",
    "on 0 to 8 imaginary GPUs",
    "contexts 512 to 131,072 (a few to 10,485,760)",
    "batches 1 to 4096",
    "1 to 4 sequences",
    "on 1 to 8 GPUs",
    "v0.5.0",
    "T5",
    "phi-4",
    "DeepSeek-V4",
    "EAGLE-3",
    "KV cache f16",
    "contexts to 8192",
];

fn data(path: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(fixture(path)).unwrap();
    let rows = text
        .lines()
        .filter(|l| !l.starts_with('#') && !l.is_empty());
    rows.map(|l| l.split('\t').map(str::to_string).collect())
        .collect()
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(fixture(folder)).unwrap();
    let all = all.map(|file| file.unwrap().path());
    all.filter(|p| p.to_str().unwrap().ends_with(ending))
        .collect()
}

fn count<T>(all: &[T], is: impl Fn(&T) -> bool) -> u64 {
    all.iter().filter(|one| is(one)).count() as u64
}

fn distinct<T: Ord>(all: impl Iterator<Item = T>) -> u64 {
    all.collect::<BTreeSet<T>>().len() as u64
}

fn of_models() -> Vec<Claim> {
    let rows: Vec<Row> = TABLES.into_iter().flat_map(truth::rows).collect();
    let with = |status| count(&rows, |r| r.status == status);
    let (loads, refusals) = (with(Status::Ok), with(Status::Refused));
    let graphs = ["graphs", "graphs/made"].map(|folder| files(folder, ".tsv.gz").len() as u64);
    let real = files("gguf", ".gguf");
    let stem = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().to_string();
    let names = real.iter().map(stem);
    let names = names.map(|name| name.rsplit_once('.').unwrap().0.to_string());
    let n_real = distinct(names);
    let made = files("gguf/made", ".gguf").len() as u64;
    // of each load every GPU's and the host's
    let loaded = rows.iter().filter(|r| r.status == Status::Ok);
    let memories = loaded.map(|r| r.devices().len() as u64 + 1).sum();
    vec![
        claim("# of # loads of the real llama.cpp", [loads, loads]),
        claim("the # cases it refuses", [refusals]),
        claim("# of its graphs are equal", [graphs.iter().sum()]),
        claim("# real models in # files", [n_real, real.len() as u64]),
        claim("of # made ones", [made]),
        claim(
            "Left out are # more on which the engine itself crashes",
            [with(Status::Crashed)],
        ),
        claim("in # memories of all known architectures", [memories]),
    ]
}

const TENSOR: &str = "truth/tensor-split-llama.cpp-v0.5.0.tsv";

/// What a table's heading says of cases that are no rows of it.
fn crashed_of(table: &str) -> u64 {
    let text = std::fs::read_to_string(fixture(table)).unwrap();
    let words = Regex::new(r"(\d+) more cases? crashed in the engine").unwrap();
    words.captures(&text).unwrap()[1].parse().unwrap()
}

fn of_companions() -> Vec<Claim> {
    let adapters = truth::rows("truth/adapters-llama.cpp-v0.5.0.tsv");
    let (n_adapters, adapted) = (
        adapters.len() as u64,
        distinct(adapters.iter().map(|r| &r.model)),
    );
    let drafts = std::fs::read_to_string(fixture("truth/drafts-llama.cpp-v0.5.0.tsv")).unwrap();
    let drafts = drafts.lines().filter(|l| !l.starts_with('#')).map(pair);
    let drafts: Vec<Pair> = drafts.collect();
    let pairs = distinct(drafts.iter().map(|p| (&p.target.model, &p.draft)));
    let n_drafts = drafts.len() as u64;
    let tensor = truth::rows(TENSOR);
    let shared: Vec<&Row> = tensor.iter().filter(|r| r.status == Status::Ok).collect();
    let (n_shared, refused) = (shared.len() as u64, (tensor.len() - shared.len()) as u64);
    let sharing = distinct(shared.iter().map(|r| &r.model));
    let towers = data("truth/mmproj-llama.cpp-v0.5.0.tsv");
    let (n_towers, projectors) = (towers.len() as u64, distinct(towers.iter().map(|r| &r[0])));
    vec![
        claim(
            "# of # loads with them, of # models",
            [n_adapters, n_adapters, adapted],
        ),
        claim("is exact: # loads of # models", [n_adapters, adapted]),
        claim(
            "# of # loads of # pairs of target and draft",
            [n_drafts, n_drafts, pairs],
        ),
        claim("exact in # loads of # pairs", [n_drafts, pairs]),
        claim(
            "# of # loads of # models on 1 to 8 GPUs",
            [n_shared, n_shared, sharing],
        ),
        claim("and # of # refusals", [refused, refused]),
        claim("the engine crashes on # more", [crashed_of(TENSOR)]),
        claim("for all # types that llama.cpp loads", [projector_types()]),
        claim(
            "# of # cases of # projectors",
            [n_towers, n_towers, projectors],
        ),
    ]
}

fn projector_types() -> u64 {
    let headers = files("gguf/mmproj", ".gguf")
        .into_iter()
        .map(|path| Header::open(path).unwrap());
    let types = headers.flat_map(|header| {
        let keys = header.keys();
        let named =
            keys.filter(|(key, _)| key.starts_with("clip.") && key.ends_with("projector_type"));
        let named = named.filter_map(|(_, value)| value.as_str().map(str::to_string));
        named.collect::<Vec<_>>()
    });
    distinct(types)
}

/// Figures of a table of pools: one a GPU of each row that ran.
fn figures_of_pools(table: &str) -> u64 {
    let text = std::fs::read_to_string(fixture(table)).unwrap();
    let ran = pools::figures(&text).into_iter().flat_map(|(_, of)| of);
    ran.map(|gpus| gpus.len() as u64).sum()
}

fn of_pools() -> Vec<Claim> {
    let vmm = figures_of_pools("truth/pool-llama.cpp-v0.5.0-cuda13.tsv");
    let legacy = figures_of_pools("truth/pool-legacy-llama.cpp-v0.5.0-cuda13.tsv");
    let histories = figures_of_pools("truth/pool-histories-llama.cpp-v0.5.0-cuda13.tsv");
    vec![
        claim("nor the runtime pool in #", [vmm + legacy]),
        claim("of # figures of the real engine's arithmetic", [vmm]),
        claim(
            "# are equal and # a granule of 2 MiB above",
            [vmm - VMM_ABOVE, VMM_ABOVE],
        ),
        claim("that fill an empty context: of #", [legacy]),
        claim(
            "# are equal to the byte, # above by at most 4.1 MiB and # bounds far above",
            [
                legacy - LEGACY_ABOVE - LEGACY_BOUNDS,
                LEGACY_ABOVE,
                LEGACY_BOUNDS,
            ],
        ),
        claim(
            "of # histories of prompts of random lengths # left more, by # % at most",
            [histories, HISTORIES_MORE, HISTORIES_PER_CENT[0]],
        ),
        claim(
            "it computed # of # of them with no more than that",
            [histories - HISTORIES_STARVED, histories],
        ),
    ]
}

fn of_plans() -> Vec<Claim> {
    let plans = data("truth/plans-llama.cpp-v0.5.0.tsv");
    let verdict = |is: &str| count(&plans, |p| p[3] == is);
    // layers/GPUs/..: of those that its own `--fit` could place
    let theirs = |p: &Vec<String>| p[10].split('/').next().and_then(|n| n.parse::<u32>().ok());
    let placed = count(&plans, |p| theirs(p).is_some());
    let fewer = count(&plans, |p| {
        theirs(p).is_some_and(|n| n < p[5].parse().unwrap())
    });
    vec![
        claim("# random situations", [plans.len() as u64]),
        claim(
            "(# with everything on the GPUs, # in part, # on the host)",
            [verdict("fits"), verdict("partial"), verdict("does_not_fit")],
        ),
        claim(
            "fewer layers on the GPUs in # of the # that it loads with",
            [fewer, placed],
        ),
    ]
}

fn of_the_long_run() -> Vec<Claim> {
    let run = data("truth/differential-llama.cpp-v0.5.0.txt");
    let of = |name: &str| {
        let line = run.iter().find(|l| l[0] == name).unwrap();
        line[1].parse().unwrap()
    };
    assert_eq!(of("differences"), 0);
    vec![
        claim(
            "the last long run had # cases of # models",
            [of("cases"), of("models")],
        ),
        claim("# of which the engine crashes on", [of("crashed")]),
    ]
}

fn claim<const N: usize>(words: &'static str, figures: [u64; N]) -> Claim {
    assert_eq!(words.matches('#').count(), N, "{words}");
    let figures = figures.to_vec();
    Claim { words, figures }
}

/// All claims, as the tables are now.
pub fn claims() -> Vec<Claim> {
    let all = [
        of_models(),
        of_companions(),
        of_pools(),
        of_plans(),
        of_the_long_run(),
    ];
    all.into_iter().flatten().collect()
}

fn pattern(words: &str) -> Regex {
    let pieces = words
        .split('#')
        .map(|piece| regex::escape(piece).replace(' ', r"\s+"));
    let pieces: Vec<String> = pieces.collect();
    let starts_with_figure = if words.starts_with('#') { r"\b" } else { "" };
    Regex::new(&format!(
        "{starts_with_figure}{}",
        pieces.join(r"(\d{1,3}(?:,\d{3})*)\b")
    ))
    .unwrap()
}

/// `12345` as `12,345`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `readme` with the figures of today. The error is what it does not say any more.
pub fn replaced(readme: &str, claims: &[Claim]) -> Result<String, String> {
    let mut text = readme.to_string();
    for claim in claims {
        let pattern = pattern(claim.words);
        if !pattern.is_match(&text) {
            return Err(format!("not in the README: '{}'", claim.words));
        }
        let with_todays = |found: &Captures| {
            let whole = found.get(0).unwrap();
            let mut new = String::new();
            let mut end = whole.start();
            for (i, figure) in claim.figures.iter().enumerate() {
                let old = found.get(i + 1).unwrap();
                new.push_str(&text[end..old.start()]);
                new.push_str(&grouped(*figure));
                end = old.end();
            }
            new + &text[end..whole.end()]
        };
        text = pattern.replace_all(&text, with_todays).into_owned();
    }
    Ok(text)
}

/// Numbers of the section that nothing is behind.
pub fn unfounded(readme: &str, claims: &[Claim]) -> Vec<String> {
    let (_, rest) = readme.split_once(SECTION[0]).unwrap();
    let (section, _) = rest.split_once(SECTION[1]).unwrap();
    let mut text = section.to_string();
    let words = claims.iter().map(|claim| claim.words);
    for words in words.chain(SETTINGS) {
        // claims share words with each other and with settings: only the figures go
        let blanked = |found: &Captures| found[0].replace(|c: char| c.is_ascii_digit(), "");
        text = pattern(words).replace_all(&text, blanked).into_owned();
    }
    let numbers = Regex::new(r"\S*\d\S*").unwrap();
    let paths = |word: &str| word.contains("fixtures/");
    let left = numbers
        .find_iter(&text)
        .map(|found| found.as_str().to_string());
    left.filter(|word| !paths(word)).collect()
}
