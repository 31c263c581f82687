//! Random problems for the scans, and how to run them in any form on any device.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use gatekit::core::{
    scan::{
        Decay, ScanForm, ScanOptions, StepDecay, Write, elementwise_recurrence, linear_recurrence,
        linear_recurrence_step,
    },
    sequence::Boundaries,
};

use crate::{
    random::Draw,
    reference::{self, Gate, Reference},
};

/// The forms of a scan.
pub const FORMS: [ScanForm; 3] = [ScanForm::Auto, ScanForm::Portable, ScanForm::Recurrent];

/// What the state keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecayKind {
    /// Everything.
    None,
    /// One log decay a head.
    PerHead,
    /// One log decay a key channel.
    PerKey,
}

/// Sizes and options of a scan with a matrix state.
#[derive(Debug, Clone)]
pub struct Problem {
    /// Rows; 1 when packed.
    pub batch: usize,
    /// Steps.
    pub time: usize,
    /// Heads.
    pub heads: usize,
    /// Width of queries and keys.
    pub key_dim: usize,
    /// Width of values.
    pub value_dim: usize,
    /// Steps a chunk.
    pub chunk_size: usize,
    /// Steps a sub-chunk.
    pub sub_chunk_size: usize,
    /// Factor on the queries; `None`: `key_dim^-1/2`.
    pub scale: Option<f64>,
    /// Kind of decay.
    pub decay: DecayKind,
    /// Whether the delta rule writes.
    pub delta: bool,
    /// Whether an initial state is given.
    pub has_state: bool,
    /// Ends of packed sequences.
    pub cu_seqlens: Option<Vec<usize>>,
    /// Seed of the data.
    pub seed: u64,
}

/// The tensors of a problem by name: `q`, `k`, `v`, and where the problem has them `log_gate`,
/// `beta`, `initial_state`.
pub type Arrays = BTreeMap<&'static str, TensorData>;

impl Problem {
    /// The plainest problem of these sizes.
    pub fn new([batch, time, heads, key_dim, value_dim]: [usize; 5], decay: DecayKind, delta: bool) -> Self {
        Self {
            batch,
            time,
            heads,
            key_dim,
            value_dim,
            chunk_size: 64,
            sub_chunk_size: 16,
            scale: None,
            decay,
            delta,
            has_state: true,
            cu_seqlens: None,
            seed: 7,
        }
    }

    /// Random tensors. Log decays spread from -10 to -1e-4 with a few zeros; `beta` in `[0, 2]`
    /// with unit keys, so that the state stays bounded.
    pub fn draw(&self) -> Arrays {
        self.draw_with(
            |draw| if draw.below(16) == 0 { 0.0 } else { -(10.0_f64.powf(draw.uniform(-4.0, 1.0))) },
            |draw| draw.uniform(0.0, 2.0),
        )
    }

    /// Random tensors with a given distribution of log decays and betas.
    pub fn draw_with(
        &self,
        log_gate: impl FnMut(&mut Draw) -> f64,
        beta: impl FnMut(&mut Draw) -> f64,
    ) -> Arrays {
        let Self { batch, time, heads, key_dim, value_dim, .. } = *self;
        let mut draw = Draw::new(self.seed);
        let mut arrays = Arrays::new();
        arrays.insert("q", draw.normals(&[batch, time, heads, key_dim]));
        let keys = draw.normals(&[batch, time, heads, key_dim]);
        arrays.insert("k", if self.delta { unit_rows(&keys, key_dim) } else { keys });
        arrays.insert("v", draw.normals(&[batch, time, heads, value_dim]));
        match self.decay {
            DecayKind::None => {}
            DecayKind::PerHead => {
                arrays.insert("log_gate", draw.array(&[batch, time, heads], log_gate));
            }
            DecayKind::PerKey => {
                arrays.insert("log_gate", draw.array(&[batch, time, heads, key_dim], log_gate));
            }
        }
        if self.delta {
            arrays.insert("beta", draw.array(&[batch, time, heads], beta));
        }
        if self.has_state {
            arrays.insert("initial_state", draw.normals(&[self.states(), heads, key_dim, value_dim]));
        }
        arrays
    }

    /// Number of states: segments or rows.
    pub fn states(&self) -> usize {
        self.cu_seqlens.as_ref().map_or(self.batch, |cu_seqlens| cu_seqlens.len() - 1)
    }

    fn options(&self, form: ScanForm) -> ScanOptions {
        ScanOptions {
            scale: self.scale,
            chunk_size: self.chunk_size,
            sub_chunk_size: self.sub_chunk_size,
            form,
        }
    }

    fn boundaries(&self) -> Option<Boundaries> {
        let cu_seqlens = self.cu_seqlens.as_ref()?;
        Some(Boundaries::new(cu_seqlens, self.time).unwrap_or_else(|error| panic!("{error}")))
    }

