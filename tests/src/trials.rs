//! Test programs whose tests are read from a folder: one test an item of it and device, and a line each.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use burn::tensor::Device;
use libtest_mimic::{Arguments, Trial};

use crate::{
    devices::{self, NamedDevice},
    failure::Result,
};

/// The tests found so far.
#[derive(Debug)]
pub struct Trials {
    devices: Vec<NamedDevice>,
    trials: Vec<Trial>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Trials {
    /// Adds the tests of the item `name` at `path`, one a device; `check` says how well it agreed.
    pub fn add(
        &mut self,
        name: &str,
        path: &Path,
        check: impl Fn(&Device) -> Result<String> + Clone + Send + 'static,
    ) {
        for device in self.devices.clone() {
            let (path, lines, check) = (path.to_owned(), self.lines.clone(), check.clone());
            let (kind, title) = (device.name.clone(), format!("{name} [{}]", device.name));
            let trial = Trial::test(name, move || {
                let checked = check(&device.device);
                let text = checked.as_ref().map_or("FAILED", String::as_str);
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{title} {text}"));
                checked.map(drop).map_err(|failure| format!("{}: {failure}", path.display()).into())
            });
            self.trials.push(trial.with_kind(kind));
        }
    }
}

/// The main function of the test program `program`: runs what `find` adds on the chosen devices, then
/// prints the lines in order.
pub fn main(program: &str, find: impl FnOnce(&mut Trials) -> Result<()>) -> ExitCode {
    let arguments = Arguments::from_args();
    let found = devices::chosen().and_then(|devices| {
        let mut trials = Trials { devices, trials: Vec::new(), lines: Arc::default() };
        find(&mut trials)?;
        Ok(trials)
    });
    // Neither a wrong folder nor a wrong device may end in "0 tests, all passed".
    let Trials { trials, lines, .. } = match found {
        Ok(trials) => trials,
        Err(failure) => {
            eprintln!("{program}: {failure}");
            return ExitCode::from(101);
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    lines.sort();
    for line in lines.iter() {
        println!("{line}");
    }
    conclusion.exit_code()
}
