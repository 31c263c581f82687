//! The recurrences in float64, as plain loops: the yardstick where float32 is not enough.

use burn::tensor::TensorData;

/// Log decays of a reference scan.
#[derive(Debug, Clone)]
pub enum Gate<'a> {
    /// The state keeps everything.
    None,
    /// `[batch, time, heads]`.
    PerHead(&'a TensorData),
    /// `[batch, time, heads, key_dim]`.
    PerKey(&'a TensorData),
}

/// Result of [`matrix_scan`].
#[derive(Debug, Clone)]
pub struct Reference {
    /// `[batch, time, heads, value_dim]`.
    pub output: TensorData,
    /// `[batch or segments, heads, key_dim, value_dim]`.
    pub final_state: TensorData,
}

/// `S' = exp(g_t) S_{t-1}`, `S_t = S' + k_t v_t^T` or, with `beta`,
/// `S_t = S' + beta_t k_t (v_t - S'^T k_t)^T`; `o_t = scale * S_t^T q_t`.
///
/// `cu_seqlens` restarts the state, with batch 1.
pub fn matrix_scan(
    q: &TensorData,
    k: &TensorData,
    v: &TensorData,
    gate: &Gate<'_>,
    beta: Option<&TensorData>,
    initial_state: Option<&TensorData>,
    cu_seqlens: Option<&[usize]>,
    scale: f64,
) -> Reference {
    let [batch, time, heads, key_dim]: [usize; 4] = dims(q);
    let [.., value_dim]: [usize; 4] = dims(v);
    let (q, k, v) = (floats(q), floats(k), floats(v));
    let beta = beta.map(floats);
    let initial_state = initial_state.map(floats);
    let (gates, per_key) = match gate {
        Gate::None => (None, false),
        Gate::PerHead(gate) => (Some(floats(gate)), false),
        Gate::PerKey(gate) => (Some(floats(gate)), true),
    };
    let whole = [0, time];
    let segments: Vec<(usize, usize, usize)> = match cu_seqlens {
        Some(cu_seqlens) => cu_seqlens.windows(2).map(|ends| (0, ends[0], ends[1])).collect(),
        None => (0..batch).map(|row| (row, whole[0], whole[1])).collect(),
    };

    let mut output = vec![0.0; batch * time * heads * value_dim];
    let mut final_state = Vec::with_capacity(segments.len() * heads * key_dim * value_dim);
    for (index, &(row, start, end)) in segments.iter().enumerate() {
        for head in 0..heads {
            let size = key_dim * value_dim;
            let at = (index * heads + head) * size;
            let mut state =
                initial_state.as_ref().map_or(vec![0.0; size], |state| state[at..at + size].to_vec());
            for step in start..end {
                let token = (row * time + step) * heads + head;
                let (q, k) = (&q[token * key_dim..][..key_dim], &k[token * key_dim..][..key_dim]);
                let v = &v[token * value_dim..][..value_dim];
                if let Some(gates) = &gates {
                    for (channel, row) in state.chunks_mut(value_dim).enumerate() {
                        let gate = if per_key { gates[token * key_dim + channel] } else { gates[token] };
                        row.iter_mut().for_each(|cell| *cell *= gate.exp());
                    }
                }
                for column in 0..value_dim {
                    let cells = |state: &[f64], weights: &[f64]| -> f64 {
                        weights
                            .iter()
                            .enumerate()
                            .map(|(c, weight)| weight * state[c * value_dim + column])
                            .sum()
                    };
                    let write = match &beta {
                        None => v[column],
                        Some(beta) => beta[token] * (v[column] - cells(&state, k)),
                    };
                    for (channel, key) in k.iter().enumerate() {
                        state[channel * value_dim + column] += key * write;
                    }
                    output[token * value_dim + column] = scale * cells(&state, q);
                }
            }
            final_state.extend(state);
        }
    }
    Reference {
        output: data(output, [batch, time, heads, value_dim]),
        final_state: data(final_state, [segments.len(), heads, key_dim, value_dim]),
    }
}

/// `h_t = exp(g_t) * h_{t-1} + x_t`: outputs `[batch, time, dim]` and the final state
/// `[batch or segments, dim]`.
pub fn elementwise_scan(
    x: &TensorData,
    gate: &TensorData,
    initial_state: Option<&TensorData>,
    cu_seqlens: Option<&[usize]>,
) -> (TensorData, TensorData) {
    let [batch, time, dim]: [usize; 3] = dims(x);
    let (x, gate, initial_state) = (floats(x), floats(gate), initial_state.map(floats));
    let segments: Vec<(usize, usize, usize)> = match cu_seqlens {
        Some(cu_seqlens) => cu_seqlens.windows(2).map(|ends| (0, ends[0], ends[1])).collect(),
        None => (0..batch).map(|row| (row, 0, time)).collect(),
    };
    let mut output = vec![0.0; batch * time * dim];
    let mut final_state = Vec::with_capacity(segments.len() * dim);
    for (index, &(row, start, end)) in segments.iter().enumerate() {
        let mut state =
            initial_state.as_ref().map_or(vec![0.0; dim], |state| state[index * dim..][..dim].to_vec());
        for step in start..end {
            let at = (row * time + step) * dim;
            for (channel, cell) in state.iter_mut().enumerate() {
                *cell = gate[at + channel].exp() * *cell + x[at + channel];
            }
            output[at..at + dim].copy_from_slice(&state);
        }
        final_state.extend(state);
    }
    (data(output, [batch, time, dim]), data(final_state, [segments.len(), dim]))
}

fn dims<const D: usize>(data: &TensorData) -> [usize; D] {
    data.shape().to_vec().try_into().unwrap_or_else(|shape| panic!("{shape:?} does not have {D} axes"))
}

fn floats(data: &TensorData) -> Vec<f64> {
    data.iter::<f64>().collect()
}

/// The result rounded to float32.
fn data<const D: usize>(values: Vec<f64>, shape: [usize; D]) -> TensorData {
    TensorData::new(values.into_iter().map(|value| value as f32).collect::<Vec<_>>(), shape)
}
