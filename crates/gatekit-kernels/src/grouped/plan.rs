//! Which tokens go to which expert, in sorted order.

use std::ops::Range;

/// Slots sorted by expert: every one sends a token to an expert, with a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortedSlots {
    tokens: usize,
    weights: usize,
    rows: Vec<usize>,
    order: Vec<usize>,
    offsets: Vec<usize>,
}

impl SortedSlots {
    /// The tokens `rows` of M slots, their places `order` among `weights` weights, and where the slots of every expert
    /// begin, and M: `offsets`, one more than there are experts.
    ///
    /// # Panics
    ///
    /// Unless the offsets rise from 0 to M, every row is below `tokens`, and `order` has a place of its own below
    /// `weights` for every slot.
    pub fn new(
        tokens: usize,
        weights: usize,
        rows: Vec<usize>,
        order: Vec<usize>,
        offsets: Vec<usize>,
    ) -> Self {
        let slots = rows.len();
        assert!(
            offsets.first() == Some(&0) && offsets.last() == Some(&slots) && offsets.is_sorted(),
            "SortedSlots: the offsets do not rise from 0 to {slots}"
        );
        assert!(rows.iter().all(|row| *row < tokens), "SortedSlots: a row is not below {tokens}");
        let mut free = vec![true; weights];
        let own = |place: &usize| free.get_mut(*place).is_some_and(std::mem::take);
        assert!(
            order.len() == slots && order.iter().all(own),
            "SortedSlots: the order has no place of its own below {weights} for each of {slots} slots"
        );
        Self { tokens, weights, rows, order, offsets }
    }

    /// Every row its own slot, with a weight of its own.
    ///
    /// # Panics
    ///
    /// Unless the offsets rise from 0.
    pub fn each(offsets: Vec<usize>) -> Self {
        let rows = offsets.last().copied().unwrap_or(0);
        Self::new(rows, rows, (0..rows).collect(), (0..rows).collect(), offsets)
    }

    /// Number of tokens N.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of weights.
    pub fn weights(&self) -> usize {
        self.weights
    }

    /// The token of every slot, M entries.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Where the weight of every slot is, M entries.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Where every expert's slots begin, and M: E + 1 entries.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The slots of an expert.
    pub fn of_expert(&self, expert: usize) -> Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }
}
