//! The selective scan: the portable form in float64 against the recurrence written out in plain Rust, whose gradients
//! are checked against central differences; the fused forms against the same.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use gatekit_kernels::selective::{SelectiveSpec, selective_scan, selective_scan_step};
use support::*;

const NAMES: [&str; 6] = ["x", "delta", "a", "b", "c", "initial state"];

#[derive(Clone)]
struct Case {
    batch: usize,
    time: usize,
    channels: usize,
    size: usize,
    boundaries: Option<Vec<usize>>,
    /// In the order of [`NAMES`], the last empty where there is none.
    inputs: Vec<Vec<f64>>,
    /// Gradients of the output and of the final state.
    weights: [Vec<f64>; 2],
}

/// Everything a scan gives: output, final state, gradients in the order of [`NAMES`].
type Results = (Vec<f64>, Vec<f64>, Vec<Vec<f64>>);

impl Case {
    fn new([batch, time, channels, size]: [usize; 4], boundaries: Option<&[usize]>, initial: bool) -> Self {
        let mut numbers = Numbers((batch + 3 * time + 7 * channels + 11 * size) as u64);
        let states = boundaries.map_or(batch, |b| b.len() - 1) * channels * size;
        let inputs = vec![
            numbers.many(batch * time * channels),
            // Steps from 0 (the state stays) over mild ones to ones that clear it.
            numbers
                .many(batch * time * channels)
                .iter()
                .map(|z| if z.abs() < 0.1 { 0.0 } else { (2.0 + 4.0 * z).exp() * 0.05 })
                .collect(),
            numbers.many(channels * size).iter().map(|z| -(1.5 * z).exp()).collect(),
            numbers.many(batch * time * size),
            numbers.many(batch * time * size),
            numbers.many(if initial { states } else { 0 }),
        ];
        // Exact in float32, so that both precisions compute from the same numbers.
        let inputs =
            inputs.into_iter().map(|x| x.into_iter().map(|x| f64::from(x as f32)).collect()).collect();
        let weights = [numbers.many(batch * time * channels), numbers.many(states)];
        Self { batch, time, channels, size, boundaries: boundaries.map(<[_]>::to_vec), inputs, weights }
    }

    fn has_state(&self) -> bool {
        !self.inputs[5].is_empty()
    }

