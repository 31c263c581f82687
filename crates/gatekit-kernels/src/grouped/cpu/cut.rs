//! How rows that are sorted by group are cut into jobs.

use std::ops::Range;

use rayon::prelude::*;

use crate::{
    float::Float,
    scratch::{Arena, with_scratch},
};

/// Multiply-adds below which waking other threads costs more than they save.
const SERIAL_WORK: usize = 1 << 20;

/// Rows of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) group: usize,
    pub(super) rows: Range<usize>,
}

/// The rows of all groups that have some, in pieces of at most `most`; those of one group are about equally long.
pub(super) fn pieces(offsets: &[usize], most: usize) -> Vec<Piece> {
    let groups = offsets.windows(2).enumerate();
    groups.flat_map(|(group, pair)| cut(Piece { group, rows: pair[0]..pair[1] }, most)).collect()
}

/// A piece in smaller ones of at most `most` rows, about equally long.
pub(super) fn cut(Piece { group, rows }: Piece, most: usize) -> impl Iterator<Item = Piece> {
    let count = rows.len().div_ceil(most);
    let at = move |part: usize| rows.start + rows.len() * part / count.max(1);
    (0..count).map(move |part| Piece { group, rows: at(part)..at(part + 1) })
}

/// Pieces in batches of at most `most` rows, or of one piece.
pub(super) fn batches(pieces: Vec<Piece>, most: usize) -> Vec<Vec<Piece>> {
    let mut batches: Vec<Vec<Piece>> = vec![];
    for piece in pieces {
        match batches.last_mut() {
            Some(batch) if piece.rows.end - batch[0].rows.start <= most => batch.push(piece),
            _ => batches.push(vec![piece]),
        }
    }
    batches
}

/// A range in parts of `size`, the last perhaps smaller.
pub(crate) fn parts(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |start| start..len.min(start + size))
}

/// Calls `run` for every job, on all threads if `work` multiply-adds in all are worth it; every call has scratch memory
/// for pieces of the given lengths.
pub(crate) fn for_each<F: Float, J: Sync>(
    jobs: &[J],
    work: usize,
    scratch: &[usize],
    run: impl Fn(&J, Arena<F>) + Sync,
) {
    let run = |job: &J| with_scratch(scratch, |arena| run(job, arena));
    if work < SERIAL_WORK || jobs.len() == 1 {
        jobs.iter().for_each(run);
    } else {
        jobs.par_iter().with_max_len(1).for_each(run);
    }
}
