//! Gated experts against their definition in plain Rust, outputs and gradients, on every host backend.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use gatekit_kernels::{
    gate::Activation,
    grouped::{SortedSlots, gated_experts},
};
use support::*;

/// Experts, and who goes to them.
struct Case {
    slots: Arc<SortedSlots>,
    /// Shape of the weights.
    places: [usize; 2],
    width: usize,
    inner: usize,
    activation: Activation,
    x: Vec<f64>,
    weights: Vec<f64>,
    gate_up: Vec<f64>,
    down: Vec<f64>,
    /// Gradient of the result.
    w: Vec<f64>,
}

impl Case {
    /// `chosen(token, k)` is the expert of a slot, or none.
    fn new(
        [tokens, k, experts]: [usize; 3],
        [width, inner]: [usize; 2],
        activation: Activation,
        chosen: impl Fn(usize, usize) -> Option<usize>,
    ) -> Self {
        let mut sorted: Vec<(usize, usize)> = (0..tokens * k)
            .filter_map(|slot| chosen(slot / k, slot % k).map(|expert| (expert, slot)))
            .collect();
        sorted.sort();
        let offsets = (0..=experts).map(|expert| sorted.partition_point(|(of, _)| *of < expert)).collect();
        let order: Vec<usize> = sorted.iter().map(|(_, slot)| *slot).collect();
        let rows = order.iter().map(|slot| slot / k).collect();
        let slots = Arc::new(SortedSlots::new(tokens, tokens * k, rows, order, offsets));
        let mut numbers = Numbers((tokens + 31 * width + inner) as u64);
        Self {
            slots,
            places: [tokens, k],
            width,
            inner,
            activation,
            x: numbers.many(tokens * width),
            weights: numbers.many(tokens * k),
            gate_up: numbers.many(experts * 2 * inner * width),
            down: numbers.many(experts * width * inner),
            w: numbers.many(tokens * width),
        }
    }

    fn gate(&self, z: f64) -> (f64, f64) {
        let open = sigmoid(z);
        match self.activation {
            Activation::Sigmoid => (open, open * sigmoid(-z)),
            Activation::Swish => (z * open, open * (1.0 + z * sigmoid(-z))),
            Activation::Relu => {
                if z > 0.0 {
                    (z, 1.0)
                } else {
                    (0.0, 0.0)
                }
            }
        }
    }

    /// Output, and gradients of `x`, weights, `gate_up` and `down`, slot by slot.
    fn naive(&self) -> [Vec<f64>; 5] {
        let (width, inner) = (self.width, self.inner);
        let mut y = vec![0.0; self.x.len()];
        let mut gradients = [&self.x, &self.weights, &self.gate_up, &self.down].map(|of| vec![0.0; of.len()]);
        let [dx, dweights, dgate_up, ddown] = &mut gradients;
        for expert in 0..self.slots.experts() {
            for sorted in self.slots.of_expert(expert) {
                let (token, place) = (self.slots.rows()[sorted], self.slots.order()[sorted]);
                let weight = self.weights[place];
                let x = &self.x[token * width..(token + 1) * width];
                let dy = &self.w[token * width..(token + 1) * width];
                for i in 0..inner {
                    let [gate_row, up_row] = [i, inner + i].map(|row| (expert * 2 * inner + row) * width);
                    let z = dot(x, &self.gate_up[gate_row..gate_row + width]);
                    let up = dot(x, &self.gate_up[up_row..up_row + width]);
                    let (value, slope) = self.gate(z);
                    let a = value * up;
                    let mut da = 0.0;
                    for o in 0..width {
                        let at = (expert * width + o) * inner + i;
                        y[token * width + o] += weight * self.down[at] * a;
                        ddown[at] += weight * dy[o] * a;
                        da += self.down[at] * dy[o];
                    }
                    dweights[place] += a * da;
                    let [dz, dup] = [weight * da * up * slope, weight * da * value];
                    for o in 0..width {
                        dgate_up[gate_row + o] += dz * x[o];
                        dgate_up[up_row + o] += dup * x[o];
                        dx[token * width + o] +=
                            dz * self.gate_up[gate_row + o] + dup * self.gate_up[up_row + o];
                    }
                }
            }
        }
        let [dx, dweights, dgate_up, ddown] = gradients;
        [y, dx, dweights, dgate_up, ddown]
    }

