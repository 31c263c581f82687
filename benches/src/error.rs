//! What can stop the program, in words for the person who started it.

use std::{
    io,
    path::{Path, PathBuf},
};

use gatekit::{core::probe::PlotError, device::DeviceError};
use thiserror::Error;

/// Why the program cannot start or go on.
#[derive(Debug, Error)]
pub enum BenchError {
    /// An unknown device, or one that was not compiled in.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// There is nothing to measure.
    #[error("nothing to measure: none of the ops has the forms and passes asked for")]
    Nothing,
    /// The folder holds results already.
    #[error(
        "{} holds results: give --resume to go on from them, --overwrite to begin anew, or another --out",
        path.display()
    )]
    Exists {
        /// The file of rows.
        path: PathBuf,
    },
    /// Results that cannot be read.
    #[error("{} cannot be gone on from: {reason}", path.display())]
    Results {
        /// The file of rows.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The golden cases disagree.
    #[error("{failed} of {total} golden cases failed")]
    Golden {
        /// How many did.
        failed: usize,
        /// Out of how many.
        total: usize,
    },
    /// The golden cases cannot be found.
    #[error("{0}")]
    Cases(String),
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
}

impl BenchError {
    /// For `map_err`: names the path that the operating system's error is about.
    pub fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
