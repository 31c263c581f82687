//! Two backbones that gate one another, and the fusion of their levels.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::{ConfigError, ModuleConfig};

use super::blocks::{C2f, ConvBlock, Sppf};
use super::config::PacgNetConfig;
use super::cross_gating::{CrossGates, SymmetricalCrossGating};
use super::pyramidal_gating::{Modality, PyramidalFeatureGating, PyramidalFusion};

/// The backbone of one modality.
#[derive(Module, Debug)]
pub struct Stream {
    /// 3x3, stride 2: from the image to P1.
    pub stem: ConvBlock,
    /// 3x3, stride 2: to P2.
    pub down2: ConvBlock,
    /// P2.
    pub stage2: C2f,
    /// 3x3, stride 2: to P3, P4 and P5.
    pub down: Vec<ConvBlock>,
    /// P3, P4 and P5.
    pub stage: Vec<C2f>,
    /// After P5.
    pub sppf: Sppf,
}

impl Stream {
    fn new(config: &PacgNetConfig, device: &Device) -> Self {
        let (channels, depths, norm) = (&config.channels, &config.depths, config.norm());
        let down = |from, to| ConvBlock::new([from, to], 3, 2, norm, device);
        let stage = |level: usize| C2f::new([channels[level]; 2], depths[level - 1], true, norm, device);
        Self {
            stem: down(3, channels[0]),
            down2: down(channels[0], channels[1]),
            stage2: stage(1),
            down: (1..4).map(|level| down(channels[level], channels[level + 1])).collect(),
            stage: (2..5).map(stage).collect(),
            sppf: Sppf::new(channels[4], norm, device),
        }
    }
}

/// An RGB and an infrared backbone with cross-gating between them and pyramidal gating after them.
///
/// The cross-gating stands after the convolution that leaves a level, at strides 8, 16 and 32.
#[derive(Module, Debug)]
pub struct DualStreamBackbone {
    /// The RGB backbone.
    pub rgb: Stream,
    /// The infrared backbone.
    pub ir: Stream,
    /// At strides 8, 16, 32.
    pub cross_gating: Vec<SymmetricalCrossGating>,
    /// Fusion of P3, P4, P5.
    pub pyramidal_gating: Vec<PyramidalFeatureGating>,
}

/// The fused levels, and what decided over them.
#[derive(Debug, Clone)]
pub struct FusedPyramid {
    /// P3, P4, P5 with their gates: `[B, C, H / 8, W / 8]` and so on.
    pub levels: Vec<PyramidalFusion>,
    /// The gates of every layer of the cross-gating at strides 8, 16, 32.
    pub cross_gates: Vec<Vec<CrossGates>>,
}

impl DualStreamBackbone {
    pub(super) fn new(config: &PacgNetConfig, device: &Device) -> Result<Self, ConfigError> {
        let levels = || config.channels[2..].iter();
        Ok(Self {
            rgb: Stream::new(config, device),
            ir: Stream::new(config, device),
            cross_gating: levels()
                .map(|&channels| config.cross_gating(channels).try_init(device))
                .collect::<Result<_, _>>()?,
            pyramidal_gating: levels()
                .map(|&channels| config.pyramidal_gating(channels).try_init(device))
                .collect::<Result<_, _>>()?,
        })
    }

    /// `rgb` and `ir` `[B, 3, H, W]`, sides multiples of 32, to the fused pyramid. The fusion takes the
    /// maps of a modality that is `dropped` to be 0.
    ///
    /// # Panics
    ///
    /// When the images differ in shape or their sides do not fit.
    pub fn forward(
        &self,
        rgb: Tensor<4>,
        ir: Tensor<4>,
        dropped: Option<Modality>,
        statistics: BatchStatistics,
    ) -> FusedPyramid {
        let begin = |stream: &Stream, x| {
            let x = stream.down2.forward(stream.stem.forward(x, statistics), statistics);
            stream.stage2.forward(x, statistics)
        };
        let mut finer = [begin(&self.rgb, rgb), begin(&self.ir, ir)];
        let (mut levels, mut cross_gates) = (Vec::new(), Vec::new());
        for level in 0..3 {
            let [rgb, ir] = finer.clone();
            let rgb = self.rgb.down[level].forward(rgb, statistics);
            let ir = self.ir.down[level].forward(ir, statistics);
            let (rgb, ir, gates) = self.cross_gating[level].forward_with_gates(rgb, ir, statistics);
            let mut maps = [
                self.rgb.stage[level].forward(rgb, statistics),
                self.ir.stage[level].forward(ir, statistics),
            ];
            if level == 2 {
                let [rgb, ir] = maps;
                maps = [self.rgb.sppf.forward(rgb, statistics), self.ir.sppf.forward(ir, statistics)];
            }
            let gating = &self.pyramidal_gating[level];
            levels.push(gating.forward(maps.clone(), finer, dropped, statistics));
            cross_gates.push(gates);
            finer = maps;
        }
        FusedPyramid { levels, cross_gates }
    }
}
