//! Symmetrical cross-gating (SCG): what each stream takes over from the other.

use burn::config::Config;
use burn::module::Module;
use burn::nn::{BatchNorm, Dropout, DropoutConfig};
use burn::tensor::{Device, Tensor};
use gatekit_core::batch_norm::{BatchStatistics, batch_norm};
use gatekit_core::cross_modal::{CrossGate, CrossGateConfig, Guidance, SpatialGate, SpatialGateConfig};
use gatekit_core::{ConfigError, ModuleConfig, check_sizes};

use super::blocks::{DepthwiseSeparableConv, NormSettings};

/// Configuration of [`SymmetricalCrossGating`].
#[derive(Config, Debug)]
pub struct SymmetricalCrossGatingConfig {
    /// Channels C of both streams, at least 1.
    pub channels: usize,
    /// Kernel of the depthwise convolutions, odd. Default 3.
    #[config(default = 3)]
    pub kernel_size: usize,
    /// Refinements before the gates. Default 1.
    #[config(default = 1)]
    pub num_bottlenecks: usize,
    /// The guidance is narrowed to `max(1, C / reduction)` channels. Default 4.
    #[config(default = 4)]
    pub reduction: usize,
    /// Layers in a chain, at least 1. Default 1.
    #[config(default = 1)]
    pub num_layers: usize,
    /// Share of values dropped in training, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Added to variances. Default 1e-3.
    #[config(default = 1e-3)]
    pub norm_epsilon: f64,
    /// Weight of new statistics in the running ones. Default 0.03.
    #[config(default = 0.03)]
    pub norm_momentum: f64,
}

impl ModuleConfig for SymmetricalCrossGatingConfig {
    type Module = SymmetricalCrossGating;

