//! Weights that move by a linear map of the context.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor};

use super::expert::MetaExpert;
use super::root::{AdaptedLayer, AdaptedRoot, RootNetwork, shift, shifted};

/// The linear map of a context to all P weights, without bias. Starts `U(+-1/sqrt(r))`.
#[derive(Module, Debug)]
pub struct HyperLayer {
    /// `H`, `[P, r]`.
    pub weight: Param<Tensor<2>>,
}

/// All weights in a row move with the context c of r numbers: `theta + H c`.
///
/// The order is weight, bias, slope of the first layer, then of the next; the last has no slope. Kirchmeyer
/// et al., "CoDA" (arXiv 2202.01889).
#[derive(Module, Debug)]
pub struct CodaField {
    /// What does not move.
    pub root: RootNetwork,
    /// H.
    pub hyper: HyperLayer,
    /// Added to the context, `[1]`.
    pub ctx_shift: Option<Param<Tensor<1>>>,
}

impl CodaField {
    /// Around a root network, for contexts of `context_size` numbers.
    pub fn new(root: RootNetwork, context_size: usize, shift_context: bool, device: &Device) -> Self {
        let layers: usize = root.sizes().iter().map(|[out, inner]| out * inner + out).sum();
        let bound = 1.0 / (context_size.max(1) as f64).sqrt();
        let uniform = Initializer::Uniform { min: -bound, max: bound };
        let weight = uniform.init([layers + root.betas.len(), context_size], device);
        Self { root, hyper: HyperLayer { weight }, ctx_shift: shift_context.then(|| shift(device)) }
    }
}

impl MetaExpert for CodaField {
    type Adapted = AdaptedRoot;

    fn context_size(&self) -> usize {
        self.hyper.weight.dims()[1]
    }

    fn adapt(&self, contexts: Tensor<2>) -> AdaptedRoot {
        let [count, rank] = contexts.dims();
        assert!(rank == self.context_size(), "CodaField: contexts of {rank}, need {}", self.context_size());
        let moves = shifted(contexts, &self.ctx_shift).matmul(self.hyper.weight.val().transpose());
        let mut start = 0;
        let mut next = |size: usize| {
            let part = moves.clone().narrow(1, start, size);
            start += size;
            part
        };
        let layers = self.root.layers.iter().enumerate().map(|(index, root)| {
            let [out, inner] = root.weight.dims();
            let weight = next(out * inner).reshape([count, out, inner]) + root.weight.val().unsqueeze_dim(0);
            let bias = next(out) + root.bias.val().unsqueeze_dim(0);
            let slope = self.root.betas.get(index).map(|beta| {
                let slope: Tensor<2> = next(1) + beta.val().unsqueeze_dim(0);
                slope.unsqueeze_dim(1)
            });
            AdaptedLayer { weight: weight.swap_dims(1, 2), bias: bias.unsqueeze_dim(1), slope }
        });
        AdaptedRoot { layers: layers.collect() }
    }
}
