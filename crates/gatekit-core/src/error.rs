//! Typed errors for what comes from outside: configurations and data.

use std::fmt::Display;

use thiserror::Error;

/// A configuration that describes no module: names the field, what it got and what it needs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("configuration field `{field}`: got {got}, need {need}")]
pub struct ConfigError {
    /// Field of the configuration, e.g. `num_heads`.
    pub field: String,
    /// The value found.
    pub got: String,
    /// What would have been accepted.
    pub need: String,
}

/// Data that cannot be used: sequence boundaries, masks, states, token ids, labels.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("input `{field}`: got {got}, need {need}")]
pub struct InputError {
    /// Argument or file field, e.g. `cu_seqlens`.
    pub field: String,
    /// The value found.
    pub got: String,
    /// What would have been accepted.
    pub need: String,
}

impl ConfigError {
    /// A configuration error for `field`.
    pub fn new(field: impl Into<String>, got: impl Display, need: impl Display) -> Self {
        Self { field: field.into(), got: got.to_string(), need: need.to_string() }
    }

    /// The same error as seen from an enclosing configuration: `prefix.field`.
    pub fn within(mut self, prefix: &str) -> Self {
        self.field = format!("{prefix}.{}", self.field);
        self
    }
}

impl InputError {
    /// An input error for `field`.
    pub fn new(field: impl Into<String>, got: impl Display, need: impl Display) -> Self {
        Self { field: field.into(), got: got.to_string(), need: need.to_string() }
    }
}