    fn try_init(&self, device: &Device) -> Result<SymmetricalCrossGating, ConfigError> {
        check_sizes(&[("channels", self.channels), ("num_layers", self.num_layers)])?;
        if self.kernel_size.is_multiple_of(2) {
            return Err(ConfigError::new("kernel_size", self.kernel_size, "an odd number"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(ConfigError::new("dropout", self.dropout, "a number in [0, 1)"));
        }
        let fusion_layers = (0..self.num_layers).map(|_| self.layer(device)).collect::<Result<_, _>>()?;
        Ok(SymmetricalCrossGating { fusion_layers })
    }
}

impl SymmetricalCrossGatingConfig {
    fn layer(&self, device: &Device) -> Result<CrossGatingLayer, ConfigError> {
        let channels = self.channels;
        let cross = CrossGateConfig::new(channels)
            .with_reduction(self.reduction)
            .with_norm_epsilon(self.norm_epsilon)
            .with_norm_momentum(self.norm_momentum);
        let spatial = SpatialGateConfig::new(channels);
        let norm = NormSettings { epsilon: self.norm_epsilon, momentum: self.norm_momentum };
        let refinement = || Refinement {
            blocks: (0..self.num_bottlenecks)
                .map(|_| ResidualBlock {
                    conv: DepthwiseSeparableConv::new(channels, self.kernel_size, norm, device),
                })
                .collect(),
        };
        Ok(CrossGatingLayer {
            feat_extractor_rgb: refinement(),
            feat_extractor_ir: refinement(),
            spatial_from_ir: spatial.try_init(device)?,
            spatial_from_rgb: spatial.try_init(device)?,
            ir_to_rgb: cross.try_init(device)?,
            rgb_to_ir: cross.try_init(device)?,
            norm_rgb_out: norm.init(channels, device),
            norm_ir_out: norm.init(channels, device),
            dropout: DropoutConfig::new(self.dropout).init(),
        })
    }
}

/// Two streams that gate one another, layer by layer; RGB and infrared may be any two.
///
/// A layer refines both, `a = ref(r)`, `b = ref(i)`, then gives each stream the other's view:
///
/// `r' = BN(r + a (1 + m_r) + g_r u_r)` with `m_r = sigmoid(w . b + c)` ([`SpatialGate`]) and
/// `u_r = BN(W2 silu(BN(W1 b)))`, `g_r = sigmoid(V u_r + e)` ([`CrossGate`]);
/// `i'` likewise from `a`. Both use the same a and b: neither stream comes first.
#[derive(Module, Debug)]
pub struct SymmetricalCrossGating {
    /// The layers.
    pub fusion_layers: Vec<CrossGatingLayer>,
}

/// One layer of [`SymmetricalCrossGating`].
#[derive(Module, Debug)]
pub struct CrossGatingLayer {
    /// Refines RGB.
    pub feat_extractor_rgb: Refinement,
    /// Refines infrared.
    pub feat_extractor_ir: Refinement,
    /// `m_r`.
    pub spatial_from_ir: SpatialGate,
    /// `m_i`.
    pub spatial_from_rgb: SpatialGate,
    /// `u_r` and `g_r`.
    pub ir_to_rgb: CrossGate,
    /// `u_i` and `g_i`.
    pub rgb_to_ir: CrossGate,
    /// Of `r'`.
    pub norm_rgb_out: BatchNorm,
    /// Of `i'`.
    pub norm_ir_out: BatchNorm,
    /// In training.
    pub dropout: Dropout,
}

/// Residual depthwise separable convolutions.
#[derive(Module, Debug)]
pub struct Refinement {
    /// In a chain.
    pub blocks: Vec<ResidualBlock>,
}

/// `x + DS(x)`.
#[derive(Module, Debug)]
pub struct ResidualBlock {
    /// `DS`.
    pub conv: DepthwiseSeparableConv,
}

/// What the gates of a layer decided.
#[derive(Debug, Clone)]
pub struct CrossGates {
    /// `m_r`, `m_i`, `[B, 1, H, W]`, in (0, 1).
    pub spatial: [Tensor<4>; 2],
    /// `g_r`, `g_i`, `[B, C, H, W]`, in (0, 1).
    pub guidance: [Tensor<4>; 2],
}

impl SymmetricalCrossGating {
    /// `rgb` and `ir` `[B, C, H, W]` to the two streams after the exchange.
    ///
    /// # Panics
    ///
    /// When the streams differ in shape or do not have C channels.
    pub fn forward(
        &self,
        rgb: Tensor<4>,
        ir: Tensor<4>,
        statistics: BatchStatistics,
    ) -> (Tensor<4>, Tensor<4>) {
        let (rgb, ir, _) = self.forward_with_gates(rgb, ir, statistics);
        (rgb, ir)
    }

    /// As [`forward`](Self::forward), with the gates of every layer.
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_with_gates(
        &self,
        mut rgb: Tensor<4>,
        mut ir: Tensor<4>,
        statistics: BatchStatistics,
    ) -> (Tensor<4>, Tensor<4>, Vec<CrossGates>) {
        assert!(
            rgb.dims() == ir.dims(),
            "SymmetricalCrossGating: `rgb` {:?} and `ir` {:?} differ in shape",
            rgb.dims(),
            ir.dims()
        );
        let mut gates = Vec::new();
        for layer in &self.fusion_layers {
            let of_layer;
            (rgb, ir, of_layer) = layer.forward(rgb, ir, statistics);
            gates.push(of_layer);
        }
        (rgb, ir, gates)
    }
}

impl CrossGatingLayer {
    fn forward(
        &self,
        rgb: Tensor<4>,
        ir: Tensor<4>,
        statistics: BatchStatistics,
    ) -> (Tensor<4>, Tensor<4>, CrossGates) {
        let a = self.dropped(self.feat_extractor_rgb.forward(rgb.clone(), statistics), statistics);
        let b = self.dropped(self.feat_extractor_ir.forward(ir.clone(), statistics), statistics);
        let (m_r, m_i) = (self.spatial_from_ir.gate(b.clone()), self.spatial_from_rgb.gate(a.clone()));
        let u_r = self.ir_to_rgb.guidance(b.clone(), statistics);
        let u_i = self.rgb_to_ir.guidance(a.clone(), statistics);
        let merged = |norm, x, refined, spatial: &Tensor<4>, other: &Guidance| match statistics {
            BatchStatistics::Running => other.exchange(norm, [x, refined], spatial.clone()),
            BatchStatistics::Batch => {
                let update = self.dropped(other.update(), statistics);
                batch_norm(norm, x + refined * (spatial.clone() + 1.0) + update, statistics)
            }
        };
        let rgb = merged(&self.norm_rgb_out, rgb, a, &m_r, &u_r);
        let ir = merged(&self.norm_ir_out, ir, b, &m_i, &u_i);
        (rgb, ir, CrossGates { spatial: [m_r, m_i], guidance: [u_r.gate, u_i.gate] })
    }

    /// Dropout belongs to training, as the batch's statistics do.
    fn dropped(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        match statistics {
            BatchStatistics::Batch => self.dropout.forward(x),
            BatchStatistics::Running => x,
        }
    }
}

impl Refinement {
    fn forward(&self, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        self.blocks.iter().fold(x, |x, block| x.clone() + block.conv.forward(x, statistics))
    }
}
