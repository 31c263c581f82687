//! The short convolution: the portable form in float64 against plain Rust and central differences,
//! the fused form in float32 against the portable one.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device};
use gatekit_kernels::conv::short_convolution;
use support::*;

#[derive(Clone, Debug)]
struct Case {
    batch: usize,
    time: usize,
    channels: usize,
    taps: usize,
    bias: bool,
    state: bool,
    silu: bool,
    boundaries: Option<Arc<[usize]>>,
    /// x, weight, bias, state.
    inputs: Vec<Vec<f64>>,
    /// Gradient of the result.
    w: Vec<f64>,
}

impl Case {
    fn new(
        [batch, time, channels, taps]: [usize; 4],
        boundaries: Option<&[usize]>,
        flags: [bool; 3],
    ) -> Self {
        let mut numbers = Numbers((batch + 3 * time + 5 * channels + 7 * taps) as u64);
        let sequences = boundaries.map_or(batch, |boundaries| boundaries.len() - 1);
        let [bias, state, silu] = flags;
        let inputs = vec![
            numbers.many(batch * time * channels),
            numbers.many(channels * taps),
            numbers.many(if bias { channels } else { 0 }),
            numbers.many(if state { sequences * (taps - 1) * channels } else { 0 }),
        ];
        let w = numbers.many(batch * time * channels);
        let boundaries = boundaries.map(Arc::from);
        Self { batch, time, channels, taps, bias, state, silu, boundaries, inputs, w }
    }

    fn sequences(&self) -> Vec<(usize, usize)> {
        match &self.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| (pair[0], pair[1])).collect(),
            None => (0..self.batch).map(|row| (row * self.time, (row + 1) * self.time)).collect(),
        }
    }

    fn naive(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let &Self { channels, taps, .. } = self;
        let [x, weight, bias, state] = inputs else { unreachable!() };
        let mut y = vec![];
        for (sequence, (start, end)) in self.sequences().into_iter().enumerate() {
            for step in start..end {
                for channel in 0..channels {
                    let mut sum = if self.bias { bias[channel] } else { 0.0 };
                    for tap in 0..taps {
                        let place = step as isize - (taps - 1 - tap) as isize;
                        let input = if place >= start as isize {
                            x[place as usize * channels + channel]
                        } else if self.state {
                            let before = (place - start as isize + taps as isize - 1) as usize;
                            state[(sequence * (taps - 1) + before) * channels + channel]
                        } else {
                            0.0
                        };
                        sum += weight[channel * taps + tap] * input;
                    }
                    y.push(if self.silu { sum * sigmoid(sum) } else { sum });
                }
            }
        }
        y
    }

    /// Result and gradients by name.
    fn run(&self, device: &Device, dtype: DType) -> Vec<(&'static str, Vec<f64>)> {
        let device = device.clone().autodiff();
        let dims = [self.batch, self.time, self.channels];
        let x = tensor(&self.inputs[0], dims, &device, dtype).require_grad();
        let weight = tensor(&self.inputs[1], [self.channels, self.taps], &device, dtype).require_grad();
        let bias = self.bias.then(|| tensor(&self.inputs[2], [self.channels], &device, dtype).require_grad());
        let state_dims = [self.sequences().len(), self.taps - 1, self.channels];
        let state = self.state.then(|| tensor(&self.inputs[3], state_dims, &device, dtype).require_grad());
        let (boundaries, silu) = (self.boundaries.clone(), self.silu);
        let y = short_convolution(x.clone(), weight.clone(), bias.clone(), state.clone(), boundaries, silu);
        let gradients = (y.clone() * tensor(&self.w, dims, &device, dtype)).sum().backward();
        let mut all = vec![
            ("y", values(&y)),
            ("x", gradient(&x, &gradients)),
            ("weight", gradient(&weight, &gradients)),
        ];
        all.extend(bias.map(|bias| ("bias", gradient(&bias, &gradients))));
        all.extend(state.map(|state| ("state", gradient(&state, &gradients))));
        all
    }
}

/// With and without bias, state and activation; a filter of one tap has no state.
fn flags(taps: usize) -> Vec<[bool; 3]> {
    let all = [[false; 3], [true; 3], [true, false, true], [false, true, false], [false, true, true]];
    all.into_iter().filter(|[_, state, _]| taps > 1 || !state).collect()
}

