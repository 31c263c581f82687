//! `irregular-ehr`: time attention, carry-forward, the two embeddings and their gate, the fusion, and the model.

use burn::tensor::{Bool, Device, Tensor};
use gatekit::core::checkpoint::TensorLayout;
use gatekit::core::gate::GateLevel;
use gatekit::core::{ModuleConfig, time_embedding::TimeEmbeddingConfig};
use gatekit::fusion::irregular_ehr::{
    CarryForward, EhrBatch, EhrLabels, InterleavedEncoderConfig, IrregularEhrConfig,
    MultiTimeAttentionConfig, Task, UtdeConfig, carry_forward,
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "time-attention", run: run_time_attention },
    Row { component: "carry-forward", run: run_carry_forward },
    Row { component: "utde", run: run_utde },
    Row { component: "interleaved-encoder", run: run_encoder },
    Row { component: "model", run: run_model },
];

fn mask<const D: usize>(evaluation: &mut Evaluation<'_>, name: &str) -> Result<Tensor<D, Bool>> {
    evaluation.optional_bool(name)?.ok_or_else(|| Failure(format!("the case lacks `input.{name}`")))
}

fn run_time_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let embed_time = fields.with_default("embed_time", 64)?;
        let config =
            MultiTimeAttentionConfig::new(fields.required("d_value")?, fields.with_default("d_model", 128)?)
                .with_grid(fields.with_default("grid", 48)?)
                .with_embed_time(embed_time)
                .with_time_heads(fields.with_default("time_heads", 8)?)
                .with_dropout(fields.with_default("dropout", 0.0)?);
        fields.finish()?;
        let module = (
            TimeEmbeddingConfig::new(embed_time).try_init(evaluation.device())?,
            config.try_init(evaluation.device())?,
        );
        let layout = TensorLayout::default().with_prefix("0.", "").with_prefix("1.", "time_attn.");
        let (time, attention) = evaluation.load_as(module, &layout)?;
        let mask = match case.inputs.get("mask").map(|mask| mask.shape.len()) {
            Some(2) => mask::<2>(evaluation, "mask")?.unsqueeze_dim(2),
            _ => mask::<3>(evaluation, "mask")?,
        };
        let (values, times) = (evaluation.float("values")?, evaluation.float("times")?);
        evaluation.output("embedding", attention.forward(&time, values, times, &mask))
    })
}

fn run_carry_forward(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let how = CarryForward::new(
            fields.with_default("grid", 48)?,
            fields.with_default("hours_per_step", 1.0)?,
            fields.with_default("fill", 0.0)?,
        )?;
        fields.finish()?;
        let mask = mask::<3>(evaluation, "mask")?;
        let regular = carry_forward(&evaluation.float("values")?, &mask, &evaluation.float("hours")?, &how)?;
        evaluation.output("regular", regular)
    })
}

fn run_utde(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = UtdeConfig::new(fields.with_default("d_in", 17)?)
            .with_grid(fields.with_default("grid", 48)?)
            .with_embed_time(fields.with_default("embed_time", 64)?)
            .with_time_heads(fields.with_default("time_heads", 8)?)
            .with_d_model(fields.with_default("d_model", 128)?)
            .with_gate_level(fields.with_default("gate_level", GateLevel::BatchSeqFeature)?)
            .with_dropout(fields.with_default("dropout", 0.0)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &UtdeConfig::tensor_layout(""))?;
        let mask = mask::<3>(evaluation, "mask")?;
        let (values, times) = (evaluation.float("values")?, evaluation.float("times")?);
        let series = module.forward(values, times, &mask, evaluation.float("regular")?);
        evaluation.output("embedding", series.embedding)?;
        evaluation.output("gate", series.gate)?;
        evaluation.output("interpolated", series.interpolated)?;
        evaluation.output("imputed", series.imputed)
    })
}

fn run_encoder(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = InterleavedEncoderConfig::new()
            .with_grid(fields.with_default("grid", 48)?)
            .with_d_model(fields.with_default("d_model", 128)?)
            .with_heads(fields.with_default("heads", 8)?)
            .with_cross_layers(fields.with_default("cross_layers", 3)?)
            .with_dropout(fields.with_default("dropout", 0.0)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load(module)?;
        let [text, series] = module.forward(evaluation.float("text")?, evaluation.float("series")?);
        evaluation.output("text", text)?;
        evaluation.output("series", series)
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = IrregularEhrConfig::new()
            .with_d_in(fields.with_default("d_in", 17)?)
            .with_grid(fields.with_default("grid", 48)?)
            .with_embed_time(fields.with_default("embed_time", 64)?)
            .with_time_heads(fields.with_default("time_heads", 8)?)
            .with_d_model(fields.with_default("d_model", 128)?)
            .with_gate_level(fields.with_default("gate_level", GateLevel::BatchSeqFeature)?)
            .with_heads(fields.with_default("heads", 8)?)
            .with_cross_layers(fields.with_default("cross_layers", 3)?)
            .with_note_dim(fields.with_default("note_dim", 768)?)
            .with_task(fields.with_default("task", Task::Binary)?)
            .with_classes(fields.optional("classes")?)
            .with_hours_per_step(fields.with_default("hours_per_step", 1.0)?)
            .with_fill(fields.with_default("fill", 0.0)?)
            .with_dropout(fields.with_default("dropout", 0.0)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &config.tensor_layout())?;
        let batch = EhrBatch {
            values: evaluation.float("values")?,
            times: evaluation.float("times")?,
            mask: mask(evaluation, "mask")?,
            regular: evaluation.float("regular")?,
            notes: evaluation.float("notes")?,
            note_times: evaluation.float("note_times")?,
            note_mask: mask(evaluation, "note_mask")?,
        };
        let labels = match config.task {
            Task::Binary => EhrLabels::Binary(evaluation.int("labels")?),
            Task::Multilabel => EhrLabels::Multilabel(evaluation.int("labels")?),
        };
        let output = module.forward(&batch);
        evaluation.output("gate", output.series.gate)?;
        evaluation.output("logits", output.logits.clone())?;
        match config.task {
            Task::Binary => evaluation.output("probability", output.probability.squeeze_dim::<1>(1))?,
            Task::Multilabel => evaluation.output("probability", output.probability)?,
        }
        evaluation.output("loss", module.loss(output.logits, &labels)?)
    })
}
