//! The closed-form backward pass.
//!
//! With H_t the gradient of S_t by all later steps, and the rank-one writes and reads of the forward scan transposed,
//! every gradient is a scan again:
//!
//! ```text
//! G_t = H_t + scale q_t do_t^T            H_{t-1} = diag(exp g_t) (G_t - k_t dv_t^T)      (the last term: delta rule)
//! dv_t = [beta_t] G_t^T k_t               dq_t = scale S_t do_t           dk_t = G_t d_t [- S'_t dv_t]
//! ```
//!
//! where d_t, the value written, is v_t or the delta rule's residual times beta_t. Gradients over V are made with V as
//! the lanes, by jobs of one kind ([`Additive`] or [`delta`]), gradients over K with K as the lanes, by jobs
//! of another ([`keys`]); a forward and a reverse scan each.
//!
//! The gradient of the decays needs no state: with dq', dk' the parts of the gradients that come from other steps,
//!
//! ```text
//! dg_m = rowsum(H_{m-1} * S_{m-1})        dg_t = dg_m + sum_{t <= s < m} (q_s * dq'_s - k_s * dk'_s)
//! ```
//!
//! for any step m > t of the segment. Leaving out the steps' products with themselves keeps it accurate under strong
//! decay, where they would cancel; starting anew from such a mark m at the last step and every 256 steps bounds the
//! rounding error of long sums. Of the states, the forward scan over the keys keeps those before the marks only.

mod keys;

use super::additive::Additive;
use super::delta;
use super::problem::{Gradients, Problem, expect_shape};
use crate::{
    float::Float,
    memory::{Filling, filled},
    simd::Level,
};
use keys::{Terms, over_keys};

/// Gradients of all inputs, from those of the output `[B, T, H, V]` and of the final state `[segments, H, K, V]`; an
/// absent one is 0. The gradient of a log decay below -30 is 0.
///
/// # Panics
/// As [`forward`](super::forward()), and if a gradient does not have the length of its shape.
pub fn backward<F: Float>(
    problem: &Problem<F>,
    grad_output: Option<&[F]>,
    grad_state: Option<&[F]>,
) -> Gradients<F> {
    // SAFETY: the level was found on this processor.
    unsafe { backward_at(Level::best(), problem, grad_output, grad_state) }
}

/// [`backward`] with given instructions.
///
/// # Safety
/// `level` must be available.
pub(super) unsafe fn backward_at<F: Float>(
    level: Level,
    problem: &Problem<F>,
    grad_output: Option<&[F]>,
    grad_state: Option<&[F]>,
) -> Gradients<F> {
    problem.check();
    let Problem { batch, time, heads, key_dim, value_dim, segments, .. } = *problem;
    if let Some(grad) = grad_output {
        expect_shape("grad_output", grad.len(), &[batch, time, heads, value_dim]);
    }
    if let Some(grad) = grad_state {
        expect_shape("grad_state", grad.len(), &[segments.len(), heads, key_dim, value_dim]);
    }
    let upstream = Upstream { problem, grad_output, grad_state };
    // SAFETY: the level is the caller's promise; the jobs of each kind write every element of what they are given.
    unsafe {
        let (values, erased) = if problem.beta.is_some() {
            let (values, written) = delta::backward(level, &upstream);
            (values, Some(written))
        } else {
            (additive_over_values(level, &upstream), None)
        };
        let terms = match &erased {
            Some(written) => Terms { written, erased: Some(&values.v) },
            None => Terms { written: problem.v, erased: None },
        };
        let keys = over_keys(level, &upstream, terms);
        Gradients {
            q: keys.q,
            k: keys.k,
            v: values.v,
            decay: keys.decay,
            beta: values.beta,
            initial_state: values.initial_state,
        }
    }
}

/// The problem and what is known of its results' gradients.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a, F> {
    pub(super) problem: &'a Problem<'a, F>,
    pub(super) grad_output: Option<&'a [F]>,
    pub(super) grad_state: Option<&'a [F]>,
}

/// Gradients that are made with V as the lanes.
pub(super) struct ValueGradients<F> {
    pub(super) v: Vec<F>,
    pub(super) beta: Option<Vec<F>>,
    pub(super) initial_state: Option<Vec<F>>,
}

/// The additive scan's gradients of v and of the initial state.
///
/// # Safety
/// `level` must be available.
unsafe fn additive_over_values<F: Float>(level: Level, upstream: &Upstream<F>) -> ValueGradients<F> {
    let Upstream { problem, grad_output: written, grad_state: start } = *upstream;
    let states = problem.initial_state.map_or(0, <[F]>::len);
    // SAFETY: the jobs cover all tokens, heads and columns of V; every segment has one state.
    let [v, state] = unsafe {
        filled([problem.v.len(), states], |places| {
            let [output, state] = places.map(Filling::unwritten);
            let end = problem.initial_state.map(|_| state);
            Additive::<F, true> { problem, written, start, output, end }.run(level);
        })
    };
    ValueGradients { v, beta: None, initial_state: problem.initial_state.map(|_| state) }
}
