//! Continues a prompt with the model in a folder: any language model of this library, under its published names.
//!
//! ```text
//! cargo run --release --example generate --features tokenizers -- --checkpoint DIR --prompt "Once upon a time"
//! cargo run --release --example generate -- --checkpoint DIR --ids 1,450,3872
//! ```
//!
//! Text goes through the folder's `tokenizer.json`; token numbers need no tokenizer.
#![deny(missing_docs)]

mod text;

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use burn::module::Module;
use burn::prelude::Device;
use clap::Parser;
use gatekit::sequence::generate::{GenerateConfig, generate};
use gatekit::sequence::{AutoModel, StreamState, StreamingLm, from_pretrained};
use gatekit_examples::{ExampleError, grouped, say};
use serde_json::Value;
use text::Text;

/// Every operation of a CPU backend allocates its result: an allocator that keeps large blocks saves returning them to
/// the system and faulting their pages in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Continues a prompt with the model in a folder.
///
/// The folder holds config.json and the weights as safetensors, in one file or in shards, as the released models have
/// them; config.json says which model it is.
#[derive(Debug, Parser)]
#[command(name = "generate", verbatim_doc_comment)]
struct Args {
    /// The model's folder
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,

    /// The text to go on from; the folder must have a tokenizer.json
    #[arg(long, value_name = "TEXT", required_unless_present = "ids", conflicts_with = "ids")]
    prompt: Option<String>,

    /// The token numbers to go on from, as in 1,2,3; the answer is token numbers, too
    #[arg(long, value_name = "N,N,...", value_delimiter = ',')]
    ids: Option<Vec<usize>>,

    /// Where to compute: flex or ndarray (CPU); with the feature of that name: wgpu, vulkan, metal, cuda, cuda:1 ...
    #[arg(long, default_value = "flex")]
    device: String,

    /// Tokens to generate at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_new_tokens: usize,

    /// Below 1 bolder choices get rarer, above 1 more frequent; 0 always takes the likeliest token
    #[arg(long, value_name = "X", default_value_t = 0.8, help_heading = "Sampling")]
    temperature: f64,

    /// Choose among the N likeliest tokens only
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    top_k: Option<usize>,

    /// Choose among the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    top_p: Option<f64>,

    /// Seed of the choices
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,

    /// Go on after the token that ends a text (eos_token_id in config.json)
    #[arg(long)]
    ignore_eos: bool,
}

fn main() -> ExitCode {
    gatekit_examples::exit(run(&Args::parse(), &mut io::stdout()))
}

/// What a prompt is made of, and its continuation.
enum Prompt {
    Text { given: String, text: Text },
    Ids,
}

fn run(args: &Args, out: &mut impl Write) -> Result<(), ExampleError> {
    let device = gatekit::device::parse(&args.device)?;
    let (prompt, ids) = match (&args.prompt, &args.ids) {
        (Some(given), _) => {
            let text = Text::read(&args.checkpoint.join("tokenizer.json"))?;
            let ids = text.ids(given)?;
            (Prompt::Text { given: given.clone(), text }, ids)
        }
        (None, ids) => (Prompt::Ids, ids.clone().unwrap_or_default()),
    };
    let model = load(&args.checkpoint, &device)?;
    let eos = if args.ignore_eos { None } else { eos_token(&args.checkpoint) };
    let config = GenerateConfig::new(args.max_new_tokens)
        .with_temperature(args.temperature)
        .with_top_k(args.top_k)
        .with_top_p(args.top_p)
        .with_seed(args.seed)
        .with_eos_token_id(eos);
    write(&model, &prompt, &ids, &config, out)
}

fn load(folder: &Path, device: &Device) -> Result<AutoModel, ExampleError> {
    let started = Instant::now();
    let model = from_pretrained(folder, device)?;
    let name = model.config().name();
    let parameters = grouped(model.num_params());
    say(format_args!(
        "{name} with {parameters} parameters, loaded in {:.1} s\n",
        started.elapsed().as_secs_f64()
    ));
    Ok(model)
}

/// The first `eos_token_id` of a folder's `config.json`, if it has one.
fn eos_token(folder: &Path) -> Option<usize> {
    let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).ok()?).ok()?;
    let token = match &config["eos_token_id"] {
        Value::Array(tokens) => tokens.first()?.as_u64(),
        token => token.as_u64(),
    };
    usize::try_from(token?).ok()
}

