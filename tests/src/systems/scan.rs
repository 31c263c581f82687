//! What the cases of scans have in common.

use burn::tensor::Tensor;
use gatekit::core::{
    scan::{ScanForm, ScanOptions, ScanOutput},
    sequence::Boundaries,
};

use crate::{
    evaluation::Evaluation,
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
