//! Why a case failed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use gatekit::core::{ConfigError, InputError};
use thiserror::Error;

/// The text that a failing test prints.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// What the support functions return.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The same failure, saying where it happened.
    pub fn within(self, place: impl std::fmt::Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self(format!("the library refused the configuration: {error}"))
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        Self(format!("the library refused the input: {error}"))
    }
}

/// Runs `body` and turns a panic into a failure with its text.
///
/// # Errors
///
/// What `body` returns, or the panic's text.
pub fn catch<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        let text = panic_text(payload.as_ref());
        Err(Failure(format!("panicked: {text}")))
    })
}

/// The text of a panic's payload.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without text".into())
}
