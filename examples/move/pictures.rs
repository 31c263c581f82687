//! Class-conditional pictures: 8 x 8 grids of 32 codes from a source that is known.

use std::fmt::Write as _;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use gatekit::core::ModuleConfig;
use gatekit::core::probe::LinePlot;
use gatekit::sequence::GenerateConfig;
use gatekit::sequence::mixture_of_value_embeddings::{MoveImageConfig, MoveImageModel, ValueMemory};
use gatekit_examples::{ExampleError, Experiment, Results, Trainer, Training, progress, tasks};
use rand::RngExt;
use rand::rngs::StdRng;

const GRID: usize = 8;
const CODES: usize = 32;
const CLASSES: usize = 6;
const LAYERS: usize = 4;
const BATCH: usize = 8;
/// Share of classes dropped in training, for guidance.
const DROPPED: f64 = 0.1;
/// Pictures of a class that are drawn at the end.
const DRAWN: usize = 2;

/// A source of pictures: stripes of a slope, a period and a palette that are the class's own, from a random phase,
/// with some codes replaced at random.
struct Source;

impl Source {
    /// The colour of a cell, as its class has it.
    fn code(class: usize, phase: usize, row: usize, column: usize) -> usize {
        // Slopes, and a palette of four codes a class that overlaps with the next one's.
        let (down, across) = [(1, 0), (0, 1), (1, 1), (1, 3), (2, 1), (3, 2)][class];
        let stripe = (down * row + across * column + phase) % 4;
        (class * 5 + stripe * 3) % CODES
    }

    fn picture(class: usize, random: &mut StdRng) -> Vec<i64> {
        let phase = random.random_range(0..4);
        (0..GRID * GRID)
            .map(|cell| match random.random_range(0..10) {
                0 => random.random_range(0..CODES) as i64,
                _ => Self::code(class, phase, cell / GRID, cell % GRID) as i64,
            })
            .collect()
    }

    /// Pictures and their classes.
    fn batch(size: usize, random: &mut StdRng, device: &Device) -> (Tensor<2, Int>, Tensor<1, Int>) {
        let classes: Vec<usize> = (0..size).map(|_| random.random_range(0..CLASSES)).collect();
        let codes: Vec<i64> = classes.iter().flat_map(|class| Self::picture(*class, random)).collect();
        let classes: Vec<i64> = classes.into_iter().map(|class| class as i64).collect();
        (
            Tensor::from_data(TensorData::new(codes, [size, GRID * GRID]), device),
            Tensor::from_data(TensorData::new(classes, [size]), device),
        )
    }

    /// Share of a picture's codes that are right for the class in its best phase.
    fn fidelity(class: usize, picture: &[usize]) -> f64 {
        let right = |phase| {
            let fits =
                |(cell, code): (usize, &usize)| *code == Self::code(class, phase, cell / GRID, cell % GRID);
            picture.iter().enumerate().filter(|cell| fits(*cell)).count()
        };
        (0..4).map(right).max().unwrap_or(0) as f64 / picture.len() as f64
    }
}

