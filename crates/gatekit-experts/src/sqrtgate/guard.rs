//! Steps that are not taken: what becomes of a gradient that is not finite.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use burn::optim::{LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

/// A gradient with a NaN or an infinity, for which no step was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedGradient {
    /// Path of the parameter in its module; empty where the optimiser was not told.
    pub parameter: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl fmt::Display for SkippedGradient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameter, shape } = self;
        write!(formatter, "gradient of `{parameter}` {shape:?} is not finite: no step was taken")
    }
}

/// The skipped gradients of an optimiser, shared with all its clones: it can be read while a learner owns
/// the optimiser.
#[derive(Debug, Clone, Default)]
pub struct SkippedGradients(Arc<Mutex<Vec<SkippedGradient>>>);

impl SkippedGradients {
    /// All since the last call, in the order in which they were skipped.
    pub fn take(&self) -> Vec<SkippedGradient> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many there are since the last [`take`](Self::take).
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn push(&self, skipped: SkippedGradient) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(skipped);
    }
}

/// An optimiser that takes no step for a gradient that is not finite, and reports it.
///
/// Parameter and state stay as they were. The gradient is read back from its device, once a parameter and
/// step.
#[derive(Debug, Clone)]
pub struct Guarded<O> {
    inner: O,
    parameter: Arc<str>,
    skipped: SkippedGradients,
}

impl<O> Guarded<O> {
    /// Guards `inner`, for parameters without a name.
    pub fn new(inner: O) -> Self {
        Self::named(inner, "", SkippedGradients::default())
    }

    /// Guards `inner`, for the parameter of this path; reports to `skipped`.
    pub fn named(inner: O, parameter: &str, skipped: SkippedGradients) -> Self {
        Self { inner, parameter: Arc::from(parameter), skipped }
    }

    /// Where skipped gradients are reported.
    pub fn skipped(&self) -> SkippedGradients {
        self.skipped.clone()
    }
}

/// Whether all entries are finite; reads back from the device.
pub(super) fn is_finite<const D: usize>(x: &Tensor<D>) -> bool {
    x.clone().is_finite().all().into_data().iter::<bool>().all(|finite| finite)
}

impl<O: Optimizer> Optimizer for Guarded<O> {
    type State<const D: usize> = O::State<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        if !is_finite(&grad) {
            let shape = grad.dims().to_vec();
            self.skipped.push(SkippedGradient { parameter: self.parameter.to_string(), shape });
            return (tensor, state);
        }
        self.inner.step(lr, tensor, grad, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        O::to_device(state, device)
    }
}
