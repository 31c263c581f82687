//! The chunked forward pass of the matrix-state scan.

use burn::backend::{Backend, TensorMetadata, tensor::FloatTensor};

use super::{
    LOG_DECAY_FLOOR,
    chunks::Chunks,
    pairs::{Decays, Pairs, lower_mask, mask},
};
use crate::{
    primitive::Primitive,
    scan::{ScanArguments, ScanSpec, WriteKind},
};

/// Everything of a forward pass that its backward pass needs again, in chunk layout.
pub(super) struct Forward<B: Backend> {
    pub chunks: Chunks,
    /// Queries times `scale`.
    pub q: Primitive<B>,
    pub k: Primitive<B>,
    pub pairs: Pairs<B>,
    /// Weights of the queries on the writes of their own chunk.
    pub attention: Primitive<B>,
    pub decay: Decays<B>,
    /// What each step writes: the values, or under the delta rule their corrections.
    pub writes: Primitive<B>,
    /// State before every chunk, `[rows, chunks, key_dim, value_dim]`.
    pub states: Primitive<B>,
    /// State after every chunk.
    pub states_after: Primitive<B>,
    pub delta: Option<Delta<B>>,
    pub output: Primitive<B>,
    pub final_state: Primitive<B>,
}

/// What only the delta rule has.
pub(super) struct Delta<B: Backend> {
    pub beta: Primitive<B>,
    /// `E_ij`, keys on keys, strictly lower.
    pub keys_on_keys: Primitive<B>,
    /// `(I + diag(beta) E)^-1`.
    pub inverse: Primitive<B>,
    /// `v` minus what the state held for the key.
    pub residual: Primitive<B>,
    /// Keys times the decay from the chunk's start.
    pub keys_from_start: Primitive<B>,
}

pub(super) fn times<B: Backend>(x: &Primitive<B>, factor: &Option<Primitive<B>>) -> Primitive<B> {
    match factor {
        Some(factor) => x.clone() * factor.clone(),
        None => x.clone(),
    }
}

/// Output `[batch, time, heads, value_dim]`, in the type of `q`, and final state, in that of the sums.
pub(crate) fn forward<B: Backend>(
    arguments: ScanArguments<B>,
    spec: &ScanSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = arguments.q.dtype();
    let result = compute(arguments.widened(), spec);
    (result.chunks.join(result.output).cast(dtype).0, result.final_state.0)
}

/// Arguments in one type, that of the sums.
pub(super) fn compute<B: Backend>(arguments: ScanArguments<B>, spec: &ScanSpec) -> Forward<B> {
    let q = Primitive::<B>(arguments.q);
    let chunks = Chunks::new(&q.dims(), spec);
    let q = chunks.cut(q).scale(spec.scale);
    let k = chunks.cut(Primitive(arguments.k));
    let v = chunks.cut(Primitive(arguments.v));
    let (rows, key_dim, value_dim) = (chunks.rows(), k.dims()[3], v.dims()[3]);

    let log_decay =
        spec.has_decay().then(|| chunks.cut(Primitive(arguments.log_decay).clamp_min(LOG_DECAY_FLOOR)));
    let decay = Decays::new(log_decay.as_ref());
    let pairs = Pairs::new(spec.decay, log_decay.as_ref(), &chunks, &q);
    let attention = pairs.product(&q, &k);
    let keys_to_end = times(&k, &decay.to_end).transpose();

    let delta = (spec.write == WriteKind::Delta).then(|| {
        let beta = Primitive::<B>(arguments.beta);
        let dims = beta.dims();
        let beta = chunks.cut(beta.reshape([dims[0], dims[1], dims[2], 1]));
        let keys_on_keys = pairs.product(&k, &k) * lower_mask(chunks.size, true, &k);
        let inverse = unit_lower_inverse(beta.clone() * keys_on_keys.clone());
        (beta, keys_on_keys, inverse, times(&k, &decay.from_start))
    });
    // Writes given the state: corrected - reads S_in, the state-independent parts for all chunks at once.
    let (corrected, reads) = match &delta {
        None => (v.clone(), None),
        Some((beta, _, inverse, keys_from_start)) => {
            let corrected = inverse.clone().matmul(beta.clone() * v.clone());
            (corrected, Some(inverse.clone().matmul(beta.clone() * keys_from_start.clone())))
        }
    };
    let additive = reads.is_none().then(|| keys_to_end.clone().matmul(v.clone()));

    let initial = Primitive::<B>(arguments.initial_state);
    let (mut before, mut after, mut writes) = (vec![], vec![], vec![]);
    let mut finals = vec![];
    for (index, sequence) in chunks.sequences.iter().enumerate() {
        let mut state = if spec.has_initial_state {
            chunks.state(&initial, index)
        } else {
            q.zeros([rows, key_dim, value_dim])
        };
        for chunk in sequence.clone() {
            before.push(state.clone());
            let kept = match &decay.whole {
                Some(whole) => state.clone() * chunks.at(whole, chunk),
                None => state.clone(),
            };
            let written = match (&reads, &additive) {
                (Some(reads), _) => {
                    let write = chunks.at(&corrected, chunk) - chunks.at(reads, chunk).matmul(state);
                    writes.push(write.clone());
                    chunks.at(&keys_to_end, chunk).matmul(write)
                }
                (None, Some(additive)) => chunks.at(additive, chunk),
                (None, None) => unreachable!("one of the two writes"),
            };
            state = kept + written;
            after.push(state.clone());
        }
        finals.push(state);
    }
    let states = chunks.stack(before);
    let writes = if writes.is_empty() { corrected } else { chunks.stack(writes) };
    let output =
        times(&q, &decay.from_start).matmul(states.clone()) + attention.clone().matmul(writes.clone());
    let delta = delta.map(|(beta, keys_on_keys, inverse, keys_from_start)| Delta {
        residual: v.clone() - keys_from_start.clone().matmul(states.clone()),
        beta,
        keys_on_keys,
        inverse,
        keys_from_start,
    });

    Forward {
        q,
        k,
        pairs,
        attention,
        decay,
        writes,
        states,
        states_after: chunks.stack(after),
        delta,
        output,
        final_state: chunks.states(finals),
        chunks,
    }
}

/// `(I + L)^-1` for strictly lower triangular `L` `[rows, chunks, size, size]`.
///
/// Block forward substitution, doubling the block: with the inverses of two neighbouring diagonal
/// blocks `A`, `D` and the block `B` below `A`, the inverse of both is `[[A, 0], [-D B A, D]]`. As
/// stable as substitution row by row, unlike the Neumann product, whose powers of `L` can be huge.
pub(super) fn unit_lower_inverse<B: Backend>(lower: Primitive<B>) -> Primitive<B> {
    let dims = lower.dims();
    let size = dims[2];
    let mut inverse = mask(size, &lower, |i, j| i == j).expand(dims);
    let mut block = 1;
    while block < size {
        let below = mask(size, &lower, |i, j| {
            i / (2 * block) == j / (2 * block) && i / block % 2 == 1 && j / block % 2 == 0
        });
        let coupling = inverse.clone().matmul(lower.clone() * below).matmul(inverse.clone());
        inverse = inverse - coupling;
        block *= 2;
    }
    inverse
}
