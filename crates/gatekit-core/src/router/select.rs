//! The K largest values of a row, stably, and within the best groups.

use std::cmp::Ordering;
use std::thread::{available_parallelism, scope};

use burn::tensor::{DType, Tensor};

use super::{Assignment, GroupScore, RouterConfig};
use crate::common::host_values;

/// What is selected from.
pub(super) trait Value: Copy + PartialOrd + Into<f64> + Send + Sync {}

impl Value for f32 {}
impl Value for f64 {}

/// Larger values first, NaN last.
fn falling<T: Value>(a: T, b: T) -> Ordering {
    let is_nan = |x: T| x.partial_cmp(&x).is_none();
    // Not ordered: NaN is among them, or `b` is larger or `a` is.
    b.partial_cmp(&a).unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

/// Whether `a` comes before `b`.
fn is_before<T: Value>(a: T, b: T) -> bool {
    a > b || (b.partial_cmp(&b).is_none() && a.partial_cmp(&a).is_some())
}

/// Most values that are kept in order while a row is read.
const FEW: usize = 16;

/// Positions of the `count` largest of the `candidates`, in falling order; of equal values the one
/// that stands first among the candidates.
fn largest<T: Value>(values: &[T], candidates: &mut Vec<usize>, count: usize) {
    if count <= FEW {
        // The best so far; most candidates fail against the last of them.
        let Some(first) = candidates.first().filter(|_| count > 0) else {
            return candidates.clear();
        };
        let mut best = [*first; FEW];
        let mut worths = [values[*first]; FEW];
        let mut found = 1;
        for &candidate in &candidates[1..] {
            let worth = values[candidate];
            if found < count {
                found += 1;
            } else if !is_before(worth, worths[count - 1]) {
                continue;
            }
            let mut place = found - 1;
            while place > 0 && is_before(worth, worths[place - 1]) {
                (best[place], worths[place]) = (best[place - 1], worths[place - 1]);
                place -= 1;
            }
            (best[place], worths[place]) = (candidate, worth);
        }
        candidates.clear();
        candidates.extend_from_slice(&best[..found]);
        return;
    }
    // The candidates rise, so comparing positions last makes the order total and stable.
    let order = |a: &usize, b: &usize| falling(values[*a], values[*b]).then(a.cmp(b));
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count - 1, order);
    }
    candidates.truncate(count);
    candidates.sort_unstable_by(order);
}

/// Values that keep a thread busy for much longer than it takes to start.
const WORTH_A_THREAD: usize = 1 << 16;

/// The `count` largest values of every row of `width`, in falling order; with `groups` within the
/// best groups of a row alone.
pub(super) fn top<T: Value>(
    values: &[T],
    width: usize,
    count: usize,
    groups: Option<&RouterConfig>,
) -> Vec<usize> {
    let groups = groups.filter(|config| config.topk_group < config.n_group);
    let of_rows = |values: &[T], chosen: &mut [usize]| {
        let mut candidates = Vec::with_capacity(width);
        for (row, chosen) in values.chunks_exact(width).zip(chosen.chunks_exact_mut(count)) {
            candidates.clear();
            match groups {
                Some(config) => allowed(row, config, &mut candidates),
                None => candidates.extend(0..width),
            }
            largest(row, &mut candidates, count);
            chosen.copy_from_slice(&candidates);
        }
    };
    let rows = values.len() / width;
    let mut chosen = vec![0; rows * count];
    let threads = (values.len() / WORTH_A_THREAD).min(available_parallelism().map_or(1, usize::from)).max(1);
    let rows = rows.div_ceil(threads).max(1);
    let parts = values.chunks(rows * width).zip(chosen.chunks_mut(rows * count));
    if threads == 1 {
        parts.for_each(|(values, chosen)| of_rows(values, chosen));
    } else {
        scope(|scope| {
            // The first part is this thread's own.
            let mut parts = parts;
            let own = parts.next();
            for (values, chosen) in parts {
                scope.spawn(move || of_rows(values, chosen));
            }
            own.into_iter().for_each(|(values, chosen)| of_rows(values, chosen));
        });
    }
    chosen
}

/// [`top`] of the rows of a tensor `[rows, width]`, read back from its device.
pub(super) fn top_of(values: Tensor<2>, count: usize, groups: Option<&RouterConfig>) -> Vec<usize> {
    let [_, width] = values.dims();
    let data = host_values(values);
    if data.dtype() == DType::F64 {
        top(data.as_slice::<f64>().expect("of this type"), width, count, groups)
    } else {
        top(data.convert::<f32>().as_slice::<f32>().expect("of this type"), width, count, groups)
    }
}

