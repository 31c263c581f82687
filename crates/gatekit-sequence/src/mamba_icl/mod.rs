//! Learning in context with a selective gate: what one layer of Mamba computes, and why it passes
//! over outliers.
//!
//! Li, Lu, Cui, Chen, Wang: "Can Mamba Learn In Context with Outliers? A Theoretical Generalization
//! Analysis", 2025, arXiv 2510.00399. A prompt shows labelled examples of a task and asks for one
//! more label. One layer of Mamba with `A = -1` and exact discretisation is linear attention whose
//! terms are multiplied by a gate:
//!
//! ```text
//! F = sum_i G_i y_i (W_B p_i) . (W_C p_query)
//! G_i = sigmoid(w . p_i) prod_{j > i} (1 - sigmoid(w . p_j))
//! ```
//!
//! Training on prompts of which some examples are corrupted teaches `w` to close the gate on these.
//!
//! # What the theory says
//!
//! - Trained with a share `p_a` of outliers in prompts of `l_tr` examples, the gated layer
//!   generalises to prompts of `l_ts` examples as long as the share of outliers there is below
//!   `min(1, p_a l_tr / l_ts)`, whatever the labels of the outliers are. Linear attention (`G = 1`)
//!   does so only below 1/2.
//! - Linear attention needs fewer training steps, by a factor of the order of `l_tr`, and no lower
//!   bound on the size of the outliers.
//! - After training, the attention on examples with the query's pattern adds up to a constant, on
//!   the others to nearly 0; the gate on an outlier is at most a power of `1 / M_1`, on the `j`-th
//!   nearest clean example at least of the order of `2^-(j - 1)`: an exponential preference for
//!   what is near.
//!
//! # What is here
//!
//! | item | what it is |
//! |---|---|
//! | [`IclPredictor`] | the closed form above: prompt to score |
//! | [`SelectiveSsm`] | the recurrence it comes from, for all channels, also step by step |
//! | [`IclStack`] | several of these with residual connections |
//! | [`OutlierPrompts`] | prompts with outliers, for training and for tests |
//! | [`hinge_loss`], [`error_rate`], [`train`] | what is minimised, what is counted, plain gradient descent |
//!
//! The whole block of Mamba, with convolution and gate, is in [`mamba`](crate::mamba); the gate
//! alone is [`selective_gate`](gatekit_core::gate::selective_gate).

mod distribution;
mod predictor;
mod prompts;
mod ssm;
mod stack;
mod training;

pub use distribution::{
    OutlierLabels, OutlierPlacement, PromptDistribution, UNSEEN_COMBINATIONS, UnseenOutliers,
};
pub use predictor::{IclPredictor, IclPredictorConfig, Prediction};
pub use prompts::{OutlierPrompts, OutlierPromptsConfig, PromptBatch};
pub use ssm::{Gating, SelectiveSsm, SelectiveSsmConfig};
pub use stack::{IclStack, IclStackConfig};
pub use training::{ContextLearner, IclTrainingConfig, check_prompt, error_rate, hinge_loss, train};
