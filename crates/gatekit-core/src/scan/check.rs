//! Refuses arguments that do not fit together, with a message that names both shapes.

use burn::tensor::{Tensor, TensorData};

use super::{Decay, ScanOptions, Write};
use crate::sequence::Boundaries;

pub(super) fn scan(
    q: &Tensor<4>,
    k: &Tensor<4>,
    v: &Tensor<4>,
    decay: &Decay,
    write: &Write,
    initial_state: Option<&Tensor<4>>,
    boundaries: Option<&Boundaries>,
    options: &ScanOptions,
) {
    let [batch, time, heads, key_dim] = q.dims();
    let value_dim = v.dims()[3];
    assert!(time > 0, "scan: `q` has no time step, shape {:?}", q.dims());
    assert!(batch > 0, "scan: `q` has an empty batch, shape {:?}", q.dims());
    same("k", k.dims(), "q", q.dims());
    assert!(
        v.dims()[..3] == [batch, time, heads],
        "scan: `v` has shape {:?}, `q` {:?}: batch, time and heads differ",
        v.dims(),
        q.dims()
    );
    match decay {
        Decay::None => {}
        Decay::PerHead(gate) => {
            same("log_gate", gate.dims(), "q without its last axis", [batch, time, heads]);
            log_decay(gate);
        }
        Decay::PerKey(gate) => {
            same("log_gate", gate.dims(), "q", q.dims());
            log_decay(gate);
        }
    }
    if let Write::Delta(beta) = write {
        same("beta", beta.dims(), "q without its last axis", [batch, time, heads]);
        in_range("beta", beta, 0.0, 2.0);
    }
    let states = rows(batch, time, boundaries);
    if let Some(state) = initial_state {
        let need = [states, heads, key_dim, value_dim];
        same("initial_state", state.dims(), "[batch or segments, heads, key_dim, value_dim]", need);
    }
    let (chunk, sub_chunk) = (options.chunk_size, options.sub_chunk_size);
    assert!(
        chunk > 0 && sub_chunk > 0 && (chunk.is_multiple_of(sub_chunk) || chunk < sub_chunk),
        "scan: `chunk_size` is {chunk}, not a positive multiple of `sub_chunk_size` {sub_chunk}"
    );
}

/// Number of states: one a batch row, or one a segment.
pub(super) fn rows(batch: usize, time: usize, boundaries: Option<&Boundaries>) -> usize {
    let Some(boundaries) = boundaries else { return batch };
    assert!(batch == 1, "scan: `cu_seqlens` needs batch 1 (packed sequences), `q` has batch {batch}");
    assert!(
        boundaries.time() == time,
        "scan: `cu_seqlens` ends at {}, `q` has {time} time steps",
        boundaries.time()
    );
    boundaries.segments()
}

pub(super) fn same<const D: usize>(name: &str, got: [usize; D], other: &str, need: [usize; D]) {
    assert!(got == need, "scan: `{name}` has shape {got:?}, but `{other}` is {need:?}");
}

/// Debug builds read the log decays back: a positive one makes the state grow without bound.
pub(super) fn log_decay<const D: usize>(gate: &Tensor<D>) {
    in_range("log_gate", gate, f64::NEG_INFINITY, 0.0);
}

fn in_range<const D: usize>(name: &str, tensor: &Tensor<D>, low: f64, high: f64) {
    let need = format!("a value in [{low}, {high}]");
    holds(name, tensor, &need, |value| value >= low && value <= high);
}

/// Debug builds read the values back and refuse those that are not as they need to be.
pub(super) fn holds<const D: usize>(name: &str, tensor: &Tensor<D>, need: &str, fits: impl Fn(f64) -> bool) {
    if !cfg!(debug_assertions) {
        return;
    }
    let data: TensorData = tensor.to_data();
    for value in data.iter::<f64>() {
        assert!(fits(value), "scan: `{name}` holds {value}, need {need}");
    }
}
