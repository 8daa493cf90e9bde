//! `-sm tensor`, for the cases of `oracle tensor-split`.

use crate::case::Gpu;
use crate::random::Random;
use crate::settings::Settings;

/// The same settings with all tensors shared out over some GPUs.
pub fn shared_out(random: &mut Random, mut settings: Settings) -> Settings {
    let n = random.weighted(&[(2, 50), (3, 15), (4, 20), (1, 5), (5, 3), (8, 7)]);
    let capability = random.pick(&["7.5", "8.0", "8.6", "8.9", "9.0", "12.0", "6.1", "3.7"]);
    let gpu = |random: &mut Random| Gpu {
        total_bytes: 24 << 30,
        compute_capability: match random.chance(80) {
            true => capability,
            false => random.pick(&["7.0", "8.6", "9.0"]),
        }
        .to_owned(),
    };
    settings.gpus = (0..n).map(|_| gpu(random)).collect();
    settings.flash_attn = random.weighted(&[("on", 60), ("auto", 38), ("off", 2)]);
    // what says where layers go does not go together with it
    const OTHERS: [&str; 5] = ["-sm", "-mg", "-ts", "-ot", "-dev"];
    let mut more = settings.more.iter();
    let mut kept = Vec::new();
    while let Some(word) = more.next() {
        match OTHERS.contains(&word.as_str()) {
            true => drop(more.next()),
            false => kept.push(word.clone()),
        }
    }
    settings.more = kept;
    if random.chance(40) {
        let share = |_| random.below(8).to_string();
        let shares: Vec<String> = (0..n).map(share).collect();
        settings = settings.with(&format!("-ts {}", shares.join(",")));
    }
    settings.with("-sm tensor")
}
