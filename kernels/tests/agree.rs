//! Every path at every number of threads gives the bits of the reference, and the same error.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

mod common;

use common::{Case, Random, Sent, random_band, random_k, same_bits};
use gradledger_kernels::cpu::{self, Path};
use gradledger_kernels::{
    Band, Contribution, Divisor, Findings, KernelError, Step, codes, fma, reference,
};

/// Pools of 1 to 4 threads.
fn pools() -> Vec<rayon::ThreadPool> {
    pools_of(1..=4)
}

fn pools_of(threads: std::ops::RangeInclusive<usize>) -> Vec<rayon::ThreadPool> {
    threads.map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()).collect()
}

fn bits(state: &[f32]) -> Vec<u32> {
    state.iter().map(|value| value.to_bits()).collect()
}

/// Runs the case everywhere. `label` tells how to make it again.
fn agree(case: &Case, pools: &[rayon::ThreadPool], label: &str) -> Result<Findings, KernelError> {
    let contributions = case.contributions();
    let (expected, expected_state) = case.reference();
    for path in Path::available() {
        for pool in pools {
            let mut state = case.state.clone();
            let found =
                pool.install(|| cpu::fold(path, &case.band, &contributions, case.step, &mut state));
            let label =
                format!("{label}, {path}, {} threads, {:?}", pool.current_num_threads(), case.band);
            assert_eq!(found, expected, "{label}");
            // Out of place too, at every alignment that an f32 has within a cache line.
            let mut elsewhere = vec![f32::NAN; case.state.len() + 16];
            let next = &mut elsewhere[case.state.len() % 16..][..case.state.len()];
            let found = pool.install(|| {
                cpu::fold_into(path, &case.band, &contributions, case.step, &case.state, next)
            });
            assert_eq!(found, expected, "{label}, out of place");
            if expected.is_ok() {
                same_bits(&state, &expected_state, &label);
                same_bits(next, &expected_state, &format!("{label}, out of place"));
            }
        }
    }
    expected
}

/// Each case with some of 1 to 16 threads. `GRADLEDGER_AGREE_BLOCKS=10000000` goes on until as many
/// blocks were folded, for a release.
#[test]
fn random_bands_agree() {
    let pools = pools_of(1..=16);
    let wanted = std::env::var("GRADLEDGER_AGREE_BLOCKS").map_or(0, |n| n.parse().unwrap());
    let mut blocks = 0;
    for seed in 0.. {
        if seed >= 250 && blocks >= wanted {
            break;
        }
        let mut random = Random::new(seed);
        let band = random_band(&mut random, 40_000);
        let most = (3_000_000 / (band.blocks() * band.k)).clamp(1, 255);
        let miners =
            if random.chance(4) { random.within(1, most) } else { random.within(0, most.min(12)) };
        let special = random.chance(2);
        let case = Case::random(&mut random, band, miners, special);
        let some = &pools[seed as usize % 13..][..4];
        agree(&case, some, &format!("seed {seed}")).unwrap();
        blocks += band.blocks();
    }
    println!("{blocks} blocks");
}

/// Every whole number of miners, up to what a count holds.
#[test]
fn any_number_of_miners_agrees() {
    let pools = pools_of(3..=3);
    for miners in 0..=255 {
        let mut random = Random::new(miners as u64);
        let band =
            Band { rows: 8, columns: 32, block_rows: 8, block_columns: 16, k: 40, code_bits: 2 };
        let case = Case::random(&mut random, band, miners, miners % 3 == 0);
        agree(&case, &pools, &format!("{miners} miners")).unwrap();
    }
}

