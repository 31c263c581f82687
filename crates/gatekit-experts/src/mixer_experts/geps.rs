//! Weights that move by low-rank matrices.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::expert::MetaExpert;
use super::root::{AdaptedLayer, AdaptedRoot, RootNetwork, shift, shifted, xavier};

/// Left factors of a layer.
#[derive(Module, Debug)]
pub struct LeftLayer {
    /// `A`, `[out, r]`.
    pub weight: Param<Tensor<2>>,
    /// `A_b`, `[out, r]`.
    pub bias: Param<Tensor<2>>,
}

/// Left factors of a network.
#[derive(Module, Debug)]
pub struct LeftFactors {
    /// Of the linear layers.
    pub layers: Vec<LeftLayer>,
    /// Of the slopes, `A_beta` `[1, r]`.
    pub betas: Vec<Param<Tensor<2>>>,
}

/// Right factors of a layer.
#[derive(Module, Debug)]
pub struct RightLayer {
    /// `B`, `[r, in]`.
    pub weight: Param<Tensor<2>>,
}

/// Right factors of a network.
#[derive(Module, Debug)]
pub struct RightFactors {
    /// Of the linear layers.
    pub layers: Vec<RightLayer>,
}

/// Every weight moves with the context c of r numbers: `W + A diag(c) B`, `b + A_b c`, `beta + A_beta c`.
///
/// Koupai et al., "GEPS" (arXiv 2410.23889). Factors start Xavier-uniform.
#[derive(Module, Debug)]
pub struct GepsField {
    /// What does not move.
    pub root: RootNetwork,
    /// A, A_b, A_beta.
    pub left: LeftFactors,
    /// B.
    pub right: RightFactors,
    /// Added to the context, `[1]`.
    pub ctx_shift: Option<Param<Tensor<1>>>,
}

impl GepsField {
    /// Around a root network, for contexts of `context_size` numbers.
    pub fn new(root: RootNetwork, context_size: usize, shift_context: bool, device: &Device) -> Self {
        let (sizes, rank) = (root.sizes(), context_size);
        let left = |[out, _]: &[usize; 2]| LeftLayer {
            weight: xavier([*out, rank], device),
            bias: xavier([*out, rank], device),
        };
        let right = |[_, inner]: &[usize; 2]| RightLayer { weight: xavier([rank, *inner], device) };
        Self {
            left: LeftFactors {
                layers: sizes.iter().map(left).collect(),
                betas: root.betas.iter().map(|_| xavier([1, rank], device)).collect(),
            },
            right: RightFactors { layers: sizes.iter().map(right).collect() },
            root,
            ctx_shift: shift_context.then(|| shift(device)),
        }
    }
}

impl MetaExpert for GepsField {
    type Adapted = AdaptedRoot;

    fn context_size(&self) -> usize {
        self.left.layers.first().map_or(0, |layer| layer.weight.dims()[1])
    }

    fn adapt(&self, contexts: Tensor<2>) -> AdaptedRoot {
        let [count, rank] = contexts.dims();
        assert!(rank == self.context_size(), "GepsField: contexts of {rank}, need {}", self.context_size());
        let contexts = shifted(contexts, &self.ctx_shift);
        let factors = self.left.layers.iter().zip(&self.right.layers);
        let layers =
            self.root.layers.iter().zip(factors).enumerate().map(|(index, (root, (left, right)))| {
                // (A diag(c) B)^T = (B^T diag(c)) A^T
                let right = right.weight.val().transpose().unsqueeze_dim::<3>(0);
                let scaled = right * contexts.clone().unsqueeze_dim(1);
                let moved =
                    scaled.matmul(left.weight.val().transpose().unsqueeze_dim(0).repeat_dim(0, count));
                let weight = moved + root.weight.val().transpose().unsqueeze_dim(0);
                let bias =
                    contexts.clone().matmul(left.bias.val().transpose()) + root.bias.val().unsqueeze_dim(0);
                let slope = self.root.betas.get(index).map(|beta| {
                    let moved = contexts.clone().matmul(self.left.betas[index].val().transpose());
                    (moved + beta.val().unsqueeze_dim(0)).unsqueeze_dim(1)
                });
                AdaptedLayer { weight, bias: bias.unsqueeze_dim(1), slope }
            });
        AdaptedRoot { layers: layers.collect() }
    }
}
