//! Writing: one byte at a time, printed as it comes, from a state that does not grow (or, with softmax, a cache that
//! does).

use std::io::{self, ErrorKind, Write};
use std::time::Instant;

use burn::prelude::*;
use gatekit::core::ConfigError;
use gatekit::sequence::generate::{GenerateConfig, Sampler};
use gatekit::sequence::{AutoModel, StreamState, StreamingLm, generate};

use crate::cli::Args;
use crate::data::tokens;
use crate::error::RunError;
use crate::interrupt;
use crate::run::Outcome;
use crate::settings::Settings;
use gatekit_examples::{grouped, say};

/// Refuses flags that no text can be written with.
pub fn check(args: &Args) -> Result<(), ConfigError> {
    if args.prompt.is_empty() {
        return Err(ConfigError::new("--prompt", "nothing", "at least one byte to go on from"));
    }
    let flag =
        |error: ConfigError| ConfigError { field: format!("--{}", error.field.replace('_', "-")), ..error };
    Sampler::new(&config(args, 0)).map(drop).map_err(flag)
}

fn config(args: &Args, seed: u64) -> GenerateConfig {
    GenerateConfig::new(args.generate)
        .with_temperature(args.temperature)
        .with_top_k(args.top_k)
        .with_top_p(args.top_p)
        .with_seed(seed)
}

/// Writes `--generate` bytes after the prompt to the standard output, then how fast, and from how large a state.
pub fn write_text(
    model: &AutoModel,
    args: &Args,
    settings: &Settings,
    device: &Device,
) -> Result<Outcome, RunError> {
    if args.generate == 0 {
        return Ok(Outcome::Finished);
    }
    let prompt = args.prompt.as_bytes();
    model.check_room(&model.empty_state(1, device), prompt.len())?;
    let (_, state) = model.prefill(tokens(prompt, device), model.empty_state(1, device));
    let bytes_at_first = state.bytes();
    drop(state);

    let prompt_ids: Vec<usize> = prompt.iter().map(|&byte| usize::from(byte)).collect();
    let mut generation = generate(model, &prompt_ids, &config(args, settings.seed))?;
    let mut out = io::stdout().lock();
    let mut written = put(&mut out, prompt)?;
    let (mut count, mut stopped) = (0_usize, None);
    let started = Instant::now();
    while written && !interrupt::asked() {
        match generation.next() {
            None => break,
            Some(Ok(token)) => {
                let byte = u8::try_from(token).expect("the vocabulary has 256 tokens");
                written = put(&mut out, &[byte])?;
                count += 1;
            }
            Some(Err(error)) => {
                stopped = Some(error);
                break;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    drop(out);

    let state = generation.into_state();
    let bytes_at_last = state.bytes();
    if let Some(error) = stopped {
        // A model with learned positions has an end; everything else is an error.
        match model.check_room(&state, 1) {
            Ok(()) => return Err(error.into()),
            Err(_) => {
                say("\n\nThat is the longest sequence of this model: its positions end with --context.")
            }
        }
    }
    let size = match bytes_at_last == bytes_at_first {
        true => format!("the state has {} bytes, at the end as after the prompt", grouped(bytes_at_last)),
        false => format!(
            "the cache grew from {} bytes after the prompt to {} bytes",
            grouped(bytes_at_first),
            grouped(bytes_at_last)
        ),
    };
    say(format_args!(
        "\n\n{} bytes at {:.0} tokens a second; {size}",
        grouped(count),
        count as f64 / seconds
    ));
    Ok(if interrupt::asked() { Outcome::Interrupted } else { Outcome::Finished })
}

/// Prints bytes at once. Returns whether anyone still reads.
fn put(out: &mut impl Write, bytes: &[u8]) -> Result<bool, RunError> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(RunError::Output(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;

    #[test]
    fn flags_that_write_nothing_are_refused_by_name() {
        let field = |flags: &[&str]| {
            let cli = Cli::try_parse_from([&["language-model"], flags].concat()).expect("parses");
            check(&cli.args).err().map(|error| error.field)
        };
        assert_eq!(field(&["--prompt="]), Some("--prompt".into()));
        assert_eq!(field(&["--temperature=-1"]), Some("--temperature".into()));
        assert_eq!(field(&["--top-k=0"]), Some("--top-k".into()));
        assert_eq!(field(&["--top-p=1.5"]), Some("--top-p".into()));
        assert_eq!(field(&["--temperature=0", "--top-k=1", "--top-p=1"]), None);
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        struct Gone(ErrorKind);
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(put(&mut Vec::new(), b"a").expect("written"));
        assert!(!put(&mut Gone(ErrorKind::BrokenPipe), b"a").expect("noticed"));
        assert!(put(&mut Gone(ErrorKind::StorageFull), b"a").is_err());
    }
}
