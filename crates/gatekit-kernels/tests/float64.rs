//! The portable and the fused scans in float64 against the recurrence written out in plain Rust: values
//! directly, gradients by central differences.
#![cfg(all(feature = "ndarray", feature = "flex"))]
// Burn marks its `NdArray` backend as deprecated; this library supports it.
#![allow(missing_docs, deprecated)]

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};
use gatekit_kernels::scan::{
    DecayKind, ElementwiseSpec, ScanSpec, StepSpec, WriteKind, elementwise_scan, matrix_scan,
    matrix_scan_step,
};

/// Reproducible numbers in `[-1, 1)`.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn many(&mut self, count: usize, map: impl Fn(f64) -> f64) -> Vec<f64> {
        (0..count).map(|_| map(self.next())).collect()
    }
}

#[derive(Clone)]
struct Case {
    batch: usize,
    time: usize,
    heads: usize,
    key_dim: usize,
    value_dim: usize,
    spec: ScanSpec,
    /// q, k, v, log decay, beta, initial state.
    inputs: [Vec<f64>; 6],
}

impl Case {
    fn new(
        dims: [usize; 5],
        decay: DecayKind,
        write: WriteKind,
        boundaries: Option<&[usize]>,
        chunks: (usize, usize),
        initial: bool,
    ) -> Self {
        let [batch, time, heads, key_dim, value_dim] = dims;
        let mut numbers = Numbers(dims.iter().sum::<usize>() as u64 + 7);
        let steps = batch * time * heads;
        let states = boundaries.map_or(batch, |b| b.len() - 1);
        let decay_dim = match decay {
            DecayKind::None => 0,
            DecayKind::PerHead => 1,
            DecayKind::PerKey => key_dim,
        };
        let inputs = [
            numbers.many(steps * key_dim, |x| x),
            numbers.many(steps * key_dim, |x| x * 0.7),
            numbers.many(steps * value_dim, |x| x),
            // From slow decay to near-resets.
            numbers.many(steps * decay_dim, |x| -(3.0 * x).exp() * 0.3),
            numbers.many(if write == WriteKind::Delta { steps } else { 0 }, |x| 0.5 * (x + 1.0)),
            numbers.many(if initial { states * heads * key_dim * value_dim } else { 0 }, |x| x),
        ];
        let spec = ScanSpec {
            scale: 0.6,
            decay,
            write,
            has_initial_state: initial,
            boundaries: boundaries.map(Arc::from),
            chunk_size: chunks.0,
            sub_chunk_size: chunks.1,
            fused: false,
        };
        Self { batch, time, heads, key_dim, value_dim, spec, inputs }
    }

    fn states(&self) -> usize {
        self.spec.boundaries.as_ref().map_or(self.batch, |b| b.len() - 1)
    }

    /// Output and final state by the definition.
    fn naive(&self) -> (Vec<f64>, Vec<f64>) {
        let &Self { time, heads, key_dim, value_dim, .. } = self;
        let [q, k, v, g, beta, initial] = &self.inputs;
        let mut output = vec![0.0; self.batch * time * heads * value_dim];
        let mut finals = vec![0.0; self.states() * heads * key_dim * value_dim];
        let segments: Vec<(usize, usize, usize)> = match &self.spec.boundaries {
            Some(b) => b.windows(2).map(|w| (0, w[0], w[1])).collect(),
            None => (0..self.batch).map(|row| (row, 0, time)).collect(),
        };
        for (index, (row, start, end)) in segments.into_iter().enumerate() {
            for head in 0..heads {
                let place = (index * heads + head) * key_dim * value_dim;
                let mut state = match self.spec.has_initial_state {
                    true => initial[place..place + key_dim * value_dim].to_vec(),
                    false => vec![0.0; key_dim * value_dim],
                };
                for t in start..end {
                    let step = (row * time + t) * heads + head;
                    let (q, k) = (&q[step * key_dim..][..key_dim], &k[step * key_dim..][..key_dim]);
                    let v = &v[step * value_dim..][..value_dim];
                    for c in 0..key_dim {
                        let decay = match self.spec.decay {
                            DecayKind::None => 0.0,
                            DecayKind::PerHead => g[step],
                            DecayKind::PerKey => g[step * key_dim + c],
                        };
                        state[c * value_dim..][..value_dim].iter_mut().for_each(|s| *s *= decay.exp());
                    }
                    for d in 0..value_dim {
                        let held: f64 = (0..key_dim).map(|c| k[c] * state[c * value_dim + d]).sum();
                        let write = match self.spec.write {
                            WriteKind::Additive => v[d],
                            WriteKind::Delta => beta[step] * (v[d] - held),
                        };
                        for c in 0..key_dim {
                            state[c * value_dim + d] += k[c] * write;
                        }
                        output[step * value_dim + d] = self.spec.scale
                            * (0..key_dim).map(|c| q[c] * state[c * value_dim + d]).sum::<f64>();
                    }
                }
                finals[place..place + key_dim * value_dim].copy_from_slice(&state);
            }
        }
        (output, finals)
    }

