//! What can stop an experiment, in words for the person who started it.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use gatekit::core::probe::PlotError;
use gatekit::core::{ConfigError, InputError};
use gatekit::device::DeviceError;
use gatekit::sequence::CheckpointError;
use gatekit::sequence::generate::GenerateError;
use thiserror::Error;

/// Why an example cannot start or go on.
#[derive(Debug, Error)]
pub enum ExampleError {
    /// A configuration that makes no model or no training.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Data that a model refuses.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A prompt that cannot be continued.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// An unknown device, or one that was not compiled in.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A model folder that cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A plot that cannot be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file that can be read but not used.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ExampleError {
    /// For `map_err`: names the path that the operating system's error is about.
    pub fn io(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// A file that can be read but not used.
    pub fn unusable(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Unusable { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }
}

/// The exit status of a program; an error is printed first.
pub fn exit(outcome: Result<(), ExampleError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
