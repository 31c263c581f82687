//! Experts whose weights move with a context.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::Tensor;

use super::coda::CodaField;
use super::geps::GepsField;
use super::root::AdaptedRoot;
use super::solver::StackedField;

/// An expert: a vector field whose weights move with a context.
///
/// The context of an environment does not change along a trajectory, so the weights are moved once
/// ([`adapt`](Self::adapt)) and used in all steps of a solver. Environments of different experts are
/// stacked and solved together.
pub trait MetaExpert: Module + ModuleDisplay {
    /// The field with the weights of some environments.
    type Adapted: StackedField;

    /// Numbers r of a context.
    fn context_size(&self) -> usize;

    /// The field of n environments with contexts `[n, r]`, n at least 1. Carries gradients to the contexts
    /// and to the expert's parameters.
    ///
    /// # Panics
    ///
    /// When the contexts have another width.
    fn adapt(&self, contexts: Tensor<2>) -> Self::Adapted;
}

/// One of the experts of this library.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // Modules are not moved about.
pub enum MixerExpert {
    /// Low-rank.
    Geps(GepsField),
    /// A hypernetwork.
    Coda(CodaField),
}

impl MetaExpert for MixerExpert {
    type Adapted = AdaptedRoot;

    fn context_size(&self) -> usize {
        match self {
            Self::Geps(expert) => expert.context_size(),
            Self::Coda(expert) => expert.context_size(),
        }
    }

    fn adapt(&self, contexts: Tensor<2>) -> AdaptedRoot {
        match self {
            Self::Geps(expert) => expert.adapt(contexts),
            Self::Coda(expert) => expert.adapt(contexts),
        }
    }
}