/// Trains a model without a memory, with tables of single layers, and with a shared bank.
pub fn compare(
    experiment: &Experiment,
    device: &Device,
    out: &Path,
) -> Result<(Results, LinePlot), ExampleError> {
    let base = || MoveImageConfig::new(CODES, LAYERS, 4, 32).with_num_classes(CLASSES).with_grid_size(GRID);
    let base = || base().with_ffn_dim(Some(96));
    let variants = [
        ("standard", base().with_memory(ValueMemory::None)),
        ("LaVE x1", base().with_memory(ValueMemory::LayerWise { every: 2 })),
        ("MoVE x1", base().with_memory(ValueMemory::Global { slots: LAYERS / 2 })),
    ];
    let training = Training {
        steps: experiment.steps(160, 8),
        learning_rate: 3e-3,
        warmup: experiment.steps(16, 2),
        weight_decay: 0.05,
        clip: 1.0,
    };
    let mut results = Results::new();
    let mut plot = LinePlot::new("Pictures", "step", "loss, nats a code");
    for (name, config) in variants {
        let mut curve = vec![0.0; training.steps];
        for seed in experiment.seeds() {
            device.seed(seed);
            let (model, losses) = train(name, &config, &training, seed, device)?;
            curve.iter_mut().zip(&losses).for_each(|(sum, loss)| *sum += loss);
            let (codes, classes) = Source::batch(64, &mut tasks::random(seed ^ 0xbeef), device);
            let loss = model.loss(model.forward(codes.clone(), classes), codes)?.into_scalar::<f64>();
            results.record(name, "loss", seed, loss);
            for guidance in [1.0, 2.0] {
                let drawn = draw(&model, guidance, seed, experiment.steps(GRID * GRID, 4))?;
                let fidelity =
                    drawn.iter().map(|(class, picture)| Source::fidelity(*class, picture)).sum::<f64>();
                let metric = format!("true to class, guidance {guidance}");
                results.record(name, &metric, seed, fidelity / drawn.len() as f64);
                if name == "MoVE x1" && seed == experiment.seed {
                    let file = out.join(format!("samples-{guidance}.svg"));
                    std::fs::write(&file, svg(&drawn)).map_err(ExampleError::io(&file))?;
                }
            }
        }
        let count = experiment.seeds().count() as f64;
        // Means of neighbouring steps: single losses are noisy.
        let width = training.steps.div_ceil(16);
        let points = curve.chunks(width).enumerate().map(|(index, losses)| {
            let mean = losses.iter().sum::<f64>() / losses.len() as f64 / count;
            ((index * width + losses.len()) as f64, mean)
        });
        plot = plot.with_series(name, points);
    }
    Ok((results, plot))
}

fn train(
    name: &str,
    config: &MoveImageConfig,
    training: &Training,
    seed: u64,
    device: &Device,
) -> Result<(MoveImageModel, Vec<f64>), ExampleError> {
    let mut random = tasks::random(seed);
    let on = device.clone().autodiff();
    let mut trainer = Trainer::new(config.try_init(device)?, training)?;
    let mut losses = Vec::with_capacity(training.steps);
    let bar = progress(training.steps, &format!("pictures, {name}"));
    for _ in 0..training.steps {
        let (codes, classes) = Source::batch(BATCH, &mut random, &on);
        let chance = Tensor::random([BATCH], Distribution::Uniform(0.0, 1.0), &on);
        let classes = trainer.model.drop_classes(classes, chance, DROPPED);
        let logits = trainer.model.forward(codes.clone(), classes);
        let loss = trainer.model.loss(logits, codes)?;
        losses.push(trainer.step(loss));
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((trainer.model.valid(), losses))
}

/// Pictures of every class.
fn draw(
    model: &MoveImageModel,
    guidance: f64,
    seed: u64,
    codes: usize,
) -> Result<Vec<(usize, Vec<usize>)>, ExampleError> {
    let classes: Vec<usize> = (0..CLASSES).flat_map(|class| [class; DRAWN]).collect();
    let pictures = model.generate(&classes, guidance, &GenerateConfig::new(codes).with_seed(seed))?;
    Ok(classes.into_iter().zip(pictures).collect())
}

/// Pictures side by side, a column a class, every code a colour.
fn svg(pictures: &[(usize, Vec<usize>)]) -> String {
    const CELL: usize = 10;
    let side = (GRID + 1) * CELL;
    let (width, height) = (CLASSES * side, DRAWN * side);
    let mut svg =
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\">\n");
    for (index, (class, picture)) in pictures.iter().enumerate() {
        for (cell, code) in picture.iter().enumerate() {
            let (x, y) = (class * side + cell % GRID * CELL, index % DRAWN * side + cell / GRID * CELL);
            let hue = code * 360 / CODES;
            let _ = writeln!(
                svg,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"hsl({hue},60%,55%)\"/>"
            );
        }
    }
    svg + "</svg>\n"
}