/// Writes the prompt and its continuation, every token as it comes; then how fast, and from how large a state.
fn write(
    model: &AutoModel,
    prompt: &Prompt,
    ids: &[usize],
    config: &GenerateConfig,
    out: &mut impl Write,
) -> Result<(), ExampleError> {
    let mut show: Box<dyn FnMut(usize) -> Result<String, ExampleError>> = match prompt {
        Prompt::Text { text, .. } => Box::new(text.stream()),
        Prompt::Ids => Box::new(|token| Ok(format!(" {token}"))),
    };
    let given = match prompt {
        Prompt::Text { given, .. } => given.clone(),
        Prompt::Ids => ids.iter().map(usize::to_string).collect::<Vec<_>>().join(" "),
    };
    let started = Instant::now();
    let mut generation = generate(model, ids, config)?;
    let read_in = started.elapsed().as_secs_f64();

    let mut open = put(out, &given)?;
    let (mut count, mut stopped) = (0_usize, None);
    let started = Instant::now();
    while open {
        match generation.next() {
            None => break,
            Some(Ok(token)) => {
                open = put(out, &show(token)?)?;
                count += 1;
            }
            Some(Err(error)) => {
                stopped = Some(error);
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let state = generation.into_state();
    open = open && put(out, "\n")?;
    if let Some(error) = stopped {
        // A model with learned positions has an end; everything else is an error.
        match model.check_room(&state, 1) {
            Ok(()) => return Err(error.into()),
            Err(_) if open => say("\nThe model's longest sequence is reached."),
            Err(_) => {}
        }
    }
    if open {
        say(format_args!(
            "\n{} tokens read in {read_in:.2} s; {} written at {:.1} tokens a second; the state has {} bytes",
            grouped(ids.len()),
            grouped(count),
            count as f64 / seconds,
            grouped(state.bytes()),
        ));
    }
    Ok(())
}

/// Writes and shows at once; `false` when the reader is gone.
fn put(out: &mut impl Write, text: &str) -> Result<bool, ExampleError> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(ExampleError::io("standard output")(error)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use gatekit::core::ModuleConfig;
    use gatekit::sequence::{AutoConfig, GamConfig};

    use super::*;

    fn tiny(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name)
    }

    fn args(flags: &str, folder: &Path) -> Args {
        let words = format!("generate {flags} --checkpoint {}", folder.display());
        Args::try_parse_from(words.split_whitespace()).expect("valid flags")
    }

    fn output(args: &Args) -> Result<String, ExampleError> {
        let mut out = Vec::new();
        run(args, &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
        let refused = |words: &str| Args::try_parse_from(words.split_whitespace()).is_err();
        assert!(refused("generate --checkpoint x"));
        assert!(refused("generate --checkpoint x --ids 1,a"));
        assert!(refused("generate --checkpoint x --ids 1 --prompt a"));
    }

    /// The tokens are those that the library which saved the folder wrote.
    #[test]
    fn greedy_tokens_are_the_published_ones() {
        let folder = tiny("gla-tiny");
        let path = folder.join("expected.safetensors");
        let mut file = gatekit::sequence::checkpoint::SafetensorsFile::open(&path).expect("opened");
        let length = |name: &str| file.shape(name).expect("a tensor")[1];
        let (given, whole) = (length("input_ids"), length("generated"));
        let tokens: Vec<String> = file
            .read("generated")
            .expect("read")
            .iter::<i64>()
            .take(whole)
            .map(|id| id.to_string())
            .collect();
        let ids = tokens[..given].join(",");
        let flags = format!("--ids {ids} --temperature 0 --ignore-eos --max-new-tokens {}", whole - given);
        assert_eq!(output(&args(&flags, &folder)).expect("written"), format!("{}\n", tokens.join(" ")));
    }

    #[test]
    fn the_seed_decides_and_the_end_token_ends() {
        let folder = tiny("mamba-tiny");
        let written = |flags: &str| output(&args(&format!("--ids 5,6,7 {flags}"), &folder)).expect("written");
        let first = written("--max-new-tokens 40 --temperature 2 --seed 3 --ignore-eos");
        assert_eq!(first, written("--max-new-tokens 40 --temperature 2 --seed 3 --ignore-eos"));
        assert_ne!(first, written("--max-new-tokens 40 --temperature 2 --seed 4 --ignore-eos"));
        assert_eq!(first.split_whitespace().count(), 43);
        assert_eq!(eos_token(&folder), Some(2));
        let ended = written("--max-new-tokens 2000 --temperature 2 --seed 3");
        assert!(ended.ends_with(" 2\n") && ended.split_whitespace().count() < 2003, "{ended}");
    }

    #[test]
    fn a_model_with_learned_positions_ends_with_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = GamConfig::new(32, 8, 1).with_block_size(8).with_num_memory_slots(4).with_dropout(0.0);
        let config = AutoConfig::from(config);
        config.init(&Device::flex()).save_pretrained(folder.path(), None).expect("saved");
        let written = output(&args("--ids 1,2,3 --max-new-tokens 50", folder.path())).expect("written");
        assert_eq!(written.split_whitespace().count(), 9, "{written}");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let refused =
            |flags: &str, folder: &Path| output(&args(flags, folder)).expect_err("refused").to_string();
        assert!(refused("--ids 1", Path::new("nowhere")).contains("nowhere"));
        assert!(refused("--ids 96", &tiny("gla-tiny")).contains("96"));
        assert!(refused("--ids 1 --temperature=-1", &tiny("gla-tiny")).contains("temperature"));
        assert!(refused("--prompt a", &tiny("gla-tiny")).contains("tokenizer"));
    }

    #[cfg(feature = "tokenizers")]
    #[test]
    fn text_goes_through_the_tokenizer() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in ["config.json", "model.safetensors"] {
            fs::copy(tiny("gla-tiny").join(file), folder.path().join(file)).expect("copied");
        }
        fs::copy(text::FIXTURE, folder.path().join("tokenizer.json")).expect("copied");
        let flags = "--max-new-tokens 12 --temperature 0 --ignore-eos";
        let text = Text::read(&folder.path().join("tokenizer.json")).expect("read");
        let ids = text.ids("whether").expect("encoded");
        let list: Vec<String> = ids.iter().map(usize::to_string).collect();
        let numbers =
            output(&args(&format!("--ids {} {flags}", list.join(",")), folder.path())).expect("written");
        let mut show = text.stream();
        let expected: String = numbers
            .split_whitespace()
            .skip(ids.len())
            .map(|id| show(id.parse().expect("a number")).expect("decoded"))
            .collect();
        let written = output(&args(&format!("--prompt whether {flags}"), folder.path())).expect("written");
        assert_eq!(written, format!("whether{expected}\n"));
        assert!(!expected.is_empty());
    }
}
