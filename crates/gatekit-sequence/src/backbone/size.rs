//! Sizes of the stack.

use gatekit_core::ConfigError;

use super::MAX_LAYERS;

/// Sizes of a [`CausalModel`](super::CausalModel), whatever its mixer.
#[derive(Debug, Clone)]
pub struct BackboneSize {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Width of the feed-forward layers; `None`: see [`Self::hidden_ratio`].
    pub intermediate_size: Option<usize>,
    /// Without an intermediate size: `2/3 * hidden_ratio * hidden_size`, truncated, then rounded
    /// up to a multiple of 256.
    pub hidden_ratio: f64,
    /// Added to the mean square in every RMSNorm of the stack.
    pub norm_eps: f64,
    /// The head uses the embeddings' weight and has no parameter of its own.
    pub tie_word_embeddings: bool,
}

impl BackboneSize {
    pub(super) fn feed_forward_size(&self) -> Result<usize, ConfigError> {
        if let Some(size) = self.intermediate_size {
            return match size {
                0 => Err(ConfigError::new("intermediate_size", 0, "at least 1, or null")),
                size => Ok(size),
            };
        }
        if !(self.hidden_ratio.is_finite() && self.hidden_ratio > 0.0) {
            return Err(ConfigError::new("hidden_ratio", self.hidden_ratio, "a positive number"));
        }
        let size = (self.hidden_size as f64 * self.hidden_ratio * 2.0 / 3.0) as usize;
        size.max(1)
            .checked_next_multiple_of(256)
            .ok_or_else(|| ConfigError::new("hidden_ratio", self.hidden_ratio, "a smaller ratio"))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers),
        ] {
            if size == 0 {
                return Err(ConfigError::new(field, 0, "at least 1"));
            }
        }
        if self.num_hidden_layers > MAX_LAYERS {
            return Err(ConfigError::new(
                "num_hidden_layers",
                self.num_hidden_layers,
                format!("at most {MAX_LAYERS}"),
            ));
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return Err(ConfigError::new("norm_eps", self.norm_eps, "a positive number"));
        }
        Ok(())
    }
}
