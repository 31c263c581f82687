//! Irregular electronic health records: vital signs and notes of a stay, on one grid of hours.
//!
//! Vital signs come at any time, each at its own. They are put on the grid twice, by carrying the last value forward
//! and by attention over time, and a gate mixes the two; notes are put on the same grid by attention; both streams are
//! fused hour by hour.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | widths, heads, grid, gate level, task |
//! | [`time_attention`] | attention from the grid to the times of observations, a softmax a channel |
//! | [`carry_forward`](mod@carry_forward) | an irregular table as a regular one |
//! | [`utde`] | the two embeddings of a series, and their gate |
//! | [`encoder`] | interleaved self- and cross-attention of two streams |
//! | [`late`] | what interleaving is compared with: two streams that meet at the end |
//! | [`model`] | a batch of stays to logits and loss |
//! | [`notes`] | encoders of notes: the trait, and a bag of words |
//! | [`loader`] | stays to batches, checked |
//! | [`training`] | the published recipe: groups of parameters, accumulation, selection by F1 |
//! | [`score`] | F1, and a split by patient |
//!
//! B stays, L rows of a series (padded), d channels, Q points of the grid, M notes, D channels of a stream. Masks are true
//! where something was observed. Zhang et al., "Improving Medical Predictions by Irregular Multimodal Electronic Health
//! Records Modeling" (arXiv 2210.12156).

pub mod carry_forward;
pub mod config;
pub mod encoder;
pub mod late;
pub mod loader;
pub mod model;
pub mod notes;
pub mod score;
pub mod time_attention;
pub mod training;
pub mod utde;

pub use carry_forward::{CarryForward, carry_forward};
pub use config::{IrregularEhrConfig, SeriesMixing, StreamFusion, Task};
pub use encoder::{InterleavedEncoder, InterleavedEncoderConfig};
pub use late::{LateFusionEncoder, StreamEncoder};
pub use loader::{Note, Stay, StayLoader};
pub use model::{EhrBatch, EhrLabels, EhrOutput, IrregularEhrModel};
pub use notes::{BagOfWords, BagOfWordsConfig, NoteEncoder};
pub use score::{F1Score, PatientSplit, split_by_patient};
pub use time_attention::{MultiTimeAttention, MultiTimeAttentionConfig};
pub use training::{EhrEpoch, EhrNetwork, EhrTrainer, EhrTrainingConfig};
pub use utde::{SeriesEmbedding, Utde, UtdeConfig};
