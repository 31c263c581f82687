//! The scans with a matrix state.

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use gatekit::core::{
    decay::{log_sigmoid_stable, retention_log_decay},
    gate::sigmoid,
    norm::l2_normalize,
    scan::{
        Decay, ScanForm, ScanOptions, StepDecay, Write, hgrn2, linear_recurrence, linear_recurrence_step,
        retention,
    },
};
use gatekit_kernels::scan::{DecayKind, StepSpec, WriteKind, matrix_scan_step};

use crate::{
    case::Case,
    op::{Form, Op, Pass},
    work::{Inputs, Work, bytes_of},
};

/// A decay per key channel is milder than one per head, as published layers start.
const NORMALIZER: f64 = 16.0;

/// The inputs of a scan; which of them there are, the op says.
#[derive(Debug, Clone)]
struct Sequence {
    q: Tensor<4>,
    /// The forget logits for HGRN2.
    k: Tensor<4>,
    v: Tensor<4>,
    decay: Decay,
    write: Write,
}

fn has_beta(op: Op) -> bool {
    matches!(op, Op::GatedDeltaRule | Op::Kda | Op::DeltaRule)
}

fn scan_form(form: Form) -> ScanForm {
    match form {
        Form::Fused => ScanForm::Auto,
        Form::Portable => ScanForm::Portable,
    }
}

impl Sequence {
    /// Unit queries and keys, normal values, log-sigmoid decays, uniform write strengths.
    fn draw(op: Op, keys: [usize; 4], values: [usize; 4], inputs: &mut Inputs) -> Self {
        let [batch, time, heads, _] = keys;
        let q = inputs.normal(keys);
        let q = inputs.take(l2_normalize(q));
        let k = inputs.normal(keys);
        let k = inputs.take(if op == Op::Hgrn2 { k } else { l2_normalize(k) });
        let v = inputs.normal(values);
        let v = inputs.take(v);
        let decay = match op {
            Op::Gla | Op::Kda => {
                let logits = inputs.normal(keys);
                Decay::PerKey(inputs.take_wide(log_sigmoid_stable(logits).div_scalar(NORMALIZER)))
            }
            Op::GatedDeltaRule => {
                let logits = inputs.normal([batch, time, heads]);
                Decay::PerHead(inputs.take_wide(log_sigmoid_stable(logits)))
            }
            _ => Decay::None,
        };
        let write = match has_beta(op) {
            true => Write::Delta(inputs.draw([batch, time, heads], Distribution::Uniform(0.0, 1.0))),
            false => Write::Additive,
        };
        Self { q, k, v, decay, write }
    }

    fn output(&self, op: Op, form: Form) -> Tensor<4> {
        let options = ScanOptions { form: scan_form(form), ..ScanOptions::default() };
        let Self { q, k, v, decay, write } = self.clone();
        match op {
            Op::Retention => retention(q, k, v, None, None, &options),
            Op::Hgrn2 => hgrn2(q, k, v, None, None, None, &options),
            _ => linear_recurrence(q, k, v, decay, write, None, None, &options),
        }
        .output
    }
}

pub(crate) fn prepare(case: Case, device: &Device) -> Work {
    let Case { op, form, shape, .. } = case;
    let mut inputs = Inputs::new(case, device);
    if case.pass == Pass::Decode {
        let sequence =
            Sequence::draw(op, shape.with_time(1).keys(), shape.with_time(1).values(), &mut inputs);
        let state = Tensor::zeros(shape.state(), device);
        let step = Step::new(op, sequence, shape.heads);
        return inputs.over_steps(state, move |state| step.next(form, state));
    }
    let sequence = Sequence::draw(op, shape.keys(), shape.values(), &mut inputs);
    let output_bytes = bytes_of(&sequence.v);
    inputs.over_sequences(output_bytes, move || sequence.output(op, form))
}

/// One token, always the same one.
struct Step {
    op: Op,
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    decay: StepDecay,
    beta: Option<Tensor<2>>,
}

