//! Products at every level against plain loops, and how work is cut.

use super::{
    cut::{Piece, batches, pieces},
    product::{Lines, Product, SCRATCH, scratch},
};
use crate::{float::Float, scratch::with_scratch, simd::Level};

/// Small whole numbers: exact in any order.
fn numbers<F: Float>(count: usize, period: usize) -> Vec<F> {
    (0..count).map(|i| F::of((i % period) as f64 - (period / 2) as f64)).collect()
}

/// Every layout of the operands, with and without picked lines, stored and added.
fn check<F: Float + std::fmt::Debug>(level: Level, [rows, columns, depth]: [usize; 3]) {
    let (a, b) = (numbers::<F>(rows * depth, 7), numbers::<F>(depth * columns, 5));
    for case in 0..16 {
        let [left_transposed, right_transposed, picked, add] = [1, 2, 4, 8].map(|bit| case & bit > 0);
        let at_left = |r: usize, k: usize| if left_transposed { k * rows + r } else { r * depth + k };
        let at_right = |k: usize, c: usize| if right_transposed { c * depth + k } else { k * columns + c };
        // Reversed lines of the left operand and of the result.
        let lines = if left_transposed { depth } else { rows };
        let reversed: Vec<usize> = (0..lines).rev().collect();
        let back: Vec<usize> = (0..rows).rev().collect();
        let mut want = vec![F::of(if add { 3.0 } else { 0.0 }); rows * columns];
        let mut got = vec![F::of(3.0); rows * columns];
        for r in 0..rows {
            for c in 0..columns {
                let to = if picked { rows - 1 - r } else { r };
                for k in 0..depth {
                    let (line_r, line_k) = match (picked, left_transposed) {
                        (true, true) => (r, depth - 1 - k),
                        (true, false) => (rows - 1 - r, k),
                        _ => (r, k),
                    };
                    want[to * columns + c] += a[at_left(line_r, line_k)] * b[at_right(k, c)];
                }
            }
        }
        let left_stride = if left_transposed { rows } else { depth };
        let product = Product {
            rows,
            columns,
            depth,
            left: Lines { start: a.as_ptr(), stride: left_stride, picked: picked.then_some(&reversed[..]) },
            left_transposed,
            right: Lines::all(b.as_ptr(), if right_transposed { depth } else { columns }),
            right_transposed,
            out: Lines { start: got.as_mut_ptr(), stride: columns, picked: picked.then_some(&back[..]) },
            add,
        };
        // SAFETY: the level is one of those available; operands and result are there.
        with_scratch(&SCRATCH, |mut arena| unsafe { product.run(level, &mut scratch(&mut arena)) });
        assert!(got == want, "{level:?} {rows} x {columns} x {depth}, case {case}");
    }
}

#[test]
fn products_of_all_layouts_and_sizes() {
    let sizes = [
        [1, 1, 1],
        [2, 3, 0],
        [6, 64, 16],
        [7, 65, 33],
        [11, 17, 48],
        [100, 130, 20],
        [97, 515, 40],
        [13, 31, 1030],
        [4, 50, 16],
    ];
    for level in Level::available() {
        for size in sizes {
            check::<f32>(level, size);
            check::<f64>(level, size);
        }
    }
}

#[test]
fn pieces_and_batches_cover_the_rows() {
    for offsets in [vec![0, 3, 3, 10, 40], vec![0, 0, 100], vec![0, 0], vec![0, 5, 10, 15, 20, 21, 43]] {
        let all = pieces(&offsets, 9);
        let mut next = 0;
        for Piece { group, rows } in &all {
            assert_eq!(rows.start, next);
            assert!(offsets[*group] <= rows.start && rows.end <= offsets[group + 1]);
            assert!((1..=9).contains(&rows.len()));
            next = rows.end;
        }
        assert_eq!(next, *offsets.last().unwrap());
        let batches = batches(all.clone(), 9);
        assert_eq!(batches.concat(), all);
        for batch in &batches {
            assert!(batch[batch.len() - 1].rows.end - batch[0].rows.start <= 9);
            let groups: Vec<usize> = batch.iter().map(|piece| piece.group).collect();
            assert!(groups.is_sorted_by(|a, b| a < b), "no expert twice in a batch");
        }
    }
}