/// In debug builds, panics where the values of a router hold NaN.
pub(super) fn assert_numbers(name: &str, values: &Tensor<2>) {
    debug_assert!(!values.to_data().iter::<f64>().any(f64::is_nan), "{name} hold NaN");
}

impl Assignment {
    /// The `count` experts of the largest scores `[N, E]` of every token, in falling order (of equal ones the
    /// lower index first, NaN last): for scores that are no [`Router`](super::Router)'s.
    ///
    /// # Panics
    ///
    /// Unless `1 <= count <= E`.
    pub fn top(scores: &Tensor<2>, count: usize) -> Self {
        let [_, experts] = scores.dims();
        assert!((1..=experts).contains(&count), "Assignment: {count} of {experts} experts");
        Self::new(top_of(scores.clone(), count, None), count, experts).expect("the best experts exist")
    }
}

/// The experts of the best groups, rising.
fn allowed<T: Value>(row: &[T], config: &RouterConfig, candidates: &mut Vec<usize>) {
    let size = row.len() / config.n_group;
    let worth = |group: &[T]| {
        let mut best: Vec<usize> = (0..size).collect();
        let count = match config.group_score {
            GroupScore::Max => 1,
            GroupScore::Top2Sum => 2,
        };
        largest(group, &mut best, count);
        best.into_iter().map(|expert| -> f64 { group[expert].into() }).sum::<f64>()
    };
    let worths: Vec<f64> = row.chunks_exact(size).map(worth).collect();
    let mut groups: Vec<usize> = (0..config.n_group).collect();
    largest(&worths, &mut groups, config.topk_group);
    groups.sort_unstable();
    candidates.extend(groups.into_iter().flat_map(|group| group * size..(group + 1) * size));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(n_group: usize, topk_group: usize, group_score: GroupScore) -> RouterConfig {
        RouterConfig::new(1).with_n_group(n_group).with_topk_group(topk_group).with_group_score(group_score)
    }

    #[test]
    fn ties_go_to_the_lower_index_and_nan_goes_last() {
        let row = [1.0, 3.0, f64::NAN, 3.0, 0.0, -0.0, f64::NEG_INFINITY, 1.0];
        assert_eq!(top(&row, 8, 8, None), [1, 3, 0, 7, 4, 5, 6, 2]);
        assert_eq!(top(&row, 8, 3, None), [1, 3, 0]);
        assert_eq!(top(&[0.0; 8], 8, 3, None), [0, 1, 2]);
        assert_eq!(top(&[-0.0, 0.0, f64::NAN, f64::NAN], 4, 3, None), [0, 1, 2]);
        assert_eq!(top(&row, 4, 1, None), [1, 3]);
    }

    #[test]
    fn scores_from_elsewhere_are_assigned_alike() {
        let device = crate::test_util::devices().remove(0);
        let scores = Tensor::<2>::from_data([[0.5, 2.0, 2.0], [1.0, f32::NAN, 0.0]], &device);
        let assignment = Assignment::top(&scores, 2);
        assert_eq!((assignment.experts(), assignment.per_token()), (&[1, 2, 0, 2][..], 2));
        assert_eq!(Assignment::top(&Tensor::zeros([0, 3], &device), 1).tokens(), 0);
    }

    #[test]
    fn many_rows_are_shared_among_threads() {
        let (rows, width) = (5 * WORTH_A_THREAD / 7, 7);
        let values: Vec<f64> = (0..rows * width).map(|place| ((place * 7919) % 1009) as f64).collect();
        let together = top(&values, width, 3, None);
        let one_by_one: Vec<usize> =
            values.chunks_exact(width).flat_map(|row| top(row, width, 3, None)).collect();
        assert_eq!(together, one_by_one);
    }

    #[test]
    fn groups_are_limited_by_what_they_are_worth() {
        // Sums of two: 3, 5, 4; maxima: 3, 2.5, 4.
        let row = [3.0, 0.0, -9.0, 2.5, 2.5, -9.0, 4.0, 0.0, -9.0];
        assert_eq!(top(&row, 9, 3, Some(&config(3, 1, GroupScore::Top2Sum))), [3, 4, 5]);
        assert_eq!(top(&row, 9, 3, Some(&config(3, 1, GroupScore::Max))), [6, 7, 8]);
        assert_eq!(top(&row, 9, 3, Some(&config(3, 2, GroupScore::Max))), [6, 0, 1]);
        // Negative values inside a chosen group still come before anything outside.
        let row = [-1.0, -2.0, -3.0, -4.0];
        assert_eq!(top(&row, 4, 2, Some(&config(2, 1, GroupScore::Top2Sum))), [0, 1]);
        // Of equal groups the first.
        assert_eq!(top(&[0.5; 4], 4, 2, Some(&config(2, 1, GroupScore::Top2Sum))), [0, 1]);
    }
}
