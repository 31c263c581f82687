//! `affine-scaled-attention`: the operation, the layer with its baselines, and the language model.

use burn::{
    module::RunningState,
    tensor::{Device, Tensor},
};
use gatekit::{
    core::{
        ModuleConfig,
        attention::{AttentionOptions, BiasCount, OutputGateKind, affine_row_mass, affine_scaled_attention},
        checkpoint::PretrainedConfig,
        gate::GateActivation,
        moving_average::MovingAverageConfig,
        sequence::Packing,
    },
    sequence::{
        CausalLm,
        affine_scaled::{
            AffineScaledAttentionConfig, AffineScaledModelConfig, AttentionVariant, ScaleActivation,
        },
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::Result,
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "affine-scaled-attention", run: run_operation },
    Row { component: "affine-scaled-attention-layer", run: run_layer },
    Row { component: "model", run: run_model },
];

/// As [`once`], always on a device with autodiff: only there averages move.
fn training_once(
    case: &Case,
    device: &Device,
    body: impl Fn(&mut Evaluation<'_>) -> Result<()>,
) -> Result<Vec<Produced>> {
    match case.cotangents.is_empty() {
        true => once(case, &device.clone().autodiff(), body),
        false => once(case, device, body),
    }
}

fn packing(evaluation: &mut Evaluation<'_>) -> Result<Option<Packing>> {
    let mask = evaluation.optional_bool("attention_mask")?;
    Ok(mask.map(|mask| Packing::from_mask_with_empty_rows(&mask)).transpose()?)
}

fn run_operation(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    training_once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let width = fields.with_default("clip_width", 5.0)?;
        let activation = match fields.with_default("alpha_activation", ScaleActivation::LinearClipping)? {
            ScaleActivation::LinearClipping => GateActivation::LinearClipping(width),
            ScaleActivation::Sigmoid => GateActivation::Sigmoid,
        };
        let momentum = fields.with_default("momentum", 0.9)?;
        let count = fields.with_default("bias_count", BiasCount::Sequence)?;
        let training: bool = fields.required("training")?;
        fields.finish()?;
        let (q, k, v) = (evaluation.float("q")?, evaluation.float("k")?, evaluation.float::<4>("v")?);
        let mut alpha = activation.apply(evaluation.float::<3>("alpha_logits")?);
        let packing = packing(evaluation)?;
        let buffer = evaluation.buffer("alpha_moving_average")?;
        let heads = alpha.dims()[2];
        let mut average =
            MovingAverageConfig::new(heads).with_momentum(momentum).try_init(&buffer.device())?;
        average.value = RunningState::new(buffer);
        average.set_training(training);

        let pack = |x: Tensor<4>| match &packing {
            None => x,
            Some(packing) => {
                let [batch, time, heads, dim] = x.dims();
                let x = packing.pack(x.reshape([batch, time, heads * dim]));
                let count = x.dims()[1];
                x.reshape([1, count, heads, dim])
            }
        };
        let unpack = |x: Tensor<3>| match &packing {
            None => x,
            Some(packing) => packing.unpack(x),
        };
        if let Some(packing) = &packing {
            alpha = packing.pack(alpha);
        }
        let [rows, steps, _] = alpha.dims();
        let mean = alpha.clone().reshape([rows * steps, heads]).mean_dim(0).squeeze_dim(0);
        let next = average.forward(mean);
        let boundaries = packing.as_ref().map(Packing::boundaries);
        let options = AttentionOptions::default();
        let (q, k, v) = (pack(q), pack(k), pack(v));
        let o = affine_scaled_attention(q, k, v, alpha.clone(), next.clone(), count, &options, boundaries);
        let [rows, steps, heads, dim] = o.dims();
        let o = unpack(o.reshape([rows, steps, heads * dim]));
        let [batch, time, _] = o.dims();
        evaluation.output("o", o.reshape([batch, time, heads, dim]))?;
        let mass = affine_row_mass(alpha, next.clone(), count, boundaries).swap_dims(1, 2);
        evaluation.output("row_mass", unpack(mass).swap_dims(1, 2))?;
        evaluation.output("next_average", next)
    })
}

/// The layer's fields, and whether the call trains.
fn layer(fields: &mut Fields<'_>) -> Result<(AffineScaledAttentionConfig, bool)> {
    let config = AffineScaledAttentionConfig {
        hidden_size: fields.required("hidden_size")?,
        num_heads: fields.required("num_heads")?,
        num_kv_heads: fields.optional("num_kv_heads")?,
        head_dim: fields.optional("head_dim")?,
        rope_theta: fields.with_default("rope_theta", Some(10000.0))?,
        variant: fields.with_default("variant", AttentionVariant::Affine)?,
        alpha_activation: fields.with_default("alpha_activation", ScaleActivation::LinearClipping)?,
        clip_width: fields.with_default("clip_width", 5.0)?,
        momentum: fields.with_default("momentum", 0.9)?,
        bias_count: fields.with_default("bias_count", BiasCount::Sequence)?,
        output_gate: fields.with_default("output_gate", OutputGateKind::None)?,
    };
    Ok((config, fields.with_default("training", false)?))
}

fn run_layer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    training_once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let (config, training) = layer(&mut fields)?;
        fields.finish()?;
        let layer = config.try_init(evaluation.device())?;
        let mut layer = evaluation.load_as(layer, &AffineScaledAttentionConfig::layout())?;
        layer.set_training(training);
        let x = evaluation.float("hidden_states")?;
        let packing = packing(evaluation)?;
        evaluation.output("output", layer.forward(x, packing.as_ref()))?;
        match &layer.alpha_moving_average {
            Some(average) => evaluation.output("next_average", average.average()),
            None => Ok(()),
        }
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    training_once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let (layer, training) = layer(&mut fields)?;
        let config = AffineScaledModelConfig {
            moe: None,
            vocab_size: fields.required("vocab_size")?,
            hidden_size: layer.hidden_size,
            num_hidden_layers: fields.required("num_hidden_layers")?,
            intermediate_size: fields.required("intermediate_size")?,
            num_heads: layer.num_heads,
            num_kv_heads: layer.num_kv_heads,
            head_dim: layer.head_dim,
            rope_theta: layer.rope_theta,
            variant: layer.variant,
            alpha_activation: layer.alpha_activation,
            clip_width: layer.clip_width,
            momentum: layer.momentum,
            bias_count: layer.bias_count,
            output_gate: layer.output_gate,
            rms_norm_eps: fields.with_default("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: fields.with_default("tie_word_embeddings", false)?,
        };
        fields.finish()?;
        let mut model = evaluation.load_as(config.try_init(evaluation.device())?, &config.layout())?;
        model.set_training(training);
        let input_ids = evaluation.int("input_ids")?;
        let mask = evaluation.optional_bool("attention_mask")?;
        let logits = model.forward(input_ids, mask);
        if let Some(labels) = evaluation.optional_int("labels")? {
            evaluation.output("loss", model.loss(logits.clone(), labels)?)?;
        }
        evaluation.output("logits", logits)?;
        if training {
            for (index, average) in model.moving_averages().into_iter().enumerate() {
                evaluation.output(&format!("next_average.{index}"), average)?;
            }
        }
        Ok(())
    })
}
