//! Timing.
#[path = "acm/timing.rs"]
mod timing;
use clap::Parser;
use gatekit_examples::{Experiment, Results, tasks};
/// x
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    experiment: Experiment,
}
fn main() {
    let args = Args::parse();
    let device = args.experiment.device().unwrap();
    let mut r = Results::new();
    for n in [4, 8] {
        timing::measure(&args.experiment, n, &device, &mut tasks::random(1), &mut r).unwrap();
    }
    println!("{}", r.table());
}
