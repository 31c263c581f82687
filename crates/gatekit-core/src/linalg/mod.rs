//! Small dense problems on the host, in float64: what gates solve besides their gradients.
//!
//! | item | solves |
//! |---|---|
//! | [`Matrix`] | the numbers of a tensor, on the host |
//! | [`lstsq`] | least squares of minimum norm |
//! | [`min_norm_step`] | the solution of `X w = y` that is nearest to a given `w` |
//! | [`kmeans_l1`] | clusters by mean absolute distance |
//! | [`greedy_match`] | one column for every row of a cost matrix |
//!
//! None of them carries gradients. The matrices have tens of rows, so reading them back from their
//! device costs more than solving.

mod kmeans;
mod least_squares;
mod matching;
mod matrix;
mod min_norm;
#[cfg(test)]
mod tests;

pub use kmeans::{KMeans, kmeans_l1};
pub use least_squares::lstsq;
pub use matching::greedy_match;
pub use matrix::Matrix;
pub use min_norm::{Factorization, min_norm_step};
