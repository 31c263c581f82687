//! How a recurrence over sequences of many independent channels is cut into jobs.
//!
//! The cut depends on the shape of the problem alone, never on the number of threads: so does the order of every sum.

use std::ops::Range;

use crate::{float::Float, simd::Target};

/// Jobs that are wanted: some for each of many threads, so that they end together.
const JOBS: usize = 16;

/// Independent blocks of channels, over all sequences, below which sequences are cut in time as well.
const FEW: usize = 4;

/// Fewest steps that a sequence is cut into: what is computed twice must be worth it.
const FEWEST_STEPS: usize = 256;

/// Successive steps of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its number.
    pub index: usize,
    pub sequence: usize,
    /// Rows of the steps: all steps of all sequences follow one another.
    pub rows: Range<usize>,
    /// Whether the sequence starts here.
    pub first: bool,
    /// Whether it ends here.
    pub last: bool,
}

/// The cut of a problem.
#[derive(Debug)]
pub(crate) struct Cut {
    /// In the order of their rows.
    pub pieces: Vec<Piece>,
    /// Successive pieces that are one job, for every block of channels.
    pub groups: Vec<Range<usize>>,
    /// Blocks of channels.
    pub blocks: Vec<Range<usize>>,
}

/// A group of pieces and a block of channels.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    /// The group's number.
    pub group: usize,
    pub pieces: &'a [Piece],
    /// The block's number.
    pub block: usize,
    pub channels: Range<usize>,
}

impl Cut {
    /// Cuts `sequences`, given by their rows, of `channels` channels. Blocks have `narrowest` channels or a multiple,
    /// up to `widest`.
    pub fn new(sequences: &[Range<usize>], channels: usize, narrowest: usize, widest: usize) -> Self {
        let width = (channels * sequences.len()).div_ceil(JOBS).next_multiple_of(narrowest).min(widest);
        let blocks: Vec<_> =
            (0..channels).step_by(width).map(|from| from..channels.min(from + width)).collect();
        let independent = blocks.len() * sequences.len();
        let parts = if independent < FEW { JOBS / (2 * independent) } else { 1 };

        let mut pieces = vec![];
        for (sequence, rows) in sequences.iter().enumerate() {
            let steps = if parts == 1 { rows.len() } else { rows.len().div_ceil(parts).max(FEWEST_STEPS) };
            for from in rows.clone().step_by(steps) {
                pieces.push(Piece {
                    index: pieces.len(),
                    sequence,
                    rows: from..rows.end.min(from + steps),
                    first: from == rows.start,
                    last: from + steps >= rows.end,
                });
            }
        }
        let count = JOBS.div_ceil(blocks.len()).min(pieces.len());
        let groups = (0..count)
            .map(|group| pieces.len() * group / count..pieces.len() * (group + 1) / count)
            .collect();
        Self { pieces, groups, blocks }
    }

    /// All jobs.
    pub fn jobs(&self) -> impl Iterator<Item = Job<'_>> {
        self.groups.iter().enumerate().flat_map(move |(group, pieces)| {
            let pieces = &self.pieces[pieces.clone()];
            let blocks = self.blocks.iter().cloned().enumerate();
            blocks.map(move |(block, channels)| Job { group, pieces, block, channels })
        })
    }

    /// Whether a sequence is in several pieces, whose starts depend on one another.
    fn is_split(&self) -> bool {
        self.pieces.iter().any(|piece| !piece.last)
    }
}

/// The states that pieces start from; in reverse, the gradients of those they end with.
#[derive(Debug)]
pub(crate) enum States<'a, F> {
    /// Of whole sequences; zeros where there are none.
    Whole(Option<&'a [F]>),
    /// Of pieces.
    Pieces(Vec<F>),
}

impl<'a, F: Float> States<'a, F> {
    /// States of `len` numbers. Sequences start from those of `edge`.
    ///
    /// Where sequences are cut in time, `own` scans all pieces from zero, at once. A piece multiplies the state it
    /// starts from by its decay, `decay(piece, number)`, and adds what it comes to from zero: linking the pieces is a
    /// short recurrence. In reverse it runs from the last piece to the first. Decays are products of the decays of
    /// steps, never quotients.
    pub fn link<D: Fn(usize, usize) -> F>(
        cut: &Cut,
        len: usize,
        edge: Option<&'a [F]>,
        reverse: bool,
        own: impl FnOnce() -> (Vec<F>, D),
    ) -> Self {
        if !cut.is_split() {
            return Self::Whole(edge);
        }
        let (own, decay) = own();
        let mut states = vec![F::default(); own.len()];
        for step in 0..cut.pieces.len() {
            let at = if reverse { cut.pieces.len() - 1 - step } else { step };
            let piece = &cut.pieces[at];
            let start = at * len;
            if if reverse { piece.last } else { piece.first } {
                if let Some(edge) = edge {
                    states[start..start + len].copy_from_slice(&edge[piece.sequence * len..][..len]);
                }
                continue;
            }
            let before = if reverse { at + 1 } else { at - 1 };
            for number in 0..len {
                let place = before * len + number;
                states[start + number] =
                    states[place].multiply_add::<Target>(decay(before, number), own[place]);
            }
        }
        Self::Pieces(states)
    }

    /// The state of a piece, `len` numbers; `None` for zeros.
    #[inline(always)]
    pub fn of(&self, piece: &Piece, len: usize) -> Option<&[F]> {
        match self {
            Self::Whole(states) => states.map(|states| &states[piece.sequence * len..][..len]),
            Self::Pieces(states) => Some(&states[piece.index * len..][..len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(ends: &[usize]) -> Vec<Range<usize>> {
        ends.windows(2).map(|pair| pair[0]..pair[1]).collect()
    }

    #[test]
    fn a_cut_covers_every_row_and_channel_once() {
        for (ends, channels) in [(&[0, 5000][..], 7), (&[0, 1, 2, 900], 200), (&[0, 3], 5000)] {
            let sequences = sequences(ends);
            let rows = sequences.last().expect("a sequence").end;
            let cut = Cut::new(&sequences, channels, 16, 128);
            let mut met = vec![0; rows * channels];
            for job in cut.jobs() {
                for piece in job.pieces {
                    assert_eq!(cut.pieces[piece.index], *piece);
                    let sequence = &sequences[piece.sequence];
                    assert_eq!(piece.first, piece.rows.start == sequence.start);
                    assert_eq!(piece.last, piece.rows.end == sequence.end);
                    for row in piece.rows.clone() {
                        job.channels.clone().for_each(|channel| met[row * channels + channel] += 1);
                    }
                }
            }
            assert!(met.iter().all(|count| *count == 1));
        }
    }

    #[test]
    fn few_channels_are_cut_in_time() {
        assert!(Cut::new(&sequences(&[0, 5000]), 7, 16, 128).is_split());
        assert!(!Cut::new(&sequences(&[0, 200]), 7, 16, 128).is_split());
        assert!(!Cut::new(&sequences(&[0, 5000]), 1024, 16, 128).is_split());
    }
}
