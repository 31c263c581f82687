//! The backward pass.

use std::ops::Range;

use super::{Experts, Gradients, activate::Deactivate, batch_rows, span};
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

/// Most rows of a job of the first step.
const ROWS: usize = 256;

/// Most rows of a matrix's gradient in a job.
const MATRIX_ROWS: usize = 512;

impl Experts<'_> {
    /// Gradients of all arguments, given that of the outputs, from the inner rows of the forward pass; those become
    /// their own gradients on the way.
    pub(crate) fn backward(&self, mut h: Vec<f32>, gradient: &[f32]) -> Gradients {
        self.check();
        assert!(h.len() == self.rows() * 2 * self.inner && gradient.len() == self.x.len());
        let batches = self.batches();
        let (mut x, mut weights) = (zeroed(self.x.len()), zeroed(self.weights.len()));
        let mut activations = zeroed(batch_rows(&batches) * self.inner);
        // SAFETY: an expert's gradients are zeros without slots, else written in the first of its batches.
        let [gate_up, down] = unsafe {
            filled([self.gate_up.len(), self.down.len()], |[gate_up, down]| {
                let experts = self.slots.experts();
                for expert in (0..experts).filter(|expert| self.slots.of_expert(*expert).is_empty()) {
                    for part in [&mut *gate_up, &mut *down] {
                        let size = part.len() / experts;
                        part[expert * size..][..size].fill(std::mem::MaybeUninit::new(0.0));
                    }
                }
                let (gate_up, down) = (Filling::unwritten(gate_up), Filling::unwritten(down));
                let (h, a) = (Filling::of(&mut h), Filling::of(&mut activations));
                let (x, weights) = (Filling::of(&mut x), Filling::of(&mut weights));
                for batch in &batches {
                    let pass = Pass {
                        experts: self,
                        batch,
                        level: Level::best(),
                        dy: gradient,
                        h: &h,
                        a: &a,
                        dx: &x,
                        dweights: &weights,
                        dgate_up: &gate_up,
                        ddown: &down,
                    };
                    pass.deactivate();
                    pass.gradients();
                }
            })
        };
        Gradients { x, weights, gate_up, down }
    }
}

/// One batch.
struct Pass<'a> {
    experts: &'a Experts<'a>,
    batch: &'a [Piece],
    level: Level,
    dy: &'a [f32],
    h: &'a Filling<'a>,
    a: &'a Filling<'a>,
    dx: &'a Filling<'a>,
    dweights: &'a Filling<'a>,
    dgate_up: &'a Filling<'a>,
    ddown: &'a Filling<'a>,
}

