//! How well scores put what is wanted before the rest.

/// Average precision: the mean, over the wanted items, of the share of wanted ones among those that score as high or
/// higher. 1 for a perfect order; the share of wanted items for an order by chance; 0 when nothing is wanted. Items of
/// equal score count as one group, in whatever order they come.
///
/// # Panics
///
/// When there is not one score an item, or a score is NaN.
pub fn average_precision(scores: &[f64], wanted: &[bool]) -> f64 {
    assert_eq!(scores.len(), wanted.len(), "average_precision: one score an item");
    assert!(scores.iter().all(|score| !score.is_nan()), "average_precision: a score is NaN");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let total = wanted.iter().filter(|wanted| **wanted).count();
    let (mut seen, mut found, mut sum) = (0, 0, 0.0);
    for group in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let hits = group.iter().filter(|&&item| wanted[item]).count();
        (seen, found) = (seen + group.len(), found + hits);
        sum += hits as f64 * found as f64 / seen as f64;
    }
    sum / total.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_items_are_judged_by_what_stands_before_them() {
        let wanted = [true, false, true, false];
        assert_eq!(average_precision(&[0.9, 0.1, 0.8, 0.2], &wanted), 1.0);
        assert_eq!(average_precision(&[0.9, 0.8, 0.7, 0.1], &wanted), (1.0 + 2.0 / 3.0) / 2.0);
        assert_eq!(average_precision(&[0.1, 0.9, 0.2, 0.8], &wanted), (1.0 / 3.0 + 2.0 / 4.0) / 2.0);
        assert_eq!(average_precision(&[0.5; 4], &wanted), 0.5);
        assert_eq!(average_precision(&[0.5; 2], &[false, false]), 0.0);
        assert_eq!(average_precision(&[], &[]), 0.0);
    }
}