    fn run(&self, device: &Device, dtype: DType) -> [Vec<f64>; 5] {
        let device = device.clone().autodiff();
        let (experts, width, inner) = (self.slots.experts(), self.width, self.inner);
        // Routers compute in at least float32.
        let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let x = tensor(&self.x, [self.places[0], width], &device, dtype).require_grad();
        let weights = tensor(&self.weights, self.places, &device, wide).require_grad();
        let gate_up = tensor(&self.gate_up, [experts, 2 * inner, width], &device, dtype).require_grad();
        let down = tensor(&self.down, [experts, width, inner], &device, dtype).require_grad();
        let y = gated_experts(
            x.clone(),
            weights.clone(),
            &self.slots,
            gate_up.clone(),
            down.clone(),
            self.activation,
        );
        assert_eq!((y.dims(), y.dtype()), (x.dims(), dtype));
        // The same without gradients, where nothing is kept.
        let plain = gated_experts(
            x.clone().inner(),
            weights.clone().inner(),
            &self.slots,
            gate_up.clone().inner(),
            down.clone().inner(),
            self.activation,
        );
        assert_eq!(values(&plain), values(&y));
        let gradients = (y.clone() * tensor(&self.w, y.dims(), &device, dtype)).sum().backward();
        [
            values(&y),
            gradient(&x, &gradients),
            gradient(&weights, &gradients),
            gradient(&gate_up, &gradients),
            gradient(&down, &gradients),
        ]
    }

    fn check(&self, name: &str) {
        let want = self.naive();
        let mut types = vec![(Device::ndarray(), DType::F64, 1e-11)];
        for device in devices() {
            for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::F16, 2e-2), (DType::BF16, 1e-1)] {
                if device.supports_dtype(dtype) {
                    types.push((device.clone(), dtype, tolerance));
                }
            }
        }
        for (device, dtype, tolerance) in types {
            let got = self.run(&device, dtype);
            for (what, (got, want)) in
                ["y", "dx", "dweights", "dgate_up", "ddown"].iter().zip(got.iter().zip(&want))
            {
                assert!(got.iter().all(|x| x.is_finite()), "{name} {dtype:?} {what}");
                close(&format!("{name} {dtype:?} {what}"), got, want, tolerance);
            }
        }
    }
}

#[test]
fn any_tokens_and_sizes() {
    let sizes = [
        ([1, 1, 1], [1, 1]),
        ([1, 3, 5], [4, 3]),
        ([7, 2, 4], [6, 5]),
        ([40, 3, 5], [33, 18]),
        ([61, 8, 16], [64, 32]),
        ([25, 2, 3], [129, 70]),
    ];
    for (number, (counts, dims)) in sizes.into_iter().enumerate() {
        let chosen = |token: usize, k: usize| Some((token * token + 7 * k + token / 3) % counts[2]);
        Case::new(counts, dims, Activation::Swish, chosen).check(&format!("case {number}"));
    }
}

#[test]
fn other_gates() {
    for activation in [Activation::Sigmoid, Activation::Relu] {
        let chosen = |token: usize, k: usize| Some((3 * token + k) % 4);
        Case::new([19, 2, 4], [10, 12], activation, chosen).check(&format!("{activation:?}"));
    }
}

