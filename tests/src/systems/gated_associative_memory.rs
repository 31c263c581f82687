//! `gated-associative-memory`: mixer, block and language model.

use burn::tensor::Device;
use gatekit::{
    core::{ModuleConfig, checkpoint::PretrainedConfig},
    sequence::{
        gated_associative_memory::{Fusion, GamBlock, GamBlockConfig, GamConfig, GamMixerConfig},
        lm::CausalLm,
    },
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Produced, once},
    failure::Result,
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "mixer", run: run_mixer },
    Row { component: "block", run: run_block },
    Row { component: "language-model", run: run_model },
];

fn mixer(fields: &mut Fields<'_>) -> Result<GamMixerConfig> {
    Ok(GamMixerConfig {
        embed_dim: fields.required("embed_dim")?,
        num_memory_slots: fields.with_default("num_memory_slots", 512)?,
        conv_kernel_size: fields.with_default("conv_kernel_size", 3)?,
        fusion: fields.with_default("fusion", Fusion::Gated)?,
    })
}

fn run_mixer(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = mixer(&mut fields)?;
        fields.finish()?;
        let mixer = config.try_init(evaluation.device())?;
        let mixer = evaluation.load_as(mixer, &GamBlock::layout(""))?;
        let x = evaluation.float("x")?;
        let history = evaluation.optional_float("history")?;
        let (y, history) = mixer.forward(x, None, history);
        evaluation.output("y", y)?;
        evaluation.output("history", history)
    })
}

fn run_block(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = GamBlockConfig { mixer: mixer(&mut fields)?, dropout: 0.0 };
        fields.with_default("dropout", 0.0)?;
        fields.finish()?;
        let block = config.try_init(evaluation.device())?;
        let block = evaluation.load_as(block, &GamBlock::layout(""))?;
        let x = evaluation.float("x")?;
        evaluation.output("y", block.forward(x, None, None).0)
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let mixer = mixer(&mut fields)?;
        let config = GamConfig {
            vocab_size: fields.required("vocab_size")?,
            embed_dim: mixer.embed_dim,
            num_layers: fields.required("num_layers")?,
            block_size: fields.with_default("block_size", 256)?,
            num_memory_slots: mixer.num_memory_slots,
            conv_kernel_size: mixer.conv_kernel_size,
            fusion: mixer.fusion,
            dropout: 0.0,
        };
        // Whatever a case says of dropout, it is off in all of them.
        fields.with_default("dropout", 0.0)?;
        fields.finish()?;
        let model = evaluation.load_as(config.try_init(evaluation.device())?, &config.layout())?;
        let logits = model.forward(evaluation.int("ids")?, None);
        if let Some(targets) = evaluation.optional_int("targets")? {
            evaluation.output("loss", model.loss_of_targets(logits.clone(), targets)?)?;
        }
        evaluation.output("logits", logits)
    })
}
