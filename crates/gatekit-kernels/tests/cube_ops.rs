//! The CubeCL kernels of the elementwise and per-channel operations in float32 and, where the
//! device stores it, float16, against the portable forms in float64.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, DeviceKind};
use gatekit_kernels::{
    conv::short_convolution,
    gate::{Activation, gated_product, log_sigmoid_scaled},
    norm::rms_norm,
    scan::{ElementwiseSpec, elementwise_scan},
    selective::{SelectiveSpec, selective_scan, selective_scan_step},
};
use support::*;

/// Results and gradients by name.
type Results = Vec<(&'static str, Vec<f64>)>;

fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// Compares what `run` returns with the portable form in float64.
#[track_caller]
fn check(what: &str, tolerance: f64, run: impl Fn(&Device, DType) -> Results) {
    let want = run(&Device::ndarray(), DType::F64);
    let got = run(&gpu(), DType::F32);
    assert_eq!(got.len(), want.len());
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        close(&format!("{name} of {what}"), got, want, tolerance);
    }
}

const ACTIVATIONS: [Activation; 3] = [Activation::Sigmoid, Activation::Swish, Activation::Relu];

const EXTREMES: [f64; 14] =
    [-1e30, -1e4, -100.0, -88.5, -87.0, -20.0, -1e-3, 1e-30, 0.5, 20.0, 88.5, 100.0, 1e4, 1e30];

fn product([x, z, w]: [&[f64]; 3], activation: Activation, device: &Device, dtype: DType) -> Results {
    let device = device.clone().autodiff();
    let tensor = |values: &[f64]| tensor(values, [values.len()], &device, dtype);
    let (x, z) = (tensor(x).require_grad(), tensor(z).require_grad());
    let y = gated_product(x.clone(), z.clone(), activation);
    let gradients = (y.clone() * tensor(w)).sum().backward();
    vec![("y", values(&y)), ("x", gradient(&x, &gradients)), ("logits", gradient(&z, &gradients))]
}

#[test]
fn gated_products_match_the_portable_form() {
    let mut numbers = Numbers(6);
    for count in [1, 3, 16, 1001, 4096] {
        let (x, z, w) = (numbers.many(count), numbers.many(count), numbers.many(count));
        let z: Vec<f64> = z.iter().map(|z| 6.0 * z).collect();
        for activation in ACTIVATIONS {
            let what = format!("a product of {count}, {activation:?}");
            check(&what, 1e-6, |device, dtype| product([&x, &z, &w], activation, device, dtype));
        }
    }
    let ones = [1.0; EXTREMES.len()];
    for activation in ACTIVATIONS {
        check("extreme logits", 1e-6, |device, dtype| {
            product([&ones, &EXTREMES, &ones], activation, device, dtype)
        });
    }
}

#[test]
fn log_sigmoids_match_the_portable_form() {
    let mut numbers = Numbers(7);
    let mut z: Vec<f64> = numbers.many(501).iter().map(|z| 20.0 * z).collect();
    z.extend(EXTREMES);
    let w = numbers.many(z.len());
    for (normalizer, floor) in [(1.0, None), (16.0, None), (0.5, Some(-5.0)), (1.0, Some(-1e-3))] {
        check(&format!("a log-sigmoid over {normalizer}"), 2e-6, |device, dtype| {
            let device = device.clone().autodiff();
            let logits = tensor(&z, [z.len()], &device, dtype).require_grad();
            let gate = log_sigmoid_scaled(logits.clone(), normalizer, floor);
            let gradients = (gate.clone() * tensor(&w, [w.len()], &device, dtype)).sum().backward();
            vec![("gate", values(&gate)), ("logits", gradient(&logits, &gradients))]
        });
    }
}

