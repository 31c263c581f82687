//! Pyramidal feature-aware multimodal gating (PFMG): how a level is fused, guided by the finer one.

use burn::config::Config;
use burn::module::Module;
use burn::nn::BatchNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::{Device, Int, Tensor};
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::conv::{Activation, convolve, convolve_norm};
use gatekit_core::cross_modal::{ModalitySoftmax, ModalitySoftmaxConfig, SpatialGate, SpatialGateConfig};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::blocks::{NormSettings, convolution};

/// Configuration of [`PyramidalFeatureGating`].
#[derive(Config, Debug)]
pub struct PyramidalFeatureGatingConfig {
    /// Channels C of a level, even: the finer level has half of them.
    pub channels: usize,
    /// Smallest inner width of the spatial gate. Default 16.
    #[config(default = 16)]
    pub min_gate_channels: usize,
    /// The spatial gate is `(C / 2) / gate_ratio` wide inside. Default 2.
    #[config(default = 2)]
    pub gate_ratio: usize,
    /// The interaction is `C / interaction_ratio` wide inside. Default 2.
    #[config(default = 2)]
    pub interaction_ratio: usize,
    /// Added to variances. Default 1e-3.
    #[config(default = 1e-3)]
    pub norm_epsilon: f64,
    /// Weight of new statistics in the running ones. Default 0.03.
    #[config(default = 0.03)]
    pub norm_momentum: f64,
}

impl ModuleConfig for PyramidalFeatureGatingConfig {
    type Module = PyramidalFeatureGating;

    fn try_init(&self, device: &Device) -> Result<PyramidalFeatureGating, ConfigError> {
        check_sizes(&[
            ("channels", self.channels),
            ("min_gate_channels", self.min_gate_channels),
            ("gate_ratio", self.gate_ratio),
            ("interaction_ratio", self.interaction_ratio),
        ])?;
        let channels = self.channels;
        if !channels.is_multiple_of(2) {
            return Err(ConfigError::new("channels", channels, "an even number"));
        }
        let norm = NormSettings { epsilon: self.norm_epsilon, momentum: self.norm_momentum };
        let gate = self.min_gate_channels.max(channels / 2 / self.gate_ratio);
        let inner = (2 * self.min_gate_channels).max(channels / self.interaction_ratio);
        Ok(PyramidalFeatureGating {
            guide: convolution([channels, gate], 3, 2, 1, false, device),
            guide_norm: norm.init(gate, device),
            spatial_gate: SpatialGateConfig::new(gate).try_init(device)?,
            interaction_in: convolution([2 * channels, inner], 1, 1, 1, false, device),
            interaction_norm: norm.init(inner, device),
            interaction_out: convolution([inner, 2 * channels], 1, 1, 1, true, device),
            softmax_gate: ModalitySoftmaxConfig::new(2 * channels, 2).try_init(device)?,
        })
    }
}

/// Fuses RGB and infrared of one level under a gate computed from the finer level.
///
/// `s = sigmoid(w . silu(BN(conv [r_p; i_p])) + c)` from the finer maps (3x3, stride 2),
/// `z = W2 relu(BN(W1 [r; i])) + b2` in halves `z_r, z_i`, `(w_r, w_i) = softmax(W3 z + b3)` at every position,
/// `y = (w_r z_r + w_i z_i) (1 + s)`.
#[derive(Module, Debug)]
pub struct PyramidalFeatureGating {
    /// 3x3, stride 2, from both finer maps.
    pub guide: Conv2d,
    /// After it.
    pub guide_norm: BatchNorm,
    /// `s`.
    pub spatial_gate: SpatialGate,
    /// `W1`.
    pub interaction_in: Conv2d,
    /// After `W1`.
    pub interaction_norm: BatchNorm,
    /// `W2` and `b2`.
    pub interaction_out: Conv2d,
    /// `W3` and `b3`.
    pub softmax_gate: ModalitySoftmax,
}

/// One of the two modalities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Modality {
    /// Visible light.
    Rgb,
    /// Infrared.
    Ir,
}

/// A fused level and what decided over it.
#[derive(Debug, Clone)]
pub struct PyramidalFusion {
    /// `y`, `[B, C, H, W]`.
    pub fused: Tensor<4>,
    /// `s`, `[B, 1, H, W]`, in (0, 1).
    pub spatial_gate: Tensor<4>,
    /// `w_r` and `w_i`, `[B, 2, H, W]`, which sum to 1.
    pub modality_weights: Tensor<4>,
}

impl PyramidalFeatureGating {
    /// `rgb`, `ir` `[B, C, H, W]` and the finer level's `rgb_prev`, `ir_prev` `[B, C / 2, 2H, 2W]` (one less where the
    /// size was odd). The maps of a modality that is
    /// `dropped` (modality dropout in training) are taken to be 0.
    ///
    /// # Panics
    ///
    /// When the shapes do not fit.
    pub fn forward(
        &self,
        [rgb, ir]: [Tensor<4>; 2],
        [rgb_prev, ir_prev]: [Tensor<4>; 2],
        dropped: Option<Modality>,
        statistics: BatchStatistics,
    ) -> PyramidalFusion {
        let [batch, channels, height, width] = rgb.dims();
        assert!(
            rgb.dims() == ir.dims(),
            "PyramidalFeatureGating: `rgb` {:?} and `ir` {:?} differ in shape",
            rgb.dims(),
            ir.dims()
        );
        for (name, finer) in [("rgb_prev", &rgb_prev), ("ir_prev", &ir_prev)] {
            let [b, c, h, w] = finer.dims();
            let fits = b == batch
                && 2 * c == channels
                && h.div_ceil(2).abs_diff(height) <= 1
                && w.div_ceil(2).abs_diff(width) <= 1;
            assert!(
                fits,
                "PyramidalFeatureGating: `{name}` {:?} is not the level before `rgb` {:?}: half the channels, twice the size",
                finer.dims(),
                rgb.dims()
            );
        }
        let kept = |x: Tensor<4>, modality| if dropped == Some(modality) { x.zeros_like() } else { x };
        let (rgb, rgb_prev) = (kept(rgb, Modality::Rgb), kept(rgb_prev, Modality::Rgb));
        let (ir, ir_prev) = (kept(ir, Modality::Ir), kept(ir_prev, Modality::Ir));
        let normed = |conv, norm, x, activation| convolve_norm(conv, norm, x, statistics, Some(activation));
        let guide = Tensor::cat(vec![rgb_prev, ir_prev], 1);
        let guide = normed(&self.guide, &self.guide_norm, guide, Activation::Swish);
        let spatial = resized(self.spatial_gate.gate(guide), [height, width]);
        let joined = Tensor::cat(vec![rgb, ir], 1);
        let joined = normed(&self.interaction_in, &self.interaction_norm, joined, Activation::Relu);
        let z = convolve(&self.interaction_out, joined, None);
        let (fused, modality_weights) = self.softmax_gate.mix_groups(z, spatial.clone());
        PyramidalFusion { fused, spatial_gate: spatial, modality_weights }
    }
}

/// Nearest neighbour: position o takes `floor(o n_in / n_out)`.
fn resized(x: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, _, rows, columns] = x.dims();
    let device = x.device();
    let take = |x: Tensor<4>, dim: usize, from: usize, to: usize| match from == to {
        true => x,
        false => {
            let sources: Vec<i64> = (0..to).map(|o| (o * from / to) as i64).collect();
            x.select(dim, Tensor::<1, Int>::from_data(sources.as_slice(), &device))
        }
    };
    take(take(x, 2, rows, height), 3, columns, width)
}
