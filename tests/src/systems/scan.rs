//! What the cases of scans have in common.

use burn::tensor::{Device, Tensor};
use gatekit::core::{
    scan::{ScanForm, ScanOptions, ScanOutput},
    sequence::Boundaries,
};

use crate::{
    case::Case,
    evaluation::{Evaluation, Produced, every_form},
    failure::{Failure, Result},
    fields::Fields,
};

/// Reads `scale` and the [`tiling`].
pub(super) fn options(fields: &mut Fields<'_>, has_sub_chunks: bool, form: ScanForm) -> Result<ScanOptions> {
    let scale = fields.optional("scale")?;
    let (chunk_size, sub_chunk_size) = tiling(fields, has_sub_chunks)?;
    Ok(ScanOptions { scale, chunk_size, sub_chunk_size, form })
}

/// Reads `chunk_size` and, for systems that have it, `sub_chunk_size`.
///
/// Where the latter is missing it is the largest divisor of the chunk up to 16.
pub(super) fn tiling(fields: &mut Fields<'_>, has_sub_chunks: bool) -> Result<(usize, usize)> {
    let chunk_size = chunk_size(fields)?;
    let divisor = (1..=16).rev().find(|size| chunk_size.is_multiple_of(*size)).unwrap_or(1);
    let sub_chunk_size =
        if has_sub_chunks { fields.with_default("sub_chunk_size", divisor)? } else { divisor };
    Ok((chunk_size, sub_chunk_size))
}

/// Reads `chunk_size`: tiling only, and of no use to an elementwise scan.
pub(super) fn chunk_size(fields: &mut Fields<'_>) -> Result<usize> {
    match fields.with_default("chunk_size", 64)? {
        0 => Err(Failure("config field `chunk_size` is 0".into())),
        size => Ok(size),
    }
}

/// Reads `initial_state` and the boundaries that fit `v`.
pub(super) fn state_and_boundaries(
    evaluation: &mut Evaluation<'_>,
    v: &Tensor<4>,
) -> Result<(Option<Tensor<4>>, Option<Boundaries>)> {
    Ok((evaluation.optional_float("initial_state")?, evaluation.boundaries(v.dims()[1])?))
}

/// Hands over `o` and `final_state`.
pub(super) fn outputs(evaluation: &mut Evaluation<'_>, result: ScanOutput) -> Result<()> {
    evaluation.output("o", result.output)?;
    evaluation.output("final_state", result.final_state)
}

/// What every delta rule takes, gated or not.
pub(super) struct DeltaArguments {
    pub(super) q: Tensor<4>,
    pub(super) k: Tensor<4>,
    pub(super) v: Tensor<4>,
    pub(super) beta: Tensor<3>,
    pub(super) initial_state: Option<Tensor<4>>,
    pub(super) boundaries: Option<Boundaries>,
    pub(super) normalise: bool,
    pub(super) options: ScanOptions,
}

/// Runs a delta rule in every form: `rule` reads the gate, if it has one, and scans.
pub(super) fn run_delta_rule(
    case: &Case,
    device: &Device,
    rule: impl Fn(&mut Evaluation<'_>, DeltaArguments) -> Result<ScanOutput>,
) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = options(&mut fields, false, form)?;
        let normalise = fields.with_default("use_qk_l2norm", true)?;
        fields.finish()?;
        let (q, k, v) = (evaluation.float("q")?, evaluation.float("k")?, evaluation.float("v")?);
        let beta = evaluation.float("beta")?;
        let (initial_state, boundaries) = state_and_boundaries(evaluation, &v)?;
        let arguments = DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options };
        let result = rule(evaluation, arguments)?;
        outputs(evaluation, result)
    })
}