#[test]
fn norms_match_the_portable_form() {
    let mut gates: Vec<Option<Activation>> = ACTIVATIONS.into_iter().map(Some).collect();
    gates.push(None);
    // One channel, no whole line, lines, more than the units of a cube keep in registers, one row
    // and so many that the sums of the weight are summed again.
    let cases = [(1, 1), (300, 1), (5, 3), (7, 17), (1, 64), (700, 64), (9, 1023), (3, 4096), (2, 20_000)];
    for (rows, dim) in cases {
        for &gate in &gates {
            let mut numbers = Numbers((31 * rows + dim) as u64);
            let (x, weight, w) = (numbers.many(rows * dim), numbers.many(dim), numbers.many(rows * dim));
            let z: Vec<f64> = numbers.many(rows * dim).iter().map(|z| 4.0 * z).collect();
            check(&format!("a norm of {rows} x {dim}, {gate:?}"), 1e-5, |device, dtype| {
                let device = device.clone().autodiff();
                let x = tensor(&x, [rows, dim], &device, dtype).require_grad();
                let weight = tensor(&weight, [dim], &device, dtype).require_grad();
                let gate = gate.map(|gate| (tensor(&z, [rows, dim], &device, dtype).require_grad(), gate));
                let y = rms_norm(x.clone(), weight.clone(), 1e-3, gate.clone());
                let gradients = (y.clone() * tensor(&w, [rows, dim], &device, dtype)).sum().backward();
                let mut results = vec![
                    ("y", values(&y)),
                    ("x", gradient(&x, &gradients)),
                    ("weight", gradient(&weight, &gradients)),
                ];
                results.extend(gate.map(|(logits, _)| ("logits", gradient(&logits, &gradients))));
                results
            });
        }
    }
}

/// `[batch, time, channels, taps]`; bias, state and activation.
fn convolution(
    [batch, time, channels, taps]: [usize; 4],
    boundaries: Option<&[usize]>,
    [has_bias, has_state, silu]: [bool; 3],
) {
    let mut numbers = Numbers((batch + 3 * time + 5 * channels + 7 * taps) as u64);
    let dims = [batch, time, channels];
    let boundaries: Option<Arc<[usize]>> = boundaries.map(Arc::from);
    let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
    let state_dims = [sequences, taps - 1, channels];
    let (x, w) = (numbers.many(batch * time * channels), numbers.many(batch * time * channels));
    let (weight, bias) = (numbers.many(channels * taps), numbers.many(channels));
    let state = numbers.many(state_dims.iter().product());
    let what =
        format!("a convolution of {dims:?}, {taps} taps, {boundaries:?}, {has_bias} {has_state} {silu}");
    check(&what, 1e-5, |device, dtype| {
        let device = device.clone().autodiff();
        let x = tensor(&x, dims, &device, dtype).require_grad();
        let weight = tensor(&weight, [channels, taps], &device, dtype).require_grad();
        let bias = has_bias.then(|| tensor(&bias, [channels], &device, dtype).require_grad());
        let state = has_state.then(|| tensor(&state, state_dims, &device, dtype).require_grad());
        let (b, s) = (bias.clone(), state.clone());
        let y = short_convolution(x.clone(), weight.clone(), b, s, boundaries.clone(), silu);
        let gradients = (y.clone() * tensor(&w, dims, &device, dtype)).sum().backward();
        let mut results = vec![
            ("y", values(&y)),
            ("x", gradient(&x, &gradients)),
            ("weight", gradient(&weight, &gradients)),
        ];
        results.extend(bias.map(|bias| ("bias", gradient(&bias, &gradients))));
        results.extend(state.map(|state| ("state", gradient(&state, &gradients))));
        results
    });
}

#[test]
fn convolutions_match_the_portable_form() {
    let many: Vec<usize> = (0..=100).collect();
    // One step, fewer steps than the history, one tap, several units along the steps, odd channels,
    // more taps than a line keeps; sequences of one step, shorter than a filter, over several units.
    let cases: [([usize; 4], Option<&[usize]>); 11] = [
        ([2, 1, 3, 4], None),
        ([1, 2, 1, 5], None),
        ([2, 9, 5, 1], None),
        ([3, 70, 12, 4], None),
        ([1, 133, 7, 3], None),
        ([1, 40, 64, 9], None),
        ([1, 12, 6, 4], Some(&[0, 1, 2, 5, 12])),
        ([1, 4, 3, 3], Some(&[0, 4])),
        ([1, 100, 4, 4], Some(&many)),
        ([1, 200, 8, 4], Some(&[0, 30, 31, 33, 48, 64, 150, 200])),
        ([1, 70, 8, 1], Some(&[0, 30, 70])),
    ];
    let flags = [[false; 3], [true; 3], [true, false, true], [false, true, false], [false, true, true]];
    for (dims, boundaries) in cases {
        for flags in flags {
            if dims[3] > 1 || !flags[1] {
                convolution(dims, boundaries, flags);
            }
        }
    }
}

