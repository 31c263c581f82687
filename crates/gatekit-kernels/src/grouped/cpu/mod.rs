//! Grouped products and gated experts on slices of memory.
//!
//! Every product reads its operands where they stand, or packed a block at a time, and writes where its result belongs:
//! rows are gathered by their pointers, and outputs of experts are added to their tokens as they are made. Work is spread
//! over pieces of the groups and blocks of columns; an element of a result is always summed in the same order, so results
//! do not depend on the number of threads.

pub(crate) mod cut;
mod experts;
mod matmul;
mod pack;
mod product;
pub(crate) mod tile;

pub(super) use experts::Experts;
pub(super) use matmul::{Sizes, matmul, matmul_backward};

#[cfg(test)]
mod tests;
