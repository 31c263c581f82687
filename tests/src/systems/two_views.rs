//! `two-views`: spectral front ends, the four fusions, the detector, the equal error rate.

use burn::tensor::{Device, Int, Tensor};
use gatekit::core::{ModuleConfig, checkpoint::TensorLayout};
use gatekit::fusion::two_views::{
    SpectralConfig, SpectralKind, Strategy, ViewDetectorConfig, ViewFusion, ViewFusionConfig,
    equal_error_rate,
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Produced, once},
    failure::{Failure, Result},
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "spectral", run: run_spectral },
    Row { component: "fusion", run: run_fusion },
    Row { component: "detector", run: run_detector },
    Row { component: "equal-error-rate", run: run_equal_error_rate },
];

fn run_spectral(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = SpectralConfig::new()
            .with_kind(fields.with_default("kind", SpectralKind::Lfcc)?)
            .with_sample_rate(fields.with_default("sample_rate", 16000)?)
            .with_hop(fields.with_default("hop", 160)?)
            .with_n_fft(fields.with_default("n_fft", 512)?)
            .with_filters(fields.optional("filters")?)
            .with_coefficients(fields.with_default("coefficients", 40)?)
            .with_top_db(fields.with_default("top_db", 80.0)?)
            .with_deltas(fields.with_default("deltas", 0)?)
            .with_f_min(fields.with_default("f_min", 31.25)?)
            .with_bins_per_octave(fields.with_default("bins_per_octave", 12)?)
            .with_resample_points(fields.with_default("resample_points", 96)?);
        fields.finish()?;
        let front_end = config.try_init(evaluation.device())?;
        let features = front_end.forward(evaluation.float("wave")?)?;
        evaluation.output("features", features)
    })
}

fn run_fusion(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ViewFusionConfig::new(fields.required("d_ssl")?, fields.required("d_spectral")?)
            .with_d_model(fields.with_default("d_model", 128)?)
            .with_heads(fields.with_default("heads", 1)?)
            .with_strategy(fields.with_default("strategy", Strategy::CrossAttention)?)
            .with_dropout(0.0);
        fields.finish()?;
        let fusion = config.try_init(evaluation.device())?;
        let fusion = evaluation.load_as(fusion, &ViewFusion::tensor_layout(TensorLayout::default(), ""))?;
        let views = fusion.forward(evaluation.float("ssl")?, evaluation.float("spectral")?)?;
        evaluation.output("fused", views.fused)?;
        views.gate.map_or(Ok(()), |gate| evaluation.output("gate", gate))
    })
}

fn run_detector(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ViewDetectorConfig::new(fields.required("d_ssl")?, fields.required("d_spectral")?)
            .with_d_model(fields.with_default("d_model", 128)?)
            .with_heads(fields.with_default("heads", 1)?)
            .with_strategy(fields.with_default("strategy", Strategy::CrossAttention)?)
            .with_d_attention(fields.with_default("d_attention", 128)?)
            .with_class_weights(fields.with_default("class_weights", [0.1, 0.9])?)
            .with_dropout(0.0);
        fields.finish()?;
        let detector = config.try_init(evaluation.device())?;
        let detector = evaluation.load_as(detector, &config.tensor_layout())?;
        let output = detector.forward(evaluation.float("ssl")?, evaluation.float("spectral")?)?;
        let loss = detector.loss(&output, evaluation.int("labels")?)?;
        evaluation.output("score", output.score())?;
        evaluation.output("logits", output.logits)?;
        evaluation.output("loss", loss)
    })
}

fn run_equal_error_rate(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        evaluation.config().finish()?;
        let scores = evaluation.float::<1>("scores")?.into_data();
        let labels: Tensor<1, Int> = evaluation.int("labels")?;
        let labels =
            labels.into_data().iter::<i64>().map(usize::try_from).collect::<std::result::Result<_, _>>();
        let labels: Vec<usize> = labels.map_err(|error| Failure(format!("`input.labels`: {error}")))?;
        let found = equal_error_rate(&scores.iter::<f64>().collect::<Vec<_>>(), &labels)?;
        let number = |value: f64| Tensor::<1>::from_data([value], evaluation.device());
        let (rate, threshold) = (number(found.rate), number(found.threshold));
        evaluation.output("eer", rate)?;
        evaluation.output("threshold", threshold)
    })
}
