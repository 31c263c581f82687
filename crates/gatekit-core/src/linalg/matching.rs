//! One column for every row.

use super::matrix::Matrix;

/// Rows in order; each takes the column of smallest cost that no row before it took (of equal costs the
/// first; NaN counts as infinite).
///
/// `cost` is `[K, E]`; the result has K different columns. Greedy, so the sum of the costs need not be
/// the smallest.
///
/// # Panics
///
/// With more rows than columns.
pub fn greedy_match(cost: &Matrix) -> Vec<usize> {
    assert!(
        cost.rows() <= cost.columns(),
        "greedy_match: {} rows for {} columns",
        cost.rows(),
        cost.columns()
    );
    let mut taken = vec![false; cost.columns()];
    let mut matched = Vec::with_capacity(cost.rows());
    for row in 0..cost.rows() {
        let value = |column: &usize| match cost[[row, *column]] {
            value if value.is_nan() => f64::INFINITY,
            value => value,
        };
        let free = (0..cost.columns()).filter(|column| !taken[*column]);
        // The first of equal minima: `min_by` keeps it.
        let best = free.min_by(|a, b| value(a).total_cmp(&value(b)));
        let best = best.expect("there are at least as many columns as rows");
        taken[best] = true;
        matched.push(best);
    }
    matched
}