#[test]
fn portable_convolutions_match_plain_rust_and_differences() {
    // One tap; fewer steps than the history; segments of one step, and one segment alone.
    let cases: [([usize; 4], Option<&[usize]>); 7] = [
        ([2, 3, 2, 1], None),
        ([2, 6, 3, 4], None),
        ([1, 2, 1, 5], None),
        ([2, 1, 2, 2], None),
        ([1, 8, 2, 4], Some(&[0, 1, 3, 8])),
        ([1, 4, 3, 3], Some(&[0, 4])),
        ([1, 3, 2, 1], Some(&[0, 1, 3])),
    ];
    for (dims, boundaries) in cases {
        for flags in flags(dims[3]) {
            let case = Case::new(dims, boundaries, flags);
            let want = differences(&case.inputs, |inputs| dot(&case.naive(inputs), &case.w));
            for device in devices() {
                for (name, got) in case.run(&device, DType::F64) {
                    let (want, tolerance) =
                        match ["x", "weight", "bias", "state"].iter().position(|n| *n == name) {
                            Some(index) => (want[index].clone(), 1e-8),
                            None => (case.naive(&case.inputs), 1e-13),
                        };
                    close(&format!("{name} of {dims:?} {boundaries:?} {flags:?}"), &got, &want, tolerance);
                }
            }
        }
    }
}

#[test]
fn fused_convolutions_match_the_portable_form() {
    let many: Vec<usize> = (0..=300).map(|i| i * (i + 1) / 2).take_while(|b| *b < 700).chain([700]).collect();
    let cases: [([usize; 4], Option<&[usize]>); 12] = [
        ([1, 1, 1, 1], None),
        ([3, 1, 7, 4], None),
        ([2, 2, 5, 4], None),
        ([2, 9, 17, 2], None),
        ([3, 50, 33, 8], None),
        ([2, 700, 31, 4], None),
        ([2, 40, 1500, 4], None),
        ([1, 5, 9000, 3], None),
        ([1, 12, 6, 4], Some(&[0, 1, 2, 5, 12])),
        ([1, 700, 40, 4], Some(&many)),
        ([1, 700, 64, 6], Some(&[0, 300, 301, 303, 690, 700])),
        ([1, 700, 64, 1], Some(&[0, 300, 700])),
    ];
    for (dims, boundaries) in cases {
        for flags in flags(dims[3]) {
            let case = Case::new(dims, boundaries, flags);
            for device in devices() {
                let want = case.run(&device, DType::F64);
                let got = case.run(&device, DType::F32);
                assert_eq!(got.len(), want.len());
                for ((name, got), (_, want)) in got.iter().zip(&want) {
                    close(&format!("{name} of {dims:?} {boundaries:?} {flags:?}"), got, want, 1e-5);
                }
            }
        }
    }
}

#[test]
fn extreme_results_stay_finite() {
    let mut case = Case::new([1, 6, 4, 3], None, [true, true, true]);
    case.inputs[2] = vec![1e4, -1e4, 100.0, -100.0];
    for device in devices() {
        let want = case.run(&device, DType::F64);
        close("y", &want[0].1, &case.naive(&case.inputs), 1e-12);
        for ((name, got), (_, want)) in case.run(&device, DType::F32).iter().zip(&want) {
            close(name, got, want, 1e-5);
        }
    }
}

#[test]
#[cfg(feature = "flex")]
fn sums_do_not_depend_on_the_number_of_threads() {
    let case = Case::new([3, 400, 50, 4], None, [true, true, true]);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.run(&Device::flex(), DType::F32))
    };
    assert_eq!(on(1), on(3));
}

#[test]
#[should_panic(expected = "shape of `state`")]
fn a_state_of_another_batch_panics() {
    let device = Device::ndarray();
    let x = tensor(&[0.0; 12], [2, 3, 2], &device, DType::F32);
    let weight = tensor(&[0.0; 6], [2, 3], &device, DType::F32);
    let state = tensor(&[0.0; 4], [1, 2, 2], &device, DType::F32);
    short_convolution(x, weight, None, Some(state), None, true);
}
