//! Everything that can stop a run, in words for the person who started it.

use std::io;
use std::path::{Path, PathBuf};

use gatekit::core::probe::PlotError;
use gatekit::core::{ConfigError, InputError};
use gatekit::device::DeviceError;
use gatekit::sequence::checkpoint::CheckpointError as PublishedError;
use gatekit::sequence::generate::GenerateError;
use thiserror::Error;

/// Why the run cannot start or go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// A flag's value, or a combination of flags, that makes no model or no training.
    #[error("{0}")]
    Settings(#[from] ConfigError),
    /// Labels or states that the model refuses.
    #[error("{0}")]
    Input(#[from] InputError),
    /// A text that cannot be continued.
    #[error("{0}")]
    Generate(#[from] GenerateError),
    /// An unknown device, or one that was not compiled in.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The training text cannot be used.
    #[error("the text {} cannot be used: {reason}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The run's folder holds something else.
    #[error("the folder {} cannot be used: {reason}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A checkpoint that is not whole.
    #[error(
        "the checkpoint {} is cut short or damaged: {reason}. Delete this folder to go on from the one before it, \
         or start again without --resume",
        path.display()
    )]
    DamagedCheckpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A whole checkpoint of a run with other settings.
    #[error(
        "the checkpoint {} belongs to another run: {}. Give the settings it was trained with (or none: --resume \
         takes them from the folder), or another --out",
        path.display(),
        differences.join("; ")
    )]
    ForeignCheckpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// One entry for every field that differs, with both values.
        differences: Vec<String>,
    },
    /// The weights in published form cannot be written.
    #[error("{0}")]
    Published(#[from] PublishedError),
    /// The loss is no longer a number.
    #[error("the loss became {loss} at step {step}: try a smaller --learning-rate or a longer --warmup")]
    Diverged {
        /// The step, counted from one.
        step: usize,
        /// The loss: infinite or not a number.
        loss: f32,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A plot cannot be drawn.
    #[error("cannot draw {}: {source}", path.display())]
    Plot {
        /// The picture.
        path: PathBuf,
        /// Why.
        source: PlotError,
    },
    /// Ctrl-C cannot be listened for.
    #[error("cannot listen for interruption: {0}")]
    Interrupt(#[from] ctrlc::Error),
    /// The terminal or pipe that the text goes to is gone.
    #[error("cannot write to the standard output: {0}")]
    Output(io::Error),
}

impl RunError {
    /// For `map_err`: names the path that the operating system's error is about.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
