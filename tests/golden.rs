//! Golden cases: components against independent float64 references (`golden/FORMAT.md`).
//!
//! One test a file and device, named `<system>/<component>--<case>`, e.g.
//! `cargo test --test golden -- gla/gla-layer`. `GATEKIT_GOLDEN_DIR` names another folder
//! (`DIR/<system>/*.safetensors`, or one system's folder itself), `GATEKIT_DEVICES` the devices.
//! After the run one line a case gives its worst relative errors.

use std::process::ExitCode;

use gatekit_tests::{failure::Result, folder, golden, trials, trials::Trials};

const VARIABLE: &str = "GATEKIT_GOLDEN_DIR";

fn main() -> ExitCode {
    trials::main("golden", find)
}

fn find(trials: &mut Trials) -> Result<()> {
    for case in golden::cases(&folder::locate(VARIABLE, "golden")?)? {
        let (name, path) = (case.name.clone(), case.path.clone());
        trials.add(&name, &path, move |device| case.check(device));
    }
    Ok(())
}
