//! THOR: a transformer whose experts are drawn at random, and trained to agree.
//!
//! Zuo, Liu, Jiao, Kim, Hassan, Zhang, Zhao, Gao: "Taming Sparsely Activated Transformer with Stochastic
//! Experts", ICLR 2022, arXiv 2110.04260.
//!
//! ```text
//! y_{b,t} = f_{e(b,t)}(x_{b,t})      e ~ Uniform{0 .. E-1}      f_e(u) = W2_e relu(W1_e u + b1_e) + b2_e
//! L = CE(a) + CE(b) + alpha / 2 sum (KL(p_a || p_b) + KL(p_b || p_a))        a, b: two passes, two drawings
//! ```
//!
//! There is no router to learn. Every batch passes twice, through experts that are drawn independently,
//! and the consistency term makes the two predictions agree: an expert learns from the data and from the
//! others, and any of them may serve at inference.
//!
//! | item | owns |
//! |---|---|
//! | [`ExpertLevel`], [`ExpertAssignment`], [`ExpertDraw`] | which expert serves whom: an argument of every pass, never hidden state |
//! | [`StochasticFfn`], [`ThorFeedForward`] | the experts; a feed-forward layer with or without them |
//! | [`ThorEncoderLayer`], [`ThorDecoderLayer`] | transformer layers |
//! | [`ThorModel`], [`ThorExperts`] | encoder and decoder; the experts of all their layers |
//! | [`ThorState`], [`ThorModel::greedy`] | decoding token by token, which keeps a sentence's experts |
//! | [`ConsistencyLoss`] | two cross entropies and the symmetric divergence |
//! | [`ThorBatch`], [`ThorTrainer`] | a training step: two forward passes, one backward |
//! | [`ExpertSpread`] | how far two drawings predict differently |

mod assignment;
mod config;
mod decode;
mod feed_forward;
mod layer;
mod loss;
mod model;
mod spread;
mod trainer;

pub use assignment::{ExpertAssignment, ExpertDraw, ExpertLevel};
pub use config::{ThorConfig, ThorLayerConfig};
pub use decode::ThorState;
pub use feed_forward::{DenseFfn, StochasticExpertsConfig, StochasticFfn, ThorFeedForward};
pub use layer::{ThorDecoderLayer, ThorEncoderLayer};
pub use loss::{Consistency, ConsistencyLoss};
pub use model::{ThorDecoder, ThorEncoder, ThorExperts, ThorModel};
pub use spread::ExpertSpread;
pub use trainer::{ThorBatch, ThorStep, ThorTrainer};