/// The shape of nearly every matrix, where counts of up to 31 are divided by without a division.
#[test]
fn full_blocks_agree_with_counts_about_the_reciprocals_and_tiny_levels() {
    let pools = pools_of(2..=2);
    for (seed, miners) in [(1, 1), (2, 20), (3, 31), (4, 32), (5, 33)] {
        for tiny in [1.0, 2f32.powi(-70), 2f32.powi(-120), 2f32.powi(-140)] {
            let mut random = Random::new(seed);
            let (k, block) = (512, 64);
            let band = Band {
                rows: 2 * block,
                columns: 5 * block,
                block_rows: block,
                block_columns: block,
                k,
                code_bits: 2,
            };
            let mut case = Case::random(&mut random, band, miners, false);
            case.step = PLAIN;
            case.sent.iter_mut().flat_map(|s| &mut s.levels).for_each(|level| *level *= tiny);
            case.state.iter_mut().for_each(|value| *value *= tiny);
            agree(&case, &pools, &format!("{miners} miners, {tiny:e}")).unwrap();
        }
    }
}

/// The height and width of each block once, the blocks side by side so that no shortcut for runs
/// applies.
#[test]
fn every_block_height_and_many_widths_agree() {
    let pools = [rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap()];
    let mut random = Random::new(77);
    let mut shapes: BTreeSet<(usize, usize)> =
        (1..=64).flat_map(|w| [(1, w), (2, w), (7, w), (w, 64), (w, 1)]).collect();
    shapes.extend((1..=4096).step_by(61).map(|h| (h, 4096 / h)));
    shapes.extend((1..=4096).step_by(61).map(|w| (4096 / w, w)));
    shapes.extend([(4096, 1), (1, 4096), (2048, 2), (2, 2048), (64, 64), (63, 65), (1, 2), (2, 1)]);
    for (block_rows, block_columns) in shapes {
        let block_len = block_rows * block_columns;
        if !(2..=4096).contains(&block_len) {
            continue;
        }
        let band = Band {
            rows: 2 * block_rows,
            columns: 3 * block_columns,
            block_rows,
            block_columns,
            k: random_k(&mut random, block_len),
            code_bits: random.one_of(&[2, 4, 8]),
        };
        let case = Case::random(&mut random, band, 3, true);
        agree(&case, &pools, &format!("block {block_rows} x {block_columns}")).unwrap();
    }
}

/// Wide and long enough to be cut by columns and by rows.
#[test]
fn bands_that_are_cut_into_pieces_agree() {
    let pools = pools();
    for (seed, rows, columns, block_rows, block_columns) in [
        (1, 64, 8192, 64, 64),
        (2, 1, 300_000, 1, 60),
        (3, 128, 2048, 32, 64),
        (4, 26, 13 * 700, 2, 13),
        (5, 1, 262_146, 1, 2),
    ] {
        let mut random = Random::new(seed);
        let k = (block_rows * block_columns).min(24);
        let band = Band { rows, columns, block_rows, block_columns, k, code_bits: 2 };
        let mut case = Case::random(&mut random, band, 4, false);
        // One place that is not finite, somewhere: the lowest element of all pieces is reported.
        case.state[rows * columns / 2] = f32::INFINITY;
        case.state[rows * columns - 1] = f32::NAN;
        agree(&case, &pools, &format!("seed {seed}")).unwrap();
    }
}

#[test]
fn the_most_miners_agree() {
    let band = Band { rows: 6, columns: 20, block_rows: 3, block_columns: 5, k: 14, code_bits: 4 };
    let case = Case::random(&mut Random::new(255), band, 255, true);
    agree(&case, &pools(), "255 miners").unwrap();
}

