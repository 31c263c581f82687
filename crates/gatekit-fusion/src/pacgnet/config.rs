//! What a PACGNet is made of.

use burn::config::Config;
use burn::tensor::Device;
use gatekit_core::{ConfigError, InputError, ModuleConfig, check_sizes};
use serde::{Deserialize, Serialize};

use super::assignment::TaskAlignedAssigner;
use super::blocks::NormSettings;
use super::cross_gating::SymmetricalCrossGatingConfig;
use super::evaluation::{BoxList, non_maximum_suppression};
use super::head::DecodedBoxes;
use super::loss::{DetectionLoss, DetectionTargets, LossGains, detection_loss};
use super::model::PacgNet;
use super::pyramidal_gating::{Modality, PyramidalFeatureGatingConfig};

/// What of the network is there: the whole, or what it is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ablation {
    /// Cross-gating and pyramidal gating.
    Full,
    /// Cross-gating; levels are fused by adding.
    CrossGating,
    /// Pyramidal gating; the streams do not see one another before.
    PyramidalGating,
    /// Two streams whose levels are added.
    Added,
    /// The RGB stream alone.
    Rgb,
    /// The infrared stream alone.
    Ir,
}

impl Ablation {
    /// All of them, what the network is compared with first.
    pub const ALL: [Self; 6] =
        [Self::Rgb, Self::Ir, Self::Added, Self::CrossGating, Self::PyramidalGating, Self::Full];

    /// Whether the streams gate one another.
    pub fn crosses(self) -> bool {
        matches!(self, Self::Full | Self::CrossGating)
    }

    /// Whether levels are fused under gates.
    pub fn gates_levels(self) -> bool {
        matches!(self, Self::Full | Self::PyramidalGating)
    }

    /// Whether there is a stream of this modality.
    pub fn has(self, modality: Modality) -> bool {
        match self {
            Self::Rgb => modality == Modality::Rgb,
            Self::Ir => modality == Modality::Ir,
            _ => true,
        }
    }
}

/// Configuration of [`PacgNet`]. [`nano`](Self::nano) has the published sizes.
#[derive(Config, Debug)]
pub struct PacgNetConfig {
    /// Classes, at least 1. 5 in DroneVehicle, 9 in VEDAI.
    pub num_classes: usize,
    /// Widths of levels P1 to P5, even from P2 on, each of these twice the one before. Default the nano model's.
    #[config(default = "vec![16, 32, 64, 128, 256]")]
    pub channels: Vec<usize>,
    /// Bottlenecks of the blocks at P2 to P5. Default 1, 2, 2, 1.
    #[config(default = "vec![1, 2, 2, 1]")]
    pub depths: Vec<usize>,
    /// Bottlenecks of each block of the neck. Default 1.
    #[config(default = 1)]
    pub neck_depth: usize,
    /// Bins R of a side's distribution, at least 2: sides reach up to R - 1 strides. Default 16.
    #[config(default = 16)]
    pub reg_max: usize,
    /// Layers of every cross-gating. Default 1.
    #[config(default = 1)]
    pub scg_layers: usize,
    /// Refinements of every cross-gating layer. Default 1.
    #[config(default = 1)]
    pub scg_bottlenecks: usize,
    /// Narrowing of the guidance. Default 4.
    #[config(default = 4)]
    pub scg_reduction: usize,
    /// Smallest inner width of a level's spatial gate. Default 16.
    #[config(default = 16)]
    pub min_gate_channels: usize,
    /// Narrowing of the spatial gate. Default 2.
    #[config(default = 2)]
    pub gate_ratio: usize,
    /// Narrowing of the interaction. Default 2.
    #[config(default = 2)]
    pub interaction_ratio: usize,
    /// Smallest width of the head's box branch. Default 16.
    #[config(default = 16)]
    pub min_head_channels: usize,
    /// Pixels of a cell at P3, P4, P5; the graph fixes them. Default 8, 16, 32.
    #[config(default = "[8, 16, 32]")]
    pub strides: [usize; 3],
    /// Added to the variances of all batch normalisations. Default 1e-3.
    #[config(default = 1e-3)]
    pub norm_epsilon: f64,
    /// Weight of new statistics in the running ones. Default 0.03.
    #[config(default = 0.03)]
    pub norm_momentum: f64,
    /// Share of values that cross-gating drops in training, in [0, 1). Default 0.1.
    #[config(default = 0.1)]
    pub dropout: f64,
    /// Chance, in training, that the fusion of a pass sees one modality as zeros, in [0, 1]. Default 0.
    #[config(default = 0.0)]
    pub modality_dropout: f64,
    /// What of the network is there. Default the whole.
    #[config(default = "Ablation::Full")]
    pub ablation: Ablation,
    /// Cells that an object may take, at least 1. Default 10.
    #[config(default = 10)]
    pub tal_topk: usize,
    /// Power of the class score in the assignment. Default 0.5.
    #[config(default = 0.5)]
    pub tal_alpha: f64,
    /// Power of the similarity in the assignment. Default 6.
    #[config(default = 6.0)]
    pub tal_beta: f64,
    /// Weights of the three losses. Default 7.5, 0.5, 1.5.
    #[config(default = "LossGains::default()")]
    pub gains: LossGains,
    /// Boxes of a class that are at least so similar to a better one are dropped, in [0, 1]. Default 0.7.
    #[config(default = 0.7)]
    pub nms_threshold: f64,
    /// Similarity from which a detection counts as found, in [0, 1]. Default 0.5.
    #[config(default = 0.5)]
    pub match_threshold: f64,
    /// Detections at or below it are not looked at, in [0, 1]. Default 0.001.
    #[config(default = 0.001)]
    pub score_threshold: f64,
    /// Detections of an image, at most. Default 300.
    #[config(default = 300)]
    pub max_detections: usize,
}

