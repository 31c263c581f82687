//! The golden cases on a device, before anything is measured there.

use std::io::Write;

use gatekit_tests::golden;

use crate::{cli::CheckArgs, error::BenchError};

/// Runs the cases on every device, a line each.
///
/// # Errors
///
/// A device or the folder cannot be had; a case failed.
pub fn run(args: &CheckArgs) -> Result<(), BenchError> {
    let devices = args
        .devices
        .iter()
        .map(|name| Ok((name, gatekit::device::parse(name)?)))
        .collect::<Result<Vec<_>, BenchError>>()?;
    let cases = golden::cases(&args.golden).map_err(|failure| BenchError::Cases(failure.to_string()))?;
    let cases: Vec<_> = cases.into_iter().filter(|case| case.name.contains(&args.filter)).collect();
    if cases.is_empty() {
        return Err(BenchError::Cases(format!("no golden case is called `{}`", args.filter)));
    }
    let mut failed = 0;
    for (name, device) in &devices {
        for case in &cases {
            let line = match case.check(device) {
                Ok(line) => format!("ok      {name}  {}  {line}", case.name),
                Err(failure) => {
                    failed += 1;
                    format!("FAILED  {name}  {}  {failure}", case.name)
                }
            };
            // A reader that went away must not end the check.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }
    let total = devices.len() * cases.len();
    let _ = writeln!(std::io::stdout(), "{} of {total} golden cases passed", total - failed);
    if failed > 0 { Err(BenchError::Golden { failed, total }) } else { Ok(()) }
}
