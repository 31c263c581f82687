//! `hybrid-linear-attention`: the scans of six token mixers.

use burn::tensor::Device;
use gatekit::core::scan::{delta_rule, elementwise_recurrence, gated_delta_rule, hgrn2, retention};

use super::{
    Row,
    scan::{self, DeltaArguments},
};
use crate::{
    case::Case,
    evaluation::{Produced, every_form},
    failure::Result,
};

/// The system's components.
pub const ROWS: &[Row] = &[
    Row { component: "retention", run: run_retention },
    Row { component: "hgrn", run: run_hgrn },
    Row { component: "hgrn2", run: run_hgrn2 },
    Row { component: "delta-rule", run: run_delta_rule },
    Row { component: "gated-delta-rule", run: run_gated_delta_rule },
];

fn run_retention(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = scan::options(&mut fields, false, form)?;
        fields.finish()?;
        let (q, k, v) = (evaluation.float("q")?, evaluation.float("k")?, evaluation.float("v")?);
        let (initial_state, boundaries) = scan::state_and_boundaries(evaluation, &v)?;
        scan::outputs(evaluation, retention(q, k, v, initial_state, boundaries.as_ref(), &options))
    })
}

fn run_hgrn(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        scan::chunk_size(&mut fields)?;
        fields.finish()?;
        let x = evaluation.float::<3>("x")?;
        let log_gate = evaluation.float("log_gate")?;
        let initial_state = evaluation.optional_float("initial_state")?;
        let boundaries = evaluation.boundaries(x.dims()[1])?;
        let result = elementwise_recurrence(x, log_gate, initial_state, boundaries.as_ref(), form);
        evaluation.output("o", result.output)?;
        evaluation.output("final_state", result.final_state)
    })
}

fn run_hgrn2(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    every_form(case, device, |evaluation, form| {
        let mut fields = evaluation.config();
        let options = scan::options(&mut fields, false, form)?;
        fields.finish()?;
        let (q, v) = (evaluation.float("q")?, evaluation.float("v")?);
        let forget_logits = evaluation.float("forget_logits")?;
        let lower_bound = evaluation.optional_float("lower_bound")?;
        let (initial_state, boundaries) = scan::state_and_boundaries(evaluation, &v)?;
        let result = hgrn2(q, forget_logits, v, lower_bound, initial_state, boundaries.as_ref(), &options);
        scan::outputs(evaluation, result)
    })
}

fn run_delta_rule(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    scan::run_delta_rule(case, device, |_, arguments| {
        let DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options } = arguments;
        let boundaries = boundaries.as_ref();
        Ok(delta_rule(q, k, v, beta, initial_state, boundaries, normalise, &options))
    })
}

fn run_gated_delta_rule(case: &Case, device: &Device) -> Result<Vec<Produced>> {
    scan::run_delta_rule(case, device, |evaluation, arguments| {
        let log_gate = evaluation.float("log_gate")?;
        let DeltaArguments { q, k, v, beta, initial_state, boundaries, normalise, options } = arguments;
        let boundaries = boundaries.as_ref();
        Ok(gated_delta_rule(q, k, v, log_gate, beta, initial_state, boundaries, normalise, &options))
    })
}
