//! `touchformer`: gates of sensors, the encoder between them, the network, and the regularisation.

use burn::tensor::{Device, Tensor};
use gatekit::core::ModuleConfig;
use gatekit::core::checkpoint::TensorLayout;
use gatekit::core::cross_modal::ModalityMask;
use gatekit::fusion::touchformer::{
    CrossModalEncoderConfig, ModalityGatingConfig, SensorWeights, Source, TouchFormerConfig,
    TouchFormerLossConfig,
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "modality-adaptive-gating", run: run_gating },
    Row { component: "crossmodal-encoder", run: run_encoder },
    Row { component: "touchformer", run: run_model },
    Row { component: "cross-instance-regularization", run: run_regularization },
];

/// `x_m`, and `mask_m` with `present`; a mask that is not there hides nothing.
fn sensors(evaluation: &mut Evaluation<'_>, count: usize) -> Result<(Vec<Tensor<3>>, ModalityMask)> {
    let x = (0..count).map(|m| evaluation.float(&format!("x_{m}"))).collect::<Result<Vec<Tensor<3>>>>()?;
    let steps: Vec<usize> = x.iter().map(|x| x.dims()[1]).collect();
    let full = ModalityMask::full(x[0].dims()[0], &steps, evaluation.device());
    let present = evaluation.optional_bool("present")?.unwrap_or_else(|| full.present());
    let masks = (0..count).map(|m| {
        let mask = evaluation.optional_bool(&format!("mask_{m}"))?;
        Ok(mask.unwrap_or_else(|| full.steps(m).clone()))
    });
    let masks = masks.collect::<Result<_>>()?;
    let mask = ModalityMask::new(present, masks).map_err(|error| Failure(error.to_string()))?;
    Ok((x, mask))
}

fn weights(evaluation: &mut Evaluation<'_>, weights: SensorWeights) -> Result<()> {
    evaluation.output("gates", weights.gates)?;
    evaluation.output("weights", weights.weights)
}

fn run_gating(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ModalityGatingConfig::new(fields.required("dim")?, fields.required("num_modalities")?)
            .with_gate_hidden(fields.optional("gate_hidden")?)
            .with_gate_shared(fields.with_default("gate_shared", true)?)
            .with_gate_threshold(fields.with_default("gate_threshold", 0.3)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let layout = config.tensor_layout(TensorLayout::default(), "", "mag.");
        let module = evaluation.load_as(module, &layout)?;
        let (x, mask) = sensors(evaluation, config.num_modalities)?;
        let (y, sensors) = module.forward(&x, &mask);
        for (m, y) in y.into_iter().enumerate() {
            evaluation.output(&format!("y_{m}"), y)?;
        }
        weights(evaluation, sensors)
    })
}

fn run_encoder(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = CrossModalEncoderConfig::new(fields.required("dim")?)
            .with_num_heads(fields.with_default("num_heads", 4)?)
            .with_layers(fields.with_default("layers", 3)?)
            .with_attn_mask(fields.with_default("attn_mask", false)?)
            .with_attn_dropout(0.0)
            .with_relu_dropout(0.0)
            .with_res_dropout(0.0);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load(module)?;
        let x = evaluation.float::<3>("x")?;
        let x_mask = evaluation.optional_bool("x_mask")?;
        let mask = evaluation.optional_bool("source_mask")?;
        let source = evaluation.optional_float("source")?.map(|features| Source { features, mask });
        evaluation.output("y", module.forward(x, x_mask.as_ref(), source))
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = TouchFormerConfig::new(fields.required("input_dims")?, fields.required("output_dim")?)
            .with_kernel_sizes(fields.optional("kernel_sizes")?)
            .with_dim(fields.with_default("dim", 32)?)
            .with_num_heads(fields.with_default("num_heads", 4)?)
            .with_layers(fields.with_default("layers", 3)?)
            .with_memory_layers(fields.with_default("memory_layers", 3)?)
            .with_attn_mask(fields.with_default("attn_mask", false)?)
            .with_gate_hidden(fields.optional("gate_hidden")?)
            .with_gate_shared(fields.with_default("gate_shared", true)?)
            .with_gate_threshold(fields.with_default("gate_threshold", 0.3)?)
            .with_attn_dropout(0.0)
            .with_relu_dropout(0.0)
            .with_res_dropout(0.0)
            .with_embed_dropout(0.0)
            .with_out_dropout(0.0);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &config.tensor_layout())?;
        let (x, mask) = sensors(evaluation, config.input_dims.len())?;
        let output = module.forward(&x, &mask);
        evaluation.output("logits", output.logits)?;
        evaluation.output("embedding", output.embedding)?;
        weights(evaluation, output.weights)
    })
}

fn run_regularization(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let loss = TouchFormerLossConfig::new()
            .with_temperature(fields.with_default("temperature", 0.2)?)
            .with_regularization_weight(fields.with_default("regularization_weight", 0.1)?);
        fields.finish()?;
        let (embedding, logits) = (evaluation.float("embedding")?, evaluation.float("logits")?);
        let labels = evaluation.int("labels")?;
        let losses = loss.try_init()?.forward(logits, embedding, &labels)?;
        evaluation.output("regularization", losses.regularization)?;
        evaluation.output("loss", losses.total)
    })
}
