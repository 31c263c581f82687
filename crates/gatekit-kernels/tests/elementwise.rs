//! The elementwise scan: fused and portable forms against the recurrence written out in plain Rust, values and
//! gradients.
#![cfg(feature = "ndarray")]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

mod support;

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use gatekit_kernels::scan::{ElementwiseSpec, elementwise_scan};
use support::*;

const NAMES: [&str; 3] = ["x", "log decay", "initial state"];

struct Case {
    batch: usize,
    time: usize,
    dim: usize,
    boundaries: Option<Vec<usize>>,
    /// In the order of [`NAMES`], the last empty where there is none.
    inputs: Vec<Vec<f64>>,
    /// Gradients of the output and of the final state.
    weights: [Vec<f64>; 2],
}

/// Output, final state, gradients in the order of [`NAMES`].
type Results = (Vec<f64>, Vec<f64>, Vec<Vec<f64>>);

impl Case {
    fn new([batch, time, dim]: [usize; 3], boundaries: Option<&[usize]>, initial: bool) -> Self {
        let mut numbers = Numbers((batch + 3 * time + 7 * dim) as u64);
        let states = boundaries.map_or(batch, |b| b.len() - 1) * dim;
        // Log decays from 0 over mild ones to resets.
        let decays = numbers.many(batch * time * dim).iter().map(|z| match z {
            z if z.abs() < 0.05 => 0.0,
            z if *z > 0.95 => f64::NEG_INFINITY,
            z if *z < -0.95 => -1e4,
            z => f64::from(-(3.0 * z - 2.0).exp() as f32),
        });
        let decays = decays.collect();
        let inputs =
            vec![numbers.many(batch * time * dim), decays, numbers.many(if initial { states } else { 0 })];
        let weights = [numbers.many(batch * time * dim), numbers.many(states)];
        Self { batch, time, dim, boundaries: boundaries.map(<[_]>::to_vec), inputs, weights }
    }

    /// First row and end of every sequence.
    fn sequences(&self) -> Vec<(usize, usize)> {
        match &self.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| (pair[0], pair[1])).collect(),
            None => (0..self.batch).map(|row| (row * self.time, (row + 1) * self.time)).collect(),
        }
    }

    /// The recurrence as it is defined, and its gradients by the chain rule.
    fn naive(&self) -> Results {
        let [x, g, initial] = &self.inputs[..] else { unreachable!() };
        let (mut output, mut finals) = (vec![0.0; x.len()], vec![0.0; self.weights[1].len()]);
        let mut grads: Vec<Vec<f64>> = self.inputs.iter().map(|x| vec![0.0; x.len()]).collect();
        for (index, (start, end)) in self.sequences().into_iter().enumerate() {
            for i in 0..self.dim {
                let first = initial.get(index * self.dim + i).copied().unwrap_or(0.0);
                let mut h = first;
                for row in start..end {
                    h = g[row * self.dim + i].exp() * h + x[row * self.dim + i];
                    output[row * self.dim + i] = h;
                }
                finals[index * self.dim + i] = h;
                let mut dh = self.weights[1][index * self.dim + i];
                for row in (start..end).rev() {
                    let at = row * self.dim + i;
                    dh += self.weights[0][at];
                    grads[0][at] = dh;
                    dh *= g[at].exp();
                    grads[1][at] = dh * if row == start { first } else { output[at - self.dim] };
                }
                if let Some(grad) = grads[2].get_mut(index * self.dim + i) {
                    *grad = dh;
                }
            }
        }
        (output, finals, grads)
    }

    fn run(&self, device: &Device, dtype: DType, fused: bool) -> Results {
        let device = device.clone().autodiff();
        let dims = [self.batch, self.time, self.dim];
        let states = [self.sequences().len(), self.dim];
        let [x, g] = [0, 1].map(|i| tensor(&self.inputs[i], dims, &device, dtype).require_grad());
        let initial: Option<Tensor<2>> = (!self.inputs[2].is_empty())
            .then(|| tensor(&self.inputs[2], states, &device, dtype).require_grad());
        let spec = ElementwiseSpec {
            has_initial_state: initial.is_some(),
            boundaries: self.boundaries.clone().map(Arc::from),
            fused,
        };
        let (output, state) = elementwise_scan(x.clone(), g.clone(), initial.clone(), spec);
        let loss = (output.clone() * tensor(&self.weights[0], dims, &device, dtype)).sum()
            + (state.clone() * tensor(&self.weights[1], states, &device, dtype)).sum();
        let grads = loss.backward();
        let initial = initial.map_or_else(Vec::new, |initial| gradient(&initial, &grads));
        (values(&output), values(&state), vec![gradient(&x, &grads), gradient(&g, &grads), initial])
    }

    #[track_caller]
    fn compare(&self, label: &str, got: &Results, want: &Results, tolerance: f64) {
        let label = format!("{label} {:?}", [self.batch, self.time, self.dim]);
        close(&format!("{label}: output"), &got.0, &want.0, tolerance);
        close(&format!("{label}: state"), &got.1, &want.1, tolerance);
        for ((name, got), want) in NAMES.iter().zip(&got.2).zip(&want.2) {
            close(&format!("{label}: gradient of {name}"), got, want, tolerance);
        }
    }
}

