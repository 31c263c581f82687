//! How a recurrence over sequences of many independent channels is cut into jobs.
//!
//! The cut depends on the shape of the problem alone, never on the number of threads: so does the order of every sum.

use std::ops::Range;

/// Jobs that are wanted: some for each of many threads, so that they end together.
const JOBS: usize = 32;

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
            for from in rows.clone().step_by(steps.max(1)) {
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

    /// Whether a sequence is in several pieces, whose starts depend on one another.
    pub fn is_split(&self) -> bool {
        self.pieces.iter().any(|piece| !piece.last)
    }

    /// All jobs.
    pub fn jobs(&self) -> impl Iterator<Item = Job<'_>> {
        self.groups.iter().enumerate().flat_map(move |(group, pieces)| {
            let pieces = &self.pieces[pieces.clone()];
            let blocks = self.blocks.iter().cloned().enumerate();
            blocks.map(move |(block, channels)| Job { group, pieces, block, channels })
        })
    }
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
