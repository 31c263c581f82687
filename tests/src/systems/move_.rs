//! `move`: the mixer, attention and latent attention around it, the text and the image model.

use burn::tensor::Device;
use gatekit::{
    core::{
        ModuleConfig,
        checkpoint::{PretrainedConfig, TensorLayout},
    },
    sequence::{
        lm::CausalLm,
        mixture_of_value_embeddings::{
            MoveAttentionConfig, MoveImageConfig, MoveLatentAttentionConfig, MoveTextConfig, ValueMixerConfig,
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
    Row { component: "value-mixer", run: run_mixer },
    Row { component: "attention", run: run_attention },
    Row { component: "mla-attention", run: run_latent_attention },
    Row { component: "text-model", run: run_text_model },
    Row { component: "image-model", run: run_image_model },
];

/// Machine epsilon of float32, the text models' default.
const EPSILON: f64 = f32::EPSILON as f64;

fn run_mixer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ValueMixerConfig {
            n_embd: fields.required("n_embd")?,
            n_kv_head: fields.required("n_kv_head")?,
            head_dim: fields.required("head_dim")?,
            move_slots: fields.required("move_slots")?,
            gate_standard: fields.with_default("gate_standard", true)?,
            gate_scale: fields.with_default("gate_scale", 2.0)?,
        };
        fields.finish()?;
        let mixer = evaluation.load(config.try_init(evaluation.device())?)?;
        let (x, v) = (evaluation.float("x")?, evaluation.float("v")?);
        let memory = evaluation.float("memory")?;
        let gates = mixer.gates(x);
        evaluation.output("v_mixed", mixer.mix(gates.clone(), v, memory))?;
        evaluation.output("gates", gates)
    })
}

/// The parameters of an attention stand beside those of its mixer.
fn flat() -> TensorLayout {
    TensorLayout::default().with_prefix("mixer.", "")
}

fn run_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = MoveAttentionConfig {
            n_embd: fields.required("n_embd")?,
            n_head: fields.required("n_head")?,
            n_kv_head: fields.optional("n_kv_head")?,
            head_dim: fields.optional("head_dim")?,
            move_slots: fields.optional("move_slots")?,
            gate_standard: fields.with_default("gate_standard", true)?,
            gate_scale: fields.with_default("gate_scale", 2.0)?,
            rope_base: fields.with_default("rope_base", 10000.0)?,
            norm_eps: fields.with_default("norm_eps", EPSILON)?,
            window_size: fields.with_default("window_size", 0)?,
        };
        fields.finish()?;
        let attention = evaluation.load_as(config.try_init(evaluation.device())?, &flat())?;
        let (x, memory) = (evaluation.float("x")?, evaluation.optional_float("memory")?);
        evaluation.output("y", attention.forward(x, memory, None))
    })
}

fn run_latent_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = MoveLatentAttentionConfig {
            n_embd: fields.required("n_embd")?,
            n_head: fields.required("n_head")?,
            mla_d_c: fields.required("mla_d_c")?,
            mla_d_c1: fields.required("mla_d_c1")?,
            mla_d_rope: fields.required("mla_d_rope")?,
            head_dim: fields.optional("head_dim")?,
            num_latent_groups: fields.optional("num_latent_groups")?,
            latent_target: fields.required("latent_target")?,
            move_slots: fields.optional("move_slots")?,
            gate_standard: fields.with_default("gate_standard", true)?,
            gate_scale: fields.with_default("gate_scale", 2.0)?,
            rope_base: fields.with_default("rope_base", 10000.0)?,
            norm_eps: fields.with_default("norm_eps", EPSILON)?,
            window_size: fields.with_default("window_size", 0)?,
        };
        fields.finish()?;
        let attention = evaluation.load_as(config.try_init(evaluation.device())?, &flat())?;
        let (x, memory) = (evaluation.float("x")?, evaluation.optional_float("memory")?);
        let (y, latent) = attention.forward(x, memory, None);
        evaluation.output("y", y)?;
        evaluation.output("latent", latent)
    })
}

