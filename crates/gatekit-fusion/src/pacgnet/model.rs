//! The detector.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::ConfigError;
use gatekit_core::batch_norm::BatchStatistics;
use gatekit_core::checkpoint::{CheckpointError, TensorLayout, load_weights, save_weights};
use rand::{Rng, RngExt};

use super::backbone::{DualStreamBackbone, FusedPyramid};
use super::config::PacgNetConfig;
use super::head::{Detections, OrientedDetectHead};
use super::neck::PathAggregationNeck;
use super::{Modality, PyramidalFeatureGating, SymmetricalCrossGating, layout};

/// PACGNet: oriented objects in pairs of RGB and infrared images.
#[derive(Module, Debug)]
pub struct PacgNet {
    /// Both streams and their fusion.
    pub backbone: DualStreamBackbone,
    /// Paths between the levels.
    pub neck: PathAggregationNeck,
    /// Boxes, classes, angles.
    pub head: OrientedDetectHead,
    /// Chance that the fusion of a training pass goes without one modality.
    pub modality_dropout: f64,
}

/// What the detector says, and what its gates decided.
#[derive(Debug, Clone)]
pub struct PacgNetOutput {
    /// Fused levels and gates.
    pub fused: FusedPyramid,
    /// Of every cell.
    pub detections: Detections,
}

impl PacgNet {
    pub(super) fn new(config: &PacgNetConfig, device: &Device) -> Result<Self, ConfigError> {
        Ok(Self {
            backbone: DualStreamBackbone::new(config, device)?,
            neck: PathAggregationNeck::new(config, device),
            head: OrientedDetectHead::new(config, device),
            modality_dropout: config.modality_dropout,
        })
    }

    /// `rgb` and `ir` `[B, 3, H, W]` in [0, 1], sides multiples of 32; a grey infrared image is repeated. The image of a
    /// missing sensor may be all zeros; the fusion takes the maps of a modality that is `dropped` to be 0.
    ///
    /// # Panics
    ///
    /// When the images differ in shape, do not have three channels, or a side is no multiple of 32.
    pub fn forward(
        &self,
        rgb: Tensor<4>,
        ir: Tensor<4>,
        dropped: Option<Modality>,
        statistics: BatchStatistics,
    ) -> PacgNetOutput {
        assert!(
            rgb.dims() == ir.dims(),
            "PacgNet: `rgb` {:?} and `ir` {:?} differ in shape",
            rgb.dims(),
            ir.dims()
        );
        let [_, channels, height, width] = rgb.dims();
        assert!(
            channels == 3 && height.is_multiple_of(32) && width.is_multiple_of(32),
            "PacgNet: `rgb` {:?} is not [B, 3, H, W] with sides that are multiples of 32",
            rgb.dims()
        );
        let fused = self.backbone.forward(rgb, ir, dropped, statistics);
        let levels = [0, 1, 2].map(|level| fused.levels[level].clone());
        let detections = self.head.forward(self.neck.forward(levels, statistics), statistics);
        PacgNetOutput { fused, detections }
    }

    /// Which modality the fusion of a training pass goes without: none, but with the chance of modality dropout one of
    /// them, at even odds.
    pub fn drop_modality(&self, random: &mut impl Rng) -> Option<Modality> {
        let dropped = if random.random() { Modality::Rgb } else { Modality::Ir };
        (random.random::<f64>() < self.modality_dropout).then_some(dropped)
    }

    /// What published files call the tensors: `model.N.`, N the place in the released graph.
    pub fn tensor_layout() -> TensorLayout {
        layout::network()
    }

    /// This network with the weights and running statistics of a safetensors file under the published names; the
    /// counters `num_batches_tracked` and the fixed `model.38.dfl.conv.weight` are passed over.
    ///
    /// # Errors
    ///
    /// As [`load_weights`].
    pub fn load_published(self, path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        load_weights(self, path, &Self::tensor_layout())
    }

    /// Writes weights and running statistics to a safetensors file under the published names.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] when the file cannot be written.
    pub fn save_published(&self, path: impl AsRef<Path>) -> Result<(), CheckpointError> {
        save_weights(self, path, &Self::tensor_layout())
    }
}

impl SymmetricalCrossGating {
    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::cross_gating(TensorLayout::default(), "")
    }
}

impl PyramidalFeatureGating {
    /// What published files call the tensors.
    pub fn tensor_layout() -> TensorLayout {
        layout::pyramidal_gating(TensorLayout::default(), "")
    }
}
