//! How sure a classifier is, and the gate that decides from it.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::widen;

/// Measures of doubt that a gate sees.
pub(super) const FEATURES: usize = 4;

/// Four measures of how sure the answer `logits` is, `[batch, classes]` to `[batch, 4]`.
///
/// With `p = softmax(logits)`: the largest `p`; the entropy of `p` in nats; the margin between the two
/// largest; the entropy of `softmax(2 logits)`, that is of `p^2` over its sum. They take no gradient,
/// and are computed from the logarithms in at least float32, so that logits of hundreds give finite
/// values. A row with a NaN gives NaN.
///
/// # Panics
///
/// With less than two classes.
pub fn uncertainty_features(logits: Tensor<2>) -> Tensor<2> {
    let [batch, classes] = logits.dims();
    assert!(classes >= 2, "uncertainty_features: `logits` [{batch}, {classes}] have no margin");
    let logits = widen(logits.detach());
    let entropy = |log_p: Tensor<2>| (log_p.clone().exp() * log_p).sum_dim(1).neg();
    let log_p = log_softmax(logits.clone(), 1);
    let p = log_p.clone().exp();
    let (largest, place) = p.clone().max_dim_with_indices(1);
    let classes_row = Tensor::<1, Int>::arange(0..classes as i64, &p.device()).unsqueeze_dim::<2>(0);
    let is_largest = classes_row.expand([batch, classes]).equal(place.expand([batch, classes]));
    let second = p.mask_fill(is_largest, -1.0).max_dim(1);
    let squared = log_softmax(logits.mul_scalar(2.0), 1);
    Tensor::cat(vec![largest.clone(), entropy(log_p), largest - second, entropy(squared)], 1)
}

/// Decides from the doubt of an exit's answer whether to leave there: `o = w . u + c`.
///
/// `u` are the [`uncertainty_features`]; the gate value is `sigmoid(o)`. Five parameters, which start
/// uniform within 1/2. Regol et al. (arXiv 2310.09163), section 4.1.
#[derive(Module, Debug)]
pub struct UncertaintyGate {
    /// Weights of the four measures, and a bias.
    pub linear: Linear,
}

impl UncertaintyGate {
    /// A fresh gate.
    pub fn new(device: &Device) -> Self {
        Self { linear: LinearConfig::new(FEATURES, 1).init(device) }
    }

    /// The gate's logits `[batch, 1]` for an exit's `logits` `[batch, classes]`, to which no gradient
    /// goes.
    ///
    /// # Panics
    ///
    /// With less than two classes.
    pub fn forward(&self, logits: Tensor<2>) -> Tensor<2> {
        self.of_features(uncertainty_features(logits))
    }

    /// The same for measures `[batch, 4]` that were computed before.
    pub fn of_features(&self, features: Tensor<2>) -> Tensor<2> {
        let dtype = self.linear.weight.val().dtype();
        self.linear.forward(features.cast(dtype))
    }
}
