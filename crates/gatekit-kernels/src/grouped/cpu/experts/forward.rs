//! The forward pass.

use std::ops::Range;

use super::{Experts, INNER, activate::Activate, batch_rows, span};
use crate::{
    gate::Gated,
    grouped::cpu::{
        cut::{Piece, cut, for_each, parts},
        product::{Lines, Product, SCRATCH, scratch},
    },
    loops::run_one,
    memory::{Filling, filled, zeroed},
    scratch::Arena,
    simd::Level,
};

/// Most rows of a job.
const ROWS: usize = 512;

impl Experts<'_> {
    /// The outputs `[tokens, width]`, and with `keep` the inner rows `[slots, 2 inner]`, gate first, of the backward
    /// pass, which are empty without.
    pub(crate) fn forward(&self, keep: bool) -> (Vec<f32>, Vec<f32>) {
        self.check();
        let batches = self.batches();
        let mut y = zeroed(self.x.len());
        let mut activations = zeroed(batch_rows(&batches) * self.inner);
        let kept = if keep { self.rows() * 2 * self.inner } else { 0 };
        // SAFETY: every slot is in a batch, and the jobs of a batch write all of its inner rows if they are kept.
        let [h] = unsafe {
            filled([kept], |[h]| {
                let h = Filling::unwritten(h);
                let y = Filling::of(&mut y);
                let activations = Filling::of(&mut activations);
                for batch in &batches {
                    let pass = Pass {
                        experts: self,
                        batch,
                        level: Level::best(),
                        keep,
                        h: &h,
                        a: &activations,
                        y: &y,
                    };
                    pass.activate();
                    pass.combine();
                }
            })
        };
        (y, h)
    }
}

/// One batch.
struct Pass<'a> {
    experts: &'a Experts<'a>,
    batch: &'a [Piece],
    level: Level,
    keep: bool,
    h: &'a Filling<'a>,
    a: &'a Filling<'a>,
    y: &'a Filling<'a>,
}

impl Pass<'_> {
    /// Inner activations of the batch.
    fn activate(&self) {
        let Experts { width, inner, .. } = *self.experts;
        let pieces = self.batch.iter().flat_map(|piece| cut(piece.clone(), ROWS));
        let jobs: Vec<(Piece, Range<usize>)> =
            pieces.flat_map(|piece| parts(inner, INNER).map(move |part| (piece.clone(), part))).collect();
        let work = span(self.batch).len() * 2 * inner * width;
        let pieces =
            if self.keep { [SCRATCH[0], SCRATCH[1], 0] } else { [SCRATCH[0], SCRATCH[1], ROWS * 2 * INNER] };
        for_each(&jobs, work, &pieces, |(piece, part), arena| self.activate_part(piece, part, arena));
    }

    fn activate_part(&self, piece: &Piece, part: &Range<usize>, mut arena: Arena<f32>) {
        let experts = self.experts;
        let Experts { width, inner, .. } = *experts;
        let (first, rows, columns) = (piece.rows.start, piece.rows.len(), part.len());
        let mut packed = scratch(&mut arena);
        // SAFETY: `h` has a row a slot; scratch memory for the largest job was asked for.
        let [gate, up] = if self.keep {
            let start = unsafe { self.h.start().add(first * 2 * inner + part.start) };
            [start, unsafe { start.add(inner) }].map(|start| Lines::all(start, 2 * inner))
        } else {
            let start = arena.take(2 * rows * columns).as_mut_ptr();
            [start, unsafe { start.add(columns) }].map(|start| Lines::all(start, 2 * columns))
        };
        for (out, row) in [(gate, part.start), (up, inner + part.start)] {
            let product = Product {
                rows,
                columns,
                depth: width,
                left: experts.by_token(experts.x.as_ptr(), &piece.rows),
                left_transposed: false,
                right: Lines::all(experts.gate_up_row(piece.group, row), width),
                right_transposed: true,
                out,
                add: false,
            };
            // SAFETY: these columns of these rows are this job's; the level is this processor's.
            unsafe { product.run(self.level, &mut packed) };
        }
        let place = (first - span(self.batch).start) * inner + part.start;
        run_one(Gated(
            Some(experts.activation),
            Activate {
                rows,
                columns,
                gate,
                up,
                weights: experts.weights,
                order: &experts.slots.order()[piece.rows.clone()],
                // SAFETY: the buffer has a row for each of the batch.
                activations: Lines::all(unsafe { self.a.start().add(place) }, inner),
            },
        ));
    }

    /// Adds the batch's outputs to their tokens.
    fn combine(&self) {
        let experts = self.experts;
        let Experts { width, inner, .. } = *experts;
        let first = span(self.batch).start;
        let work = span(self.batch).len() * inner * width;
        for_each(&experts.output_columns(), work, &SCRATCH, |columns, mut arena| {
            let mut packed = scratch(&mut arena);
            for piece in self.batch {
                // SAFETY: these columns are this job's; the level is this processor's.
                unsafe {
                    let product = Product {
                        rows: piece.rows.len(),
                        columns: columns.len(),
                        depth: inner,
                        left: Lines::all(self.a.start().add((piece.rows.start - first) * inner), inner),
                        left_transposed: false,
                        right: Lines::all(experts.down_row(piece.group, columns.start), inner),
                        right_transposed: true,
                        out: experts.by_token(self.y.start().add(columns.start), &piece.rows),
                        add: true,
                    };
                    product.run(self.level, &mut packed);
                }
            }
        });
    }
}