#[test]
fn uneven_loads() {
    // All to one expert, in several batches; the others have none.
    let case = Case::new([4500, 2, 3], [3, 2], Activation::Swish, |_, _| Some(1));
    let want = case.naive();
    for device in devices() {
        let got = case.run(&device, DType::F32);
        for (got, want) in got.iter().zip(&want) {
            close("one expert", got, want, 1e-4);
        }
        let experts = 3;
        for (gradient, size) in [(&got[3], 2 * 2 * 3), (&got[4], 3 * 2)] {
            assert_eq!(gradient.len(), experts * size);
            assert!(gradient[..size].iter().chain(&gradient[2 * size..]).all(|value| *value == 0.0));
        }
    }
    // Every token to every expert.
    Case::new([9, 4, 4], [5, 6], Activation::Swish, |_, k| Some(k)).check("all experts");
    // Some slots, tokens and experts are left out.
    let some = |token: usize, k: usize| {
        (!token.is_multiple_of(3) && (token + k) % 4 != 1).then_some(2 * (token + k) % 6)
    };
    Case::new([30, 3, 6], [8, 7], Activation::Swish, some).check("dropped slots");
    // The same expert twice for a token.
    Case::new([11, 4, 2], [8, 3], Activation::Swish, |token, k| Some((token + k / 2) % 2)).check("twice");
}

#[test]
fn weights_of_zero_and_large_logits() {
    let mut case = Case::new([12, 2, 3], [4, 5], Activation::Swish, |token, k| Some((token + k) % 3));
    case.weights.iter_mut().step_by(2).for_each(|weight| *weight = 0.0);
    case.check("zero weights");
    case.gate_up.iter_mut().for_each(|weight| *weight *= 1e4);
    let want = case.naive();
    for device in devices() {
        let got = case.run(&device, DType::F32);
        for (got, want) in got.iter().zip(&want) {
            assert!(got.iter().all(|value| value.is_finite()));
            close("large logits", got, want, 1e-4);
        }
    }
}

#[test]
fn no_slots_give_zeros() {
    for device in devices() {
        let none = Case::new([3, 2, 2], [4, 5], Activation::Swish, |_, _| None);
        let tensors = |tokens: usize| {
            let x = Tensor::ones([tokens, 4], &device);
            (
                x,
                Tensor::ones([tokens, 2], &device),
                Tensor::ones([2, 10, 4], &device),
                Tensor::ones([2, 4, 5], &device),
            )
        };
        let (x, weights, gate_up, down) = tensors(3);
        let y = gated_experts(x, weights, &none.slots, gate_up, down, Activation::Swish);
        assert_eq!(values(&y), [0.0; 12]);
        let empty = Arc::new(SortedSlots::new(0, 0, vec![], vec![], vec![0, 0, 0]));
        let (x, weights, gate_up, down) = tensors(0);
        let y = gated_experts(x, weights, &empty, gate_up, down, Activation::Swish);
        assert_eq!(y.dims(), [0, 4]);
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let case = Case::new([700, 4, 6], [70, 40], Activation::Swish, |token, k| Some((token * token + k) % 6));
    for device in devices() {
        on_any_number_of_threads(|| case.run(&device, DType::F32));
    }
}

#[test]
#[should_panic(expected = "3 tokens, weights [3, 2] and 2 experts, but slots for 4, 8 and 2")]
fn other_tokens_panic() {
    let device = Device::ndarray();
    let case = Case::new([4, 2, 2], [4, 5], Activation::Swish, |_, k| Some(k));
    let (x, weights) = (Tensor::ones([3, 4], &device), Tensor::ones([3, 2], &device));
    let (gate_up, down) = (Tensor::ones([2, 10, 4], &device), Tensor::ones([2, 4, 5], &device));
    gated_experts(x, weights, &case.slots, gate_up, down, Activation::Swish);
}

#[test]
#[should_panic(expected = "the order has no place of its own below 2 for each of 2 slots")]
fn places_that_are_taken_panic() {
    SortedSlots::new(2, 2, vec![0, 1], vec![1, 1], vec![0, 2]);
}
