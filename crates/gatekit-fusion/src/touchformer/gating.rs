//! Modality-adaptive gating: which sensors take part, and how much.

use burn::config::Config;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Tensor};
use gatekit_core::checkpoint::TensorLayout;
use gatekit_core::cross_modal::{
    ModalityMask, ModalityWeights, masked_mean, thresholded_softmax, zero_masked,
};
use gatekit_core::gate::sigmoid;
use gatekit_core::{ConfigError, ModuleConfig, check_sizes, widen};

use super::{check_shares, linear};

/// Configuration of [`ModalityGating`].
#[derive(Config, Debug)]
pub struct ModalityGatingConfig {
    /// Channels d of every sensor's sequence, at least 1.
    pub dim: usize,
    /// Sensors M, at least 2.
    pub num_modalities: usize,
    /// Hidden width of a gate. `None` (the default): d.
    #[config(default = "None")]
    pub gate_hidden: Option<usize>,
    /// One gate network for all sensors instead of one each. Default true.
    #[config(default = true)]
    pub gate_shared: bool,
    /// A sensor whose gate is below it is dropped; in [0, 1). Default 0.3.
    #[config(default = 0.3)]
    pub gate_threshold: f64,
}

impl ModalityGatingConfig {
    /// What published files call the tensors whose names begin with `prefix`: one shared network has no number.
    pub fn tensor_layout(&self, layout: TensorLayout, prefix: &str, published: &str) -> TensorLayout {
        match self.gate_shared {
            true => layout.with_prefix(&format!("{prefix}networks.0."), published),
            false => layout.with_prefix(&format!("{prefix}networks.{{}}."), &format!("{published}{{}}.")),
        }
    }
}

impl ModuleConfig for ModalityGatingConfig {
    type Module = ModalityGating;

    fn try_init(&self, device: &Device) -> Result<ModalityGating, ConfigError> {
        let hidden = self.gate_hidden.unwrap_or(self.dim);
        check_sizes(&[("dim", self.dim), ("num_modalities", self.num_modalities), ("gate_hidden", hidden)])?;
        if self.num_modalities < 2 {
            return Err(ConfigError::new("num_modalities", self.num_modalities, "at least 2"));
        }
        check_shares(&[("gate_threshold", self.gate_threshold)])?;
        let count = if self.gate_shared { 1 } else { self.num_modalities };
        let network = |_| GateNetwork {
            fc1: linear(self.dim, hidden, 0.0, device),
            // Open at first: a dropped sensor gets no gradient through its own features.
            fc2: linear(hidden, 1, 1.0, device),
        };
        Ok(ModalityGating {
            networks: (0..count).map(network).collect(),
            num_modalities: self.num_modalities,
            gate_threshold: self.gate_threshold,
        })
    }
}

/// `sigmoid(W2 relu(W1 c + b1) + b2)`.
#[derive(Module, Debug)]
pub struct GateNetwork {
    /// `[d, hidden]`.
    pub fc1: Linear,
    /// `[hidden, 1]`.
    pub fc2: Linear,
}

/// A gate a sensor from the mean c_m of its valid steps, `g_m = sigmoid(W2 relu(W1 c_m + b1) + b2)`, 0 if absent.
/// Sensors that are present with `g_m >= threshold` are kept, if there is none the one with the largest gate;
/// `alpha_m = exp(g_m) / sum over kept k of exp(g_k)`, 0 for the others.
///
/// The comparison takes no gradient. Softmax of numbers in (0, 1) lets two kept sensors differ by a factor below e:
/// strong suppression is the threshold's work. Weights start Xavier uniform, biases 0, b2 at 1. TouchFormer
/// (arXiv 2511.19509).
#[derive(Module, Debug)]
pub struct ModalityGating {
    /// One for all sensors, or one each.
    pub networks: Vec<GateNetwork>,
    num_modalities: usize,
    gate_threshold: f64,
}

/// How much sensors count.
#[derive(Debug, Clone)]
pub struct SensorWeights {
    /// Gates g, `[B, M]` in (0, 1), 0 for an absent sensor; at least float32.
    pub gates: Tensor<2>,
    /// Importance weights alpha, `[B, M]`: 1 in sum over the kept sensors, 0 for the others; at least float32.
    pub weights: Tensor<2>,
    /// Which sensors are kept, `[B, M]`.
    pub kept: Tensor<2, Bool>,
}

impl SensorWeights {
    /// Kept sensors and their weights for gates that are there already, `[B, M]`.
    ///
    /// # Panics
    ///
    /// When the gates are not one a sensor of the mask.
    pub fn of_gates(gates: Tensor<2>, mask: &ModalityMask, threshold: f64) -> Self {
        let present = mask.present();
        let gates = widen(gates).mask_fill(present.clone().bool_not(), 0.0);
        let ModalityWeights { weights, kept } = thresholded_softmax(gates.clone(), present, threshold);
        Self { gates, weights, kept }
    }

    /// alpha_m as a factor of sequences `[B, T, d]` of the type of `of`: `[B, 1, 1]`.
    pub(super) fn factor(&self, modality: usize, of: &Tensor<3>) -> Tensor<3> {
        self.weights.clone().narrow(1, modality, 1).unsqueeze_dim::<3>(2).cast(of.dtype())
    }
}

impl ModalityGating {
    /// Gates and weights of M sequences `x[m]` `[B, T_m, d]`; what the mask hides may be anything.
    ///
    /// # Panics
    ///
    /// When sequences, mask and gate networks differ in number or shape.
    pub fn weigh(&self, x: &[Tensor<3>], mask: &ModalityMask) -> SensorWeights {
        assert!(
            x.len() == self.num_modalities,
            "ModalityGating: {} sequences in `x`, need {}",
            x.len(),
            self.num_modalities
        );
        assert_sequences("ModalityGating", x, mask);
        let gates = x.iter().enumerate().map(|(m, x)| {
            let network = &self.networks[m % self.networks.len()];
            let mean = masked_mean(x.clone(), mask.steps(m));
            sigmoid(widen(network.fc2.forward(relu(network.fc1.forward(mean)))))
        });
        SensorWeights::of_gates(Tensor::cat(gates.collect(), 1), mask, self.gate_threshold)
    }

    /// `alpha_m x_m`, M sequences `[B, T_m, d]` that are 0 where the mask hides them, and the weights.
    ///
    /// # Panics
    ///
    /// As [`weigh`](Self::weigh).
    pub fn forward(&self, x: &[Tensor<3>], mask: &ModalityMask) -> (Vec<Tensor<3>>, SensorWeights) {
        let weights = self.weigh(x, mask);
        let weighed = |(m, x): (usize, &Tensor<3>)| {
            let x = zero_masked(x.clone(), mask.steps(m));
            let factor = weights.factor(m, &x);
            x * factor
        };
        (x.iter().enumerate().map(weighed).collect(), weights)
    }
}

/// Sequences that belong to a mask.
pub(super) fn assert_sequences(of: &str, x: &[Tensor<3>], mask: &ModalityMask) {
    assert!(
        x.len() == mask.num_modalities(),
        "{of}: {} sequences, but `mask` has `present` {:?}",
        x.len(),
        [mask.batch(), mask.num_modalities()]
    );
    for (m, x) in x.iter().enumerate() {
        assert!(
            x.dims()[..2] == mask.steps(m).dims(),
            "{of}: sequence {m} {:?} and its mask {:?} differ in batch or steps",
            x.dims(),
            mask.steps(m).dims()
        );
    }
}
