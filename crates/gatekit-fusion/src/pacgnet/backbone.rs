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

    /// From the image to P2.
    fn begin(&self, image: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let x = self.down2.forward(self.stem.forward(image, statistics), statistics);
        self.stage2.forward(x, statistics)
    }

    /// What comes after the convolution to P3, P4 or P5.
    fn stage(&self, level: usize, x: Tensor<4>, statistics: BatchStatistics) -> Tensor<4> {
        let x = self.stage[level].forward(x, statistics);
        if level == 2 { self.sppf.forward(x, statistics) } else { x }
    }

    /// The levels of a stream without another.
    fn alone(&self, image: Tensor<4>, statistics: BatchStatistics) -> FusedPyramid {
        let mut x = self.begin(image, statistics);
        let mut levels = Vec::new();
        for level in 0..3 {
            x = self.stage(level, self.down[level].forward(x, statistics), statistics);
            levels.push(x.clone());
        }
        FusedPyramid { levels, pyramidal: Vec::new(), cross_gates: Vec::new() }
    }
}

/// An RGB and an infrared backbone with cross-gating between them and pyramidal gating after them; what an ablation
/// leaves out is not there, and levels that are not gated are added.
///
/// The cross-gating stands after the convolution that leaves a level, at strides 8, 16 and 32.
#[derive(Module, Debug)]
pub struct DualStreamBackbone {
    /// The RGB backbone.
    pub rgb: Option<Stream>,
    /// The infrared backbone.
    pub ir: Option<Stream>,
    /// At strides 8, 16, 32.
    pub cross_gating: Vec<SymmetricalCrossGating>,
    /// Fusion of P3, P4, P5.
    pub pyramidal_gating: Vec<PyramidalFeatureGating>,
}

/// The fused levels, and what decided over them.
#[derive(Debug, Clone)]
pub struct FusedPyramid {
    /// P3, P4, P5: `[B, C, H / 8, W / 8]` and so on.
    pub levels: Vec<Tensor<4>>,
    /// Their pyramidal gating; empty without it.
    pub pyramidal: Vec<PyramidalFusion>,
    /// The gates of every layer of the cross-gating at strides 8, 16, 32; empty without it.
    pub cross_gates: Vec<Vec<CrossGates>>,
}

impl DualStreamBackbone {
    pub(super) fn new(config: &PacgNetConfig, device: &Device) -> Result<Self, ConfigError> {
        let (ablation, levels) = (config.ablation, &config.channels[2..]);
        let stream = |modality| ablation.has(modality).then(|| Stream::new(config, device));
        let of_levels = |present: bool| levels.iter().filter(move |_| present);
        Ok(Self {
            rgb: stream(Modality::Rgb),
            ir: stream(Modality::Ir),
            cross_gating: of_levels(ablation.crosses())
                .map(|&channels| config.cross_gating(channels).try_init(device))
                .collect::<Result<_, _>>()?,
            pyramidal_gating: of_levels(ablation.gates_levels())
                .map(|&channels| config.pyramidal_gating(channels).try_init(device))
                .collect::<Result<_, _>>()?,
        })
    }

    /// `rgb` and `ir` `[B, 3, H, W]`, sides multiples of 32, to the fused pyramid. The fusion takes the maps of a modality
    /// that is `dropped` to be 0.
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
        let (mut levels, mut pyramidal, mut cross_gates) = (Vec::new(), Vec::new(), Vec::new());
        let (first, second) = match (&self.rgb, &self.ir) {
            (Some(first), Some(second)) => (first, second),
            (Some(only), None) => return only.alone(rgb, statistics),
            (None, Some(only)) => return only.alone(ir, statistics),
            (None, None) => unreachable!("every ablation has a stream"),
        };
        let mut finer = [first.begin(rgb, statistics), second.begin(ir, statistics)];
        for level in 0..3 {
            let [rgb, ir] = finer.clone();
            let mut rgb = first.down[level].forward(rgb, statistics);
            let mut ir = second.down[level].forward(ir, statistics);
            if let Some(gating) = self.cross_gating.get(level) {
                let gates;
                (rgb, ir, gates) = gating.forward_with_gates(rgb, ir, statistics);
                cross_gates.push(gates);
            }
            let maps = [first.stage(level, rgb, statistics), second.stage(level, ir, statistics)];
            match self.pyramidal_gating.get(level) {
                Some(gating) => {
                    let fusion = gating.forward(maps.clone(), finer, dropped, statistics);
                    levels.push(fusion.fused.clone());
                    pyramidal.push(fusion);
                }
                None => {
                    let [rgb, ir] = maps.clone();
                    levels.push(rgb + ir);
                }
            }
            finer = maps;
        }
        FusedPyramid { levels, pyramidal, cross_gates }
    }
}
