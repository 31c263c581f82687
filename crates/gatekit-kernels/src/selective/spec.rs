//! What a selective scan computes, besides its tensors, and these tensors by name.

use std::{ops::Range, sync::Arc};

use burn::{
    backend::{Backend, TensorMetadata, tensor::FloatTensor},
    tensor::DType,
};

use crate::{
    precision::{narrow, widen},
    scan::SixTensors,
};

/// A selective scan, besides its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct SelectiveSpec {
    /// Whether an initial state is given; else the state starts at zero.
    pub has_initial_state: bool,
    /// Cumulative lengths of packed sequences `[0, .., time]`, for batch 1.
    pub boundaries: Option<Arc<[usize]>>,
    /// Use the fused kernel of the device where there is one.
    pub fused: bool,
}

impl SelectiveSpec {
    /// Steps of each sequence that a row holds: the row itself, or the packed segments.
    pub(crate) fn sequences(&self, time: usize) -> Vec<Range<usize>> {
        match &self.boundaries {
            Some(boundaries) => boundaries.windows(2).map(|pair| pair[0]..pair[1]).collect(),
            None => std::iter::once(0..time).collect(),
        }
    }
}

/// The tensors of a selective scan; an absent initial state holds any value. Their gradients by the same names.
#[derive(Debug)]
pub(crate) struct SelectiveArguments<B: Backend> {
    pub x: FloatTensor<B>,
    pub delta: FloatTensor<B>,
    pub a: FloatTensor<B>,
    pub b: FloatTensor<B>,
    pub c: FloatTensor<B>,
    pub initial_state: FloatTensor<B>,
}

impl<B: Backend> Clone for SelectiveArguments<B> {
    fn clone(&self) -> Self {
        Self {
            x: self.x.clone(),
            delta: self.delta.clone(),
            a: self.a.clone(),
            b: self.b.clone(),
            c: self.c.clone(),
            initial_state: self.initial_state.clone(),
        }
    }
}

impl<B: Backend> SelectiveArguments<B> {
    /// The types that the tensors are stored in.
    pub fn dtypes(&self) -> [DType; 6] {
        let Self { x, delta, a, b, c, initial_state } = self;
        [x, delta, a, b, c, initial_state].map(TensorMetadata::dtype)
    }

    /// In the type that sums are made in.
    pub fn widened(self) -> Self {
        let [x, delta, a, b, c, initial_state] = widen::<B, 6>(self.into_tuple().into());
        Self { x, delta, a, b, c, initial_state }
    }

    /// In the types that the tensors are stored in.
    pub fn narrowed(self, dtypes: [DType; 6]) -> Self {
        let [x, delta, a, b, c, initial_state] = narrow::<B, 6>(self.into_tuple().into(), dtypes);
        Self { x, delta, a, b, c, initial_state }
    }

    /// In the order of the operation's arguments.
    pub fn into_tuple(self) -> SixTensors<B> {
        (self.x, self.delta, self.a, self.b, self.c, self.initial_state)
    }
}

/// The tensors of one step.
#[derive(Debug)]
pub(crate) struct SelectiveStep<B: Backend> {
    pub x: FloatTensor<B>,
    pub delta: FloatTensor<B>,
    pub a: FloatTensor<B>,
    pub b: FloatTensor<B>,
    pub c: FloatTensor<B>,
    pub state: FloatTensor<B>,
}

impl<B: Backend> SelectiveStep<B> {
    /// In the type that sums are made in.
    pub fn widened(self) -> Self {
        let Self { x, delta, a, b, c, state } = self;
        let [x, delta, a, b, c, state] = widen::<B, 6>([x, delta, a, b, c, state]);
        Self { x, delta, a, b, c, state }
    }
}