/// What a job of the second step computes.
enum Job<'a> {
    /// Columns of the gradient of the tokens.
    X(Range<usize>),
    /// Rows of the gradient of an expert's gate and up projections.
    GateUp(&'a Piece, Range<usize>),
    /// Rows of the gradient of an expert's projection back.
    Down(&'a Piece, Range<usize>),
}

impl Pass<'_> {
    /// Gradients of the inner rows and the weights, and weighted activations.
    fn deactivate(&self) {
        let Experts { width, inner, .. } = *self.experts;
        let pieces: Vec<Piece> = self.batch.iter().flat_map(|piece| cut(piece.clone(), ROWS)).collect();
        let work = span(self.batch).len() * inner * width;
        let lens = [SCRATCH[0], SCRATCH[1], ROWS * inner];
        for_each(&pieces, work, &lens, |piece, arena| self.deactivate_piece(piece, arena));
    }

    fn deactivate_piece(&self, piece: &Piece, mut arena: Arena<f32>) {
        let experts = self.experts;
        let Experts { width, inner, .. } = *experts;
        let (first, rows) = (piece.rows.start, piece.rows.len());
        let mut packed = scratch(&mut arena);
        let gradient = Lines::all(arena.take(rows * inner).as_mut_ptr(), inner);
        let product = Product {
            rows,
            columns: inner,
            depth: width,
            left: experts.by_token(self.dy.as_ptr(), &piece.rows),
            left_transposed: false,
            right: Lines::all(experts.down_row(piece.group, 0), inner),
            right_transposed: false,
            out: gradient,
            add: false,
        };
        // SAFETY: the scratch memory is this job's, as are its rows of `h` and of the batch's buffer; the level is this
        // processor's.
        unsafe {
            product.run(self.level, &mut packed);
            let h = self.h.start().add(first * 2 * inner);
            let a = self.a.start().add((first - span(self.batch).start) * inner);
            run_one(Gated(
                Some(experts.activation),
                Deactivate {
                    rows,
                    columns: inner,
                    gate: Lines::all(h, 2 * inner),
                    up: Lines::all(h.add(inner), 2 * inner),
                    weights: experts.weights,
                    order: &experts.slots.order()[piece.rows.clone()],
                    gradient,
                    activations: Lines::all(a, inner),
                    weight_gradients: self.dweights,
                },
            ));
        }
    }

    /// Gradients of the tokens and the matrices.
    fn gradients(&self) {
        let Experts { width, inner, .. } = *self.experts;
        let x = self.experts.output_columns().into_iter().map(Job::X);
        let gate_up = self
            .batch
            .iter()
            .flat_map(|piece| parts(2 * inner, MATRIX_ROWS).map(move |part| Job::GateUp(piece, part)));
        let down = self
            .batch
            .iter()
            .flat_map(|piece| parts(width, MATRIX_ROWS).map(move |part| Job::Down(piece, part)));
        let jobs: Vec<Job> = x.chain(gate_up).chain(down).collect();
        let work = span(self.batch).len() * 5 * inner * width;
        for_each(&jobs, work, &SCRATCH, |job, mut arena| {
            let mut packed = scratch(&mut arena);
            // SAFETY: what a job adds to or writes is its own; the level is this processor's.
            unsafe {
                match job {
                    Job::X(columns) => {
                        for piece in self.batch {
                            self.x(piece, columns).run(self.level, &mut packed);
                        }
                    }
                    Job::GateUp(piece, part) => self.gate_up(piece, part).run(self.level, &mut packed),
                    Job::Down(piece, part) => self.down(piece, part).run(self.level, &mut packed),
                }
            }
        });
    }

    /// `dx += dh W_e`, some columns.
    unsafe fn x<'a>(&'a self, piece: &Piece, columns: &Range<usize>) -> Product<'a, f32> {
        let experts = self.experts;
        let Experts { width, inner, .. } = *experts;
        let weight = experts.gate_up_row(piece.group, 0);
        unsafe {
            Product {
                rows: piece.rows.len(),
                columns: columns.len(),
                depth: 2 * inner,
                left: Lines::all(self.h.start().add(piece.rows.start * 2 * inner), 2 * inner),
                left_transposed: false,
                right: Lines::all(weight.add(columns.start), width),
                right_transposed: false,
                out: experts.by_token(self.dx.start().add(columns.start), &piece.rows),
                add: true,
            }
        }
    }

    /// `dW_e = dh^T x`, some rows.
    unsafe fn gate_up<'a>(&'a self, piece: &Piece, part: &Range<usize>) -> Product<'a, f32> {
        let experts = self.experts;
        let Experts { width, inner, .. } = *experts;
        unsafe {
            let dh = self.h.start().add(piece.rows.start * 2 * inner + part.start);
            let out = self.dgate_up.start().add((piece.group * 2 * inner + part.start) * width);
            Product {
                rows: part.len(),
                columns: width,
                depth: piece.rows.len(),
                left: Lines::all(dh, 2 * inner),
                left_transposed: true,
                right: experts.by_token(experts.x.as_ptr(), &piece.rows),
                right_transposed: false,
                out: Lines::all(out, width),
                add: self.is_continued(piece),
            }
        }
    }

    /// `dV_e = dy^T a`, some rows.
    unsafe fn down<'a>(&'a self, piece: &Piece, part: &Range<usize>) -> Product<'a, f32> {
        let experts = self.experts;
        let Experts { width, inner, .. } = *experts;
        unsafe {
            let a = self.a.start().add((piece.rows.start - span(self.batch).start) * inner);
            let out = self.ddown.start().add((piece.group * width + part.start) * inner);
            Product {
                rows: part.len(),
                columns: inner,
                depth: piece.rows.len(),
                left: experts.by_token(self.dy.as_ptr().add(part.start), &piece.rows),
                left_transposed: true,
                right: Lines::all(a, inner),
                right_transposed: false,
                out: Lines::all(out, inner),
                add: self.is_continued(piece),
            }
        }
    }

    /// Whether a batch before had rows of the same expert.
    fn is_continued(&self, piece: &Piece) -> bool {
        piece.rows.start > self.experts.slots.of_expert(piece.group).start
    }
}
