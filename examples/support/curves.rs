//! Learning the bytes of a text, judged on the way.

use std::time::Instant;

use burn::tensor::Device;
use gatekit::sequence::CausalLm;

use crate::error::ExampleError;
use crate::progress::progress;
use crate::tasks::{self, Corpus};
use crate::training::{Trainer, Training};

/// How to learn a text.
#[derive(Clone, Debug, PartialEq)]
pub struct TextTraining {
    /// Steps, learning rate and so on.
    pub training: Training,
    /// Windows of a step.
    pub batch: usize,
    /// Bytes of a window.
    pub time: usize,
    /// Held-out windows that judge.
    pub validation: usize,
    /// Steps from one judgement to the next; the first is before training, the last after it.
    pub every: usize,
}

/// One judgement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Steps of training so far.
    pub step: usize,
    /// Seconds of training so far, judgements not counted.
    pub seconds: f64,
    /// Bits per byte on the held-out windows.
    pub bits: f64,
}

/// Trains `model` on `corpus`; returns it without autodiff, and its judgements.
///
/// The windows depend on `seed` alone. A loss that is not finite ends the training.
///
/// # Errors
///
/// [`ExampleError`] when `text` describes no training, or the model knows less than 256 tokens.
///
/// # Panics
///
/// When a part of the corpus is shorter than a window, or the validation interval is 0.
pub fn learn_text<M: CausalLm>(
    model: M,
    corpus: &Corpus,
    text: &TextTraining,
    seed: u64,
    name: &str,
    device: &Device,
) -> Result<(M, Vec<CurvePoint>), ExampleError> {
    let mut trainer = Trainer::new(model, &text.training)?;
    let mut random = tasks::random(seed);
    let autodiff = device.clone().autodiff();
    let bar = progress(text.training.steps, name);
    let (mut curve, mut seconds) = (Vec::new(), 0.0);
    let judge = |model: &M, step, seconds| {
        let bits = corpus.bits_per_byte(&model.valid(), text.validation, text.time, device);
        CurvePoint { step, seconds, bits }
    };
    for step in 0..text.training.steps {
        if step % text.every == 0 {
            curve.push(judge(&trainer.model, step, seconds));
        }
        let start = Instant::now();
        let (inputs, labels) = corpus.batch(text.batch, text.time, &mut random, &autodiff);
        let loss = trainer.model.loss(trainer.model.forward(inputs, None), labels)?;
        let value = trainer.step(loss);
        seconds += start.elapsed().as_secs_f64();
        bar.set_message(format!("loss {value:.3}"));
        bar.inc(1);
        if !value.is_finite() {
            break;
        }
    }
    curve.push(judge(&trainer.model, text.training.steps, seconds));
    bar.finish_and_clear();
    Ok((trainer.model.valid(), curve))
}

/// The mean over the seeds of curves that were judged at the same steps: `x` (of a point) against bits.
pub fn mean_curve(curves: &[Vec<CurvePoint>], x: impl Fn(&CurvePoint) -> f64) -> Vec<(f64, f64)> {
    let shortest = curves.iter().map(Vec::len).min().unwrap_or(0);
    let mean = |index: usize, value: &dyn Fn(&CurvePoint) -> f64| {
        curves.iter().map(|curve| value(&curve[index])).sum::<f64>() / curves.len() as f64
    };
    (0..shortest).map(|index| (mean(index, &x), mean(index, &|point| point.bits))).collect()
}

#[cfg(test)]
mod tests {
    use gatekit::core::ModuleConfig;
    use gatekit::sequence::GlaConfig;

    use super::*;

    #[test]
    fn a_text_is_learned_and_judged_on_the_way() {
        let device = Device::default();
        device.seed(1);
        let corpus = Corpus::new(b"gates ".repeat(200));
        let model = GlaConfig::new(256, 16, 1).with_intermediate_size(Some(16)).init(&device);
        let training = Training { steps: 25, warmup: 2, learning_rate: 1e-2, ..Training::default() };
        let text = TextTraining { training, batch: 4, time: 24, validation: 2, every: 10 };
        let (_, curve) = learn_text(model, &corpus, &text, 3, "text", &device).expect("trained");
        assert_eq!(curve.iter().map(|point| point.step).collect::<Vec<_>>(), [0, 10, 20, 25]);
        assert!(curve[0].bits > 6.0 && curve[3].bits < 0.8 * curve[0].bits, "{curve:?}");
        assert!(curve[0].seconds == 0.0 && curve[3].seconds > 0.0);
    }

    #[test]
    fn curves_are_averaged_point_by_point() {
        let curve = |bits: &[f64]| -> Vec<CurvePoint> {
            let point = |(step, &bits): (usize, &f64)| CurvePoint { step, seconds: 2.0 * step as f64, bits };
            bits.iter().enumerate().map(point).collect()
        };
        let curves = [curve(&[8.0, 4.0, 3.0]), curve(&[6.0, 5.0])];
        assert_eq!(mean_curve(&curves, |point| point.seconds), [(0.0, 7.0), (2.0, 4.5)]);
        assert!(mean_curve(&[], |point| point.seconds).is_empty());
    }
}
