//! `thor`: stochastic experts, the layers that have them, the consistency loss.

use burn::{module::Module, tensor::Device};
use gatekit::{
    core::{ModuleConfig, checkpoint::TensorLayout},
    experts::thor::{
        ConsistencyLoss, ExpertAssignment, ExpertLevel, StochasticExpertsConfig, StochasticFfn,
        ThorLayerConfig,
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
    Row { component: "stochastic-ffn", run: run_ffn },
    Row { component: "consistency-loss", run: run_loss },
    Row { component: "encoder-layer", run: run_encoder },
    Row { component: "decoder-layer", run: run_decoder },
];

fn experts(
    evaluation: &mut Evaluation<'_>,
    level: ExpertLevel,
    num_experts: usize,
) -> Result<ExpertAssignment> {
    Ok(match level {
        ExpertLevel::Token => {
            ExpertAssignment::from_tensor(level, &evaluation.int::<2>("experts")?, num_experts)?
        }
        ExpertLevel::Pass | ExpertLevel::Sentence => {
            ExpertAssignment::from_tensor(level, &evaluation.int::<1>("experts")?, num_experts)?
        }
    })
}

/// A layer of its own, under the names of a layer's feed-forward part.
#[derive(Module, Debug)]
struct Alone {
    ffn: StochasticFfn,
}

fn run_ffn(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let level = fields.required("level")?;
        let config = StochasticExpertsConfig {
            embed_dim: fields.required("embed_dim")?,
            ffn_dim: fields.required("ffn_dim")?,
            num_experts: fields.required("num_experts")?,
        };
        fields.finish()?;
        let layout = ThorLayerConfig::new(config.embed_dim, config.ffn_dim)
            .with_num_experts(Some(config.num_experts))
            .tensor_layout(TensorLayout::default(), "");
        let layer = Alone { ffn: config.try_init(evaluation.device())? };
        let layer = evaluation.load_as(layer, &layout)?;
        let experts = experts(evaluation, level, config.num_experts)?;
        let x = evaluation.float::<3>("x")?;
        evaluation.output("y", layer.ffn.forward(x, &experts)?)
    })
}

fn run_loss(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ConsistencyLoss {
            consistency_alpha: fields.with_default("consistency_alpha", 5.0)?,
            label_smoothing: fields.with_default("label_smoothing", 0.1)?,
            padding_idx: fields.with_default("padding_idx", 1)?,
        };
        fields.finish()?;
        config.check()?;
        let logits = [evaluation.float::<3>("logits_1")?, evaluation.float::<3>("logits_2")?];
        let target = evaluation.int::<2>("target")?;
        let parts = config.forward(logits, &target)?;
        evaluation.output("loss", parts.loss)?;
        evaluation.output("cross_entropy", parts.cross_entropy)?;
        evaluation.output("consistency", parts.consistency)?;
        evaluation.count_output("sample_size", &[parts.sample_size]);
        Ok(())
    })
}

/// The fields of a layer, without dropout: its draws are no part of a case.
fn layer(fields: &mut Fields<'_>) -> Result<(ThorLayerConfig, ExpertLevel)> {
    let config = ThorLayerConfig {
        embed_dim: fields.required("embed_dim")?,
        ffn_dim: fields.required("ffn_dim")?,
        num_heads: fields.required("num_heads")?,
        num_experts: Some(fields.required("num_experts")?),
        normalize_before: fields.with_default("normalize_before", false)?,
        layer_norm_eps: fields.with_default("layer_norm_eps", 1e-5)?,
        dropout: 0.0,
    };
    Ok((config, fields.required("level")?))
}

fn run_encoder(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let (config, level) = layer(&mut fields)?;
        fields.finish()?;
        let layout = config.tensor_layout(TensorLayout::default(), "");
        let layer = evaluation.load_as(config.try_init_encoder(evaluation.device())?, &layout)?;
        let experts = experts(evaluation, level, config.num_experts.unwrap_or_default())?;
        let x = evaluation.float::<3>("x")?;
        let padding = evaluation.optional_bool::<2>("padding_mask")?;
        evaluation.output("y", layer.forward(x, padding.as_ref(), Some(&experts))?)
    })
}

fn run_decoder(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let (config, level) = layer(&mut fields)?;
        fields.finish()?;
        let layout = config.tensor_layout(TensorLayout::default(), "");
        let layer = evaluation.load_as(config.try_init_decoder(evaluation.device())?, &layout)?;
        let experts = experts(evaluation, level, config.num_experts.unwrap_or_default())?;
        let x = evaluation.float::<3>("x")?;
        let padding = evaluation.optional_bool::<2>("padding_mask")?;
        let encoder_out = evaluation.float::<3>("encoder_out")?;
        let encoder_padding = evaluation.optional_bool::<2>("encoder_padding_mask")?;
        let y = layer.forward(x, padding.as_ref(), encoder_out, encoder_padding.as_ref(), Some(&experts))?;
        evaluation.output("y", y)
    })
}
