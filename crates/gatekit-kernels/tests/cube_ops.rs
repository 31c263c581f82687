//! The CubeCL kernels of the elementwise and per-channel operations in float32 and, where the
//! device stores it, float16, against the portable forms in float64.
#![cfg(all(feature = "wgpu", feature = "ndarray"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, DeviceKind, Gradients, Tensor};
use gatekit_kernels::{
    conv::short_convolution,
    gate::{Activation, gated_product, log_sigmoid_scaled},
    norm::rms_norm,
    scan::{ElementwiseSpec, elementwise_scan},
    selective::{SelectiveSpec, selective_scan, selective_scan_step},
};
use support::{Numbers, close, tensor};

/// The types of the main inputs, and of those that may stay in float32 beside them.
#[derive(Clone, Copy, Debug)]
struct Types {
    main: DType,
    other: DType,
}

impl Types {
    const SINGLE: Self = Self { main: DType::F32, other: DType::F32 };

    /// The type of the states beside the main inputs.
    fn state(self) -> DType {
        if self.main == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

/// Results and gradients by name.
type Results = Vec<(&'static str, Vec<f64>)>;

/// The values of a result, which must have this type.
fn result<const D: usize>(name: &'static str, x: &Tensor<D>, dtype: DType) -> (&'static str, Vec<f64>) {
    assert_eq!(x.dtype(), dtype, "{name}");
    (name, support::values(x))
}

/// The values of an argument's gradient, which must have its type.
fn gradient<const D: usize>(
    name: &'static str,
    x: &Tensor<D>,
    gradients: &Gradients,
) -> (&'static str, Vec<f64>) {
    result(name, &x.grad(gradients).expect("the result depends on the argument"), x.dtype())
}

/// What the losses add up.
fn weighted<const D: usize>(x: &Tensor<D>, w: &[f64]) -> Tensor<1> {
    let w = tensor(w, x.dims(), &x.device(), x.dtype());
    // Sums of many numbers do not fit into float16.
    (x.clone() * w).cast(if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 }).sum()
}

/// Numbers between -1 and 1 with seven binary digits, exact in every type.
fn digits(numbers: &mut Numbers, count: usize) -> Vec<f64> {
    numbers.many(count).iter().map(|x| (64.0 * x).round() / 64.0).collect()
}

/// Compares what `run` returns on the device with the portable form in float64.
#[track_caller]
fn compare(what: &str, types: Types, tolerance: f64, run: impl Fn(&Device, Types) -> Results) {
    let want = run(&Device::ndarray(), Types { main: DType::F64, other: DType::F64 });
    let got = run(&Device::wgpu(DeviceKind::DefaultDevice), types);
    assert_eq!(got.len(), want.len());
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        close(&format!("{name} of {what}, {types:?}"), got, want, tolerance);
    }
}

#[track_caller]
fn check(what: &str, tolerance: f64, run: impl Fn(&Device, Types) -> Results) {
    compare(what, Types::SINGLE, tolerance, run);
}

/// Where the device stores float16, with all inputs in it and with the main ones alone: results are
/// rounded once, to eleven binary digits.
#[track_caller]
fn check_half(what: &str, run: impl Fn(&Device, Types) -> Results) {
    if Device::wgpu(DeviceKind::DefaultDevice).supports_dtype(DType::F16) {
        for other in [DType::F16, DType::F32] {
            compare(what, Types { main: DType::F16, other }, 5e-4, &run);
        }
    }
}

const ACTIVATIONS: [Activation; 3] = [Activation::Sigmoid, Activation::Swish, Activation::Relu];

const EXTREMES: [f64; 14] =
    [-1e30, -1e4, -100.0, -88.5, -87.0, -20.0, -1e-3, 1e-30, 0.5, 20.0, 88.5, 100.0, 1e4, 1e30];

fn product([x, z, w]: [&[f64]; 3], activation: Activation, device: &Device, types: Types) -> Results {
    let device = device.clone().autodiff();
    let x = tensor(x, [x.len()], &device, types.main).require_grad();
    let z = tensor(z, [z.len()], &device, types.other).require_grad();
    let y = gated_product(x.clone(), z.clone(), activation);
    let gradients = weighted(&y, w).backward();
    vec![result("y", &y, types.main), gradient("x", &x, &gradients), gradient("logits", &z, &gradients)]
}

#[test]
fn gated_products_match_the_portable_form() {
    let mut numbers = Numbers(6);
    for count in [1, 3, 16, 1001, 4096] {
        let [x, z, w] = [(); 3].map(|()| digits(&mut numbers, count));
        let z: Vec<f64> = z.iter().map(|z| 6.0 * z).collect();
        for activation in ACTIVATIONS {
            let what = format!("a product of {count}, {activation:?}");
            let run = |device: &Device, types| product([&x, &z, &w], activation, device, types);
            check(&what, 1e-6, run);
            check_half(&what, run);
        }
    }
    let ones = [1.0; EXTREMES.len()];
    for activation in ACTIVATIONS {
        check("extreme logits", 1e-6, |device, types| {
            product([&ones, &EXTREMES, &ones], activation, device, types)
        });
    }
}

fn log_sigmoid(
    [z, w]: [&[f64]; 2],
    normalizer: f64,
    floor: Option<f64>,
    device: &Device,
    types: Types,
) -> Results {
    let device = device.clone().autodiff();
    let logits = tensor(z, [z.len()], &device, types.main).require_grad();
    let gate = log_sigmoid_scaled(logits.clone(), normalizer, floor);
    let gradients = weighted(&gate, w).backward();
    vec![result("gate", &gate, types.main), gradient("logits", &logits, &gradients)]
}

#[test]
fn log_sigmoids_match_the_portable_form() {
    let mut numbers = Numbers(7);
    let mut z: Vec<f64> = digits(&mut numbers, 501).iter().map(|z| 20.0 * z).collect();
    let w = digits(&mut numbers, z.len() + EXTREMES.len());
    for (normalizer, floor) in [(1.0, None), (16.0, None), (0.5, Some(-5.0)), (1.0, Some(-0.125))] {
        check_half(&format!("a log-sigmoid over {normalizer}"), |device, types| {
            log_sigmoid([&z, &w[..z.len()]], normalizer, floor, device, types)
        });
    }
    z.extend(EXTREMES);
    for (normalizer, floor) in [(1.0, None), (16.0, None), (0.5, Some(-5.0)), (1.0, Some(-1e-3))] {
        check(&format!("a log-sigmoid over {normalizer}"), 2e-6, |device, types| {
            log_sigmoid([&z, &w], normalizer, floor, device, types)
        });
    }
    // Accurate relative to its own size where it is small.
    let z: Vec<f64> = (0..40).map(|z| 0.5 * f64::from(z)).collect();
    let gate = |device: &Device, types| log_sigmoid([&z, &z], 1.0, None, device, types).swap_remove(0).1;
    let want = gate(&Device::ndarray(), Types { main: DType::F64, other: DType::F64 });
    let got = gate(&Device::wgpu(DeviceKind::DefaultDevice), Types::SINGLE);
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 2e-6 * want.abs(), "{got}, not {want}");
    }
}

