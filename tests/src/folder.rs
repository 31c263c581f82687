//! Folders of cases, given by an environment variable or kept beside this package.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// The folder that `variable` names, or `default` within this package.
///
/// A relative path counts from the folder in which cargo was called, or from the workspace's: cargo
/// runs tests in their package's folder, which nobody means.
///
/// # Errors
///
/// The folder does not exist.
pub fn locate(variable: &str, default: &str) -> Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(given) = std::env::var_os(variable).map(PathBuf::from) else {
        let folder = package.join(default);
        return if folder.is_dir() {
            Ok(folder)
        } else {
            Err(Failure(format!("the folder {} does not exist", folder.display())))
        };
    };
    if given.as_os_str().is_empty() {
        return Err(Failure(format!("{variable} is empty, need a folder")));
    }
    // The shell's variable still holds the folder of the call; joined to an absolute path it has no effect.
    let bases =
        std::env::var_os("PWD").map(PathBuf::from).into_iter().chain(package.parent().map(Path::to_path_buf));
    let candidates: Vec<PathBuf> = bases.map(|base| base.join(&given)).collect();
    let found = candidates.iter().find(|folder| folder.is_dir());
    found.cloned().ok_or_else(|| Failure(format!("{variable}: no folder {}", given.display())))
}

/// The entries of a folder, sorted by name.
///
/// # Errors
///
/// The folder cannot be read.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = |error: std::io::Error| Failure(format!("{}: {error}", folder.display()));
    let mut paths = std::fs::read_dir(folder)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(read))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The last part of a path as text.
pub fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
