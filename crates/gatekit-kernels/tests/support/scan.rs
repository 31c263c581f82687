//! Random problems of a scan on a GPU, compared with the portable form in float64.

use std::sync::Arc;

use burn::tensor::{DType, Device, DeviceKind, Tensor, bf16, f16};
use gatekit_kernels::scan::{DecayKind, ScanSpec, WriteKind, matrix_scan};

use super::{Numbers, gradient, tensor, values};

pub const DECAYS: [DecayKind; 3] = [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey];

/// What the log decays of a case are like.
#[derive(Debug, Clone, Copy)]
pub enum Forgetting {
    /// Between -0.3 and 0.
    Mild,
    /// From -0.01 to -6.
    Mixed,
    /// Mild, with resets of minus infinity, -1e4 and -40 here and there.
    Resets,
}

/// The types of a case's tensors.
#[derive(Debug, Clone, Copy)]
pub struct Types {
    /// Queries, keys, values, write strengths and outputs.
    pub main: DType,
    /// Log decays and initial states.
    pub other: DType,
}

impl Types {
    pub const SINGLE: Self = Self { main: DType::F32, other: DType::F32 };
    const DOUBLE: Self = Self { main: DType::F64, other: DType::F64 };

    /// The type of final states.
    fn states(self) -> DType {
        if self.main == DType::F64 { DType::F64 } else { DType::F32 }
    }
}

#[derive(Debug, Clone)]
pub struct Case {
    /// Batch, time, heads, key_dim, value_dim.
    pub dims: [usize; 5],
    pub decay: DecayKind,
    pub write: WriteKind,
    pub boundaries: Option<Vec<usize>>,
    pub initial: bool,
    pub forgetting: Forgetting,
}

impl Case {
    pub fn new(dims: [usize; 5], decay: DecayKind) -> Self {
        Self {
            dims,
            decay,
            write: WriteKind::Additive,
            boundaries: None,
            initial: false,
            forgetting: Forgetting::Mild,
        }
    }

    /// q, k, v, log decay, beta, initial state, weights of the outputs and of the final states, exact in these types.
    fn inputs(&self, types: Types) -> [(Vec<f64>, Vec<usize>); 8] {
        let [batch, time, heads, key_dim, value_dim] = self.dims;
        let mut numbers = Numbers(self.dims.iter().sum::<usize>() as u64 + 11);
        let states = self.boundaries.as_ref().map_or(batch, |boundaries| boundaries.len() - 1);
        let decay_dim = if self.decay == DecayKind::PerKey { key_dim } else { 1 };
        let state = vec![states, heads, key_dim, value_dim];
        let keys = vec![batch, time, heads, key_dim];
        let values = vec![batch, time, heads, value_dim];
        let decays = vec![batch, time, heads, decay_dim];
        let mut many = |dims: Vec<usize>, dtype: DType, map: &dyn Fn(f64) -> f64| {
            let numbers = numbers.many(dims.iter().product()).into_iter();
            (numbers.map(|x| rounded(map(x), dtype)).collect(), dims)
        };
        let decay = |x: f64| match self.forgetting {
            Forgetting::Mild => -0.15 * (x + 1.0),
            Forgetting::Mixed => -0.25 * (3.2 * x).exp(),
            Forgetting::Resets => match (x + 1.0) * 50.0 {
                x if x < 2.0 => f64::NEG_INFINITY,
                x if x < 4.0 => -1e4,
                x if x < 5.0 => -40.0,
                x => -0.003 * x,
            },
        };
        // The delta rule is for keys of length at most 1: longer ones can make what it holds grow, and with it what is
        // rounded.
        let length = if self.write == WriteKind::Delta { 1.0 } else { 2.0 };
        let width = (key_dim as f64).sqrt() / length;
        [
            many(keys.clone(), types.main, &|x| x),
            many(keys, types.main, &|x| x / width),
            many(values.clone(), types.main, &|x| x),
            many(decays, types.other, &decay),
            many(vec![batch, time, heads, 1], types.main, &|x| 0.5 * (x + 1.0)),
            many(state.clone(), types.other, &|x| x),
            many(values, types.main, &|x| x),
            many(state, types.states(), &|x| x),
        ]
    }

    /// Output, final state, and the gradients of q, k, v, log decay, beta and initial state, of inputs exact in the types
    /// `exact`, computed in the types `types`.
    fn run(&self, device: &Device, exact: Types, types: Types, fused: bool) -> Vec<(&'static str, Vec<f64>)> {
        let device = device.clone().autodiff();
        let Types { main, other } = types;
        let dtypes = [main, main, main, other, main, other, main, types.states()];
        let mut tensors =
            self.inputs(exact).into_iter().zip(dtypes).map(|((values, dims), dtype)| {
                tensor::<4>(&values, dims.try_into().unwrap(), &device, dtype)
            });
        let [q, k, v, log_decay, beta, initial, w_output, w_state] =
            std::array::from_fn(|_| tensors.next().unwrap());
        let [q, k, v, log_decay, beta, initial] =
            [q, k, v, log_decay, beta, initial].map(Tensor::require_grad);
        let spec = ScanSpec {
            scale: 0.6,
            decay: self.decay,
            write: self.write,
            has_initial_state: self.initial,
            boundaries: self.boundaries.as_deref().map(Arc::from),
            chunk_size: 64,
            sub_chunk_size: 16,
            fused,
        };
        let delta = self.write == WriteKind::Delta;
        let (output, state) = matrix_scan(
            q.clone(),
            k.clone(),
            v.clone(),
            spec.has_decay().then(|| log_decay.clone()),
            delta.then(|| beta.clone().squeeze_dim(3)),
            self.initial.then(|| initial.clone()),
            spec.clone(),
        );
        assert_eq!((output.dtype(), state.dtype()), (main, types.states()), "{self:?}: {types:?}");
        let loss = (output.clone() * w_output).cast(types.states()).sum() + (state.clone() * w_state).sum();
        let gradients = loss.backward();
        let mut results = vec![("output", values(&output)), ("final state", values(&state))];
        let mut add = |name, x: &Tensor<4>| results.push((name, gradient(x, &gradients)));
        add("dq", &q);
        add("dk", &k);
        add("dv", &v);
        if spec.has_decay() {
            add("dlog_decay", &log_decay);
        }
        if delta {
            add("dbeta", &beta);
        }
        if self.initial {
            add("dinitial", &initial);
        }
        results
    }

    /// Compares everything within a relative error.
    #[track_caller]
    pub fn check(&self, types: Types, tolerance: f64) {
        let want = self.run(&Device::ndarray(), types, Types::DOUBLE, false);
        let got = self.run(&gpu(), types, types, true);
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            assert!(got.iter().all(|x| x.is_finite()), "{self:?}: {types:?}: {name}: not finite");
            let error = relative_error(got, want);
            assert!(error < tolerance, "{self:?}: {types:?}: {name}: relative error {error}");
        }
    }
}

/// The device that these tests run on.
pub fn gpu() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

fn rounded(x: f64, dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f16::from_f64(x).to_f64(),
        DType::BF16 => bf16::from_f64(x).to_f64(),
        _ => f64::from(x as f32),
    }
}

/// The largest difference, relative to the value's own size and the array's typical size.
fn relative_error(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let typical = (want.iter().map(|x| x * x).sum::<f64>() / want.len() as f64).sqrt().max(1e-6);
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs() / (want.abs() + typical));
    errors.fold(0.0, f64::max)
}