    /// The float64 result.
    pub fn reference(&self, arrays: &Arrays) -> Reference {
        let gate = match self.decay {
            DecayKind::None => Gate::None,
            DecayKind::PerHead => Gate::PerHead(&arrays["log_gate"]),
            DecayKind::PerKey => Gate::PerKey(&arrays["log_gate"]),
        };
        reference::matrix_scan(
            &arrays["q"],
            &arrays["k"],
            &arrays["v"],
            &gate,
            arrays.get("beta"),
            arrays.get("initial_state"),
            self.cu_seqlens.as_deref(),
            self.scale.unwrap_or((self.key_dim as f64).powf(-0.5)),
        )
    }

    /// Outputs `o`, `final_state`.
    pub fn forward(&self, arrays: &Arrays, form: ScanForm, device: &Device) -> Arrays {
        let leaves = Leaves::new(arrays, device, false);
        let (output, final_state) = self.scan(&leaves, form);
        [("o", output.into_data()), ("final_state", final_state.into_data())].into()
    }

    /// Outputs, and the gradients of all arguments under their names, with random cotangents on
    /// the output and on the final state.
    pub fn forward_backward(&self, arrays: &Arrays, form: ScanForm, device: &Device) -> Arrays {
        let device = device.clone().autodiff();
        let leaves = Leaves::new(arrays, &device, true);
        let (output, final_state) = self.scan(&leaves, form);
        let mut results =
            leaves.gradients(self.seed, &[output.clone().flatten(0, 3), final_state.clone().flatten(0, 3)]);
        results.insert("o", output.into_data());
        results.insert("final_state", final_state.into_data());
        results
    }

    fn scan(&self, leaves: &Leaves, form: ScanForm) -> (Tensor<4>, Tensor<4>) {
        let decay = match self.decay {
            DecayKind::None => Decay::None,
            DecayKind::PerHead => Decay::PerHead(leaves.get("log_gate")),
            DecayKind::PerKey => Decay::PerKey(leaves.get("log_gate")),
        };
        let write = if self.delta { Write::Delta(leaves.get("beta")) } else { Write::Additive };
        let initial_state = self.has_state.then(|| leaves.get("initial_state"));
        let result = linear_recurrence(
            leaves.get("q"),
            leaves.get("k"),
            leaves.get("v"),
            decay,
            write,
            initial_state,
            self.boundaries().as_ref(),
            &self.options(form),
        );
        (result.output, result.final_state)
    }

    /// Outputs `o`, `final_state` of the pieces between `cuts`, each continuing from the state of
    /// the one before; pieces of one step go through the step function.
    pub fn stream(&self, arrays: &Arrays, cuts: &[usize], form: ScanForm, device: &Device) -> Arrays {
        let leaves = Leaves::new(arrays, device, false);
        let mut state = self.has_state.then(|| leaves.get::<4>("initial_state"));
        let mut outputs = Vec::new();
        for ends in cuts.windows(2) {
            let length = ends[1] - ends[0];
            let (output, next) = if length == 1 {
                let state = state.unwrap_or_else(|| {
                    Tensor::zeros([self.batch, self.heads, self.key_dim, self.value_dim], device)
                });
                let token = |name| leaves.get::<4>(name).narrow(1, ends[0], 1).squeeze_dim::<3>(1);
                let scalar = |name| leaves.get::<3>(name).narrow(1, ends[0], 1).squeeze_dim::<2>(1);
                let decay = match self.decay {
                    DecayKind::None => StepDecay::None,
                    DecayKind::PerHead => StepDecay::PerHead(scalar("log_gate")),
                    DecayKind::PerKey => StepDecay::PerKey(token("log_gate")),
                };
                let beta = self.delta.then(|| scalar("beta"));
                let (q, k, v) = (token("q"), token("k"), token("v"));
                let (output, next) = linear_recurrence_step(q, k, v, decay, beta, state, self.scale);
                (output.unsqueeze_dim(1), next)
            } else {
                let piece = |name| leaves.get::<4>(name).narrow(1, ends[0], length);
                let scalars = |name| leaves.get::<3>(name).narrow(1, ends[0], length);
                let decay = match self.decay {
                    DecayKind::None => Decay::None,
                    DecayKind::PerHead => Decay::PerHead(scalars("log_gate")),
                    DecayKind::PerKey => Decay::PerKey(piece("log_gate")),
                };
                let write = if self.delta { Write::Delta(scalars("beta")) } else { Write::Additive };
                let options = self.options(form);
                let (q, k, v) = (piece("q"), piece("k"), piece("v"));
                let result = linear_recurrence(q, k, v, decay, write, state, None, &options);
                (result.output, result.final_state)
            };
            outputs.push(output);
            state = Some(next);
        }
        let final_state = state.expect("there is at least one piece");
        [("o", Tensor::cat(outputs, 1).into_data()), ("final_state", final_state.into_data())].into()
    }
}