/// `[batch, time, dim]`; which results the loss uses: the output, the final state.
fn elementwise(
    dims: [usize; 3],
    boundaries: Option<&[usize]>,
    has_initial_state: bool,
    log_decay: &[f64],
    uses: [bool; 2],
) {
    let [batch, time, dim] = dims;
    let mut numbers = Numbers((batch + 3 * time + 5 * dim) as u64);
    let boundaries: Option<Arc<[usize]>> = boundaries.map(Arc::from);
    let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
    let (x, w) = (numbers.many(batch * time * dim), numbers.many(batch * time * dim));
    let (initial, w_state) = (numbers.many(sequences * dim), numbers.many(sequences * dim));
    let what = format!("an elementwise scan of {dims:?}, {boundaries:?}, {has_initial_state} {uses:?}");
    check(&what, 1e-5, |device, dtype| {
        let device = device.clone().autodiff();
        let x = tensor(&x, dims, &device, dtype).require_grad();
        let log_decay = tensor(log_decay, dims, &device, dtype).require_grad();
        let initial =
            has_initial_state.then(|| tensor(&initial, [sequences, dim], &device, dtype).require_grad());
        let spec = ElementwiseSpec { has_initial_state, boundaries: boundaries.clone(), fused: true };
        let (h, state) = elementwise_scan(x.clone(), log_decay.clone(), initial.clone(), spec);
        let of_output = (h.clone() * tensor(&w, dims, &device, dtype)).sum();
        let of_state = (state.clone() * tensor(&w_state, [sequences, dim], &device, dtype)).sum();
        let loss = match uses {
            [true, false] => of_output,
            [false, true] => of_state,
            _ => of_output + of_state,
        };
        let gradients = loss.backward();
        let mut results = vec![
            ("h", values(&h)),
            ("state", values(&state)),
            ("x", gradient(&x, &gradients)),
            ("log_decay", gradient(&log_decay, &gradients)),
        ];
        results.extend(initial.map(|initial| ("initial state", gradient(&initial, &gradients))));
        results
    });
}

#[test]
fn elementwise_scans_match_the_portable_form() {
    let many: Vec<usize> = (0..=60).collect();
    // One step, one chunk, several, of odd lengths; sequences that end in, between and over chunks.
    let cases: [([usize; 3], Option<&[usize]>); 9] = [
        ([2, 1, 3], None),
        ([1, 16, 4], None),
        ([3, 17, 5], None),
        ([2, 700, 8], None),
        ([1, 2000, 3], None),
        ([1, 60, 4], Some(&many)),
        ([1, 100, 1], Some(&[0, 1, 16, 32, 33, 99, 100])),
        ([1, 700, 12], Some(&[0, 300, 301, 303, 690, 700])),
        ([1, 8, 2], Some(&[0, 8])),
    ];
    for (dims, boundaries) in cases {
        let mut numbers = Numbers(dims.iter().sum::<usize>() as u64);
        let log_decay: Vec<f64> =
            numbers.many(dims.iter().product()).iter().map(|g| -0.5 - 0.5 * g).collect();
        for has_initial_state in [false, true] {
            for uses in [[true, false], [false, true], [true, true]] {
                elementwise(dims, boundaries, has_initial_state, &log_decay, uses);
            }
        }
    }
}

#[test]
fn closed_and_open_gates_are_exact() {
    // Nothing decays, everything does, and both in turn, within and across chunks.
    for dims in [[1, 700, 4], [2, 40, 3]] {
        let count = dims.iter().product::<usize>();
        for decays in [&[0.0][..], &[f64::NEG_INFINITY], &[-1e4, -0.01, 0.0, -1e-30, f64::NEG_INFINITY, -0.3]]
        {
            let log_decay: Vec<f64> = decays.iter().copied().cycle().take(count).collect();
            elementwise(dims, None, true, &log_decay, [true, true]);
        }
    }
}

/// Numbers for a selective scan of `[batch, time, channels, size]`: x, delta, a, b, c and the initial
/// state, then the gradients of the results.
fn selective_numbers([batch, time, channels, size]: [usize; 4], sequences: usize) -> [Vec<f64>; 8] {
    let mut numbers = Numbers((batch + 3 * time + 5 * channels + 7 * size) as u64);
    let (of_channels, of_size) = (batch * time * channels, batch * time * size);
    // Steps from 0, where the state stays, to 100, which clears it.
    let steps = numbers.many(of_channels);
    let delta = steps.iter().map(|z| if *z < -0.9 { 0.0 } else { (3.0 * z).exp() * 0.1 });
    let mut delta: Vec<f64> = delta.map(|delta| f64::from(delta as f32)).collect();
    delta.iter_mut().skip(3).step_by(41).for_each(|delta| *delta = 100.0);
    let a = numbers.many(channels * size).iter().map(|z| f64::from(-(1.5 * z).exp() as f32)).collect();
    [
        numbers.many(of_channels),
        delta,
        a,
        numbers.many(of_size),
        numbers.many(of_size),
        numbers.many(sequences * channels * size),
        numbers.many(of_channels),
        numbers.many(sequences * channels * size),
    ]
}

