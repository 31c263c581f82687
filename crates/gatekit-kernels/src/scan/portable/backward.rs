//! The closed-form backward pass of the matrix-state scan: recomputes the chunks, keeps one state a
//! chunk, and gets the decay's gradient from `q dq` and `k dk` without any state.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{
    LOG_DECAY_GRADIENT_FLOOR,
    forward::{Forward, compute, times},
    pairs::lower_mask,
};
use crate::{
    precision::cast,
    primitive::Primitive,
    scan::{DecayKind, GradientOf, ScanArguments, ScanGradients, ScanSpec},
};

/// Gradients of the arguments, given the gradient of the output or of the final state.
pub(crate) fn backward<B: Backend>(
    arguments: ScanArguments<B>,
    gradient: FloatTensor<B>,
    of: GradientOf,
    spec: &ScanSpec,
) -> ScanGradients<B> {
    let dtypes = arguments.dtypes();
    let arguments = arguments.widened();
    let gradient = cast::<B>(gradient, arguments.q.dtype());
    let log_decay = Primitive::<B>(arguments.log_decay.clone());
    let forward = compute(arguments, spec);
    let Forward { chunks, q, k, pairs, attention, decay, writes, states, states_after, delta, .. } = &forward;
    let size = chunks.size;

    let (output_gradient, state_gradient) = match of {
        GradientOf::Output => (chunks.cut(Primitive::<B>(gradient)), None),
        GradientOf::FinalState => (writes.zeros(writes.dims()), Some(Primitive::<B>(gradient))),
    };
    let keys_to_end = times(k, &decay.to_end);
    let read = times(q, &decay.from_start).transpose().matmul(output_gradient.clone());
    let own = attention.clone().transpose().matmul(output_gradient.clone());

    // Reverse pass over the chunks: gradients of the states after each, and under the delta rule of
    // the residuals, which depend on them.
    let mut after = vec![None; chunks.count];
    let mut residual_gradients = vec![None; chunks.count];
    let mut initial = vec![];
    for (index, sequence) in chunks.sequences.iter().enumerate() {
        let mut state = match &state_gradient {
            Some(gradient) => chunks.state(gradient, index),
            None => chunks.at(&states.zeros(states.dims()), 0),
        };
        for chunk in sequence.clone().rev() {
            after[chunk] = Some(state.clone());
            let mut before = match &decay.whole {
                Some(whole) => state.clone() * chunks.at(whole, chunk),
                None => state.clone(),
            } + chunks.at(&read, chunk);
            if let Some(delta) = delta {
                let write = chunks.at(&own, chunk) + chunks.at(&keys_to_end, chunk).matmul(state);
                let solved = chunks.at(&delta.inverse, chunk).transpose().matmul(write);
                before = before
                    - chunks
                        .at(&delta.keys_from_start, chunk)
                        .transpose()
                        .matmul(chunks.at(&delta.beta, chunk) * solved.clone());
                residual_gradients[chunk] = Some(solved);
            }
            state = before;
        }
        initial.push(state);
    }
    let after = chunks.stack(after.into_iter().flatten().collect());

    let scores = output_gradient.clone().matmul(writes.clone().transpose()) * lower_mask(size, false, q);
    let to_states = output_gradient.matmul(states.clone().transpose());
    let dq = times(&to_states, &decay.from_start) + pairs.rows(&scores, k);
    let mut column =
        times(&writes.clone().matmul(after.clone().transpose()), &decay.to_end) + pairs.columns(&scores, q);

    let (dv, row, beta) = match delta {
        None => (own + keys_to_end.matmul(after.clone()), None, None),
        Some(delta) => {
            let solved = chunks.stack(residual_gradients.into_iter().flatten().collect());
            let dr = delta.beta.clone() * solved.clone();
            let dl = (solved.clone().matmul(writes.clone().transpose()) * lower_mask(size, true, q)).neg();
            let de = delta.beta.clone() * dl.clone();
            let beta = (solved * delta.residual.clone()).sum(3) + (dl * delta.keys_on_keys.clone()).sum(3);
            let from_states = times(&dr.clone().matmul(states.clone().transpose()), &decay.from_start);
            column = column + pairs.columns(&de, k);
            (dr, Some(pairs.rows(&de, k) - from_states), Some(beta))
        }
    };

    let log_decay_gradient = spec.has_decay().then(|| {
        let carried = match &row {
            Some(row) => row.clone() - column.clone(),
            None => column.clone().neg(),
        };
        let steps = q.clone() * dq.clone() + k.clone() * carried;
        // The chunk's total decay also scales what leaves it.
        let total = (after * states_after.clone()).sum(3).transpose();
        let (steps, total) = match spec.decay {
            DecayKind::PerHead => (steps.sum(3), total.sum(3)),
            _ => (steps, total),
        };
        let sums = chunks.join(steps.reverse_cumsum(2) + total);
        sums * log_decay.at_least(LOG_DECAY_GRADIENT_FLOOR)
    });
    let dk = match row {
        Some(row) => row + column,
        None => column,
    };

    let absent = || q.zeros([1]).0;
    ScanGradients {
        q: chunks.join(dq.scale(spec.scale)).0,
        k: chunks.join(dk).0,
        v: chunks.join(dv).0,
        log_decay: log_decay_gradient.map_or_else(absent, |gradient| gradient.0),
        beta: beta.map_or_else(absent, |beta| {
            let joined = chunks.join(beta);
            let dims = joined.dims();
            joined.reshape([dims[0], dims[1], dims[2]]).0
        }),
        initial_state: if spec.has_initial_state { chunks.states(initial).0 } else { absent() },
    }
    .narrowed(dtypes)
}
