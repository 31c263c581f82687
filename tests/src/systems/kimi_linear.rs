//! `kimi-linear`: the delta rule with a decay per key channel.

use burn::tensor::Device;
use gatekit::core::scan::kimi_delta_attention;

use super::{
    Row,
    scan::{self, DeltaArguments},
};
use crate::{case::Case, evaluation::Produced, failure::Result};

/// The system's components.
pub const ROWS: &[Row] = &[Row { component: "kimi-delta-attention", run: run_kimi_delta_attention }];

fn run_kimi_delta_attention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    scan::run_delta_rule(case, device, |evaluation, arguments| {
        let log_gate = evaluation.float("log_gate")?;
        let DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options } = arguments;
        let boundaries = boundaries.as_ref();
        Ok(kimi_delta_attention(q, k, v, log_gate, beta, initial_state, boundaries, normalise, &options))
    })
}
