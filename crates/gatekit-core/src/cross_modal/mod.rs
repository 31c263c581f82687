//! Gates between modalities: what one stream lets pass of another.
//!
//! | item | decides |
//! |---|---|
//! | [`SpatialGate`] | where: one value a position, from a guiding feature map |
//! | [`ModalitySoftmax`], [`masked_softmax`] | who: shares of M modalities at every position, absent ones at 0 |
//! | [`VoteGate`] | the same, by votes of all modalities |
//! | [`CrossGate`] | what: another stream's guidance, channel by channel |
//! | [`thresholded_softmax`] | which modalities take part at all, and with which weight |
//! | [`ModalityMask`] | which modalities are there, and which of their steps; checked |
//! | [`masked_mean`], [`last_valid_step`] | what is left of a sequence of which some steps are padding |
//! | [`AttentiveStatisticsPooling`] | when: shares of the frames in a mean and deviation over time |
//! | [`align_frames`] | nothing: brings streams of unlike frame rates to one |
//!
//! Feature maps are `[B, C, H, W]`, modality axes have M entries in the order of the features.

mod align;
mod attentive_pooling;
mod cross;
mod modality;
mod pooling;
mod presence;
mod spatial;
mod thresholded;
mod vote;

pub use align::align_frames;
pub use attentive_pooling::{AttentiveStatisticsPooling, AttentiveStatisticsPoolingConfig};
pub use cross::{CrossGate, CrossGateConfig, Guidance};
pub use modality::{ModalitySoftmax, ModalitySoftmaxConfig, masked_softmax, weighted_sum};
pub use pooling::{last_valid_step, masked_mean, zero_masked};
pub use presence::{ModalityMask, ModalityMaskError};
pub use spatial::{SpatialGate, SpatialGateConfig};
pub use thresholded::{ModalityWeights, thresholded_softmax};
pub use vote::{VoteGate, VoteGateConfig, Voter};
