//! PACGNet: pyramidal adaptive cross-gating for multimodal detection.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | widths, depths, gains; the nano model |
//! | [`blocks`] | convolution blocks of the YOLOv8 family |
//! | [`cross_gating`] | symmetrical cross-gating of two streams (SCG) |
//! | [`pyramidal_gating`] | the fusion of a level under the gate of the finer one (PFMG) |
//! | [`backbone`], [`neck`], [`head`], [`model`] | the detector |
//! | [`prob_iou`] | how similar two oriented boxes are |
//! | [`assignment`], [`loss`] | training |
//! | [`evaluation`] | suppression, matching, average precision |
//! | [`night_scenes`] | generated scenes in visible light and infrared, by day, night and thermal crossover |
//!
//! Images and feature maps are `[B, C, H, W]`, oriented boxes `(x, y, w, h, theta)` in pixels and radians. Gu and Tian,
//! "Pyramidal Adaptive Cross-Gating for Multimodal Detection" (arXiv 2512.18291).

pub mod assignment;
pub mod backbone;
pub mod blocks;
pub mod config;
pub mod cross_gating;
pub mod evaluation;
pub mod head;
mod layout;
pub mod loss;
pub mod model;
pub mod neck;
pub mod night_scenes;
pub mod prob_iou;
pub mod pyramidal_gating;

pub use config::{Ablation, PacgNetConfig};
pub use cross_gating::{SymmetricalCrossGating, SymmetricalCrossGatingConfig};
pub use head::{DecodedBoxes, Detections, OrientedDetectHead};
pub use loss::{DetectionLoss, DetectionTargets, LossGains};
pub use model::{PacgNet, PacgNetOutput};
pub use night_scenes::{Condition, NightScene, NightScenes};
pub use pyramidal_gating::{Modality, PyramidalFeatureGating, PyramidalFeatureGatingConfig, PyramidalFusion};