#[test]
fn all_forms_equal_the_definition() {
    let mut cases = vec![];
    for time in [1, 15, 200, 1000] {
        for dim in [1, 3, 17, 64, 200] {
            cases.push(Case::new([2, time, dim], None, dim != 3));
        }
    }
    for dim in [1, 17, 300] {
        cases.push(Case::new([1, 200, dim], Some(&[0, 1, 2, 64, 65, 130, 200]), true));
        cases.push(Case::new([1, 3000, dim], Some(&[0, 33, 3000]), dim != 17));
    }
    for case in cases {
        let want = case.naive();
        for device in devices() {
            for fused in [false, true] {
                case.compare("float64", &case.run(&device, DType::F64, fused), &want, 1e-12);
                case.compare("float32", &case.run(&device, DType::F32, fused), &want, 1e-5);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    for (dims, boundaries) in [([2, 300, 300], None), ([1, 3000, 17], Some(&[0, 10, 2800, 3000][..]))] {
        let case = Case::new(dims, boundaries, true);
        let want = case.naive();
        for device in devices() {
            let got = on_any_number_of_threads(|| case.run(&device, DType::F32, true));
            case.compare("threads", &got, &want, 1e-5);
        }
    }
}

/// Half precision computes as float32 does and rounds each result once; the gradient of the log decay is made from
/// states that have been rounded as the output was.
#[cfg(feature = "flex")]
#[test]
fn half_precision_rounds_results() {
    let mut case = Case::new([2, 40, 17], None, true);
    // Exact in every type.
    let coarse = |x: &mut f64| *x = (x.max(-2.0) * 32.0).round() / 32.0;
    case.inputs.iter_mut().flatten().chain(case.weights.iter_mut().flatten()).for_each(coarse);
    let device = Device::flex().autodiff();
    for fused in [false, true] {
        for (dtype, unit) in [(DType::F16, 2f64.powi(-11)), (DType::BF16, 2f64.powi(-8))] {
            let run = |dtype: DType| {
                let [x, g] =
                    [0, 1].map(|i| tensor(&case.inputs[i], [2, 40, 17], &device, dtype).require_grad());
                let initial: Tensor<2> = tensor(&case.inputs[2], [2, 17], &device, dtype).require_grad();
                let spec = ElementwiseSpec { has_initial_state: true, boundaries: None, fused };
                let (output, state) = elementwise_scan(x.clone(), g.clone(), Some(initial.clone()), spec);
                assert_eq!((output.dtype(), state.dtype()), (dtype, DType::F32));
                let weights = tensor(&case.weights[0], [2, 40, 17], &device, dtype);
                let grads = (output.clone() * weights).sum().backward();
                let of_decay = g.grad(&grads).expect("a gradient").into_data();
                let exact = [
                    output.into_data(),
                    x.grad(&grads).expect("a gradient").into_data(),
                    initial.grad(&grads).expect("a gradient").into_data(),
                ];
                (exact, of_decay, state.into_data())
            };
            let ((half, half_decay, half_state), (wide, decay, state)) = (run(dtype), run(DType::F32));
            assert_eq!(half_state, state);
            for (half, wide) in half.into_iter().zip(wide) {
                assert_eq!(half.dtype(), dtype);
                assert_eq!(half, wide.convert_dtype(dtype));
            }
            assert_eq!(half_decay.dtype(), dtype);
            for (half, wide) in half_decay.iter::<f64>().zip(decay.iter::<f64>()) {
                assert!((half - wide).abs() <= 2.01 * unit * wide.abs() + 1e-7, "{half}, not {wide}");
            }
        }
    }
}
