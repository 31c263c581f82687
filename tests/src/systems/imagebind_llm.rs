//! `imagebind-llm`: the bind network, the visual cache, the injected attention and the model.

use burn::tensor::{Device, Tensor, TensorData};
use gatekit::{
    core::ModuleConfig,
    fusion::imagebind_llm::{
        BindNetworkConfig, FlatIndex, ImageBindLlmConfig, InjectedAttentionConfig, ModalityMix,
        VisualCacheConfig,
    },
};

use super::Row;
use crate::{
    array::Array,
    case::Case,
    evaluation::{Produced, once},
    failure::Result,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "bind-network", run: run_bind_network },
    Row { component: "visual-cache", run: run_visual_cache },
    Row { component: "gated-attention", run: run_attention },
    Row { component: "model", run: run_model },
];

fn run_bind_network(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = BindNetworkConfig::new(fields.required("modality_dim")?, fields.required("d_model")?)
            .with_bind_hidden(fields.optional("bind_hidden")?)
            .with_bind_blocks(fields.with_default("bind_blocks", 3)?)
            .with_legacy_bridge(fields.with_default("legacy_bridge", false)?);
        fields.finish()?;
        let network = config.try_init(evaluation.device())?;
        let network = evaluation.load_as(network, &config.tensor_layout())?;
        let feats = evaluation.float("feats")?;
        evaluation.output("visual", network.forward(feats)?)
    })
}

fn run_visual_cache(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = VisualCacheConfig::new()
            .with_cache_size(fields.with_default("cache_size", 10)?)
            .with_cache_t(fields.with_default("cache_t", 20.0)?)
            .with_cache_weight(fields.with_default("cache_weight", 0.5)?);
        fields.finish()?;
        let cache = config.try_init(FlatIndex::new(evaluation.buffer("cache")?)?)?;
        let weights = evaluation.float::<1>("weights")?.into_data().iter::<f64>().collect();
        let mixed = ModalityMix::new(weights)?.forward(evaluation.float("embeddings")?)?;
        let found = cache.forward(mixed.clone())?;
        let shape = [found.indices.len(), found.indices[0].len()];
        let indices: Vec<i64> = found.indices.concat().into_iter().map(|row| row as i64).collect();
        let indices = Tensor::from_data(TensorData::new(indices, shape), evaluation.device());
        evaluation.output("mixed", mixed)?;
        evaluation.output("retrieved", found.retrieved)?;
        evaluation.output("enhanced", found.enhanced)?;
        evaluation.int_output::<2>("indices", indices)
    })
}

fn run_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let visual = evaluation.optional_float::<3>("visual")?;
        let config = InjectedAttentionConfig::new(fields.required("d_model")?, fields.required("heads")?)
            .with_injected(visual.is_some())
            .with_lora_rank(fields.with_default("lora_rank", 0)?)
            .with_bias_tuning(fields.with_default("bias_tuning", false)?);
        fields.finish()?;
        let layer = config.try_init(evaluation.device())?;
        let layer = evaluation.load_as(layer, &InjectedAttentionConfig::tensor_layout())?;
        let x = evaluation.float::<3>("x")?;
        let [batch, time, _] = x.dims();
        // The same, token by token from the cache.
        let injected = visual.clone().map(|visual| layer.injection(visual, batch)).transpose()?;
        let (mut pieces, mut cache) = (Vec::new(), None);
        for place in 0..time {
            let token = x.clone().narrow(1, place, 1);
            let (piece, kept) = layer.attend(token, injected.as_ref(), cache.take());
            pieces.push(piece);
            cache = Some(kept);
        }
        evaluation.compare("output", &Array::from_data(Tensor::cat(pieces, 1).into_data())?)?;
        evaluation.output("output", layer.forward(x, visual)?)
    })
}

fn run_model(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = ImageBindLlmConfig::new()
            .with_modality_dim(fields.with_default("modality_dim", 1024)?)
            .with_d_model(fields.with_default("d_model", 4096)?)
            .with_heads(fields.with_default("heads", 32)?)
            .with_layers(fields.with_default("layers", 32)?)
            .with_vocab(fields.with_default("vocab", 32000)?)
            .with_ffn_hidden(fields.with_default("ffn_hidden", 11008)?)
            .with_norm_eps(fields.with_default("norm_eps", 1e-6)?)
            .with_bind_hidden(fields.optional("bind_hidden")?)
            .with_bind_blocks(fields.with_default("bind_blocks", 3)?)
            .with_legacy_bridge(fields.with_default("legacy_bridge", false)?)
            .with_query_layers(fields.optional("query_layers")?)
            .with_lora_rank(fields.with_default("lora_rank", 0)?)
            .with_bias_tuning(fields.with_default("bias_tuning", false)?);
        fields.finish()?;
        let model = config.try_init(evaluation.device())?;
        let model = evaluation.load_as(model, &config.tensor_layout())?;
        let tokens = evaluation.int::<2>("tokens")?;
        let visual = model.visual(evaluation.float("feats")?)?;
        let [_, time] = tokens.dims();
        // The same, a prefill and the other tokens one by one from the cache.
        let first = time.div_ceil(2);
        let (logits, mut state) = model.prefill(tokens.clone().narrow(1, 0, first), Some(visual.clone()))?;
        let mut pieces = vec![logits];
        for place in first..time {
            let (logits, next) = model.extend(tokens.clone().narrow(1, place, 1), state)?;
            pieces.push(logits);
            state = next;
        }
        evaluation.compare("logits", &Array::from_data(Tensor::cat(pieces, 1).into_data())?)?;
        let logits = model.forward(tokens, Some(visual))?;
        let labels = evaluation.int("labels")?;
        evaluation.output("loss", model.loss(logits.clone(), &labels)?)?;
        evaluation.output("logits", logits)
    })
}