impl PacgNetConfig {
    /// The published nano model: 5.2 million parameters.
    pub fn nano(num_classes: usize) -> Self {
        Self::new(num_classes)
    }

    /// How batch normalisations are made.
    pub fn norm(&self) -> NormSettings {
        NormSettings { epsilon: self.norm_epsilon, momentum: self.norm_momentum }
    }

    /// The cross-gating at a level of so many channels.
    pub fn cross_gating(&self, channels: usize) -> SymmetricalCrossGatingConfig {
        SymmetricalCrossGatingConfig::new(channels)
            .with_num_layers(self.scg_layers)
            .with_num_bottlenecks(self.scg_bottlenecks)
            .with_reduction(self.scg_reduction)
            .with_dropout(self.dropout)
            .with_norm_epsilon(self.norm_epsilon)
            .with_norm_momentum(self.norm_momentum)
    }

    /// The fusion at a level of so many channels.
    pub fn pyramidal_gating(&self, channels: usize) -> PyramidalFeatureGatingConfig {
        PyramidalFeatureGatingConfig::new(channels)
            .with_min_gate_channels(self.min_gate_channels)
            .with_gate_ratio(self.gate_ratio)
            .with_interaction_ratio(self.interaction_ratio)
            .with_norm_epsilon(self.norm_epsilon)
            .with_norm_momentum(self.norm_momentum)
    }

    /// The assigner.
    pub fn assigner(&self) -> TaskAlignedAssigner {
        TaskAlignedAssigner { topk: self.tal_topk, alpha: self.tal_alpha, beta: self.tal_beta }
    }

    /// The losses of decoded boxes; see [`detection_loss`].
    ///
    /// # Panics
    ///
    /// As there.
    pub fn loss(&self, decoded: &DecodedBoxes, targets: &DetectionTargets) -> DetectionLoss {
        detection_loss(decoded, targets, &self.assigner(), &self.gains)
    }

    /// What is detected: scores above the threshold, suppressed class by class, the best of every image. Images are
    /// numbered from `first_image`.
    ///
    /// # Errors
    ///
    /// [`InputError`] for scores that are not finite.
    ///
    /// # Panics
    ///
    /// When the device fails to hand boxes back.
    pub fn detect(&self, decoded: &DecodedBoxes, first_image: usize) -> Result<BoxList, InputError> {
        let all = decoded.above(self.score_threshold, first_image);
        let kept = non_maximum_suppression(&all, self.nms_threshold, self.max_detections)?;
        Ok(all.retain(&kept))
    }

    /// Refuses what describes no model.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    pub fn check(&self) -> Result<(), ConfigError> {
        let channels = &self.channels;
        let doubling = channels.len() == 5
            && channels[1..].iter().all(|width| width.is_multiple_of(2))
            && channels[1..].windows(2).all(|pair| pair[1] == 2 * pair[0]);
        if !doubling {
            let need = "five widths, even from the second on and each of these twice the one before";
            return Err(ConfigError::new("channels", format!("{channels:?}"), need));
        }
        if self.depths.len() != 4 {
            return Err(ConfigError::new("depths", format!("{:?}", self.depths), "four depths"));
        }
        check_sizes(&[
            ("channels", channels[0].min(channels[1])),
            ("channels", channels[4]),
            ("num_classes", self.num_classes),
            ("scg_layers", self.scg_layers),
            ("scg_reduction", self.scg_reduction),
            ("min_gate_channels", self.min_gate_channels),
            ("gate_ratio", self.gate_ratio),
            ("interaction_ratio", self.interaction_ratio),
            ("min_head_channels", self.min_head_channels),
            ("tal_topk", self.tal_topk),
            ("max_detections", self.max_detections),
        ])?;
        if self.reg_max < 2 {
            return Err(ConfigError::new("reg_max", self.reg_max, "at least 2"));
        }
        if self.strides != [8, 16, 32] {
            return Err(ConfigError::new("strides", format!("{:?}", self.strides), "[8, 16, 32]"));
        }
        let shares = [
            ("modality_dropout", self.modality_dropout),
            ("nms_threshold", self.nms_threshold),
            ("match_threshold", self.match_threshold),
            ("score_threshold", self.score_threshold),
        ];
        if let Some((field, value)) = shares.into_iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(ConfigError::new(field, value, "a number in [0, 1]"));
        }
        let positive = [("tal_alpha", self.tal_alpha), ("tal_beta", self.tal_beta)];
        if let Some((field, value)) =
            positive.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0))
        {
            return Err(ConfigError::new(field, value, "a finite number, at least 0"));
        }
        self.gains.check().map_err(|error| error.within("gains"))
    }
}

impl ModuleConfig for PacgNetConfig {
    type Module = PacgNet;

    fn try_init(&self, device: &Device) -> Result<PacgNet, ConfigError> {
        self.check()?;
        PacgNet::new(self, device)
    }
}