fn norm(
    [rows, dim]: [usize; 2],
    gate: Option<Activation>,
) -> (String, impl Fn(&Device, Types) -> Results + Clone) {
    let mut numbers = Numbers((31 * rows + dim) as u64);
    let [x, w, z] = [(); 3].map(|()| digits(&mut numbers, rows * dim));
    let weight = digits(&mut numbers, dim);
    let z: Vec<f64> = z.iter().map(|z| 4.0 * z).collect();
    let run = move |device: &Device, types: Types| {
        let device = device.clone().autodiff();
        let x = tensor(&x, [rows, dim], &device, types.main).require_grad();
        let weight = tensor(&weight, [dim], &device, types.other).require_grad();
        let gate = gate.map(|gate| (tensor(&z, [rows, dim], &device, types.other).require_grad(), gate));
        let y = rms_norm(x.clone(), weight.clone(), 1e-3, gate.clone());
        let gradients = weighted(&y, &w).backward();
        let mut results = vec![
            result("y", &y, types.main),
            gradient("x", &x, &gradients),
            gradient("weight", &weight, &gradients),
        ];
        results.extend(gate.map(|(logits, _)| gradient("logits", &logits, &gradients)));
        results
    };
    (format!("a norm of {rows} x {dim}, {gate:?}"), run)
}

