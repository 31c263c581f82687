//! The command line, and which of its values the user gave.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::settings::{Balance, Ffn, Mixer, Settings};

const DEFAULT: Settings = Settings::DEFAULT;

/// Trains a small byte-level language model on Shakespeare and lets it write.
///
/// The defaults take at most five minutes on two CPU cores. The run's folder (--out) then
/// holds the configuration, the weights under their published names (model.safetensors),
/// the results, the metrics as CSV, plots as SVG, and the last two checkpoints.
///
/// Interrupt the run whenever you like: --resume goes on from the last checkpoint and does
/// exactly what an uninterrupted run would have done. Once the run is complete, --resume
/// with another --prompt just writes again.
#[derive(Debug, Parser)]
#[command(name = "language-model", verbatim_doc_comment)]
pub struct Args {
    /// Where to compute: flex or ndarray (CPU); with the feature of that name: wgpu, vulkan, metal, cuda, cuda:1 ...
    #[arg(long, default_value = "flex", help_heading = "Run")]
    pub device: String,

    /// The text to learn from, any file, read as bytes [default: the Shakespeare that ships with this repository]
    #[arg(long, value_name = "FILE", help_heading = "Run")]
    pub text: Option<PathBuf>,

    /// The run's folder; an earlier run in it is moved aside, to a folder of that name and `.previous`
    #[arg(long, value_name = "DIR", default_value = "runs/language-model", help_heading = "Run")]
    pub out: PathBuf,

    /// Go on with the run in the folder, with its settings
    #[arg(long, help_heading = "Run")]
    pub resume: bool,

    /// A tiny model and a few steps: shows in seconds that everything works, not how well
    #[arg(long, help_heading = "Run")]
    pub quick: bool,

    /// Stop training after this many minutes even if steps are left (the learning rate follows --steps all the same)
    #[arg(long, value_name = "M", help_heading = "Run")]
    pub minutes: Option<f64>,

    /// Steps between checkpoints; so many are lost at most when the run is killed
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Run")]
    pub checkpoint_every: usize,

    /// Steps between looks at the held-out text and at the gates, for the plots [default: a twentieth of all steps]
    #[arg(long, value_name = "N", help_heading = "Run")]
    pub validate_every: Option<usize>,

    /// Do not measure the trained model on the whole held-out text
    #[arg(long, help_heading = "Run")]
    pub no_validation: bool,

    /// What moves information from earlier bytes to later ones
    #[arg(long, value_enum, default_value_t = DEFAULT.mixer, help_heading = "Model")]
    pub mixer: Mixer,

    /// Number of blocks
    #[arg(long, value_name = "N", default_value_t = DEFAULT.layers, help_heading = "Model")]
    pub layers: usize,

    /// Width of the model
    #[arg(long, value_name = "N", default_value_t = DEFAULT.dim, help_heading = "Model")]
    pub dim: usize,

    /// Heads of each mixer; divides the width
    #[arg(long, value_name = "N", default_value_t = DEFAULT.heads, help_heading = "Model")]
    pub heads: usize,

    /// Width of the feed-forward layers [default: 8/3 of the model's, up to a multiple of 32]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub intermediate: Option<usize>,

    /// GLA: key width of all heads together, as a share of the model's
    #[arg(long, value_name = "X", default_value_t = DEFAULT.expand_k, help_heading = "Model")]
    pub expand_k: f64,

    /// GLA: value width of all heads together, as a share of the model's
    #[arg(long, value_name = "X", default_value_t = DEFAULT.expand_v, help_heading = "Model")]
    pub expand_v: f64,

    /// GLA: divisor of the forget gate's logarithm; larger remembers longer
    #[arg(long, value_name = "X", default_value_t = DEFAULT.gate_normalizer, help_heading = "Model")]
    pub gate_normalizer: f64,

    /// GLA: leave out the short convolutions on queries, keys and values
    #[arg(long, help_heading = "Model")]
    pub no_short_conv: bool,

    /// Softmax, Mixtral, MoVE: how many bytes back a byte may look, which bounds the cache [default: all]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub window: Option<usize>,

    /// GLA, DeltaNet, HGRN, RetNet: so many of their layers to every layer of softmax attention [default: no attention]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub hybrid: Option<usize>,

    /// What stands behind every mixer (Kimi Linear, DeepSeek-V3, Mixtral and Qwen3 have experts always)
    #[arg(long, value_enum, default_value_t = DEFAULT.ffn, help_heading = "Model")]
    pub ffn: Ffn,

    /// Experts of a layer
    #[arg(long, value_name = "N", default_value_t = DEFAULT.experts, help_heading = "Model")]
    pub experts: usize,

    /// Experts that every byte chooses; together they are as wide as the dense layer
    #[arg(long, value_name = "N", default_value_t = DEFAULT.experts_per_token, help_heading = "Model")]
    pub experts_per_token: usize,

    /// What keeps the experts evenly used [default: loss; bias with Kimi Linear and DeepSeek-V3]
    #[arg(long, value_enum, help_heading = "Training")]
    pub balance: Option<Balance>,

    /// Bytes that an expert takes in training, in multiples of its fair share; the rest is dropped [default: all]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub capacity: Option<f64>,

    /// Optimiser steps
    #[arg(long, value_name = "N", default_value_t = DEFAULT.steps, help_heading = "Training")]
    pub steps: usize,

    /// Sequences of a step
    #[arg(long, value_name = "N", default_value_t = DEFAULT.batch_size, help_heading = "Training")]
    pub batch_size: usize,

