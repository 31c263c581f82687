//! The recurrence as it is defined, step by step in tensor operations.

use burn::tensor::{DType, Device, Tensor};

use super::{Decay, ScanOutput, StepDecay, Write, step::step};
use crate::sequence::Boundaries;

pub(super) fn scan(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    decay: Decay,
    write: Write,
    initial_state: Option<Tensor<4>>,
    boundaries: Option<&Boundaries>,
    scale: f64,
) -> ScanOutput {
    let [batch, time, heads, key_dim] = q.dims();
    let value_dim = v.dims()[3];
    let device: Device = q.device();
    let dtype = if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let whole = [0, time];
    let cu_seqlens = boundaries.map_or(&whole[..], Boundaries::cu_seqlens);

    let mut outputs = Vec::with_capacity(time);
    let mut states = Vec::new();
    for (segment, ends) in cu_seqlens.windows(2).enumerate() {
        let mut state = match &initial_state {
            Some(state) if boundaries.is_some() => state.clone().narrow(0, segment, 1),
            Some(state) => state.clone(),
            None => Tensor::zeros([batch, heads, key_dim, value_dim], (&device, dtype)),
        };
        for t in ends[0]..ends[1] {
            let step_decay = match &decay {
                Decay::None => StepDecay::None,
                Decay::PerHead(gate) => StepDecay::PerHead(gate.clone().narrow(1, t, 1).squeeze_dim(1)),
                Decay::PerKey(gate) => StepDecay::PerKey(at(gate, t)),
            };
            let beta = match &write {
                Write::Additive => None,
                Write::Delta(beta) => Some(beta.clone().narrow(1, t, 1).squeeze_dim(1)),
            };
            let (output, next) =
                step(at(&q, t), at(&k, t), at(&v, t), step_decay, beta, state, Some(scale), false);
            outputs.push(output);
            state = next;
        }
        states.push(state);
    }
    ScanOutput { output: Tensor::stack(outputs, 1), final_state: Tensor::cat(states, 0) }
}

fn at(x: &Tensor<4>, t: usize) -> Tensor<3> {
    x.clone().narrow(1, t, 1).squeeze_dim(1)
}