impl Step {
    fn new(op: Op, sequence: Sequence, heads: usize) -> Self {
        let token = |x: Tensor<4>| x.squeeze_dim::<3>(1);
        let batch = sequence.q.dims()[0];
        let decay = match (op, sequence.decay) {
            (Op::Retention, _) => {
                let gate = retention_log_decay(heads, &sequence.q.device());
                StepDecay::PerHead(gate.reshape([1, heads]).repeat_dim(0, batch))
            }
            (_, Decay::None) => StepDecay::None,
            (_, Decay::PerHead(gate)) => StepDecay::PerHead(gate.squeeze_dim(1)),
            (_, Decay::PerKey(gate)) => StepDecay::PerKey(token(gate)),
        };
        let beta = match sequence.write {
            Write::Additive => None,
            Write::Delta(beta) => Some(beta.squeeze_dim(1)),
        };
        Self { op, q: token(sequence.q), k: token(sequence.k), v: token(sequence.v), decay, beta }
    }

    fn next(&self, form: Form, state: Tensor<4>) -> Tensor<4> {
        let (k, decay) = match self.op {
            // The gate is made from the logits of the token, as in the layer.
            Op::Hgrn2 => {
                (sigmoid(self.k.clone().neg()), StepDecay::PerKey(log_sigmoid_stable(self.k.clone())))
            }
            _ => (self.k.clone(), self.decay.clone()),
        };
        let (q, v, beta) = (self.q.clone(), self.v.clone(), self.beta.clone());
        let (output, state) = match form {
            Form::Fused => linear_recurrence_step(q, k, v, decay, beta, state, None),
            Form::Portable => portable_step(q, k, v, decay, beta, state),
        };
        std::hint::black_box(output);
        state
    }
}

/// [`linear_recurrence_step`] without the device's kernel, which only the kernels' crate can be asked for.
fn portable_step(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    decay: StepDecay,
    beta: Option<Tensor<2>>,
    state: Tensor<4>,
) -> (Tensor<3>, Tensor<4>) {
    let (decay, gate) = match decay {
        StepDecay::None => (DecayKind::None, None),
        StepDecay::PerHead(gate) => (DecayKind::PerHead, Some(gate.unsqueeze_dim(2))),
        StepDecay::PerKey(gate) => (DecayKind::PerKey, Some(gate)),
    };
    let wide = state.dtype();
    let spec = StepSpec {
        scale: (q.dims()[2] as f64).powf(-0.5),
        decay,
        write: if beta.is_some() { WriteKind::Delta } else { WriteKind::Additive },
        fused: false,
    };
    let gate = gate.map(|gate: Tensor<3>| gate.cast(wide));
    let beta = beta.map(|beta| beta.cast(wide));
    matrix_scan_step(q.cast(wide), k.cast(wide), v.cast(wide), gate, beta, state, spec)
}

/// The output of `case` for given inputs, as peers are asked for it: `q`, `k`, `v`, `log_decay`, `beta`.
pub fn output_of(case: Case, device: &Device, named: &[(&'static str, Vec<f32>)]) -> Vec<f32> {
    let shape = case.shape;
    let values = |name: &str| {
        named.iter().find(|(known, _)| *known == name).map(|(_, values)| values.clone()).unwrap_or_default()
    };
    let four =
        |name: &str, dims: [usize; 4]| Tensor::<4>::from_data(TensorData::new(values(name), dims), device);
    let [batch, time, heads, _] = shape.keys();
    let three =
        |name: &str| Tensor::<3>::from_data(TensorData::new(values(name), [batch, time, heads]), device);
    let (q, k, v) = (four("q", shape.keys()), four("k", shape.keys()), four("v", shape.values()));
    let output = if case.op == Op::Softmax {
        gatekit::core::attention::causal_attention(q, k, v, &Default::default(), None)
    } else {
        let decay = match case.op {
            Op::Gla | Op::Kda => Decay::PerKey(four("log_decay", shape.keys())),
            Op::GatedDeltaRule => Decay::PerHead(three("log_decay")),
            _ => Decay::None,
        };
        let write = if has_beta(case.op) { Write::Delta(three("beta")) } else { Write::Additive };
        Sequence { q, k, v, decay, write }.output(case.op, case.form)
    };
    output.into_data().convert::<f32>().try_into_vec().unwrap_or_default()
}