    /// Bytes of a sequence
    #[arg(long, value_name = "N", default_value_t = DEFAULT.context, help_heading = "Training")]
    pub context: usize,

    /// Highest learning rate, reached after the warm-up and followed by a cosine to a tenth of it
    #[arg(long, value_name = "X", default_value_t = DEFAULT.learning_rate, help_heading = "Training")]
    pub learning_rate: f64,

    /// Steps of warm-up
    #[arg(long, value_name = "N", default_value_t = DEFAULT.warmup, help_heading = "Training")]
    pub warmup: usize,

    /// AdamW's memory of squared gradients
    #[arg(long, value_name = "X", default_value_t = DEFAULT.beta_2, help_heading = "Training")]
    pub beta_2: f64,

    /// AdamW's weight decay
    #[arg(long, value_name = "X", default_value_t = DEFAULT.weight_decay, help_heading = "Training")]
    pub weight_decay: f64,

    /// Gradients are shortened to this norm, each parameter's by itself
    #[arg(long, value_name = "X", default_value_t = DEFAULT.clip_norm, help_heading = "Training")]
    pub clip_norm: f64,

    /// Seed of the weights, of the order of the data, and of the text that is written
    #[arg(long, value_name = "N", default_value_t = DEFAULT.seed, help_heading = "Training")]
    pub seed: u64,

    /// The beginning of the text to write
    #[arg(long, value_name = "TEXT", default_value = "ROMEO.\n", help_heading = "Writing")]
    pub prompt: String,

    /// Bytes to write
    #[arg(long, value_name = "N", default_value_t = 600, help_heading = "Writing")]
    pub generate: usize,

    /// Below 1 bolder choices get rarer, above 1 more frequent; 0 always takes the likeliest byte
    #[arg(long, value_name = "X", default_value_t = 0.8, help_heading = "Writing")]
    pub temperature: f64,

    /// Choose among the N likeliest bytes only
    #[arg(long, value_name = "N", help_heading = "Writing")]
    pub top_k: Option<usize>,

    /// Choose among the likeliest bytes that together have this probability
    #[arg(long, value_name = "P", help_heading = "Writing")]
    pub top_p: Option<f64>,
}

/// The arguments, and the names of those that were given and not left at their defaults.
#[derive(Debug)]
pub struct Cli {
    /// The values.
    pub args: Args,
    given: BTreeSet<String>,
}

impl Cli {
    /// Reads the command line; prints the help, or what is wrong, and exits if that is what there is to do.
    pub fn parse() -> Self {
        Self::try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// Reads other words than the program's.
    pub fn try_parse_from(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let matches = Args::command().try_get_matches_from(words)?;
        let given = (matches.ids())
            .filter(|id| matches.value_source(id.as_str()) == Some(ValueSource::CommandLine))
            .map(ToString::to_string)
            .collect();
        Ok(Self { args: Args::from_arg_matches(&matches)?, given })
    }

    /// The settings of a new run.
    pub fn settings(&self) -> Settings {
        self.apply_to(if self.args.quick { Settings::QUICK } else { DEFAULT })
    }

    /// The settings asked for when resuming a run that has `settings`: where the command line is silent, its own.
    pub fn resumed_settings(&self, settings: Settings) -> Settings {
        self.apply_to(if self.args.quick { Settings::QUICK } else { settings })
    }

    fn apply_to(&self, mut settings: Settings) -> Settings {
        macro_rules! take_given {
            ($($field:ident),*) => {$(
                if self.given.contains(stringify!($field)) {
                    settings.$field = self.args.$field;
                }
            )*};
        }
        take_given!(
            mixer,
            layers,
            dim,
            heads,
            intermediate,
            expand_k,
            expand_v,
            gate_normalizer,
            window,
            hybrid,
            experts,
            ffn,
            experts_per_token,
            balance,
            capacity,
            steps,
            batch_size,
            context,
            learning_rate,
            warmup,
            beta_2,
            weight_decay,
            clip_norm,
            seed
        );
        if self.args.no_short_conv {
            settings.short_conv = false;
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(flags: &str) -> Cli {
        Cli::try_parse_from(format!("language-model {flags}").split_whitespace()).expect("valid flags")
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_new_run_has_the_defaults_but_for_what_was_given() {
        assert_eq!(cli("").settings(), DEFAULT);
        assert_eq!(cli("--quick").settings(), Settings::QUICK);
        let expected = Settings { dim: 96, short_conv: false, ..Settings::QUICK };
        assert_eq!(cli("--quick --dim 96 --no-short-conv").settings(), expected);
        let expected = Settings { ffn: Ffn::Moe, experts: 8, balance: Some(Balance::None), ..DEFAULT };
        assert_eq!(cli("--ffn moe --experts 8 --balance none").settings(), expected);
    }

    #[test]
    fn resuming_keeps_the_settings_but_for_what_was_given() {
        let other = Settings { mixer: Mixer::Softmax, dim: 96, window: Some(32), ..DEFAULT };
        assert_eq!(cli("--resume").resumed_settings(other.clone()), other);
        // Giving a default explicitly asks for it.
        let default = cli(&format!("--resume --dim {}", DEFAULT.dim)).resumed_settings(other.clone());
        assert_eq!(default, Settings { dim: DEFAULT.dim, ..other });
    }

    #[test]
    fn what_is_not_a_flag_or_not_a_value_is_refused() {
        for flags in ["--colour red", "--mixer abacus", "--steps many", "--dim -3"] {
            let words = format!("language-model {flags}");
            assert!(Cli::try_parse_from(words.split_whitespace()).is_err(), "{flags}");
        }
    }
}
