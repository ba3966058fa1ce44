//! Laws of the tables: full, fair, stable, and the same for ever.

use super::*;

fn equal(names: &[String]) -> Vec<Contender> {
    weighted(names, &vec![100; names.len()])
}

fn weighted(names: &[String], weights: &[u32]) -> Vec<Contender> {
    let contenders = names.iter().zip(weights);
    contenders.map(|(name, weight)| Contender { seed: Seed::new(name, 80), weight: *weight }).collect()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("6f1c0000-0000-4000-8000-{number:012}")).collect()
}

fn shares(table: &[u32], contenders: usize) -> Vec<u32> {
    let mut shares = vec![0; contenders];
    for index in table {
        shares[*index as usize] += 1;
    }
    shares
}

/// Slots that belonged to others than `gone` and have another owner now.
fn moved(before: &[u32], all: &[String], after: &[u32], rest: &[String], gone: usize) -> usize {
    let pairs = before.iter().zip(after).filter(|(old, _)| **old as usize != gone);
    pairs.filter(|(old, new)| all[**old as usize] != rest[**new as usize]).count()
}

fn is_prime(number: u32) -> bool {
    (2u64..).take_while(|d| d * d <= u64::from(number)).all(|d| u64::from(number) % d != 0)
}

#[test]
fn every_listed_size_is_a_prime_and_large_enough() {
    for (backends, size) in SIZES {
        assert!(is_prime(size), "{size}");
        assert!(size >= SLOTS_PER_BACKEND * backends, "{size} for {backends}");
    }
    assert!(SIZES.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1));
}

#[test]
fn size_grows_with_the_listed_backends_and_ends_at_the_last_step() {
    assert_eq!((size(0), size(1), size(5), size(6), size(7)), (0, 163, 967, 967, 1283));
    assert_eq!(size(1_000_000), SIZES[SIZES.len() - 1].1);
}

#[test]
fn size_follows_the_sum_of_weights_in_units_of_the_least() {
    assert_eq!(weighted_size(&[]), 0);
    for weight in [1, 50, 100] {
        assert_eq!(weighted_size(&[weight; 3]), size(3), "equal weights of {weight}");
    }
    assert_eq!(weighted_size(&[100, 50]), size(3));
    assert_eq!(weighted_size(&[100, 100, 99]), size(4), "a part of a unit is one");
    assert_eq!(weighted_size(&[100, 1]), size(32), "not beyond sixteen times the equal one");
    assert_eq!(weighted_size(&[100, 0, 100]), size(3), "maintenance lays no table anew");
    assert_eq!(weighted_size(&[50, 0, 100]), weighted_size(&[50, 100, 100]));
    assert_eq!(weighted_size(&[0, 0]), size(2));
}

#[test]
fn a_table_is_full_and_equal_shares_differ_by_one_slot_at_most() {
    for count in [1, 2, 3, 5, 16, 100] {
        let table = table(&equal(&names(count)), size(count));
        assert_eq!(table.len(), size(count) as usize);
        let shares = shares(&table, count);
        let (least, most) = (shares.iter().min().copied(), shares.iter().max().copied());
        assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1), "{count}: {shares:?}");
    }
}

#[test]
fn every_share_is_within_a_per_cent_of_its_weight_or_a_slot() {
    for count in [3, 7, 100] {
        let cycles: [&[u32]; 6] =
            [&[100], &[100, 50], &[1, 2, 3, 4, 5, 6, 7], &[100, 99, 7], &[100, 0, 40], &[1, 100]];
        for cycle in cycles {
            let weights: Vec<u32> = cycle.iter().copied().cycle().take(count).collect();
            let table = table(&weighted(&names(count), &weights), weighted_size(&weights));
            let sum: u32 = weights.iter().sum();
            for (share, weight) in shares(&table, count).into_iter().zip(&weights) {
                let due = table.len() as f64 * f64::from(*weight) / f64::from(sum);
                let off = (f64::from(share) - due).abs();
                assert!(off <= f64::max(1.0, due / 100.0), "{share} for {due:.1}, {count} of {cycle:?}");
                assert!(*weight > 0 || share == 0);
            }
        }
    }
}

#[test]
fn nobody_with_a_weight_means_no_table() {
    assert!(table(&weighted(&names(3), &[0, 0, 0]), 487).is_empty());
    assert!(table(&[], 487).is_empty());
}

#[test]
fn the_scale_of_the_weights_does_not_matter() {
    let names = names(4);
    assert_eq!(
        table(&weighted(&names, &[1, 2, 3, 4]), 967),
        table(&weighted(&names, &[25, 50, 75, 100]), 967)
    );
    assert_eq!(table(&weighted(&names, &[7; 4]), 641), table(&equal(&names), 641));
}

#[test]
fn a_backend_that_goes_moves_little_more_than_its_own_share() {
    let all = names(10);
    let before = table(&equal(&all), size(10));
    for gone in 0..10 {
        let mut rest = all.clone();
        rest.remove(gone);
        let after = table(&equal(&rest), size(10));
        let moved = moved(&before, &all, &after, &rest, gone);
        assert!(moved * 100 <= before.len() * 10, "{moved} of {} moved besides its own", before.len());
    }
}

#[test]
fn removing_one_of_a_hundred_backends_moves_fewer_than_two_per_cent_of_the_other_slots() {
    let all = names(100);
    let before = table(&equal(&all), size(100));
    for gone in 0..100 {
        let mut rest = all.clone();
        rest.remove(gone);
        let after = table(&equal(&rest), size(99));
        assert_eq!(after.len(), before.len());
        let others = before.iter().filter(|old| **old as usize != gone).count();
        let moved = moved(&before, &all, &after, &rest, gone);
        assert!(moved * 100 < others * 2, "{moved} of {others} moved without {gone}");
    }
}

#[test]
fn maintenance_of_one_backend_moves_little_more_than_its_own_share() {
    let all = names(7);
    let before = table(&equal(&all), weighted_size(&[100; 7]));
    for gone in 0..7 {
        let mut weights = [100; 7];
        weights[gone] = 0;
        let after = table(&weighted(&all, &weights), weighted_size(&weights));
        let moved = moved(&before, &all, &after, &all, gone);
        assert!(moved * 100 <= before.len() * 10, "{moved} of {} moved besides its own", before.len());
        assert_eq!(shares(&after, 7)[gone], 0);
    }
}

#[test]
fn the_table_is_the_same_for_ever() {
    // A promise between nodes of different versions: a change here moves every flow without a flow entry.
    let digest_of = |table: &[u32]| {
        let octets: Vec<u8> = table.iter().flat_map(|index| index.to_be_bytes()).collect();
        format!("{:016x}", digest(0, &octets))
    };
    assert_eq!(digest_of(&table(&equal(&names(3)), size(3))), "0962ff5157cd2a7e");
    let weights = [100, 50, 25];
    assert_eq!(
        digest_of(&table(&weighted(&names(3), &weights), weighted_size(&weights))),
        "43f3b759d8c4c527"
    );
}

#[test]
fn ports_of_one_backend_are_different_targets() {
    assert_ne!(Seed::new("a", 80), Seed::new("a", 81));
}