#[test]
fn norms_match_the_portable_form() {
    let mut gates: Vec<Option<Activation>> = ACTIVATIONS.into_iter().map(Some).collect();
    gates.push(None);
    // One channel, no whole line, lines, more than the units of a cube keep in registers, one row
    // and so many that the sums of the weight are summed again.
    let cases = [[1, 1], [300, 1], [5, 3], [7, 17], [1, 64], [700, 64], [9, 1023], [3, 4096], [2, 20_000]];
    for dims in cases {
        for &gate in &gates {
            let (what, run) = norm(dims, gate);
            check(&what, 1e-5, run);
        }
    }
    for (dims, gate) in [([5, 3], None), ([90, 64], Some(Activation::Swish)), ([3, 4096], gates[0])] {
        let (what, run) = norm(dims, gate);
        check_half(&what, run);
    }
}

/// `[batch, time, channels, taps]`; bias, state and activation.
fn convolution(
    [batch, time, channels, taps]: [usize; 4],
    boundaries: Option<&[usize]>,
    [has_bias, has_state, silu]: [bool; 3],
) -> (String, impl Fn(&Device, Types) -> Results + Clone) {
    let mut numbers = Numbers((batch + 3 * time + 5 * channels + 7 * taps) as u64);
    let dims = [batch, time, channels];
    let boundaries: Option<Arc<[usize]>> = boundaries.map(Arc::from);
    let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
    let state_dims = [sequences, taps - 1, channels];
    let [x, w] = [(); 2].map(|()| digits(&mut numbers, batch * time * channels));
    let weight = digits(&mut numbers, channels * taps);
    let bias = digits(&mut numbers, channels);
    let state = digits(&mut numbers, state_dims.iter().product());
    let what =
        format!("a convolution of {dims:?}, {taps} taps, {boundaries:?}, {has_bias} {has_state} {silu}");
    let run = move |device: &Device, types: Types| {
        let device = device.clone().autodiff();
        let x = tensor(&x, dims, &device, types.main).require_grad();
        let weight = tensor(&weight, [channels, taps], &device, types.other).require_grad();
        let bias = has_bias.then(|| tensor(&bias, [channels], &device, types.other).require_grad());
        let state = has_state.then(|| tensor(&state, state_dims, &device, types.other).require_grad());
        let (b, s) = (bias.clone(), state.clone());
        let y = short_convolution(x.clone(), weight.clone(), b, s, boundaries.clone(), silu);
        let gradients = weighted(&y, &w).backward();
        let mut results = vec![
            result("y", &y, types.main),
            gradient("x", &x, &gradients),
            gradient("weight", &weight, &gradients),
        ];
        results.extend(bias.map(|bias| gradient("bias", &bias, &gradients)));
        results.extend(state.map(|state| gradient("state", &state, &gradients)));
        results
    };
    (what, run)
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
                let (what, run) = convolution(dims, boundaries, flags);
                check(&what, 1e-5, run);
            }
        }
    }
    for (dims, boundaries) in [cases[3], cases[9]] {
        let (what, run) = convolution(dims, boundaries, [true; 3]);
        check_half(&what, run);
    }
}

