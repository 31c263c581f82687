//! Which rows a cube works on: three numbers, the group, its first row and the number of rows.

/// The rows of every group in tiles of `height`.
pub(super) fn tiles(offsets: &[usize], height: usize) -> Vec<u32> {
    let mut table = vec![];
    for (group, pair) in offsets.windows(2).enumerate() {
        for first in (pair[0]..pair[1]).step_by(height) {
            table.extend([group, first, height.min(pair[1] - first)].map(|number| number as u32));
        }
    }
    table
}

/// How many tiles of `height` the rows of all groups are.
pub(super) fn tile_count(offsets: &[usize], height: usize) -> usize {
    offsets.windows(2).map(|pair| (pair[1] - pair[0]).div_ceil(height)).sum()
}

/// The rows of every group in `slices` parts of about the same length, whole multiples of `unit`, perhaps without rows:
/// first those of all groups that come first.
pub(super) fn slices(offsets: &[usize], slices: usize, unit: usize) -> Vec<u32> {
    let mut table = vec![];
    for slice in 0..slices {
        for (group, pair) in offsets.windows(2).enumerate() {
            let length = (pair[1] - pair[0]).div_ceil(slices).next_multiple_of(unit);
            let first = (pair[0] + slice * length).min(pair[1]);
            table.extend([group, first, length.min(pair[1] - first)].map(|number| number as u32));
        }
    }
    table
}

/// The most rows that a group has.
pub(super) fn longest(offsets: &[usize]) -> usize {
    offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{slices, tile_count, tiles};

    #[test]
    fn tiles_cover_every_row_once() {
        let offsets = [0, 0, 5, 5, 22, 38, 39];
        let table = tiles(&offsets, 16);
        assert_eq!(table, [1, 0, 5, 3, 5, 16, 3, 21, 1, 4, 22, 16, 5, 38, 1]);
        assert_eq!(table.len(), 3 * tile_count(&offsets, 16));
    }

    #[test]
    fn slices_cover_every_row_once_and_name_every_group() {
        assert_eq!(slices(&[0, 5, 5, 30], 1, 8), [0, 0, 5, 1, 5, 0, 2, 5, 25]);
        assert_eq!(slices(&[0, 5, 5, 30], 2, 8), [0, 0, 5, 1, 5, 0, 2, 5, 16, 0, 5, 0, 1, 5, 0, 2, 21, 9]);
    }
}
