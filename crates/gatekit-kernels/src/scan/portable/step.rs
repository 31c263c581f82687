//! One step of the matrix-state scan, as it is defined.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use crate::{
    primitive::Primitive,
    scan::{DecayKind, ScanArguments, StepSpec, WriteKind},
};

/// Output `[batch, heads, value_dim]` and state, with the old state as `initial_state`.
pub(crate) fn step<B: Backend>(
    arguments: ScanArguments<B>,
    spec: &StepSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.q.dtype();
    let arguments = arguments.widened();
    let v = Primitive::<B>(arguments.v);
    let dims = v.dims();
    let (batch, heads, value_dim) = (dims[0], dims[1], dims[2]);
    let q = Primitive::<B>(arguments.q).scale(spec.scale);
    let k = Primitive::<B>(arguments.k);
    let key_dim = k.dims()[2];
    let row = |x: &Primitive<B>, width| x.clone().reshape([batch, heads, 1, width]);
    let column = |x: Primitive<B>, height| x.reshape([batch, heads, height, 1]);

    let state = Primitive::<B>(arguments.initial_state);
    let decay = || Primitive::<B>(arguments.log_decay.clone()).exp();
    let state = match spec.decay {
        DecayKind::None => state,
        DecayKind::PerHead => state * column(decay(), 1),
        DecayKind::PerKey => state * column(decay(), key_dim),
    };
    let write = match spec.write {
        WriteKind::Additive => row(&v, value_dim),
        WriteKind::Delta => {
            let held = row(&k, key_dim).matmul(state.clone());
            (row(&v, value_dim) - held) * column(Primitive(arguments.beta), 1)
        }
    };
    let state = state + column(k, key_dim) * write;
    let output = row(&q, key_dim).matmul(state.clone()).reshape([batch, heads, value_dim]);
    (output.cast(dtype).0, state.0)
}
