//! Encoders into the joint space.

use burn::tensor::Tensor;

/// A frozen encoder of one modality into the joint space: a tower of ImageBind, or of any other encoder whose
/// modalities share a space.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_fusion::imagebind_llm::Embedder;
///
/// /// Embeddings that were computed before.
/// struct Stored(Tensor<2>);
///
/// impl Embedder for Stored {
///     type Input = std::ops::Range<usize>;
///
///     fn dim(&self) -> usize {
///         self.0.dims()[1]
///     }
///
///     fn embed(&self, rows: &Self::Input) -> Tensor<2> {
///         self.0.clone().narrow(0, rows.start, rows.len())
///     }
/// }
///
/// let stored = Stored(Tensor::ones([4, 8], &Device::flex()));
/// assert_eq!(stored.embed(&(1..3)).dims(), [2, stored.dim()]);
/// # }
/// ```
pub trait Embedder {
    /// What it sees or hears: a batch of B images, recordings, point clouds.
    type Input: ?Sized;

    /// Channels M of the joint space.
    fn dim(&self) -> usize;

    /// The embeddings of a batch, `[B, M]`. The encoder is not trained: what it returns is taken as constant.
    fn embed(&self, input: &Self::Input) -> Tensor<2>;
}