/// `[batch, time, channels, size]`; which results the loss uses: the output, the final state.
fn selective(dims: [usize; 4], boundaries: Option<&[usize]>, has_initial_state: bool, uses: [bool; 2]) {
    let [batch, time, channels, size] = dims;
    let boundaries: Option<Arc<[usize]>> = boundaries.map(Arc::from);
    let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
    let [x, delta, a, b, c, initial, w, w_state] = selective_numbers(dims, sequences);
    let (of_channels, of_size) = ([batch, time, channels], [batch, time, size]);
    let of_states = [sequences, channels, size];
    let what = format!("a selective scan of {dims:?}, {boundaries:?}, {has_initial_state} {uses:?}");
    check(&what, 2e-5, |device, dtype| {
        let device = device.clone().autodiff();
        let x = tensor(&x, of_channels, &device, dtype).require_grad();
        let delta = tensor(&delta, of_channels, &device, dtype).require_grad();
        let a = tensor(&a, [channels, size], &device, dtype).require_grad();
        let b = tensor(&b, of_size, &device, dtype).require_grad();
        let c = tensor(&c, of_size, &device, dtype).require_grad();
        let initial = has_initial_state.then(|| tensor(&initial, of_states, &device, dtype).require_grad());
        let spec = SelectiveSpec { has_initial_state, boundaries: boundaries.clone(), fused: true };
        let (y, state) =
            selective_scan(x.clone(), delta.clone(), a.clone(), b.clone(), c.clone(), initial.clone(), spec);
        let of_output = (y.clone() * tensor(&w, of_channels, &device, dtype)).sum();
        let of_state = (state.clone() * tensor(&w_state, of_states, &device, dtype)).sum();
        let loss = match uses {
            [true, false] => of_output,
            [false, true] => of_state,
            _ => of_output + of_state,
        };
        let gradients = loss.backward();
        let mut results = vec![
            ("y", values(&y)),
            ("state", values(&state)),
            ("x", gradient(&x, &gradients)),
            ("delta", gradient(&delta, &gradients)),
            ("a", gradient(&a, &gradients)),
            ("b", gradient(&b, &gradients)),
            ("c", gradient(&c, &gradients)),
        ];
        results.extend(initial.map(|initial| ("initial state", gradient(&initial, &gradients))));
        results
    });
}

#[test]
fn selective_scans_match_the_portable_form() {
    let many: Vec<usize> = (0..=70).collect();
    // One step, one number a state, odd sizes, several chunks, blocks of channels and of states;
    // sequences that end in, between and over tiles and chunks.
    let cases: [([usize; 4], Option<&[usize]>); 10] = [
        ([2, 1, 3, 2], None),
        ([1, 3, 1, 1], None),
        ([2, 37, 5, 3], None),
        ([1, 130, 40, 16], None),
        ([1, 33, 33, 17], None),
        ([1, 20, 4, 40], None),
        ([1, 70, 3, 4], Some(&many)),
        ([1, 100, 6, 5], Some(&[0, 1, 4, 32, 33, 99, 100])),
        ([1, 150, 34, 16], Some(&[0, 70, 71, 73, 150])),
        ([1, 8, 2, 2], Some(&[0, 8])),
    ];
    for (dims, boundaries) in cases {
        selective(dims, boundaries, false, [true, false]);
        selective(dims, boundaries, true, [true, true]);
    }
}

#[test]
fn selective_steps_match_the_portable_form() {
    for [batch, channels, size] in [[1, 1, 1], [2, 5, 3], [3, 40, 16], [1, 7, 6]] {
        let [x, delta, a, b, c, state, ..] = selective_numbers([batch, 1, channels, size], batch);
        for is_held in [false, true] {
            check(&format!("a step of {batch} x {channels} x {size}"), 1e-6, |device, dtype| {
                let [x, delta] = [&x, &delta].map(|x| tensor(x, [batch, channels], device, dtype));
                let a = tensor(&a, [channels, size], device, dtype);
                let [b, c] = [&b, &c].map(|x| tensor(x, [batch, size], device, dtype));
                let state = tensor(&state, [batch, channels, size], device, dtype);
                // What somebody else holds stays as it was.
                let held = is_held.then(|| state.clone());
                let (y, new) = selective_scan_step(x, delta, a, b, c, state, true);
                let mut results = vec![("y", values(&y)), ("state", values(&new))];
                results.extend(held.map(|held| ("the old state", values(&held))));
                results
            });
        }
    }
}
