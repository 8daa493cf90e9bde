//! In which order a context may come to be full.

use super::prompts::Prompts;
use vramfit_arch::Batch;

/// Each prompt is this much longer than the one before, where they grow.
const GROWTH: f64 = 1.5;
/// Histories of prompts of many lengths, and prompts of each before those that fill the context.
const MIXED: u32 = 6;
const PROMPTS: u32 = 12;
/// Its multiples, less what is whole, lie evenly between 0 and 1, however many there are: the golden ratio.
const EVENLY: f64 = 0.618_033_988_749_894_9;

/// Prompts that fill the context in an empty pool, then a token of each sequence: of one sequence alone, and of all of them.
pub(super) fn filling(all: &[Prompts]) -> Vec<Vec<Batch>> {
    let (alone, together) = (all.first(), all.last().filter(|_| all.len() > 1));
    let both = alone.into_iter().chain(together);
    both.map(|&prompts| computed(prompts)).collect()
}

/// Prompts of many lengths, of one sequence and of several, and last those that fill the context.
pub(super) fn mixed(all: &[Prompts]) -> Vec<Vec<Batch>> {
    let growing = all.iter().flat_map(|&whole| growing(whole)).collect();
    let mixed = (0..MIXED).map(|history| {
        let turns = all.iter().cycle().zip(1..=PROMPTS);
        let prompts = turns.map(|(&whole, turn)| {
            let offset = f64::from(history) / f64::from(MIXED);
            part(whole, (f64::from(turn) * EVENLY + offset).fract())
        });
        let prompts = prompts.chain(all.iter().copied());
        prompts.flat_map(computed).collect()
    });
    std::iter::once(growing).chain(mixed).collect()
}

fn computed(prompts: Prompts) -> Vec<Batch> {
    let generation = std::iter::once(prompts.generation());
    prompts.batches().chain(generation).collect()
}

/// From a warm-up's two tokens to all.
fn growing(whole: Prompts) -> Vec<Batch> {
    let all = whole.n_all as f64;
    let lengths = std::iter::successors(Some(2.0), |n| Some(n * GROWTH));
    let shorter = lengths.take_while(|&n| n < all);
    let prompts = shorter.map(|n| whole.of_length(n as i64)).chain([whole]);
    prompts.flat_map(computed).collect()
}

/// Some of the tokens; as many lengths lie between one token and two as between half of them and all.
fn part(whole: Prompts, of: f64) -> Prompts {
    whole.of_length((whole.n_all as f64).powf(of) as i64)
}
