//! Golden cases: components against independent float64 references (`golden/FORMAT.md`).
//!
//! One test a file and device, named `<system>/<component>--<case>`, e.g.
//! `cargo test --test golden -- gla/gla-layer`. `GATEKIT_GOLDEN_DIR` names another folder
//! (`DIR/<system>/*.safetensors`, or one system's folder itself), `GATEKIT_DEVICES` the devices.
//! After the run one line a case gives its worst relative errors.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
};

use gatekit_tests::{
    case::Case,
    devices,
    evaluation::Errors,
    failure::{Failure, Result},
    folder, systems,
};
use libtest_mimic::{Arguments, Trial};

const VARIABLE: &str = "GATEKIT_GOLDEN_DIR";

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let lines = Arc::new(Mutex::new(Vec::new()));
    // Neither a wrong folder nor a wrong device may end in "0 tests, all passed".
    let trials = match trials(&lines) {
        Ok(trials) => trials,
        Err(failure) => {
            eprintln!("golden: {failure}");
            return ExitCode::from(101);
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut lines = lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    lines.sort();
    for line in lines.iter() {
        println!("{line}");
    }
    conclusion.exit_code()
}

fn trials(lines: &Arc<Mutex<Vec<String>>>) -> Result<Vec<Trial>> {
    let devices = devices::chosen()?;
    let mut trials = Vec::new();
    for path in files(&folder::locate(VARIABLE, "golden")?)? {
        let case = Arc::new(Case::read(&path));
        let name = name(&path, &case);
        for device in &devices {
            let (case, device, path) = (case.clone(), device.clone(), path.clone());
            let (name, lines, kind) = (name.clone(), lines.clone(), device.name.clone());
            let trial = Trial::test(name.clone(), move || {
                let errors = Result::clone(&case).and_then(|case| systems::check(&case, &device.device));
                let line = match &errors {
                    Ok(errors) => format!("{name} [{}] {}", device.name, numbers(errors)),
                    Err(_) => format!("{name} [{}] FAILED", device.name),
                };
                lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(line);
                errors.map(drop).map_err(|failure| format!("{}: {failure}", path.display()).into())
            });
            trials.push(trial.with_kind(kind));
        }
    }
    Ok(trials)
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
