//! Which rows are put together.

use std::ops::Range;

/// For every target row the source rows that it is the sum of.
///
/// ```
/// use gatekit_kernels::rows::RowMap;
///
/// let picked = RowMap::picking(3, vec![2, 0, 2]);
/// assert_eq!(picked.of_target(0), [2]);
/// // Row 1 was not picked, row 2 twice.
/// let back = picked.transposed();
/// assert_eq!((back.of_target(0), back.of_target(1), back.of_target(2)), (&[1][..], &[][..], &[0, 2][..]));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowMap {
    sources: usize,
    /// Where every target's members begin, and their number; `None`: one member a target.
    offsets: Option<Vec<usize>>,
    members: Vec<usize>,
}

impl RowMap {
    /// Target t is a copy of source `members[t]`.
    ///
    /// # Panics
    ///
    /// When a member is not below `sources`.
    pub fn picking(sources: usize, members: Vec<usize>) -> Self {
        let out_of_range = members.iter().find(|member| **member >= sources);
        assert!(out_of_range.is_none(), "RowMap: member {out_of_range:?} of {sources} sources");
        Self { sources, offsets: None, members }
    }

    /// Source s is added to target `targets[s]`, of `count`; in the order of the sources.
    ///
    /// # Panics
    ///
    /// When a target is not below `count`.
    pub fn adding(targets: &[usize], count: usize) -> Self {
        let out_of_range = targets.iter().find(|target| **target >= count);
        assert!(out_of_range.is_none(), "RowMap: target {out_of_range:?} of {count}");
        Self::of_pairs(
            targets.iter().enumerate().map(|(source, target)| (*target, source)),
            targets.len(),
            count,
        )
    }

    /// The map of the gradient: source s goes to every target that it was a member of, in the order of the targets.
    pub fn transposed(&self) -> Self {
        let pairs = (0..self.targets())
            .flat_map(|target| self.of_target(target).iter().map(move |source| (*source, target)));
        Self::of_pairs(pairs, self.targets(), self.sources)
    }

    /// From pairs of a target, of `count`, and a source, of `sources`; the sources of a target in their order.
    fn of_pairs(pairs: impl Iterator<Item = (usize, usize)> + Clone, sources: usize, count: usize) -> Self {
        let mut offsets = vec![0; count + 1];
        pairs.clone().for_each(|(target, _)| offsets[target + 1] += 1);
        let each_has_one = offsets[1..].iter().all(|members| *members == 1);
        for target in 0..count {
            offsets[target + 1] += offsets[target];
        }
        let mut next = offsets.clone();
        let mut members = vec![0; offsets[count]];
        for (target, source) in pairs {
            members[next[target]] = source;
            next[target] += 1;
        }
        Self { sources, offsets: (!each_has_one).then_some(offsets), members }
    }

    /// Number of source rows.
    pub fn sources(&self) -> usize {
        self.sources
    }

    /// Number of target rows.
    pub fn targets(&self) -> usize {
        self.offsets.as_ref().map_or(self.members.len(), |offsets| offsets.len() - 1)
    }

    /// The sources of all targets, one target's behind another's.
    pub fn members(&self) -> &[usize] {
        &self.members
    }

    /// The sources of a target.
    ///
    /// # Panics
    ///
    /// When there is no such target.
    #[inline]
    pub fn of_target(&self, target: usize) -> &[usize] {
        &self.members[self.range(target)]
    }

    /// Where the sources of a target stand among the members.
    #[inline]
    pub(crate) fn range(&self, target: usize) -> Range<usize> {
        match &self.offsets {
            Some(offsets) => offsets[target]..offsets[target + 1],
            None => target..target + 1,
        }
    }

    /// Whether every target has one source.
    pub(crate) fn is_picking(&self) -> bool {
        self.offsets.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_twice_gives_the_map_back() {
        let maps = [
            RowMap::picking(4, vec![3, 1, 0, 2]),
            RowMap::picking(3, vec![2, 2, 0]),
            RowMap::adding(&[1, 4, 1, 0], 5),
            RowMap::adding(&[], 2),
            RowMap::picking(2, vec![]),
        ];
        for map in maps {
            let back = map.transposed();
            assert_eq!((back.sources(), back.targets()), (map.targets(), map.sources()));
            let again = back.transposed();
            for target in 0..map.targets() {
                assert_eq!(again.of_target(target), map.of_target(target), "{map:?}");
            }
        }
    }

    #[test]
    fn sources_are_added_in_their_order() {
        let map = RowMap::adding(&[2, 0, 2, 2], 3);
        assert_eq!(
            (map.of_target(0), map.of_target(1), map.of_target(2)),
            (&[1][..], &[][..], &[0, 2, 3][..])
        );
        assert!(map.transposed().is_picking());
    }

    #[test]
    #[should_panic(expected = "RowMap: member Some(2) of 2 sources")]
    fn a_row_that_is_not_there_is_refused() {
        RowMap::picking(2, vec![0, 2]);
    }
}
