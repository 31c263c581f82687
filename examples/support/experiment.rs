//! The flags that every experiment has.

use std::fs;
use std::path::PathBuf;

use burn::prelude::Device;
use clap::Args;
use gatekit::device::DeviceError;

use crate::error::ExampleError;

/// Seeds of an experiment, unless told otherwise.
const SEEDS: u64 = 3;

/// Flags of an experiment; flatten them into a program's own with `#[command(flatten)]`.
#[derive(Args, Clone, Debug)]
pub struct Experiment {
    /// A small version that shows in seconds that everything works, not how well
    #[arg(long, help_heading = "Experiment")]
    pub quick: bool,

    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Experiment")]
    pub seed: u64,

    /// How many seeds, counted on from the first [default: 3, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000), help_heading = "Experiment")]
    pub seeds: Option<u64>,

    /// Where to compute: flex or ndarray (CPU); with the feature of that name: wgpu, vulkan, metal, cuda, cuda:1 ...
    #[arg(long, default_value = "flex", help_heading = "Experiment")]
    pub device: String,

    /// Where tables and plots go [default: runs/ and the experiment's name]
    #[arg(long, value_name = "DIR", help_heading = "Experiment")]
    pub out: Option<PathBuf>,
}

impl Experiment {
    /// The device.
    ///
    /// # Errors
    ///
    /// [`DeviceError`] for an unknown device, or one that is not compiled in.
    pub fn device(&self) -> Result<Device, DeviceError> {
        gatekit::device::parse(&self.device)
    }

    /// The seeds: `--seed` and those that follow it.
    pub fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let count = self.seeds.unwrap_or(if self.quick { 1 } else { SEEDS });
        let first = self.seed;
        (0..count).map(move |index| first.wrapping_add(index))
    }

    /// `quick` with the flag of that name, else `full`: steps, widths, sizes.
    pub fn steps(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// The folder for tables and plots, which is created: `--out`, or `runs/<slug>`.
    ///
    /// # Errors
    ///
    /// [`ExampleError::Io`] when it cannot be created.
    pub fn out_dir(&self, slug: &str) -> Result<PathBuf, ExampleError> {
        let path = self.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(slug));
        fs::create_dir_all(&path).map_err(ExampleError::io(&path))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        experiment: Experiment,
    }

    fn parse(flags: &str) -> Result<Experiment, clap::Error> {
        let words = format!("program {flags}");
        Program::try_parse_from(words.split_whitespace()).map(|program| program.experiment)
    }

    #[test]
    fn seeds_count_on_from_the_first() {
        let seeds = |flags: &str| parse(flags).expect("valid flags").seeds().collect::<Vec<_>>();
        assert_eq!(seeds(""), [0, 1, 2]);
        assert_eq!(seeds("--quick"), [0]);
        assert_eq!(seeds("--quick --seeds 2 --seed 7"), [7, 8]);
        assert!(parse("--seeds 0").is_err());
    }

    #[test]
    fn the_folder_is_created() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let out = root.path().join("a/b");
        let flags = format!("--out {}", out.display());
        assert_eq!(parse(&flags).expect("valid flags").out_dir("recall").expect("created"), out);
        assert!(out.is_dir());
        std::fs::write(root.path().join("file"), "").expect("written");
        let flags = format!("--out {}", root.path().join("file/x").display());
        assert!(matches!(parse(&flags).expect("valid flags").out_dir("x"), Err(ExampleError::Io { .. })));
    }

    #[test]
    fn unknown_devices_are_refused() {
        assert!(parse("--device abacus").expect("valid flags").device().is_err());
    }
}