fn run_text_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let config = text_model(evaluation)?;
        let model = evaluation.load_as(config.try_init(evaluation.device())?, &config.layout())?;
        let logits = model.forward(evaluation.int("ids")?, None);
        if let Some(targets) = evaluation.optional_int("targets")? {
            evaluation.output("loss", model.target_loss(logits.clone(), targets)?)?;
        }
        evaluation.output("logits", logits)
    })
}

fn text_model(evaluation: &Evaluation<'_>) -> Result<MoveTextConfig> {
    let mut fields: Fields<'_> = evaluation.config();
    let default = MoveTextConfig::d12();
    let config = MoveTextConfig {
        vocab_size: fields.required("vocab_size")?,
        n_layer: fields.required("n_layer")?,
        n_head: fields.required("n_head")?,
        n_embd: fields.required("n_embd")?,
        n_kv_head: fields.optional("n_kv_head")?,
        head_dim: fields.optional("head_dim")?,
        value_memory: fields.with_default("value_memory", default.value_memory)?,
        move_slots: fields.optional("move_slots")?,
        lave_every: fields.with_default("lave_every", default.lave_every)?,
        gate_standard: fields.optional("gate_standard")?,
        gate_scale: fields.with_default("gate_scale", default.gate_scale)?,
        rope_base: fields.with_default("rope_base", default.rope_base)?,
        norm_eps: fields.with_default("norm_eps", default.norm_eps)?,
        window_size: fields.with_default("window_size", default.window_size)?,
        logit_softcap: fields.with_default("logit_softcap", default.logit_softcap)?,
        mla_d_c: fields.optional("mla_d_c")?,
        mla_d_c1: fields.optional("mla_d_c1")?,
        mla_d_rope: fields.optional("mla_d_rope")?,
        num_latent_groups: fields.optional("num_latent_groups")?,
        latent_target: fields.with_default("latent_target", default.latent_target)?,
    };
    fields.finish()?;
    Ok(config)
}

fn run_image_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let config = image_model(evaluation)?;
        let model = evaluation.load_as(config.try_init(evaluation.device())?, &config.layout())?;
        let codes = evaluation.int("codes")?;
        let logits = model.forward(codes.clone(), evaluation.int("labels")?);
        evaluation.output("loss", model.loss(logits.clone(), codes)?)?;
        evaluation.output("logits", logits)
    })
}

/// Without dropout where none is given: it would make a case random.
fn image_model(evaluation: &Evaluation<'_>) -> Result<MoveImageConfig> {
    let mut fields: Fields<'_> = evaluation.config();
    let default = MoveImageConfig::gpt_b();
    let config = MoveImageConfig {
        vocab_size: fields.required("vocab_size")?,
        n_layer: fields.required("n_layer")?,
        n_head: fields.required("n_head")?,
        n_embd: fields.required("n_embd")?,
        n_kv_head: fields.optional("n_kv_head")?,
        head_dim: fields.optional("head_dim")?,
        num_classes: fields.with_default("num_classes", default.num_classes)?,
        grid_size: fields.with_default("grid_size", default.grid_size)?,
        ffn_dim: fields.optional("ffn_dim")?,
        value_memory: fields.with_default("value_memory", default.value_memory)?,
        move_slots: fields.optional("move_slots")?,
        lave_every: fields.with_default("lave_every", default.lave_every)?,
        gate_standard: fields.optional("gate_standard")?,
        gate_scale: fields.with_default("gate_scale", default.gate_scale)?,
        rope_base: fields.with_default("rope_base", default.rope_base)?,
        norm_eps: fields.with_default("norm_eps", default.norm_eps)?,
        dropout: fields.with_default("dropout", 0.0)?,
    };
    fields.finish()?;
    Ok(config)
}
