//! The ledger over GPUs of which something real is taken: engines that load and unload while the driver
//! counts, or unload without a word and load again, outlive their reservations, die, are found, turn out larger or
//! smaller, reservations that are larger than what is loaded, others' memory beside them, capacities that move, a store
//! that is opened again, and answers of the driver that come late. Whatever the order, no GPU is promised more of
//! than it has beside what others take and what may load again; and where others are as they were, nothing less.
//!
//! `VRAMFIT_LEDGER_WORLDS=100000 cargo test -p vramfit-ledger --test ledger_world` plays so many, and
//! `VRAMFIT_LEDGER_SEED` makes them others.

#![allow(clippy::disallowed_methods)] // its length is read from the environment
#![allow(clippy::unwrap_used)] // also in what the tests share

#[path = "ledger_world/world.rs"]
mod world;

use world::{Others, World};

/// Everything has come to its end: all that is not taken can be promised, as far as totals tell.
fn settle(world: &mut World) {
    world.come_to_rest();
    let state = world.ledger.state().unwrap();
    let all_stay = state.reservations().all(|r| r.stays && r.leaves.is_none());
    let is_told = world.tell();
    let manner = &world.manner;
    let is_known = is_told || (manner.others == Others::Stay && !world.unclear);
    let is_plain = !manner.resizes && !manner.lingers;
    let views = world.ledger.gpus().unwrap();
    for (view, driver) in views.iter().zip(world.count()) {
        let aside = world.aside[&view.gpu];
        let others = world.others[&view.gpu].saturating_sub(aside);
        if all_stay || (is_known && !manner.generous) {
            let left = view.capacity_bytes.saturating_sub(view.reserved_bytes);
            assert_eq!(view.free_bytes, driver.free_bytes.min(left));
            assert_eq!(view.foreign_bytes, others);
            world.seen.exact += u64::from(!all_stay);
        }
        assert!(!is_known || !is_plain || view.foreign_bytes == others);
        assert!(view.free_bytes <= driver.free_bytes && view.foreign_bytes >= others);
    }
    world.unclear &= !all_stay;
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn no_order_of_loads_and_figures_promises_what_is_not_there() {
    let worlds = number("VRAMFIT_LEDGER_WORLDS", 1500);
    let first = number("VRAMFIT_LEDGER_SEED", 0).wrapping_mul(1 << 32);
    let mut seen = [0; 11];
    for world in 0..worlds {
        let seed = first.wrapping_add(world);
        let played = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..4 {
                (0..100).for_each(|_| world.step());
                settle(&mut world);
            }
            world.seen
        });
        let s = played.unwrap_or_else(|_| panic!("world {seed}"));
        let played = [
            s.granted,
            s.late,
            s.asleep,
            s.lingered,
            s.reaped,
            s.adopted,
            s.resized,
            s.exact,
            s.overtaken,
            s.anew,
            s.stayed,
        ];
        for (seen, played) in seen.iter_mut().zip(played) {
            *seen += played;
        }
    }
    let [
        granted,
        late,
        asleep,
        lingered,
        reaped,
        adopted,
        resized,
        exact,
        overtaken,
        anew,
        stayed,
    ] = seen;
    println!(
        "{worlds} worlds: {granted} granted, {late} late figures, {overtaken} overtaken, {asleep} asleep, \
         {lingered} outlive their reservations, {reaped} reaped, {anew} times the ledger was away for longer than a lease, {stayed} need not leave any more, {adopted} adopted, {resized} larger than promised, \
         {exact} times all that is free beside what may sleep"
    );
    assert!(granted > 10 * worlds);
    let least = [
        late, overtaken, asleep, lingered, reaped, adopted, resized, exact, anew, stayed,
    ];
    let least = least.into_iter().min();
    assert!(least.is_some_and(|least| 4 * least > worlds), "{seen:?}");
}