/// Random bytes as indices: the same fault everywhere, or the same bits.
#[test]
fn hostile_bytes_get_the_same_answer() {
    let pools = pools();
    let (mut refused, mut accepted) = (0, 0);
    for seed in 1000..1250 {
        let mut random = Random::new(seed);
        let band = random_band(&mut random, 20_000);
        let miners = random.within(1, 6);
        let mut case = Case::random(&mut random, band, miners, true);
        // From one flipped bit to nothing but noise.
        let flips = random.one_of(&[0, 1, 1, 2, 8]);
        for _ in 0..flips {
            let miner = random.within(0, miners - 1);
            let at = random.within(0, case.sent[miner].index.len() - 1);
            case.sent[miner].index[at] ^= 1 << random.within(0, 7);
        }
        if random.chance(5) {
            let miner = random.within(0, miners - 1);
            case.sent[miner].index.fill_with(|| random.bits() as u8);
        }
        match agree(&case, &pools, &format!("seed {seed}")) {
            Ok(_) => accepted += 1,
            Err(KernelError::IndexOutOfRange { .. } | KernelError::Repeated { .. }) => refused += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(refused > 60 && accepted > 15, "{refused} refused, {accepted} accepted");
}

/// A block of 2 x 4 in a band of 2 x 8: small enough to write by hand.
const SMALL: Band =
    Band { rows: 2, columns: 8, block_rows: 2, block_columns: 4, k: 2, code_bits: 2 };

/// One miner of [`SMALL`]: per block two (index, code).
fn small(entries: [[(u16, u8); 2]; 2], levels: [f32; 4]) -> Sent {
    let (mut index, mut code) = (Vec::new(), Vec::new());
    let flat = entries.concat();
    codes::pack_index(&flat.iter().map(|e| e.0).collect::<Vec<_>>(), &mut index).unwrap();
    codes::pack_codes(&flat.iter().map(|e| e.1).collect::<Vec<_>>(), 2, 2, &mut code).unwrap();
    Sent { index, code, levels: levels.to_vec() }
}

const PLAIN: Step = Step { lr: 0.4, divisor: Divisor::Contributors };

/// Folds by the reference after checking that every path agrees.
fn folded(sent: Vec<Sent>, step: Step, state: [f32; 16]) -> (Findings, Vec<f32>) {
    let case = Case { band: SMALL, sent, step, state: state.to_vec() };
    let findings = agree(&case, &pools(), "by hand").unwrap();
    (findings, case.reference().1)
}

#[test]
fn an_element_is_stepped_by_the_mean_of_those_who_sent_it() {
    let a = small([[(0, 0), (5, 1)], [(7, 2), (3, 3)]], [1.0, 2.0, 3.0, 4.0]);
    let b = small([[(5, 0), (1, 0)], [(0, 0), (1, 0)]], [0.1; 4]);
    let (findings, next) = folded(vec![a.clone(), b.clone()], PLAIN, [1.0; 16]);
    let mut expected = [1.0f32; 16];
    let stepped = |delta: f32| fma::fma_f32(-0.4, delta, 1.0);
    // Block 0 is columns 0 to 3, block 1 columns 4 to 7, of both rows.
    expected[0] = stepped(1.0);
    expected[8 + 1] = stepped((2.0 + 0.1) / 2.0);
    expected[1] = stepped(0.1);
    expected[8 + 7] = stepped(3.0);
    expected[7] = stepped(4.0);
    (expected[4], expected[5]) = (stepped(0.1), stepped(0.1));
    assert_eq!(bits(&next), bits(&expected));
    assert_eq!(findings, Findings::default());

    let all = Step { divisor: Divisor::All(4), ..PLAIN };
    let (_, next) = folded(vec![a, b], all, [1.0; 16]);
    assert_eq!(next[0], stepped(1.0 / 4.0));
    assert_eq!(next[9], stepped((2.0 + 0.1) / 4.0));
}

#[test]
fn an_element_nobody_sent_keeps_its_bits() {
    let kept =
        [0x8000_0000u32, 0x7f80_0001, 0xffc1_2345, 0x0000_0001, 0x7f80_0000].map(f32::from_bits);
    for value in kept {
        let sent = small([[(1, 0), (2, 0)], [(0, 0), (7, 0)]], [1.0; 4]);
        let (findings, next) = folded(vec![sent], PLAIN, {
            let mut state = [1.0; 16];
            (state[0], state[3], state[14]) = (value, value, value);
            state
        });
        for at in [0, 3, 14] {
            assert_eq!(next[at].to_bits(), value.to_bits());
        }
        assert_eq!(findings, Findings::default(), "what nobody sent is not looked at");
    }
}

#[test]
fn a_signed_zero_is_kept_where_the_step_is_zero() {
    let sent = small([[(0, 0), (1, 1)], [(0, 0), (1, 1)]], [0.0, -0.0, 0.0, 0.0]);
    let (_, next) = folded(vec![sent], PLAIN, [-0.0; 16]);
    // A sum begins at +0, so -0 sent is +0; -0.4 * 0 + -0 is -0.
    assert_eq!(bits(&next), [0x8000_0000; 16]);
    let sent = small([[(0, 0), (1, 1)], [(0, 0), (1, 1)]], [0.0, -0.0, 0.0, 0.0]);
    let back = Step { lr: -0.4, ..PLAIN };
    let (_, next) = folded(vec![sent], back, [-0.0; 16]);
    assert_eq!((next[0].to_bits(), next[1].to_bits(), next[2].to_bits()), (0, 0, 0x8000_0000));
}

#[test]
fn a_nan_is_stored_as_the_canonical_one_and_found() {
    let odd_nan = f32::from_bits(0xffd5_5555);
    let sent = small([[(6, 0), (1, 3)], [(0, 1), (7, 2)]], [odd_nan, f32::INFINITY, f32::MAX, 1.0]);
    let mut state = [1.0; 16];
    (state[1], state[4]) = (odd_nan, f32::INFINITY);
    let (findings, next) = folded(vec![sent], Step { lr: -2.0, ..PLAIN }, state);
    assert_eq!(next[8 + 2].to_bits(), 0x7fc0_0000, "a NaN level");
    assert_eq!(next[1].to_bits(), 0x7fc0_0000, "a NaN in the state");
    assert_eq!(next[4], f32::INFINITY);
    assert_eq!(next[8 + 7], f32::INFINITY, "an overflow of the step alone");
    assert_eq!(findings, Findings { delta_non_finite: Some(4), next_non_finite: Some(1) });
}

#[test]
fn the_aggregate_is_zero_where_nobody_sent_and_its_nan_is_canonical() {
    let sent = small([[(6, 0), (1, 3)], [(0, 1), (7, 2)]], [-f32::NAN, f32::INFINITY, 3.0, 1.0]);
    let contribution = Contribution { index: &sent.index, code: &sent.code, levels: &sent.levels };
    let dense =
        reference::aggregate(&SMALL, &[contribution, contribution], Divisor::All(8)).unwrap();
    let mut expected = [0.0f32; 16];
    expected[10] = f32::from_bits(0x7fc0_0000);
    (expected[1], expected[4], expected[15]) = (0.25, f32::INFINITY, 0.75);
    assert_eq!(bits(&dense), bits(&expected));
}

#[test]
fn a_position_sent_twice_is_refused() {
    let clean = small([[(0, 0), (1, 0)], [(0, 0), (1, 0)]], [1.0; 4]);
    let twice = small([[(0, 0), (1, 0)], [(6, 0), (6, 1)]], [1.0; 4]);
    let case = Case { band: SMALL, sent: vec![clean, twice], step: PLAIN, state: vec![0.0; 16] };
    let refused = agree(&case, &pools(), "twice");
    assert_eq!(
        refused,
        Err(KernelError::Repeated { miner: 1, block: 1, index: 6, first: 0, entry: 1 })
    );
}

#[test]
fn of_several_faults_the_lowest_block_then_miner_then_entry_is_named() {
    let late = small([[(0, 0), (1, 0)], [(9, 0), (6, 0)]], [1.0; 4]);
    let early = small([[(5, 0), (8, 0)], [(6, 0), (6, 0)]], [1.0; 4]);
    let case = Case { band: SMALL, sent: vec![late, early], step: PLAIN, state: vec![0.0; 16] };
    let refused = agree(&case, &pools(), "several");
    let expected =
        KernelError::IndexOutOfRange { miner: 1, block: 0, entry: 1, index: 8, block_len: 8 };
    assert_eq!(refused, Err(expected));
}

#[test]
fn two_miners_may_send_the_same_position() {
    let one = small([[(0, 0), (1, 0)], [(0, 0), (1, 0)]], [1.0; 4]);
    let (_, next) = folded(vec![one.clone(), one], PLAIN, [0.0; 16]);
    assert_eq!(next[0], -0.4);
}

#[test]
fn an_empty_band_and_no_miners_are_fine() {
    let case = Case { band: SMALL, sent: vec![], step: PLAIN, state: vec![-0.0; 16] };
    assert_eq!(agree(&case, &pools(), "no miners"), Ok(Findings::default()));
    for (rows, columns) in [(0, 8), (2, 0), (0, 0)] {
        let band = Band { rows, columns, ..SMALL };
        let sent = vec![Sent { index: vec![], code: vec![], levels: vec![0.0; 4] }];
        let case = Case { band, sent, step: PLAIN, state: vec![] };
        assert_eq!(agree(&case, &pools(), "empty"), Ok(Findings::default()));
    }
}

#[test]
fn numbers_that_make_no_band_are_refused() {
    let huge = usize::MAX / 2;
    let wrong = [
        Band { block_rows: 0, ..SMALL },
        Band { block_rows: 1, block_columns: 1, ..SMALL },
        Band { block_rows: huge, block_columns: huge, ..SMALL },
        Band { rows: 4097, block_rows: 4097, block_columns: 1, ..SMALL },
        Band { rows: 3, ..SMALL },
        Band { columns: 9, ..SMALL },
        Band { rows: huge - 1, columns: 1 << 20, block_rows: 2, ..SMALL },
        Band { k: 0, ..SMALL },
        Band { k: 3, ..SMALL },
        Band { k: 10, ..SMALL },
        Band { code_bits: 0, ..SMALL },
        Band { code_bits: 3, ..SMALL },
        Band { code_bits: 40, ..SMALL },
    ];
    for band in wrong {
        let case = Case { band, sent: vec![], step: PLAIN, state: vec![] };
        assert!(agree(&case, &pools(), "wrong").is_err(), "{band:?}");
    }
}

#[test]
fn lengths_that_do_not_fit_the_band_are_refused() {
    let right = small([[(0, 0), (1, 0)], [(0, 0), (1, 0)]], [1.0; 4]);
    let shorten: [fn(&mut Sent); 3] =
        [|s| s.index.truncate(5), |s| s.code.truncate(1), |s| s.levels.truncate(3)];
    for shorten in shorten {
        let mut wrong = right.clone();
        shorten(&mut wrong);
        let case = Case {
            band: SMALL,
            sent: vec![right.clone(), wrong],
            step: PLAIN,
            state: vec![0.0; 16],
        };
        assert!(matches!(
            agree(&case, &pools(), "short"),
            Err(KernelError::Length { miner: 1, .. })
        ));
    }
    let case = Case { band: SMALL, sent: vec![right.clone()], step: PLAIN, state: vec![0.0; 15] };
    let refused = agree(&case, &pools(), "state");
    assert_eq!(refused, Err(KernelError::StateLength { expected: 16, found: 15 }));
    let case = Case { band: SMALL, sent: vec![right; 256], step: PLAIN, state: vec![0.0; 16] };
    assert_eq!(agree(&case, &pools(), "many"), Err(KernelError::Miners { miners: 256 }));
}

#[test]
fn a_path_has_one_name() {
    for path in [Path::Scalar, Path::Avx2, Path::Avx512] {
        assert_eq!(path.to_string().parse(), Ok(path));
    }
    assert!("neon".parse::<Path>().is_err());
    assert!(Path::available().contains(&Path::best()));
}

/// On x86-64 the scalar path has no instruction for it by default; the others do.
#[test]
fn every_path_rounds_the_step_once() {
    let tie = 1.0 + f32::EPSILON;
    let sent =
        small([[(0, 0), (1, 1)], [(0, 0), (1, 1)]], [tie * 2f32.powi(-24), 1.0 / 3.0, 0.0, 0.0]);
    let (_, next) = folded(vec![sent], Step { lr: -(1.0 - f32::EPSILON), ..PLAIN }, [tie; 16]);
    // a * b is 2^-24 less a little: below the tie above `tie`, so it is rounded down, not to even.
    assert_eq!(next[0], tie);
}