/// `[batch, time, dim]`; which results the loss uses: the output, the final state.
fn elementwise(
    dims: [usize; 3],
    boundaries: Option<&[usize]>,
    has_initial_state: bool,
    log_decay: Vec<f64>,
    uses: [bool; 2],
) -> (String, impl Fn(&Device, Types) -> Results + Clone) {
    let [batch, time, dim] = dims;
    let mut numbers = Numbers((batch + 3 * time + 5 * dim) as u64);
    let boundaries: Option<Arc<[usize]>> = boundaries.map(Arc::from);
    let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
    let [x, w] = [(); 2].map(|()| digits(&mut numbers, batch * time * dim));
    let [initial, w_state] = [(); 2].map(|()| digits(&mut numbers, sequences * dim));
    let what = format!("an elementwise scan of {dims:?}, {boundaries:?}, {has_initial_state} {uses:?}");
    let run = move |device: &Device, types: Types| {
        let device = device.clone().autodiff();
        let x = tensor(&x, dims, &device, types.main).require_grad();
        let log_decay = tensor(&log_decay, dims, &device, types.other).require_grad();
        let initial = has_initial_state
            .then(|| tensor(&initial, [sequences, dim], &device, types.other).require_grad());
        let spec = ElementwiseSpec { has_initial_state, boundaries: boundaries.clone(), fused: true };
        let (h, state) = elementwise_scan(x.clone(), log_decay.clone(), initial.clone(), spec);
        let gradients = loss(uses, weighted(&h, &w), weighted(&state, &w_state)).backward();
        let mut results = vec![
            result("h", &h, types.main),
            result("state", &state, types.state()),
            gradient("x", &x, &gradients),
            gradient("log_decay", &log_decay, &gradients),
        ];
        results.extend(initial.map(|initial| gradient("initial state", &initial, &gradients)));
        results
    };
    (what, run)
}

/// The loss of a scan: of its output, of its final state, or of both.
fn loss(uses: [bool; 2], of_output: Tensor<1>, of_state: Tensor<1>) -> Tensor<1> {
    match uses {
        [true, false] => of_output,
        [false, true] => of_state,
        _ => of_output + of_state,
    }
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
    let log_decay = |dims: [usize; 3]| -> Vec<f64> {
        let mut numbers = Numbers(dims.iter().sum::<usize>() as u64);
        digits(&mut numbers, dims.iter().product()).iter().map(|g| -0.5 - 0.5 * g).collect()
    };
    for (dims, boundaries) in cases {
        for has_initial_state in [false, true] {
            for uses in [[true, false], [false, true], [true, true]] {
                let log_decay = log_decay(dims);
                let (what, run) = elementwise(dims, boundaries, has_initial_state, log_decay, uses);
                check(&what, 1e-5, run);
            }
        }
    }
    for (dims, boundaries) in [([2, 100, 8], None), ([1, 100, 3], Some(&[0, 1, 33, 100][..]))] {
        let (what, run) = elementwise(dims, boundaries, true, log_decay(dims), [true, true]);
        check_half(&what, run);
    }
}

#[test]
fn closed_and_open_gates_are_exact() {
    // Nothing decays, everything does, and both in turn, within and across chunks.
    for dims in [[1, 700, 4], [2, 40, 3]] {
        let count = dims.iter().product::<usize>();
        let in_turn = [-1e4, -0.01, 0.0, -1e-30, f64::NEG_INFINITY, -0.3];
        for decays in [&[0.0][..], &[f64::NEG_INFINITY], &in_turn] {
            let log_decay: Vec<f64> = decays.iter().copied().cycle().take(count).collect();
            let (what, run) = elementwise(dims, None, true, log_decay, [true, true]);
            check(&what, 1e-5, run);
        }
    }
}

/// Numbers for a selective scan of `[batch, time, channels, size]`: x, delta, a, b, c and the initial
/// state, then the gradients of the results.
fn selective_numbers([batch, time, channels, size]: [usize; 4], sequences: usize) -> [Vec<f64>; 8] {
    let mut numbers = Numbers((batch + 3 * time + 5 * channels + 7 * size) as u64);
    let (of_channels, of_size) = (batch * time * channels, batch * time * size);
    // Steps from 0, where the state stays, to 100, which clears it.
    let steps = digits(&mut numbers, of_channels);
    let step = |z: &f64| if *z < -0.9 { 0.0 } else { ((3.0 * z).exp() * 0.1 * 512.0).round() / 512.0 };
    let mut delta: Vec<f64> = steps.iter().map(step).collect();
    delta.iter_mut().skip(3).step_by(41).for_each(|delta| *delta = 100.0);
    let rates = digits(&mut numbers, channels * size);
    let a = rates.iter().map(|z| -((1.5 * z).exp() * 256.0).round() / 256.0).collect();
    [
        digits(&mut numbers, of_channels),
        delta,
        a,
        digits(&mut numbers, of_size),
        digits(&mut numbers, of_size),
        digits(&mut numbers, sequences * channels * size),
        digits(&mut numbers, of_channels),
        digits(&mut numbers, sequences * channels * size),
    ]
}

