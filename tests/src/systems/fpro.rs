//! `fpro`: the gated dynamic filter, prompts and their modulators, the network and its loss.

use burn::tensor::Device;
use gatekit::core::{ModuleConfig, batch_norm::BatchStatistics};
use gatekit::fusion::fpro::{
    FPro, FProConfig, GatedDynamicFilter, GatedDynamicFilterConfig, HighPromptGenerator,
    HighPromptGeneratorConfig, LowPromptGenerator, LowPromptGeneratorConfig, PromptModule,
    PromptModuleConfig,
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Produced, once},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "dynamic-filter", run: run_filter },
    Row { component: "prompt-generator", run: run_generator },
    Row { component: "prompt-module", run: run_prompts },
    Row { component: "fpro", run: run_network },
];

fn statistics(fields: &mut Fields<'_>) -> Result<BatchStatistics> {
    Ok(match fields.with_default("batch_statistics", false)? {
        true => BatchStatistics::Batch,
        false => BatchStatistics::Running,
    })
}

fn run_filter(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = GatedDynamicFilterConfig::new(fields.required("dim")?)
            .with_filter_groups(fields.with_default("filter_groups", 8)?)
            .with_filter_size(fields.with_default("filter_size", 3)?);
        let statistics = statistics(&mut fields)?;
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &GatedDynamicFilter::tensor_layout())?;
        let parts = module.forward(evaluation.float("x")?, statistics)?;
        evaluation.output("low", parts.low)?;
        evaluation.output("high", parts.high)
    })
}

fn run_generator(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let dim = fields.required("dim")?;
        let (height, width) = (fields.required("height")?, fields.required("width")?);
        let frequency: String = fields.required("frequency")?;
        fields.finish()?;
        let x = evaluation.float("x")?;
        let y = match frequency.as_str() {
            "high" => {
                let module =
                    HighPromptGeneratorConfig::new(dim, height, width).try_init(evaluation.device())?;
                evaluation.load_as(module, &HighPromptGenerator::tensor_layout())?.forward(x)
            }
            "low" => {
                let module =
                    LowPromptGeneratorConfig::new(dim, height, width).try_init(evaluation.device())?;
                evaluation.load_as(module, &LowPromptGenerator::tensor_layout())?.forward(x)
            }
            other => return Err(Failure(format!("config field `frequency` is {other}: need high or low"))),
        };
        evaluation.output("y", y)
    })
}

fn run_prompts(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = PromptModuleConfig::new(
            fields.required("dim")?,
            fields.required("decoder_dim")?,
            fields.required("height")?,
            fields.required("width")?,
        )
        .with_prompt_heads(fields.with_default("prompt_heads", 2)?)
        .with_window_size(fields.with_default("window_size", 8)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &PromptModule::tensor_layout())?;
        let (low, high) = (evaluation.float("low")?, evaluation.float("high")?);
        let y = module.forward(low, high, evaluation.float("x")?);
        evaluation.output("y", y)
    })
}

fn run_network(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config = FProConfig::new()
            .with_inp_channels(fields.with_default("inp_channels", 3)?)
            .with_out_channels(fields.with_default("out_channels", 3)?)
            .with_dim(fields.required("dim")?)
            .with_num_blocks(fields.required("num_blocks")?)
            .with_num_refinement_blocks(fields.required("num_refinement_blocks")?)
            .with_heads(fields.required("heads")?)
            .with_ffn_expansion_factor(fields.required("ffn_expansion_factor")?)
            .with_image_size(fields.required("image_size")?)
            .with_window_size(fields.with_default("window_size", 8)?)
            .with_prompt_heads(fields.with_default("prompt_heads", 2)?)
            .with_filter_groups(fields.with_default("filter_groups", 8)?)
            .with_filter_size(fields.with_default("filter_size", 3)?)
            .with_fft_weight(fields.with_default("fft_weight", 0.1)?);
        let statistics = statistics(&mut fields)?;
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &FPro::tensor_layout())?;
        let output = module.forward(evaluation.float("x")?, statistics)?;
        // Not every case differentiates by the target.
        let target = evaluation.float::<4>("target")?;
        evaluation.output("loss", config.loss(output.image.clone(), target))?;
        evaluation.output("y", output.image)
    })
}
