//! The variants, trained and measured.

use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};
use gatekit::core::{InputError, ModuleConfig};
use gatekit::fusion::two_views::{
    SingleViewConfig, SingleViewDetector, SpoofOutput, StatisticsBackend, Strategy, ViewDetector,
    ViewDetectorConfig, equal_error_rate, spoof_loss,
};
use gatekit_examples::{Condition, ExampleError, Training, progress, tasks, train};
use rand::RngExt;

use crate::clips::{Clips, Views};
use crate::speech::Forgery;

/// Fused width, and that of the pooling's attention.
const WIDTH: usize = 32;
const BATCH: usize = 32;
/// Two forged clips come for a genuine one.
const CLASS_WEIGHTS: [f64; 2] = [1.0 / 3.0, 2.0 / 3.0];
/// The views' names in tables.
pub const VIEWS: [&str; 2] = ["self-supervised", "spectral"];

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// The self-supervised view alone.
    Ssl,
    /// The spectral view alone.
    Spectral,
    /// Both, fused.
    Both(Strategy),
}

impl Variant {
    /// Each view alone and the four fusions.
    pub const ALL: [Variant; 6] = [
        Variant::Ssl,
        Variant::Spectral,
        Variant::Both(Strategy::Concat),
        Variant::Both(Strategy::CrossAttention),
        Variant::Both(Strategy::Mutual),
        Variant::Both(Strategy::Gate),
    ];

    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ssl => VIEWS[0],
            Self::Spectral => VIEWS[1],
            Self::Both(Strategy::Concat) => "concat",
            Self::Both(Strategy::CrossAttention) => "cross attention",
            Self::Both(Strategy::Mutual) => "mutual",
            Self::Both(Strategy::Gate) => "gate",
        }
    }
}

/// A detector over one view or both.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // There is one at a time.
pub enum Detector {
    /// The self-supervised view alone.
    Ssl(SingleViewDetector),
    /// The spectral view alone.
    Spectral(SingleViewDetector),
    /// Both.
    Both(ViewDetector<StatisticsBackend>),
}

impl Detector {
    fn new(variant: Variant, clips: &Clips, device: &Device) -> Result<Self, ExampleError> {
        let [[_, d_ssl], [_, d_spectral]] = clips.dims();
        let single =
            |width| SingleViewConfig::new(width).with_d_model(WIDTH).with_d_attention(WIDTH).try_init(device);
        Ok(match variant {
            Variant::Ssl => Self::Ssl(single(d_ssl)?),
            Variant::Spectral => Self::Spectral(single(d_spectral)?),
            Variant::Both(strategy) => {
                let config = ViewDetectorConfig::new(d_ssl, d_spectral)
                    .with_d_model(WIDTH)
                    .with_d_attention(WIDTH)
                    .with_strategy(strategy);
                Self::Both(config.try_init(device)?)
            }
        })
    }

    /// Judges clips.
    pub fn forward(&self, views: Views) -> Result<SpoofOutput, InputError> {
        match self {
            Self::Ssl(detector) => detector.forward(views.ssl),
            Self::Spectral(detector) => detector.forward(views.spectral),
            Self::Both(detector) => detector.forward(views.ssl, views.spectral),
        }
    }

    /// A detector trained on genuine clips and those forged in the ways that are `seen`.
    pub fn trained(
        variant: Variant,
        clips: &Clips,
        seen: &[Forgery],
        (steps, seed): (usize, u64),
        device: &Device,
    ) -> Result<Self, ExampleError> {
        device.seed(seed);
        let detector = Self::new(variant, clips, device)?;
        let training = Training {
            steps,
            learning_rate: 3e-3,
            warmup: steps / 10,
            weight_decay: 1e-4,
            ..Training::default()
        };
        let (rows, mut random) = (clips.of(seen), tasks::random(seed));
        let autodiff = device.clone().autodiff();
        let bar = progress(steps, &format!("{} {seed}", variant.name()));
        let (detector, _) = train(detector, &training, &bar, |detector, _| {
            let rows: Vec<usize> = (0..BATCH).map(|_| rows[random.random_range(0..rows.len())]).collect();
            let output = detector.forward(clips.views(&rows, &autodiff)).expect("views fit");
            let labels = clips.label_tensor(&rows, &autodiff);
            spoof_loss(output.logits, labels, CLASS_WEIGHTS).expect("labels are classes")
        });
        Ok(detector)
    }

    /// Scores of all `clips` with a view as in training, removed or noisy.
    pub fn scores(
        &self,
        clips: &Clips,
        condition: Condition<'_>,
        device: &Device,
    ) -> Result<Vec<f64>, ExampleError> {
        device.seed(11);
        let rows: Vec<usize> = (0..clips.kinds.len()).collect();
        let mut scores = Vec::with_capacity(rows.len());
        for rows in rows.chunks(128) {
            let output = self.forward(spoiled(clips.views(rows, device), condition))?;
            scores.extend(output.score().into_data().iter::<f64>());
        }
        Ok(scores)
    }
}

/// A view in this condition: removed is 0, and noise is normal like the view, whose channels have about mean 0 and
/// variance 1.
fn spoiled(views: Views, condition: Condition<'_>) -> Views {
    let spoil = |view: Tensor<3>, name: &str| match condition {
        Condition::Removed(of) if of == name => view.zeros_like(),
        Condition::Noise(of) if of == name => view.random_like(Distribution::Normal(0.0, 1.0)),
        _ => view,
    };
    Views { ssl: spoil(views.ssl, VIEWS[0]), spectral: spoil(views.spectral, VIEWS[1]) }
}

/// The equal error rate between the genuine clips and those of these forgeries.
pub fn rate(clips: &Clips, scores: &[f64], forgeries: &[Forgery]) -> Result<f64, ExampleError> {
    let rows = clips.of(forgeries);
    let scores: Vec<f64> = rows.iter().map(|row| scores[*row]).collect();
    Ok(equal_error_rate(&scores, &clips.labels(&rows))?.rate)
}
