//! `kimi-linear`: the delta rule with a decay per key channel.

use burn::tensor::Device;
use gatekit::core::scan::kimi_delta_attention;

use super::{Row, scan};
use crate::{
    case::Case,
    evaluation::{Produced, every_form},
    failure::Result,
};

/// The system's components.
pub const ROWS: &[Row] = &[Row { component: "kimi-delta-attention", run: run_kimi_delta_attention }];

fn run_kimi_delta_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = scan::options(&mut fields, false, form)?;
        let normalise = fields.with_default("use_qk_l2norm", true)?;
        fields.finish()?;
        let (q, k, v) = (evaluation.float("q")?, evaluation.float("k")?, evaluation.float("v")?);
        let (log_gate, beta) = (evaluation.float("log_gate")?, evaluation.float("beta")?);
        let (initial_state, boundaries) = scan::state_and_boundaries(evaluation, &v)?;
        let boundaries = boundaries.as_ref();
        let result =
            kimi_delta_attention(q, k, v, log_gate, beta, initial_state, boundaries, normalise, &options);
        scan::outputs(evaluation, result)
    })
}
