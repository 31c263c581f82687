//! The golden cases of a folder (`golden/FORMAT.md`), for the tests and for whoever checks a device.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use burn::tensor::Device;

use crate::{
    case::Case,
    failure::{Failure, Result},
    folder, systems,
    verdict::Errors,
};

/// A file of a case, read or not.
#[derive(Debug, Clone)]
pub struct GoldenCase {
    /// `<system>/<component>--<case>`: the system of the header, or of the folder where there is none.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    case: Arc<Result<Case>>,
}

impl GoldenCase {
    /// Computes the case on a device and says how well it agrees.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or whatever differs from the reference.
    pub fn check(&self, device: &Device) -> Result<String> {
        let case = Result::as_ref(&self.case).map_err(Failure::clone)?;
        systems::check(case, device).map(|errors| numbers(&errors))
    }
}

/// All cases of a folder, `DIR/<system>/*.safetensors` or one system's folder itself.
///
/// # Errors
///
/// The folder cannot be read or holds none.
pub fn cases(root: &Path) -> Result<Vec<GoldenCase>> {
    let read = |path: PathBuf| {
        let case = Case::read(&path);
        GoldenCase { name: name(&path, &case), path, case: Arc::new(case) }
    };
    Ok(files(root)?.into_iter().map(read).collect())
}

fn name(path: &Path, case: &Result<Case>) -> String {
    let folder = path.parent().map(|folder| folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf()));
    let system = match case {
        Ok(case) => case.system.clone(),
        Err(_) => folder.as_deref().map_or(String::new(), folder::name),
    };
    format!("{system}/{}", folder::name(&path.with_extension("")))
}

fn numbers(errors: &Errors) -> String {
    match errors.gradients {
        Some(gradients) => format!("outputs {:.1e} gradients {gradients:.1e}", errors.outputs),
        None => format!("outputs {:.1e} gradients none", errors.outputs),
    }
}

/// The case files of a folder in either layout.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let is_case = |path: &PathBuf| {
        path.is_file() && path.extension().is_some_and(|extension| extension == "safetensors")
    };
    let (folders, mut files): (Vec<_>, Vec<_>) =
        folder::entries(root)?.into_iter().partition(|path| path.is_dir());
    for system in folders {
        files.extend(folder::entries(&system)?);
    }
    files.retain(is_case);
    if files.is_empty() {
        return Err(Failure(format!(
            "{} holds no case: neither *.safetensors nor <system>/*.safetensors",
            root.display()
        )));
    }
    Ok(files)
}
