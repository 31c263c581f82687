//! What a scan computes, besides its tensors.

use std::sync::Arc;

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};

use crate::precision::{narrow, widen};

/// What decays in the state of a matrix-state scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecayKind {
    /// Nothing.
    None,
    /// Each head's state as a whole.
    PerHead,
    /// Each key channel of each head.
    PerKey,
}

/// How a step writes into the matrix state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteKind {
    /// `+ k v^T`.
    Additive,
    /// `+ beta k (v - S^T k)^T`.
    Delta,
}

/// A matrix-state scan, besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanSpec {
    /// Factor on the queries.
    pub scale: f64,
    /// What decays.
    pub decay: DecayKind,
    /// How a step writes.
    pub write: WriteKind,
    /// Whether an initial state is given; else the state starts at zero.
    pub has_initial_state: bool,
    /// Cumulative lengths of packed sequences `[0, .., time]`, for batch 1.
    pub boundaries: Option<Arc<[usize]>>,
    /// Steps computed together; tiling only, never the result.
    pub chunk_size: usize,
    /// Steps of a chunk whose decays per key channel are combined elementwise.
    pub sub_chunk_size: usize,
    /// Use the fused kernel of the device where there is one.
    pub fused: bool,
}

impl ScanSpec {
    /// Whether a log decay is given.
    pub fn has_decay(&self) -> bool {
        self.decay != DecayKind::None
    }
}

/// One step of a matrix-state scan, besides its tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepSpec {
    /// Factor on the queries.
    pub scale: f64,
    /// What decays.
    pub decay: DecayKind,
    /// How the step writes.
    pub write: WriteKind,
    /// Use the fused kernel of the device where there is one.
    pub fused: bool,
}

/// An elementwise scan, besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct ElementwiseSpec {
    /// Whether an initial state is given; else the state starts at zero.
    pub has_initial_state: bool,
    /// Cumulative lengths of packed sequences `[0, .., time]`, for batch 1.
    pub boundaries: Option<Arc<[usize]>>,
    /// Use the fused kernel of the device where there is one.
    pub fused: bool,
}

/// Which of a scan's two results a gradient belongs to.
///
/// The results are two nodes of the autodiff graph: when a loss uses both, their backward passes
/// add up; when it uses the output alone, as in training, nothing is spent on the final state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientOf {
    /// The output of every step.
    Output,
    /// The final state.
    FinalState,
}

/// The tensors of a matrix-state scan; what the spec says is absent holds any value.
#[derive(Debug)]
pub(crate) struct ScanArguments<B: Backend> {
    pub q: FloatTensor<B>,
    pub k: FloatTensor<B>,
    pub v: FloatTensor<B>,
    pub log_decay: FloatTensor<B>,
    pub beta: FloatTensor<B>,
    pub initial_state: FloatTensor<B>,
}

impl<B: Backend> Clone for ScanArguments<B> {
    fn clone(&self) -> Self {
        Self {
            q: self.q.clone(),
            k: self.k.clone(),
            v: self.v.clone(),
            log_decay: self.log_decay.clone(),
            beta: self.beta.clone(),
            initial_state: self.initial_state.clone(),
        }
    }
}

/// Gradients of the arguments, a single zero for what is absent.
pub(crate) type ScanGradients<B> = ScanArguments<B>;

/// Tensors in the order of the arguments, as they cross the dispatch boundary.
pub(crate) type SixTensors<B> =
    (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);

impl<B: Backend> ScanArguments<B> {
    /// The types that the tensors are stored in.
    pub fn dtypes(&self) -> [DType; 6] {
        let Self { q, k, v, log_decay, beta, initial_state } = self;
        [q, k, v, log_decay, beta, initial_state].map(TensorMetadata::dtype)
    }

    /// In the type that sums are made in.
    pub fn widened(self) -> Self {
        let [q, k, v, log_decay, beta, initial_state] = widen::<B, 6>(self.into_tuple().into());
        Self { q, k, v, log_decay, beta, initial_state }
    }

    /// In the types that the tensors are stored in.
    pub fn narrowed(self, dtypes: [DType; 6]) -> Self {
        let [q, k, v, log_decay, beta, initial_state] = narrow::<B, 6>(self.into_tuple().into(), dtypes);
        Self { q, k, v, log_decay, beta, initial_state }
    }

    /// In the order of the operation's arguments.
    pub fn into_tuple(self) -> SixTensors<B> {
        (self.q, self.k, self.v, self.log_decay, self.beta, self.initial_state)
    }
}
