//! `bihierarchical-fusion`: fusion by votes and by attention, and the encoder.

use burn::tensor::{Bool, Device, Tensor};
use gatekit::core::{ModuleConfig, checkpoint::TensorLayout};
use gatekit::fusion::bihierarchical_fusion::{
    BiHierarchicalConfig, Fused, FusionKind, GlobalFusionConfig, GlobalLayout, LocalFusion,
    LocalFusionConfig, ResidueGraph,
};

use super::Row;
use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, once},
    failure::{Failure, Result},
    fields::Fields,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "local-fusion", run: run_local },
    Row { component: "global-fusion", run: run_global },
    Row { component: "bi-hierarchical-encoder", run: run_encoder },
];

fn branches(evaluation: &mut Evaluation<'_>) -> Result<(Tensor<3>, Tensor<3>, Tensor<2, Bool>)> {
    let mask = evaluation.optional_bool::<2>("mask")?;
    let mask = mask.ok_or_else(|| Failure("the case lacks `input.mask`".into()))?;
    Ok((evaluation.float("sequence")?, evaluation.float("structure")?, mask))
}

/// Which of the fusions a case of one of them is.
fn expect(fields: &mut Fields<'_>, kind: FusionKind) -> Result<()> {
    let got = fields.with_default("fusion", kind)?;
    if got == kind { Ok(()) } else { Err(Failure(format!("the case is of {got:?} fusion"))) }
}

fn outputs(evaluation: &mut Evaluation<'_>, fused: Fused) -> Result<()> {
    evaluation.output("fused", fused.fused)?;
    evaluation.output("sequence", fused.sequence)?;
    evaluation.output("structure", fused.structure)?;
    match fused.gates {
        Some(gates) => evaluation.output("gates", gates),
        None => Ok(()),
    }
}

fn run_local(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        expect(&mut fields, FusionKind::Local)?;
        let shared = fields.with_default("shared_votes", false)?;
        let config =
            LocalFusionConfig::new(fields.required("sequence_dim")?, fields.required("structure_dim")?)
                .with_fusion_dim(fields.with_default("fusion_dim", 128)?)
                .with_vote_hidden(fields.optional("vote_hidden")?)
                .with_shared_votes(shared);
        fields.finish()?;
        let layout = LocalFusion::tensor_layout(TensorLayout::default(), "", shared);
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &layout)?;
        let (sequence, structure, mask) = branches(evaluation)?;
        outputs(evaluation, module.forward(sequence, structure, &mask))
    })
}

fn run_global(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        expect(&mut fields, FusionKind::Global)?;
        let config =
            GlobalFusionConfig::new(fields.required("sequence_dim")?, fields.required("structure_dim")?)
                .with_fusion_dim(fields.with_default("fusion_dim", 128)?)
                .with_num_heads(fields.with_default("num_heads", 4)?)
                .with_layout(fields.with_default("layout", GlobalLayout::Tokens)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load(module)?;
        let (sequence, structure, mask) = branches(evaluation)?;
        outputs(evaluation, module.forward(sequence, structure, &mask))
    })
}

fn run_encoder(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    once(case, device, |evaluation| {
        let mut fields = evaluation.config();
        let config =
            BiHierarchicalConfig::new(fields.required("sequence_dim")?, fields.required("output_dim")?)
                .with_structure_dim(fields.with_default("structure_dim", 128)?)
                .with_fusion_dim(fields.with_default("fusion_dim", 128)?)
                .with_fusion(fields.with_default("fusion", FusionKind::Local)?)
                .with_vote_hidden(fields.optional("vote_hidden")?)
                .with_shared_votes(fields.with_default("shared_votes", false)?)
                .with_num_heads(fields.with_default("num_heads", 4)?)
                .with_layout(fields.with_default("layout", GlobalLayout::Tokens)?)
                .with_levels(fields.with_default("levels", 3)?)
                .with_sequence_heads(fields.with_default("sequence_heads", 4)?)
                .with_radial_basis(fields.with_default("radial_basis", 16)?)
                .with_cutoff(fields.with_default("cutoff", 10.0)?);
        fields.finish()?;
        let module = config.try_init(evaluation.device())?;
        let module = evaluation.load_as(module, &config.tensor_layout())?;
        let (sequence, structure, mask) = branches(evaluation)?;
        let graph = ResidueGraph::new(mask, evaluation.int("edges")?, evaluation.float("distances")?)?;
        let output = module.forward(sequence, structure, &graph);
        evaluation.output("residues", output.residues)?;
        evaluation.output("pooled", output.pooled)?;
        evaluation.output("logits", output.logits)
    })
}