    fn loss(&self, weights: &(Vec<f64>, Vec<f64>)) -> f64 {
        let (output, state) = self.naive();
        dot(&output, &weights.0) + dot(&state, &weights.1)
    }

    fn check(&self) {
        let mut case = self.clone();
        case.check_on(&Device::ndarray().autodiff());
        case.spec.fused = true;
        for device in [Device::ndarray(), Device::flex()] {
            case.check_on(&device.autodiff());
        }
    }

    fn check_on(&self, device: &Device) {
        let &Self { batch, time, heads, key_dim, value_dim, .. } = self;
        let tensor = |index: usize, dims: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(self.inputs[index].clone(), dims), (device, DType::F64))
                .require_grad()
        };
        let q = tensor(0, [batch, time, heads, key_dim]);
        let k = tensor(1, [batch, time, heads, key_dim]);
        let v = tensor(2, [batch, time, heads, value_dim]);
        let g = self.spec.has_decay().then(|| {
            let dim = if self.spec.decay == DecayKind::PerHead { 1 } else { key_dim };
            tensor(3, [batch, time, heads, dim])
        });
        let beta = (self.spec.write == WriteKind::Delta).then(|| tensor(4, [batch, time, heads, 1]));
        let initial =
            self.spec.has_initial_state.then(|| tensor(5, [self.states(), heads, key_dim, value_dim]));
        let (output, state) = matrix_scan(
            q.clone(),
            k.clone(),
            v.clone(),
            g.clone(),
            beta.clone().map(|beta| beta.squeeze_dim(3)),
            initial.clone(),
            self.spec.clone(),
        );

        let naive = self.naive();
        close("output", &values(&output), &naive.0, 1e-11);
        close("final state", &values(&state), &naive.1, 1e-11);

        let mut numbers = Numbers(3);
        let weights = (numbers.many(naive.0.len(), |x| x), numbers.many(naive.1.len(), |x| x));
        let weigh = |x: Tensor<4>, w: &Vec<f64>| {
            let w = Tensor::<4>::from_data(TensorData::new(w.clone(), x.dims()), (device, DType::F64));
            (x * w).sum()
        };
        let grads = (weigh(output, &weights.0) + weigh(state, &weights.1)).backward();
        for (index, tensor) in [Some(q), Some(k), Some(v), g, beta, initial].into_iter().enumerate() {
            let Some(tensor) = tensor else { continue };
            let got = values(&tensor.grad(&grads).unwrap());
            let mut moved = self.clone();
            let want: Vec<f64> = (0..got.len())
                .map(|place| {
                    let step = 1e-5;
                    moved.inputs[index][place] += step;
                    let up = moved.loss(&weights);
                    moved.inputs[index][place] -= 2.0 * step;
                    let down = moved.loss(&weights);
                    moved.inputs[index][place] += step;
                    (up - down) / (2.0 * step)
                })
                .collect();
            close(["q", "k", "v", "log decay", "beta", "initial state"][index], &got, &want, 1e-7);
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn values<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
    x.to_data().try_to_vec().unwrap()
}

fn close(name: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{name}");
    let norm = dot(want, want).sqrt();
    let error = got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
    assert!(error <= tolerance * norm.max(1.0), "{name}: error {error:e} of {norm:e}");
}

const DECAYS: [DecayKind; 3] = [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey];
const WRITES: [WriteKind; 2] = [WriteKind::Additive, WriteKind::Delta];

#[test]
fn chunked_equals_the_definition() {
    for decay in DECAYS {
        for write in WRITES {
            Case::new([2, 11, 2, 3, 2], decay, write, None, (8, 4), true).check();
            Case::new([1, 1, 1, 1, 1], decay, write, None, (64, 16), false).check();
            Case::new([1, 7, 1, 2, 3], decay, write, None, (3, 16), false).check();
            Case::new([1, 13, 2, 2, 2], decay, write, Some(&[0, 1, 6, 13]), (4, 2), true).check();
            Case::new([1, 9, 1, 2, 2], decay, write, Some(&[0, 4, 9]), (8, 4), false).check();
        }
    }
}

