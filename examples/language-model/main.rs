//! A byte-level language model, with gated linear attention or any other mixer of the library: trained on Shakespeare, measured on a play it never saw
//! against n-gram models of the same text, and then left to write.
//!
//! ```text
//! cargo run --release --example language-model
//! cargo run --release --example language-model -- --help
//! ```
//!
//! | module | owns |
//! |---|---|
//! | `cli`, `settings` | the flags; what of them decides the numbers |
//! | `data`, `ngram` | the text and its split; the baselines |
//! | `model` | the models: what the settings mean to each, and how it is measured |
//! | `train`, `checkpoint` | one step; the state to go on from |
//! | `experts` | sparse feed-forward layers: balance, load |
//! | `evaluate`, `sample` | bits per byte on unseen text; writing |
//! | `run` | a run from beginning to end |
//! | `run_folder`, `metrics`, `plots` | what a run leaves behind |
//! | `progress`, `interrupt`, `error` | the person who watches |
#![deny(missing_docs)]

mod checkpoint;
mod cli;
mod data;
mod error;
mod evaluate;
mod experts;
mod interrupt;
mod metrics;
mod model;
mod ngram;
mod plots;
mod progress;
mod run;
mod run_folder;
mod sample;
mod settings;
mod train;

use std::process::ExitCode;

use cli::Cli;
use run::{Outcome, Plan};

/// Every operation of a CPU backend allocates its result: an allocator that keeps large blocks saves
/// returning them to the system and faulting their pages in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Plan::new(&cli).and_then(|plan| run::run(&plan));
    match outcome {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(interrupt::EXIT_STATUS),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Burn draws its random numbers from one generator for the whole process, so a test that seeds it, or draws from it,
/// keeps the others from doing so meanwhile.
#[cfg(test)]
fn random_numbers() -> std::sync::MutexGuard<'static, ()> {
    static GENERATOR: std::sync::Mutex<()> = std::sync::Mutex::new(());
    GENERATOR.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
