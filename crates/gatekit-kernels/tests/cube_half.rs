//! The scans' CubeCL kernels in half precision against the portable form in float64 of the same numbers: on matrix units
//! where the device has them.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use burn::tensor::DType;
use gatekit_kernels::scan::{DecayKind, WriteKind};
use support::scan::{Case, DECAYS, Forgetting, Types, gpu};

/// What the tensors beside the main inputs are stored in.
#[derive(Debug, Clone, Copy)]
enum Others {
    /// As a model has them: log decays and states in float32.
    Float32,
    /// Half precision throughout.
    Half,
}

/// The kinds of half precision that the device has, with the error that a result may have: several roundings to 11 or 8
/// bits, of operands, of results and of the two gradients that are added up.
///
/// Every type, decay, write and width of loads is a set of kernels of its own, and a software driver compiles for seconds
/// at each: a test takes one kind of `others`, not both.
fn types(others: Others) -> Vec<(Types, f64)> {
    let halves = [(DType::F16, 4e-3), (DType::BF16, 3e-2)];
    let known = halves.into_iter().filter(|(dtype, _)| gpu().supports_dtype(*dtype));
    known
        .map(|(main, tolerance)| {
            let other = match others {
                Others::Float32 => DType::F32,
                Others::Half => main,
            };
            (Types { main, other }, tolerance)
        })
        .collect()
}

fn check(case: &Case, others: Others) {
    for write in [WriteKind::Additive, WriteKind::Delta] {
        // On matrix units the delta rule rounds more on its way: the inverse, what it is multiplied with, the state that
        // the steps read and what they write, each an operand of the next product.
        let longer = if write == WriteKind::Delta { 1.5 } else { 1.0 };
        for (types, tolerance) in types(others) {
            Case { write, ..case.clone() }.check(types, longer * tolerance);
        }
    }
}

#[test]
fn lengths() {
    for time in [1, 15, 64, 65, 200] {
        for decay in DECAYS {
            check(&Case { initial: time != 64, ..Case::new([2, time, 2, 16, 16], decay) }, Others::Float32);
        }
    }
}

#[test]
fn head_sizes() {
    let sizes = [(1, 1), (3, 17), (17, 3), (64, 64), (128, 64), (256, 32)];
    for (key_dim, value_dim) in sizes {
        for decay in DECAYS {
            check(
                &Case { initial: true, ..Case::new([1, 80, 1, key_dim, value_dim], decay) },
                Others::Float32,
            );
        }
    }
}

#[test]
fn packed_sequences() {
    for decay in DECAYS {
        for initial in [false, true] {
            let boundaries = Some(vec![0, 1, 64, 65, 193, 200]);
            check(&Case { boundaries, initial, ..Case::new([1, 200, 2, 24, 40], decay) }, Others::Half);
        }
    }
}

#[test]
fn strong_decays_and_resets() {
    for forgetting in [Forgetting::Mixed, Forgetting::Resets] {
        for decay in [DecayKind::PerHead, DecayKind::PerKey] {
            check(
                &Case { forgetting, initial: true, ..Case::new([1, 150, 2, 40, 72], decay) },
                Others::Float32,
            );
        }
    }
}