/// Sizes and options of an elementwise scan.
#[derive(Debug, Clone)]
pub struct ElementwiseProblem {
    /// Rows; 1 when packed.
    pub batch: usize,
    /// Steps.
    pub time: usize,
    /// Channels.
    pub dim: usize,
    /// Whether an initial state is given.
    pub has_state: bool,
    /// Ends of packed sequences.
    pub cu_seqlens: Option<Vec<usize>>,
    /// Seed of the data.
    pub seed: u64,
}

impl ElementwiseProblem {
    /// Random tensors `x`, `log_gate` and, where the problem has it, `initial_state`.
    pub fn draw_with(&self, log_gate: impl FnMut(&mut Draw) -> f64) -> Arrays {
        let mut draw = Draw::new(self.seed);
        let shape = [self.batch, self.time, self.dim];
        let mut arrays = Arrays::new();
        arrays.insert("x", draw.normals(&shape));
        arrays.insert("log_gate", draw.array(&shape, log_gate));
        if self.has_state {
            let states = self.cu_seqlens.as_ref().map_or(self.batch, |cu_seqlens| cu_seqlens.len() - 1);
            arrays.insert("initial_state", draw.normals(&[states, self.dim]));
        }
        arrays
    }

    /// The float64 result: `o`, `final_state`.
    pub fn reference(&self, arrays: &Arrays) -> Arrays {
        let (output, final_state) = reference::elementwise_scan(
            &arrays["x"],
            &arrays["log_gate"],
            arrays.get("initial_state"),
            self.cu_seqlens.as_deref(),
        );
        [("o", output), ("final_state", final_state)].into()
    }

    /// Outputs and gradients, as [`Problem::forward_backward`].
    pub fn forward_backward(&self, arrays: &Arrays, form: ScanForm, device: &Device) -> Arrays {
        let device = device.clone().autodiff();
        let leaves = Leaves::new(arrays, &device, true);
        let boundaries = self.cu_seqlens.as_ref().map(|cu_seqlens| {
            Boundaries::new(cu_seqlens, self.time).unwrap_or_else(|error| panic!("{error}"))
        });
        let initial_state = self.has_state.then(|| leaves.get("initial_state"));
        let (x, log_gate) = (leaves.get("x"), leaves.get("log_gate"));
        let result = elementwise_recurrence(x, log_gate, initial_state, boundaries.as_ref(), form);
        let flat = [result.output.clone().flatten(0, 2), result.final_state.clone().flatten(0, 1)];
        let mut results = leaves.gradients(self.seed, &flat);
        results.insert("o", result.output.into_data());
        results.insert("final_state", result.final_state.into_data());
        results
    }
}

/// The arguments of a scan on a device, flat; their gradients can be read.
struct Leaves<'a> {
    arrays: &'a Arrays,
    device: Device,
    flat: BTreeMap<&'static str, Tensor<1>>,
}

impl<'a> Leaves<'a> {
    fn new(arrays: &'a Arrays, device: &Device, differentiate: bool) -> Self {
        let flat = arrays.iter().map(|(name, data)| {
            let values: Vec<f32> = data.iter::<f32>().collect();
            let tensor = Tensor::<1>::from_data(TensorData::new(values, [data.num_elements()]), device);
            (*name, if differentiate { tensor.require_grad() } else { tensor })
        });
        Self { arrays, device: device.clone(), flat: flat.collect() }
    }

    fn get<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.flat[name].clone().reshape(self.arrays[name].shape().clone())
    }

    /// Gradients of `sum of (output * cotangent)` under the names of the arguments.
    fn gradients(&self, seed: u64, outputs: &[Tensor<1>]) -> Arrays {
        let mut draw = Draw::new(!seed);
        let parts = outputs.iter().map(|output| {
            let cotangent = Tensor::<1>::from_data(draw.normals(&output.dims()), &self.device);
            (output.clone() * cotangent).sum()
        });
        let loss = parts.reduce(|left, right| left + right).expect("there is an output");
        let gradients = loss.backward();
        let read = |(name, leaf): (&&'static str, &Tensor<1>)| {
            let gradient = leaf.grad(&gradients).unwrap_or_else(|| panic!("`{name}` has no gradient"));
            (*name, gradient.into_data())
        };
        self.flat.iter().map(read).collect()
    }
}

/// Every row divided by its length.
fn unit_rows(data: &TensorData, width: usize) -> TensorData {
    let values: Vec<f64> = data.iter::<f64>().collect();
    let unit = values.chunks(width).flat_map(|row| {
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter().map(move |x| (x / length) as f32)
    });
    TensorData::new(unit.collect::<Vec<f32>>(), data.shape().clone())
}