    /// Row and steps of every sequence.
    fn sequences(&self) -> Vec<(usize, usize, usize)> {
        match &self.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| (0, pair[0], pair[1])).collect(),
            None => (0..self.batch).map(|row| (row, 0, self.time)).collect(),
        }
    }

    /// The recurrence as it is defined, and its gradients by the chain rule.
    fn naive(&self, inputs: &[Vec<f64>]) -> Results {
        let &Self { channels, size, .. } = self;
        let [x, delta, a, b, c, initial] = inputs else { unreachable!() };
        let states = self.sequences().len() * channels * size;
        let (mut y, mut finals) = (vec![0.0; x.len()], vec![0.0; states]);
        let mut grads: Vec<Vec<f64>> = inputs.iter().map(|x| vec![0.0; x.len()]).collect();
        for (index, (row, start, end)) in self.sequences().into_iter().enumerate() {
            for i in 0..channels {
                for n in 0..size {
                    let place = (index * channels + i) * size + n;
                    let mut s = initial.get(place).copied().unwrap_or(0.0);
                    let mut before = vec![];
                    for t in start..end {
                        let (xi, bn) =
                            ((row * self.time + t) * channels + i, (row * self.time + t) * size + n);
                        before.push(s);
                        s = (delta[xi] * a[i * size + n]).exp() * s + x[xi] * b[bn];
                        y[xi] += s * c[bn];
                    }
                    finals[place] = s;
                    let mut ds = self.weights[1][place];
                    for t in (start..end).rev() {
                        let (xi, bn) =
                            ((row * self.time + t) * channels + i, (row * self.time + t) * size + n);
                        let dy = self.weights[0][xi];
                        ds += c[bn] * dy;
                        grads[4][bn] += s * dy;
                        grads[0][xi] += ds * b[bn];
                        grads[3][bn] += ds * x[xi];
                        ds *= (delta[xi] * a[i * size + n]).exp();
                        s = before[t - start];
                        grads[1][xi] += ds * s * a[i * size + n];
                        grads[2][i * size + n] += ds * s * delta[xi];
                    }
                    if self.has_state() {
                        grads[5][place] = ds;
                    }
                }
            }
        }
        (y, finals, grads)
    }

    fn tensors(&self, device: &Device, dtype: DType) -> (Vec<Tensor<3>>, Tensor<2>) {
        let &Self { batch, time, channels, size, .. } = self;
        let states = self.sequences().len();
        let channel = [batch, time, channels];
        let state = [batch, time, size];
        let dims = [channel, channel, [1, channels, size], state, state, [states, channels, size]];
        let tensors = self
            .inputs
            .iter()
            .zip(dims)
            .enumerate()
            .filter(|(index, (values, _))| *index != 2 && !values.is_empty())
            .map(|(_, (values, dims))| tensor(values, dims, device, dtype).require_grad())
            .collect();
        (tensors, tensor(&self.inputs[2], [channels, size], device, dtype).require_grad())
    }

    fn run(&self, device: &Device, dtype: DType, fused: bool) -> Results {
        let device = device.clone().autodiff();
        let (tensors, a) = self.tensors(&device, dtype);
        let [x, delta, b, c] = [0, 1, 2, 3].map(|index| tensors[index].clone());
        let spec = SelectiveSpec {
            has_initial_state: self.has_state(),
            boundaries: self.boundaries.clone().map(Arc::from),
            fused,
        };
        let (y, state) = selective_scan(x, delta, a.clone(), b, c, tensors.get(4).cloned(), spec);
        let weigh = |x: &Tensor<3>, w: &[f64]| (x.clone() * tensor(w, x.dims(), &device, dtype)).sum();
        let grads = (weigh(&y, &self.weights[0]) + weigh(&state, &self.weights[1])).backward();
        let mut all: Vec<Vec<f64>> = tensors.iter().map(|x| gradient(x, &grads)).collect();
        all.insert(2, gradient(&a, &grads));
        (values(&y), values(&state), all)
    }

    #[track_caller]
    fn compare(&self, label: &str, got: &Results, want: &Results, tolerance: f64) {
        let label = format!("{label} {:?}", [self.batch, self.time, self.channels, self.size]);
        close(&format!("{label}: y"), &got.0, &want.0, tolerance);
        close(&format!("{label}: state"), &got.1, &want.1, tolerance);
        for ((name, got), want) in NAMES.iter().zip(&got.2).zip(&want.2) {
            close(&format!("{label}: gradient of {name}"), got, want, tolerance);
        }
    }
}

#[test]
fn naive_gradients_are_right() {
    for (boundaries, initial) in [(None, true), (Some(&[0usize, 1, 5][..]), true), (None, false)] {
        let case = Case::new([if boundaries.is_some() { 1 } else { 2 }, 5, 2, 3], boundaries, initial);
        let slopes = differences(&case.inputs, |inputs| {
            let (y, state, _) = case.naive(inputs);
            dot(&y, &case.weights[0]) + dot(&state, &case.weights[1])
        });
        for ((name, got), want) in NAMES.iter().zip(&case.naive(&case.inputs).2).zip(&slopes) {
            close(name, got, want, 1e-7);
        }
    }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![];
    for time in [1, 15, 200] {
        for channels in [1, 3, 17, 64] {
            for size in [1, 3, 16] {
                cases.push(Case::new([2, time, channels, size], None, size != 3));
            }
        }
    }
    cases.push(Case::new([1, 1000, 17, 3], None, true));
    cases.push(Case::new([1, 1000, 130, 16], None, false));
    for channels in [1, 3, 17, 64] {
        cases.push(Case::new([1, 200, channels, 3], Some(&[0, 1, 2, 64, 65, 130, 200]), true));
        cases.push(Case::new([1, 70, channels, 16], Some(&[0, 33, 70]), false));
    }
    cases
}

#[test]
fn portable_equals_the_definition() {
    for case in cases() {
        let want = case.naive(&case.inputs);
        case.compare("portable", &case.run(&Device::ndarray(), DType::F64, false), &want, 1e-11);
    }
}

