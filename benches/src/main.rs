//! The report program: see `gatekit-bench --help`.

use std::process::ExitCode;

use clap::Parser;
use gatekit_bench::{
    check,
    cli::{Cli, Command},
    report,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command.unwrap_or(Command::Report(cli.report)) {
        Command::Report(args) => report::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Devices => {
            gatekit::device::compiled().iter().for_each(|name| println!("{name}"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
