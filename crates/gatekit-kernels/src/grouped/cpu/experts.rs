//! Gated experts over tokens that are picked by sorted slots, in float32.
//!
//! ```text
//! h_s = W_e x_n        a_s = act(h_s gate) * h_s up        y_n += w_s V_e a_s        slot s of token n and expert e
//! ```
//!
//! The slots go through in batches of whole experts whose inner activations stay in the caches. Of a batch, jobs over
//! rows make the activations, then jobs over columns of the outputs add all of its products to the tokens: every element
//! of the result belongs to one job, which adds in the order of the slots.

mod activate;
mod backward;
mod forward;

use std::ops::Range;

use super::cut::{Piece, batches, parts, pieces};
use super::product::Lines;
use crate::{gate::Activation, grouped::SortedSlots};

/// Rows of a batch.
const BATCH: usize = 4096;

/// Columns of a job over rows that makes activations.
const INNER: usize = 128;

/// The arguments, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Experts<'a> {
    /// `[tokens, width]`
    pub(crate) x: &'a [f32],
    /// One a slot, where its order says.
    pub(crate) weights: &'a [f32],
    pub(crate) slots: &'a SortedSlots,
    /// `[experts, 2 inner, width]`, the gate's rows first.
    pub(crate) gate_up: &'a [f32],
    /// `[experts, width, inner]`
    pub(crate) down: &'a [f32],
    pub(crate) activation: Activation,
    pub(crate) width: usize,
    pub(crate) inner: usize,
}

/// Gradients of the arguments, in their shapes.
pub(crate) struct Gradients {
    pub(crate) x: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) gate_up: Vec<f32>,
    pub(crate) down: Vec<f32>,
}

impl Experts<'_> {
    fn check(&self) {
        let Self { width, inner, slots, .. } = *self;
        assert!(
            self.x.len() == slots.tokens() * width
                && self.weights.len() == slots.weights()
                && self.gate_up.len() == slots.experts() * 2 * inner * width
                && self.down.len() == slots.experts() * width * inner
        );
    }

    /// Number of slots.
    fn rows(&self) -> usize {
        self.slots.rows().len()
    }

    fn batches(&self) -> Vec<Vec<Piece>> {
        batches(pieces(self.slots.offsets(), BATCH), BATCH)
    }

    /// Lines of a matrix with one for every token, in the order of some slots.
    fn by_token(&self, start: *const f32, rows: &Range<usize>) -> Lines<'_, f32> {
        Lines::picked(start, self.width, &self.slots.rows()[rows.clone()])
    }

    /// The first element of an expert's row of the gate's and up projection.
    fn gate_up_row(&self, expert: usize, row: usize) -> *const f32 {
        self.gate_up[(expert * 2 * self.inner + row) * self.width..].as_ptr()
    }

    /// The first element of an expert's row of the projection back.
    fn down_row(&self, expert: usize, row: usize) -> *const f32 {
        self.down[(expert * self.width + row) * self.inner..].as_ptr()
    }

    /// Columns of the output in jobs: enough of them for all threads.
    fn output_columns(&self) -> Vec<Range<usize>> {
        let even = self.width.div_ceil(2 * rayon::current_num_threads());
        parts(self.width, even.next_multiple_of(64).min(512)).collect()
    }
}

/// Rows of a batch's buffer.
fn batch_rows(batches: &[Vec<Piece>]) -> usize {
    batches.iter().map(|batch| span(batch).len()).max().unwrap_or(0)
}

/// The slots of a batch.
fn span(batch: &[Piece]) -> Range<usize> {
    batch[0].rows.start..batch[batch.len() - 1].rows.end
}
