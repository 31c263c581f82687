//! What can be wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::ConfigError;
use thiserror::Error;

/// A checkpoint that cannot be read or written; names the file.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The operating system refused: a missing file, no permission, a full disk.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file is not what its name says: truncated, with a header that contradicts it, no JSON.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What contradicts what.
        reason: String,
    },
    /// The file is sound, but a tensor in it does not fit the model.
    #[error("{}: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor and what is wrong with it.
        source: TensorError,
    },
    /// The configuration describes no model of this library.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field.
        source: ConfigError,
    },
}

impl CheckpointError {
    /// A file that could not be read or written.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_path_buf(), source }
    }

    /// A file that is not what it should be.
    pub fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_path_buf(), reason: reason.into() }
    }

    /// A configuration that does not hold.
    pub fn config(path: &Path, source: ConfigError) -> Self {
        Self::Config { path: path.to_path_buf(), source }
    }
}

/// A named tensor that does not fit.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("tensor `{tensor}`: {problem}")]
pub struct TensorError {
    /// Name of the tensor.
    pub tensor: String,
    /// What is wrong with it.
    pub problem: TensorProblem,
}

/// What is wrong with a tensor.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum TensorProblem {
    /// The model has it, the checkpoint does not.
    #[error("missing")]
    Missing,
    /// The checkpoint has it, the model does not.
    #[error("unexpected, the model has no such parameter")]
    Unexpected,
    /// Its shape is another.
    #[error("got shape {got:?}, need {need}")]
    Shape {
        /// The shape found.
        got: Vec<usize>,
        /// The shape that would fit.
        need: String,
    },
    /// Its element type is not a float type that can be read.
    #[error("got element type {got}, need F16, BF16, F32 or F64")]
    Dtype {
        /// The element type found.
        got: String,
    },
    /// One of its values is NaN or infinite (in float32).
    #[error("got {value} at flat index {index}, need finite values")]
    NotFinite {
        /// The value.
        value: f32,
        /// Where, counted through the flattened tensor.
        index: usize,
    },
    /// One of its values means nothing.
    #[error("got {got}, need {need}")]
    Value {
        /// The value found.
        got: String,
        /// What would have been accepted.
        need: String,
    },
    /// Its values could not be read back from the device, or not be handed to it.
    #[error("{reason}")]
    Device {
        /// What the backend said.
        reason: String,
    },
}

impl TensorError {
    /// An error about `tensor`.
    pub fn new(tensor: impl Into<String>, problem: TensorProblem) -> Self {
        Self { tensor: tensor.into(), problem }
    }

    /// The same error as seen from an enclosing module: `prefix.tensor`.
    pub fn within(self, prefix: &str) -> Self {
        Self { tensor: format!("{prefix}.{}", self.tensor), ..self }
    }

    /// The same error about a tensor in a file.
    pub fn at(self, path: &Path) -> CheckpointError {
        CheckpointError::Tensor { path: path.to_path_buf(), source: self }
    }
}
