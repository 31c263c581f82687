//! Damaged checkpoint folders: whatever is done to the files, loading them gives a model or a typed error that names
//! the file. It never panics and never allocates more than the files can account for.
//!
//! `GATEKIT_FUZZ_CASES` is the number of cases (1000), `GATEKIT_FUZZ_SEED` the seed of their choice (0),
//! `GATEKIT_CHECKPOINT_DIR` a folder of other checkpoint folders to damage.

mod damage;
mod files;
mod memory;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{Device, Int, Tensor};
use gatekit::sequence::{AutoModel, CausalLm, CheckpointError, from_pretrained};
use gatekit_tests::folder;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use damage::{Damage, damages};
use files::Files;
use memory::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What loading may hold at once: far above what these folders of a few hundred kilobytes account for, far below what
/// a size that lies would ask for.
const MAX_BYTES: usize = 32 << 20;
/// Tokens that a loaded model is tried on.
const IDS: [i64; 5] = [3, 1, 4, 1, 5];

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, need a number")),
        Err(_) => default,
    }
}

/// The folders, and each of those once more with its weights in shards.
fn folders() -> Vec<Files> {
    let root = folder::locate("GATEKIT_CHECKPOINT_DIR", "checkpoints").expect("a folder of checkpoints");
    let mut folders = Vec::new();
    for path in folder::entries(&root).expect("listed").into_iter().filter(|path| path.is_dir()) {
        let model = from_pretrained(&path, &Device::flex())
            .unwrap_or_else(|error| panic!("an undamaged folder must load: {error}"));
        folders.push(Files::read(&path));
        let shards = tempfile::tempdir().expect("a temporary folder");
        model.save_pretrained(shards.path(), Some(40_000)).expect("saved");
        let sharded = Files::read(shards.path());
        assert!(sharded.0.len() > 3, "{} in shards", path.display());
        folders.push(sharded);
    }
    assert!(!folders.is_empty(), "no checkpoint in {}", root.display());
    folders
}

#[test]
fn damaged_folders_give_a_model_or_an_error() {
    let folders = folders();
    let cases = u32::try_from(number("GATEKIT_FUZZ_CASES", 1000)).expect("a number of cases");
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number("GATEKIT_FUZZ_SEED", 0).to_le_bytes());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));

    let outcomes: RefCell<BTreeMap<&str, usize>> = RefCell::default();
    let highest = Cell::new(0);
    let outcome = runner.run(&damages(folders.len()), |(which, damages)| {
        let (kind, bytes) = attempt(&folders, which, &damages)?;
        *outcomes.borrow_mut().entry(kind).or_default() += 1;
        highest.set(highest.get().max(bytes));
        Ok(())
    });
    let (outcomes, highest) = (outcomes.into_inner(), highest.get());
    println!("{cases} damaged folders: {outcomes:?}, at most {highest} bytes held");
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
    if cases >= 1000 {
        for kind in ["a model", "Io", "Malformed", "Tensor", "Config"] {
            assert!(outcomes.contains_key(kind), "no case ended as {kind}: {outcomes:?}");
        }
    }
}

/// Damages the files, loads them, and says how it went and how many bytes were held at most.
fn attempt(
    folders: &[Files],
    which: usize,
    damages: &[Damage],
) -> Result<(&'static str, usize), TestCaseError> {
    let mut files = folders[which].clone();
    for damage in damages {
        damage.apply(&mut files, folders);
    }
    let place = tempfile::tempdir().expect("a temporary folder");
    files.write(place.path());

    let before = memory::start();
    let loaded = catch_unwind(AssertUnwindSafe(|| from_pretrained(place.path(), &Device::flex())));
    let bytes = memory::peak() - before;
    let fail = |reason: String| Err(TestCaseError::fail(reason));
    if bytes > MAX_BYTES {
        return fail(format!("{bytes} bytes were held"));
    }
    let kind = match loaded {
        Err(_) => return fail("loading panicked".to_string()),
        Ok(Ok(model)) => {
            if damages.iter().all(Damage::leaves_values)
                && catch_unwind(AssertUnwindSafe(|| run(&model))).is_err()
            {
                return fail("the loaded model panicked".to_string());
            }
            "a model"
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            if !text.contains(&place.path().display().to_string()) {
                return fail(format!("the error names no file: {text}"));
            }
            match error {
                CheckpointError::Io { .. } => "Io",
                CheckpointError::Malformed { .. } => "Malformed",
                CheckpointError::Tensor { .. } => "Tensor",
                CheckpointError::Config { .. } => "Config",
            }
        }
    };
    Ok((kind, bytes))
}

/// A model that was loaded can be used.
fn run(model: &AutoModel) {
    let ids = Tensor::<1, Int>::from_data(IDS, &Device::flex()).unsqueeze_dim::<2>(0);
    model.forward(ids, None).into_data();
}
