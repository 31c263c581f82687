//! What can be built and run: one row a component, one file a system.
//!
//! A further system adds its file here and its rows to [`TABLE`]'s parts.

pub mod acm;
pub mod affine_scaled_attention;
pub mod bihierarchical_fusion;
pub mod fpro;
pub mod gated_associative_memory;
pub mod gated_attention;
pub mod gla;
pub mod hecto;
pub mod hybrid_linear_attention;
pub mod imagebind_llm;
pub mod irregular_ehr;
pub mod jei_dnn;
pub mod kimi_linear;
pub mod mamba_icl;
pub mod mixer_experts;
pub mod modes;
pub mod moe_continual_learning;
pub mod moe_routing;
pub mod move_;
pub mod pacgnet;
mod scan;
pub mod sqrtgate;
pub mod thor;
pub mod touchformer;
pub mod transnormer_llm;
pub mod two_views;

use burn::tensor::Device;

use crate::{
    case::Case,
    evaluation::Produced,
    failure::{Failure, Result},
    verdict::{Errors, verdict},
};

/// Builds a component from its case and runs it: one result for every form it has.
pub type Run = fn(&Case, &Device) -> Result<Vec<Produced>>;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The component, as the system's sheet names it.
    pub component: &'static str,
    /// Builds and runs it.
    pub run: Run,
}

/// All systems with their components.
pub const TABLE: &[(&str, &[Row])] = &[
    ("acm", acm::ROWS),
    ("affine-scaled-attention", affine_scaled_attention::ROWS),
    ("bihierarchical-fusion", bihierarchical_fusion::ROWS),
    ("fpro", fpro::ROWS),
    ("gated-attention", gated_attention::ROWS),
    ("gated-associative-memory", gated_associative_memory::ROWS),
    ("gla", gla::ROWS),
    ("hecto", hecto::ROWS),
    ("hybrid-linear-attention", hybrid_linear_attention::ROWS),
    ("irregular-ehr", irregular_ehr::ROWS),
    ("imagebind-llm", imagebind_llm::ROWS),
    ("jei-dnn", jei_dnn::ROWS),
    ("kimi-linear", kimi_linear::ROWS),
    ("mamba-icl", mamba_icl::ROWS),
    ("modes", modes::ROWS),
    ("mixer-experts", mixer_experts::ROWS),
    ("moe-continual-learning", moe_continual_learning::ROWS),
    ("moe-routing", moe_routing::ROWS),
    ("move", move_::ROWS),
    ("sqrtgate", sqrtgate::ROWS),
    ("pacgnet", pacgnet::ROWS),
    ("thor", thor::ROWS),
    ("touchformer", touchformer::ROWS),
    ("transnormer-llm", transnormer_llm::ROWS),
    ("two-views", two_views::ROWS),
];

/// Builds, runs and judges a case.
///
/// # Errors
///
/// No row for the case's system and component, or whatever differs from the reference.
pub fn check(case: &Case, device: &Device) -> Result<Errors> {
    let row = TABLE
        .iter()
        .find(|(system, _)| *system == case.system)
        .and_then(|(_, rows)| rows.iter().find(|row| row.component == case.component));
    let Some(row) = row else {
        return Err(Failure(format!(
            "the table has no entry for system `{}`, component `{}`",
            case.system, case.component
        )));
    };
    verdict(case, &(row.run)(case, device)?)
}
