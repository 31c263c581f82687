//! The command line.

use std::{num::NonZero, path::PathBuf, thread::available_parallelism};

use clap::{Args, Parser, Subcommand};

use crate::{
    op::{Form, Op, Pass, Precision},
    peer::PeerKind,
    plan::Settings,
    shape::Shape,
    store::Earlier,
};

/// Compares forms, devices and other libraries in one run: they take turns, and medians and quartiles are reported.
#[derive(Debug, Parser)]
#[command(name = "gatekit-bench", args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Without one: report.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The report's flags, without its name.
    #[command(flatten)]
    pub report: ReportArgs,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measures, and writes a table, CSV, JSON and plots (what happens without a command).
    Report(ReportArgs),
    /// Runs the golden cases on devices.
    Check(CheckArgs),
    /// Lists the devices that are compiled in, one a line.
    Devices,
}

/// What a report measures.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Devices: ndarray, flex, wgpu, vulkan, metal, cuda; a GPU with an index as in cuda:1. Default: the CPU devices
    /// compiled in, or else everything.
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Operations. Default: all but the detector and its parts, whose shapes are sizes of images.
    #[arg(long, value_delimiter = ',', default_values_t = sequences(), hide_default_value = true)]
    pub ops: Vec<Op>,
    /// batch x time x heads x dim, or x key_dim x value_dim.
    #[arg(long, value_delimiter = ',', default_value = "1x512x4x64,1x1024x4x64,1x2048x4x64,1x4096x4x64")]
    pub shapes: Vec<Shape>,
    /// Our forms: portable, fused.
    #[arg(long, value_delimiter = ',', default_values_t = Form::ALL.iter().copied(), hide_default_value = true)]
    pub forms: Vec<Form>,
    /// Passes: forward, forward+backward, decode.
    #[arg(long, value_delimiter = ',', default_values_t = Pass::ALL.iter().copied(), hide_default_value = true)]
    pub passes: Vec<Pass>,
    /// Type of the inputs: f32, f16, bf16.
    #[arg(long, default_value = "f32")]
    pub dtype: Precision,
    /// Other libraries in the same run: torch (named by GATEKIT_PYTHON), ggml (GATEKIT_GGML), fla (GATEKIT_PYTHON).
    #[arg(long = "peer", value_delimiter = ',')]
    pub peers: Vec<PeerKind>,
    /// Exactly the cases of the headline figures; takes the place of --ops, --shapes, --forms and --passes.
    #[arg(long)]
    pub headline: bool,
    /// Exactly the cases of the figures of the expert layers, likewise.
    #[arg(long, conflicts_with = "headline")]
    pub experts: bool,
    /// Exactly the cases of the figures of PACGNet, likewise.
    #[arg(long, conflicts_with_all = ["headline", "experts"])]
    pub pacgnet: bool,
    /// Times taken of every contestant, at least.
    #[arg(long, default_value = "7", value_parser = at_least_one)]
    pub repeat: usize,
    /// Seconds measured of every contestant, at least.
    #[arg(long, default_value_t = 0.3)]
    pub min_time: f64,
    /// Seconds measured of a contestant, at most (three times are always taken).
    #[arg(long, default_value_t = 12.0)]
    pub max_time: f64,
    /// Seconds for the whole report: later contests are measured more briefly, and the last ones left out.
    #[arg(long)]
    pub budget: Option<f64>,
    /// Rows of the largest matrix product tried for the peak.
    #[arg(long, default_value_t = 4096)]
    pub largest_matmul: usize,
    /// One small shape, few repeats: to see that everything runs.
    #[arg(long)]
    pub quick: bool,
    /// Threads of the processor, ours and the peers'. Default: all.
    #[arg(long)]
    pub threads: Option<NonZero<usize>>,
    /// Folder for the results.
    #[arg(long, default_value = "runs/bench")]
    pub out: PathBuf,
    /// Go on from the results in the folder.
    #[arg(long, conflicts_with = "overwrite")]
    pub resume: bool,
    /// Throw the results in the folder away.
    #[arg(long)]
    pub overwrite: bool,
    /// Seed of the random inputs.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Which golden cases run where.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// Devices, as for the report.
    #[arg(long = "device", value_delimiter = ',', required = true)]
    pub devices: Vec<String>,
    /// The folder of cases, `DIR/SYSTEM/*.safetensors`.
    #[arg(long)]
    pub golden: PathBuf,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    pub filter: String,
}

/// The operations over sequences and tokens.
fn sequences() -> impl Iterator<Item = Op> {
    Op::ALL.iter().copied().filter(|op| !op.is_detector())
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&count| count > 0).ok_or_else(|| "need a count, at least 1".to_owned())
}

/// What a quick run measures instead.
const QUICK_SHAPE: Shape = Shape::new(1, 192, 2, 32);

impl ReportArgs {
    /// Threads of the processor.
    pub fn thread_count(&self) -> usize {
        self.threads.or_else(|| available_parallelism().ok()).map_or(1, NonZero::get)
    }

    /// What to do with the results of an earlier run.
    pub fn earlier(&self) -> Earlier {
        match (self.resume, self.overwrite) {
            (true, _) => Earlier::Resume,
            (false, true) => Earlier::Overwrite,
            (false, false) => Earlier::Refuse,
        }
    }

    /// What is measured, on the devices named `devices`.
    pub fn settings(&self, devices: Vec<String>) -> Settings {
        Settings {
            devices,
            ops: self.ops.clone(),
            shapes: if self.quick { vec![QUICK_SHAPE] } else { self.shapes.clone() },
            forms: self.forms.clone(),
            passes: self.passes.clone(),
            precision: self.dtype,
            threads: self.thread_count(),
            largest_matmul: if self.quick { 512 } else { self.largest_matmul },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_report_needs_no_command() {
        let line = "gatekit-bench --devices flex,wgpu --ops gla,kda --shapes 1x64x2x16,2x64x2x16x32 --peer torch,ggml \
                    --passes forward,decode --forms fused --dtype bf16";
        let report = parse(line).expect("understood").report;
        assert_eq!(report.ops, [Op::Gla, Op::Kda]);
        assert_eq!(report.shapes.len(), 2);
        assert_eq!(report.peers, [PeerKind::Torch, PeerKind::Ggml]);
        let settings = report.settings(vec!["flex".into()]);
        assert_eq!((settings.precision, settings.passes.len()), (Precision::Bf16, 2));
        let Some(Command::Report(named)) =
            parse("gatekit-bench report --headline --budget 420").expect("understood").command
        else {
            panic!("a report")
        };
        assert!(named.headline && named.budget == Some(420.0) && named.ops.len() == Op::ALL.len() - 3);
    }

    #[test]
    fn mistakes_are_answered() {
        for (line, words) in [
            ("gatekit-bench --ops gla,mamba", "gated-delta-rule, kda"),
            ("gatekit-bench --shapes 1x2x3", "1x2048x4x64"),
            ("gatekit-bench --peer jax", "torch, ggml, fla"),
            ("gatekit-bench --repeat 0", "at least 1"),
            ("gatekit-bench --threads 0", "threads"),
            ("gatekit-bench --resume --overwrite", "cannot be used with"),
            ("gatekit-bench check --device flex", "--golden"),
        ] {
            let text = parse(line).expect_err(line).to_string();
            assert!(text.contains(words), "{line}: {text}");
        }
    }
}