#[test]
fn steps_equal_the_scan() {
    let case = Case::new([2, 6, 5, 3], None, true);
    let (y, state, _) = case.naive(&case.inputs);
    for device in devices().into_iter().map(Device::autodiff) {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
            for fused in [false, true] {
                let (tensors, a) = case.tensors(&device, dtype);
                let mut s = tensors[4].clone();
                let mut outputs = vec![];
                for t in 0..case.time {
                    let [x, delta, b, c] =
                        [0, 1, 2, 3].map(|i| tensors[i].clone().narrow(1, t, 1).squeeze_dim::<2>(1));
                    let (y, next) = selective_scan_step(x, delta, a.clone(), b, c, s, fused);
                    outputs.push(y);
                    s = next;
                }
                close("y", &values(&Tensor::stack::<3>(outputs, 1)), &y, tolerance);
                close("state", &values(&s), &state, tolerance);
            }
        }
    }
}

#[test]
fn fused_equals_the_definition() {
    for case in cases() {
        let want = case.naive(&case.inputs);
        for device in devices() {
            case.compare("float64", &case.run(&device, DType::F64, true), &want, 1e-11);
            case.compare("float32", &case.run(&device, DType::F32, true), &want, 5e-5);
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    // Wide enough for several blocks, and so narrow and long that time is cut.
    for (dims, boundaries) in [([2, 300, 130, 16], None), ([1, 3000, 17, 5], Some(&[0, 10, 2800, 3000][..]))]
    {
        let case = Case::new(dims, boundaries, true);
        let want = case.naive(&case.inputs);
        for device in devices() {
            let got = on_any_number_of_threads(|| case.run(&device, DType::F32, true));
            case.compare("threads", &got, &want, 5e-5);
        }
    }
}

#[test]
fn extreme_steps_are_exact() {
    let mut case = Case::new([1, 40, 17, 3], None, true);
    // A step of 0 keeps everything; one of 1e30 clears the state, whatever it held.
    case.inputs[1].iter_mut().enumerate().for_each(|(i, delta)| *delta = if i % 3 == 0 { 1e30 } else { 0.0 });
    let inputs: Vec<Vec<f64>> = case.inputs.clone();
    let want = case.naive(&inputs);
    for device in devices() {
        for fused in [false, true] {
            for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
                case.compare("extreme", &case.run(&device, dtype, fused), &want, tolerance);
            }
        }
    }
}

/// Half precision computes as float32 does and rounds each result once.
#[cfg(feature = "flex")]
#[test]
fn half_precision_rounds_results_once() {
    let mut case = Case::new([2, 40, 17, 3], None, true);
    // Exact in every type.
    let coarse = |x: &mut f64| *x = (*x * 64.0).round().clamp(-64.0, 64.0) / 64.0;
    case.inputs.iter_mut().flatten().chain(case.weights.iter_mut().flatten()).for_each(coarse);
    let device = Device::flex().autodiff();
    for fused in [false, true] {
        for dtype in [DType::F16, DType::BF16] {
            let run = |dtype: DType| {
                let (tensors, a) = case.tensors(&device, dtype);
                let [x, delta, b, c] = [0, 1, 2, 3].map(|index| tensors[index].clone());
                let spec = SelectiveSpec { has_initial_state: true, boundaries: None, fused };
                let (y, state) = selective_scan(x, delta, a.clone(), b, c, Some(tensors[4].clone()), spec);
                assert_eq!((y.dtype(), state.dtype()), (dtype, DType::F32));
                let weights = tensor(&case.weights[0], y.dims(), &device, dtype);
                let grads = (y.clone() * weights).sum().backward();
                let mut results = vec![y.into_data(), a.grad(&grads).expect("a gradient").into_data()];
                results.extend(tensors.iter().map(|x| x.grad(&grads).expect("a gradient").into_data()));
                (results, state.into_data())
            };
            let ((half, half_state), (wide, state)) = (run(dtype), run(DType::F32));
            assert_eq!(half_state, state);
            for (half, wide) in half.into_iter().zip(wide) {
                assert_eq!(half.dtype(), dtype);
                assert_eq!(half, wide.convert_dtype(dtype));
            }
        }
    }
}

#[test]
#[should_panic(expected = "selective_scan computes in F32")]
fn wider_arguments_are_refused() {
    let device = Device::ndarray();
    let case = Case::new([1, 2, 3, 4], None, false);
    let (tensors, _) = case.tensors(&device.clone().autodiff(), DType::F32);
    let (_, a) = case.tensors(&device.autodiff(), DType::F64);
    let [x, delta, b, c] = [0, 1, 2, 3].map(|index| tensors[index].clone());
    let spec = SelectiveSpec { has_initial_state: false, boundaries: None, fused: true };
    let _ = selective_scan(x, delta, a, b, c, None, spec);
}
