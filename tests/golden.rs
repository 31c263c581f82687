//! Golden cases: components against independent float64 references (`golden/FORMAT.md`).
//!
//! One test a file and device, named `<system>/<component>--<case>`, e.g.
//! `cargo test --test golden -- gla/gla-layer`. `GATEKIT_GOLDEN_DIR` names another folder
//! (`DIR/<system>/*.safetensors`, or one system's folder itself), `GATEKIT_DEVICES` the devices.
//! After the run one line a case gives its worst relative errors.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use gatekit_tests::{
    case::Case,
    evaluation::Errors,
    failure::{Failure, Result},
    folder, systems,
    trials::{self, Trials},
};

const VARIABLE: &str = "GATEKIT_GOLDEN_DIR";

fn main() -> ExitCode {
    trials::main("golden", find)
}

fn find(trials: &mut Trials) -> Result<()> {
    for path in files(&folder::locate(VARIABLE, "golden")?)? {
        let case = Arc::new(Case::read(&path));
        trials.add(&name(&path, &case), &path, move |device| {
            let case = Result::as_ref(&case).map_err(Failure::clone)?;
            systems::check(case, device).map(|errors| numbers(&errors))
        });
    }
    Ok(())
}

/// `<system>/<component>--<case>`: the system of the header, or of the folder where there is none.
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