/// `[batch, time, channels, size]`; which results the loss uses: the output, the final state.
fn selective(
    dims: [usize; 4],
    boundaries: Option<&[usize]>,
    has_initial_state: bool,
    uses: [bool; 2],
) -> (String, impl Fn(&Device, Types) -> Results + Clone) {
    let [batch, time, channels, size] = dims;
    let boundaries: Option<Arc<[usize]>> = boundaries.map(Arc::from);
    let sequences = boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
    let [x, delta, a, b, c, initial, w, w_state] = selective_numbers(dims, sequences);
    let (of_channels, of_size) = ([batch, time, channels], [batch, time, size]);
    let of_states = [sequences, channels, size];
    let what = format!("a selective scan of {dims:?}, {boundaries:?}, {has_initial_state} {uses:?}");
    let run = move |device: &Device, types: Types| {
        let device = device.clone().autodiff();
        let x = tensor(&x, of_channels, &device, types.main).require_grad();
        let delta = tensor(&delta, of_channels, &device, types.other).require_grad();
        let a = tensor(&a, [channels, size], &device, types.other).require_grad();
        let b = tensor(&b, of_size, &device, types.main).require_grad();
        let c = tensor(&c, of_size, &device, types.main).require_grad();
        let initial =
            has_initial_state.then(|| tensor(&initial, of_states, &device, types.other).require_grad());
        let spec = SelectiveSpec { has_initial_state, boundaries: boundaries.clone(), fused: true };
        let state = initial.clone();
        let (y, state) =
            selective_scan(x.clone(), delta.clone(), a.clone(), b.clone(), c.clone(), state, spec);
        let gradients = loss(uses, weighted(&y, &w), weighted(&state, &w_state)).backward();
        let mut results = vec![
            result("y", &y, types.main),
            result("state", &state, types.state()),
            gradient("x", &x, &gradients),
            gradient("delta", &delta, &gradients),
            gradient("a", &a, &gradients),
            gradient("b", &b, &gradients),
            gradient("c", &c, &gradients),
        ];
        results.extend(initial.map(|initial| gradient("initial state", &initial, &gradients)));
        results
    };
    (what, run)
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
        for (has_initial_state, uses) in [(false, [true, false]), (true, [true, true])] {
            let (what, run) = selective(dims, boundaries, has_initial_state, uses);
            check(&what, 2e-5, run);
        }
    }
    let (what, run) = selective([2, 37, 5, 3], None, true, [true, true]);
    check_half(&what, run);
}

#[test]
fn selective_steps_match_the_portable_form() {
    for [batch, channels, size] in [[1, 1, 1], [2, 5, 3], [3, 40, 16], [1, 7, 6]] {
        let [x, delta, a, b, c, state, ..] = selective_numbers([batch, 1, channels, size], batch);
        for is_held in [false, true] {
            let run = |device: &Device, types: Types| {
                let x = tensor(&x, [batch, channels], device, types.main);
                let delta = tensor(&delta, [batch, channels], device, types.other);
                let a = tensor(&a, [channels, size], device, types.other);
                let [b, c] = [&b, &c].map(|x| tensor(x, [batch, size], device, types.main));
                let state = tensor(&state, [batch, channels, size], device, types.state());
                // What somebody else holds stays as it was.
                let held = is_held.then(|| state.clone());
                let (y, new) = selective_scan_step(x, delta, a, b, c, state, true);
                let mut results = vec![result("y", &y, types.main), result("state", &new, types.state())];
                results.extend(held.map(|held| result("the old state", &held, types.state())));
                results
            };
            check(&format!("a step of {batch} x {channels} x {size}"), 1e-6, run);
            check_half(&format!("a step of {batch} x {channels} x {size}"), run);
        }
    }
}