/// A step is a scan of one token from the state.
#[test]
fn steps_equal_the_definition() {
    for device in [Device::ndarray(), Device::flex()] {
        for (decay, write) in DECAYS.into_iter().flat_map(|decay| WRITES.map(|write| (decay, write))) {
            for fused in [true, false] {
                let [batch, heads, key_dim, value_dim] = [2, 3, 5, 9];
                let case = Case::new([batch, 1, heads, key_dim, value_dim], decay, write, None, (8, 4), true);
                let values_of = |index: usize| case.inputs[index].clone();
                let row = |index: usize, dim: usize| {
                    let data = TensorData::new(values_of(index), [batch, heads, dim]);
                    Tensor::<3>::from_data(data, (&device, DType::F64))
                };
                let decay_dim = if decay == DecayKind::PerHead { 1 } else { key_dim };
                let state = TensorData::new(values_of(5), [batch, heads, key_dim, value_dim]);
                let (output, state) = matrix_scan_step(
                    row(0, key_dim),
                    row(1, key_dim),
                    row(2, value_dim),
                    (decay != DecayKind::None).then(|| row(3, decay_dim)),
                    (write == WriteKind::Delta).then(|| row(4, 1).squeeze_dim(2)),
                    Tensor::from_data(state, (&device, DType::F64)),
                    StepSpec { scale: case.spec.scale, decay, write, fused },
                );
                let naive = case.naive();
                close("output", &values(&output), &naive.0, 1e-12);
                close("state", &values(&state), &naive.1, 1e-12);
            }
        }
    }
}

#[test]
fn elementwise_equals_the_definition() {
    let device = Device::ndarray().autodiff();
    for (batch, time, boundaries, initial) in
        [(2, 9, None, true), (1, 1, None, true), (2, 6, None, false), (1, 10, Some(vec![0, 1, 4, 10]), true)]
    {
        let dim = 3;
        let mut numbers = Numbers(5);
        let states = boundaries.as_ref().map_or(batch, |b: &Vec<usize>| b.len() - 1);
        let inputs = [
            numbers.many(batch * time * dim, |x| x),
            numbers.many(batch * time * dim, |x| x - 1.0),
            numbers.many(states * dim, |x| if initial { x } else { 0.0 }),
        ];
        let segments: Vec<(usize, usize, usize)> = match &boundaries {
            Some(b) => b.windows(2).map(|w| (0, w[0], w[1])).collect(),
            None => (0..batch).map(|row| (row, 0, time)).collect(),
        };
        let naive = |inputs: &[Vec<f64>; 3]| {
            let mut output = vec![0.0; batch * time * dim];
            let mut finals = vec![0.0; states * dim];
            for (index, &(row, start, end)) in segments.iter().enumerate() {
                for c in 0..dim {
                    let mut h = inputs[2][index * dim + c];
                    for t in start..end {
                        let place = (row * time + t) * dim + c;
                        h = inputs[1][place].exp() * h + inputs[0][place];
                        output[place] = h;
                    }
                    finals[index * dim + c] = h;
                }
            }
            (output, finals)
        };
        let options = (&device, DType::F64);
        let x = Tensor::<3>::from_data(TensorData::new(inputs[0].clone(), [batch, time, dim]), options)
            .require_grad();
        let g = Tensor::<3>::from_data(TensorData::new(inputs[1].clone(), [batch, time, dim]), options)
            .require_grad();
        let h0 =
            Tensor::<2>::from_data(TensorData::new(inputs[2].clone(), [states, dim]), options).require_grad();
        let spec = ElementwiseSpec {
            has_initial_state: initial,
            boundaries: boundaries.clone().map(Arc::from),
            fused: false,
        };
        let (output, state) = elementwise_scan(x.clone(), g.clone(), initial.then(|| h0.clone()), spec);
        let want = naive(&inputs);
        close("output", &values(&output), &want.0, 1e-12);
        close("final state", &values(&state), &want.1, 1e-12);

        let weights = (numbers.many(want.0.len(), |x| x), numbers.many(want.1.len(), |x| x));
        let output_weights =
            Tensor::<3>::from_data(TensorData::new(weights.0.clone(), output.dims()), options);
        let state_weights = Tensor::<2>::from_data(TensorData::new(weights.1.clone(), state.dims()), options);
        let grads = ((output * output_weights).sum() + (state * state_weights).sum()).backward();
        let mut got = vec![values(&x.grad(&grads).unwrap()), values(&g.grad(&grads).unwrap())];
        if initial {
            got.push(values(&h0.grad(&grads).unwrap()));
        }
        for (index, got) in got.iter().enumerate() {
            let mut moved = inputs.clone();
            let mut loss = |place: usize, step: f64| {
                moved[index][place] += step;
                let (output, state) = naive(&moved);
                moved[index][place] -= step;
                dot(&output, &weights.0) + dot(&state, &weights.1)
            };
            let want: Vec<f64> =
                (0..got.len()).map(|place| (loss(place, 1e-5) - loss(place, -1e-5)) / 2e-5).collect();
            close(["x", "log decay", "initial state"][index], got, &want, 1e-8);
        }
    }
}
