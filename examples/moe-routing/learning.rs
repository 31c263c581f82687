//! Training on either task, with what the routers did on the way.

use std::f64::consts::LN_2;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::dispatch::{Capacity, Priority};
use gatekit::sequence::lm::{IGNORED_LABEL, Targets};
use gatekit_examples::tasks::Corpus;
use gatekit_examples::{ExampleError, Trainer, Training, progress, tasks};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::network::{Load, Network, Task, VOCABULARY};
use crate::variants::Variant;

/// Windows of a batch, in training and when judged.
pub const BATCH: usize = 8;
/// Bytes of a window.
pub const WINDOW: usize = 64;
/// Share of bytes that are masked.
const MASKED: f64 = 0.2;
/// What stands for a masked byte: no text holds it.
const MASK: i64 = 0;

/// A trained model and how it got there.
pub struct Learned {
    /// Without gradients.
    pub network: Network,
    /// Cross entropy of every step's batch in bits a byte.
    pub bits: Vec<f64>,
    /// How every layer used its experts in every step.
    pub loads: Vec<Vec<Load>>,
}

/// Inputs and targets of one batch.
struct Lesson {
    inputs: Tensor<2, Int>,
    targets: Targets,
}

/// Windows `[batch, time]` as a lesson of `task`.
fn lesson(
    ids: Tensor<2, Int>,
    task: Task,
    random: &mut StdRng,
    device: &Device,
) -> Result<Lesson, ExampleError> {
    let (dims, data) = (ids.dims(), ids.to_data());
    Ok(match task {
        Task::Next => Lesson { targets: Targets::new(&data, VOCABULARY, device)?, inputs: ids },
        Task::Masked => {
            let (mut inputs, mut targets) = (Vec::new(), Vec::new());
            for id in data.iter::<i64>() {
                let masked = random.random_bool(MASKED);
                inputs.push(if masked { MASK } else { id });
                targets.push(if masked { id } else { IGNORED_LABEL });
            }
            let targets = TensorData::new(targets, dims);
            Lesson {
                targets: Targets::aligned(&targets, IGNORED_LABEL, VOCABULARY, device)?,
                inputs: Tensor::from_data(TensorData::new(inputs, dims), device),
            }
        }
    })
}

/// Trains the model of `variant`.
pub fn learn(
    variant: &Variant,
    task: Task,
    corpus: &Corpus,
    training: &Training,
    seed: u64,
    device: &Device,
) -> Result<Learned, ExampleError> {
    device.seed(seed);
    let mut random = tasks::random(seed);
    let autodiff = device.clone().autodiff();
    let network = Network::new(variant, &frequencies(corpus), device)?;
    let mut trainer = Trainer::new(network, training)?;
    let fair = Capacity::new(1.0, Priority::Token)?;
    let name = match task {
        Task::Next => variant.name.to_string(),
        Task::Masked => format!("{}, masked", variant.name),
    };
    let bar = progress(training.steps, &name);
    let (mut bits, mut loads) = (Vec::new(), Vec::new());
    for _ in 0..training.steps {
        let (ids, _) = corpus.batch(BATCH, WINDOW, &mut random, &autodiff);
        let Lesson { inputs, targets } = lesson(ids, task, &mut random, &autodiff)?;
        let (logits, decisions) = trainer.model.forward(inputs, task)?;
        let loss = targets.cross_entropy(logits);
        let routings = decisions.iter().filter_map(|decision| decision.routing());
        let balance = variant.balance_loss(routings, [BATCH, WINDOW]);
        bits.push(loss.clone().into_scalar::<f64>() / LN_2);
        trainer.step(match balance {
            Some(balance) => loss + balance,
            None => loss,
        });
        trainer.model.rebalance(variant, &decisions);
        loads.push(decisions.iter().map(|decision| decision.load(fair)).collect());
        bar.set_message(format!("{:.3} bits a byte", bits[bits.len() - 1]));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Learned { network: trainer.model.valid(), bits, loads })
}

/// Held-out windows, a batch at a time.
pub fn held_out<'a>(
    corpus: &'a Corpus,
    windows: usize,
    device: &'a Device,
) -> impl Iterator<Item = Tensor<2, Int>> + 'a {
    let (ids, _) = corpus.validation(windows.next_multiple_of(BATCH), WINDOW, device);
    (0..windows.div_ceil(BATCH)).map(move |batch| ids.clone().narrow(0, batch * BATCH, BATCH))
}

/// Mean bits a byte on held-out windows, and the share of tokens that no expert took.
pub fn judge(
    network: &Network,
    task: Task,
    corpus: &Corpus,
    windows: usize,
    device: &Device,
) -> Result<(f64, f64), ExampleError> {
    // The same bytes are masked for every model.
    let mut random = tasks::random(0);
    let fair = Capacity::new(1.0, Priority::Token)?;
    let (mut nats, mut count, mut left_out, mut layers) = (0.0, 0, 0.0, 0);
    for ids in held_out(corpus, windows, device) {
        let Lesson { inputs, targets } = lesson(ids, task, &mut random, device)?;
        let (logits, decisions) = network.forward(inputs, task)?;
        nats += targets.negative_log_likelihood(logits).sum().into_scalar::<f64>();
        count += targets.count();
        left_out += decisions.iter().map(|decision| decision.load(fair).left_out).sum::<f64>();
        layers += decisions.len();
    }
    Ok((nats / count as f64 / LN_2, left_out / layers.max(1) as f64))
}

/// How often every byte is in the text to learn from.
fn frequencies(corpus: &Corpus) -> Vec<f64> {
    let mut frequencies = vec![0.0; VOCABULARY];
    for &byte in corpus.training() {
        frequencies[usize::from(byte)] += 1.0;
    }
    frequencies
}
