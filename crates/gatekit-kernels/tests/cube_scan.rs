//! The scans' CubeCL kernels in float32 against the portable form in float64: outputs, final states, all gradients.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use gatekit_kernels::scan::DecayKind;
use support::scan::{Case, DECAYS, Forgetting, Types};

/// Sums of up to some thousand float32 products each rounded to 6e-8.
const TOLERANCE: f64 = 2e-5;

#[test]
fn lengths() {
    for time in [1, 15, 64, 65, 200] {
        for decay in DECAYS {
            Case { initial: time != 64, ..Case::new([2, time, 2, 16, 16], decay) }
                .check(Types::SINGLE, TOLERANCE);
        }
    }
}

#[test]
fn head_sizes() {
    // Sizes that are multiples of 4 and others are different kernels, which software Vulkan takes seconds to compile:
    // their mixtures with one decay only.
    let sizes = [(1, 1), (3, 17), (17, 3), (64, 64), (128, 64), (64, 128), (256, 64), (64, 256)];
    for (key_dim, value_dim) in sizes {
        for decay in DECAYS {
            Case { initial: true, ..Case::new([1, 80, 2, key_dim, value_dim], decay) }
                .check(Types::SINGLE, TOLERANCE);
        }
    }
    for (key_dim, value_dim) in [(17, 64), (128, 3)] {
        Case { initial: true, ..Case::new([1, 80, 2, key_dim, value_dim], DecayKind::PerKey) }
            .check(Types::SINGLE, TOLERANCE);
    }
}

#[test]
fn packed_sequences() {
    for decay in DECAYS {
        for initial in [false, true] {
            let boundaries = Some(vec![0, 1, 64, 65, 193, 200]);
            Case { boundaries, initial, ..Case::new([1, 200, 2, 24, 40], decay) }
                .check(Types::SINGLE, TOLERANCE);
        }
    }
}

#[test]
fn strong_decays_and_resets() {
    for forgetting in [Forgetting::Mixed, Forgetting::Resets] {
        for decay in [DecayKind::PerHead, DecayKind::PerKey] {
            for (key_dim, value_dim) in [(16, 16), (40, 72)] {
                let case = Case::new([1, 150, 2, key_dim, value_dim], decay);
                Case { forgetting, initial: true, ..case }.check(Types::SINGLE, TOLERANCE);
            }
        }
    }
}
