//! Benchmarks: our forms and devices side by side, and beside other libraries, in one run.
//!
//! | module | owns |
//! |---|---|
//! | [`shape`], [`op`], [`case`] | what can be measured, by name |
//! | [`work`], [`scans`], [`vectors`], [`layers`], [`experts`], [`pacgnet`] | a case made ready to be executed |
//! | [`memory`] | bytes the program holds, from its allocator |
//! | [`statistics`], [`race`] | how times are taken: contestants in turn, medians and quartiles |
//! | [`peer`], [`agreement`] | other libraries, behind worker processes; whether they compute the same |
//! | [`plan`], [`entrant`] | which contests a report runs, and who takes part |
//! | [`row`], [`store`], [`machine`] | what a report leaves behind |
//! | [`figure`], [`headline`], [`expert_headline`], [`pacgnet_headline`], [`table`], [`plots`] | what it shows |
//! | [`cli`], [`report`], [`check`], [`error`] | the program |
#![deny(missing_docs)]

pub mod agreement;
pub mod case;
pub mod check;
pub mod cli;
pub mod entrant;
pub mod error;
pub mod expert_headline;
pub mod experts;
pub mod figure;
pub mod headline;
pub mod layers;
pub mod machine;
pub mod memory;
pub mod op;
pub mod pacgnet;
pub mod pacgnet_headline;
pub mod peer;
pub mod plan;
pub mod plots;
pub mod race;
pub mod report;
pub mod row;
pub mod scans;
pub mod shape;
pub mod statistics;
pub mod store;
pub mod table;
pub mod vectors;
pub mod work;

/// An allocator that keeps large blocks, since every operation of a CPU backend allocates its
/// result, and counts what is held.
#[global_allocator]
static ALLOCATOR: memory::Counting<mimalloc::MiMalloc> = memory::Counting(mimalloc::MiMalloc);
