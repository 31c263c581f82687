//! Suppression, matching and average precision, on the host.

use gatekit_core::InputError;

use super::prob_iou::{OrientedBox, prob_iou};

/// Detections or objects of a set of images, as lists of equal length.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BoxList {
    /// `(x, y, w, h, theta)` in pixels.
    pub boxes: Vec<OrientedBox>,
    /// Classes.
    pub labels: Vec<usize>,
    /// Images.
    pub image: Vec<usize>,
    /// Scores; none for objects.
    pub scores: Vec<f64>,
}

impl BoxList {
    fn check(&self, name: &str, scored: bool) -> Result<(), InputError> {
        let count = self.boxes.len();
        let scores = if scored { count } else { 0 };
        let lengths = [("labels", self.labels.len(), count), ("image", self.image.len(), count)];
        for (field, length, need) in lengths.into_iter().chain([("scores", self.scores.len(), scores)]) {
            if length != need {
                let need = format!("{need}, for {count} boxes");
                return Err(InputError::new(format!("{name}.{field}"), format!("{length} entries"), need));
            }
        }
        match self.scores.iter().position(|score| !score.is_finite()) {
            Some(index) => {
                let got = format!("{} (detection {index})", self.scores[index]);
                Err(InputError::new(format!("{name}.scores"), got, "finite numbers"))
            }
            None => Ok(()),
        }
    }

    /// Adds the boxes of `other`.
    pub fn extend(&mut self, other: Self) {
        self.boxes.extend(other.boxes);
        self.labels.extend(other.labels);
        self.image.extend(other.image);
        self.scores.extend(other.scores);
    }

    /// The boxes of which `kept` is true.
    ///
    /// # Panics
    ///
    /// When there is not one entry a box.
    pub fn retain(&self, kept: &[bool]) -> Self {
        assert!(
            kept.len() == self.boxes.len(),
            "BoxList: {} entries for {} boxes",
            kept.len(),
            self.boxes.len()
        );
        fn of<T: Copy>(values: &[T], kept: &[bool]) -> Vec<T> {
            values.iter().zip(kept).filter(|(_, kept)| **kept).map(|(value, _)| *value).collect()
        }
        Self {
            boxes: of(&self.boxes, kept),
            labels: of(&self.labels, kept),
            image: of(&self.image, kept),
            scores: of(&self.scores, kept),
        }
    }

    /// All boxes by falling score, of equal ones the first.
    fn by_score(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.boxes.len()).collect();
        order.sort_by(|&a, &b| self.scores[b].total_cmp(&self.scores[a]));
        order
    }
}

/// Which detections are kept: one is dropped if its [`prob_iou`] with any better-scored one of its image and class
/// reaches `threshold`, that one dropped or not; of an image at most `max_detections` of the best are kept.
///
/// # Errors
///
/// [`InputError`] for lists of unequal length, and scores that are not finite.
pub fn non_maximum_suppression(
    detections: &BoxList,
    threshold: f64,
    max_detections: usize,
) -> Result<Vec<bool>, InputError> {
    detections.check("detections", true)?;
    let order = detections.by_score();
    let mut kept = vec![false; order.len()];
    let mut counts = std::collections::HashMap::new();
    for (rank, &index) in order.iter().enumerate() {
        let suppressed = order[..rank].iter().any(|&better| {
            detections.image[better] == detections.image[index]
                && detections.labels[better] == detections.labels[index]
                && prob_iou(detections.boxes[better], detections.boxes[index]) >= threshold
        });
        let count = counts.entry(detections.image[index]).or_insert(0usize);
        kept[index] = !suppressed && *count < max_detections;
        *count += usize::from(kept[index]);
    }
    Ok(kept)
}

/// Which detections found an object. In every image a detection claims the object of its class that it is most similar
/// to, if the similarity reaches `threshold`; an object counts for the best-scored detection that claims it.
///
/// # Errors
///
/// As [`non_maximum_suppression`].
pub fn match_detections(
    detections: &BoxList,
    objects: &BoxList,
    threshold: f64,
) -> Result<Vec<bool>, InputError> {
    detections.check("detections", true)?;
    objects.check("objects", false)?;
    let mut found = vec![false; objects.boxes.len()];
    let mut matched = vec![false; detections.boxes.len()];
    for index in detections.by_score() {
        let claims = (0..objects.boxes.len())
            .filter(|&object| {
                objects.image[object] == detections.image[index]
                    && objects.labels[object] == detections.labels[index]
            })
            .map(|object| (object, prob_iou(detections.boxes[index], objects.boxes[object])))
            .reduce(|best, other| if other.1 > best.1 { other } else { best });
        if let Some((object, similarity)) = claims
            && similarity >= threshold
            && !found[object]
        {
            found[object] = true;
            matched[index] = true;
        }
    }
    Ok(matched)
}

/// Average precision a class, -1 for a class without objects and 0 for one without detections: the area under the precision that is at least reached at
/// a recall, at 101 recalls.
///
/// `matched` says which detections found an object, see [`match_detections`].
///
/// # Errors
///
/// As [`non_maximum_suppression`], and for `matched` of another length.
pub fn average_precision(
    detections: &BoxList,
    matched: &[bool],
    objects: &BoxList,
    num_classes: usize,
) -> Result<Vec<f64>, InputError> {
    detections.check("detections", true)?;
    objects.check("objects", false)?;
    if matched.len() != detections.boxes.len() {
        let need = format!("{}, one a detection", detections.boxes.len());
        return Err(InputError::new("matched", format!("{} entries", matched.len()), need));
    }
    let order = detections.by_score();
    let class = |class: usize| {
        let total = objects.labels.iter().filter(|&&label| label == class).count();
        if total == 0 {
            return -1.0;
        }
        let (mut recall, mut precision, mut hits) = (vec![0.0], vec![1.0], 0);
        let of_class = order.iter().filter(|&&index| detections.labels[index] == class);
        for (rank, &index) in of_class.enumerate() {
            hits += usize::from(matched[index]);
            recall.push(hits as f64 / total as f64);
            precision.push(hits as f64 / (rank + 1) as f64);
        }
        if recall.len() == 1 {
            return 0.0;
        }
        recall.push(1.0);
        precision.push(0.0);
        for index in (0..precision.len() - 1).rev() {
            precision[index] = precision[index].max(precision[index + 1]);
        }
        let heights: Vec<f64> =
            (0..=100).map(|step| interpolate(step as f64 / 100.0, &recall, &precision)).collect();
        heights.windows(2).map(|pair| (pair[0] + pair[1]) / 200.0).sum()
    };
    Ok((0..num_classes).map(class).collect())
}

/// Mean over the classes that have objects; 0 if none has.
pub fn mean_average_precision(by_class: &[f64]) -> f64 {
    let with_objects = || by_class.iter().filter(|value| **value >= 0.0);
    match with_objects().count() {
        0 => 0.0,
        count => with_objects().sum::<f64>() / count as f64,
    }
}

/// Between the last point at or before `x` and the next; `xs` rise.
fn interpolate(x: f64, xs: &[f64], ys: &[f64]) -> f64 {
    let at = xs.partition_point(|&point| point <= x).saturating_sub(1);
    if at + 1 == xs.len() || xs[at] == x {
        return ys[at];
    }
    ys[at] + (ys[at + 1] - ys[at]) * (x - xs[at]) / (xs[at + 1] - xs[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(boxes: &[(f64, usize, usize)], scores: &[f64]) -> BoxList {
        BoxList {
            boxes: boxes.iter().map(|(x, ..)| [*x, 10.0, 12.0, 6.0, 0.3]).collect(),
            labels: boxes.iter().map(|(_, label, _)| *label).collect(),
            image: boxes.iter().map(|(.., image)| *image).collect(),
            scores: scores.to_vec(),
        }
    }

    #[test]
    fn a_better_box_of_the_same_class_and_image_suppresses() {
        let boxes = [(10.0, 0, 0), (10.5, 0, 0), (10.0, 1, 0), (10.0, 0, 1), (90.0, 0, 0)];
        let detections = list(&boxes, &[0.5, 0.9, 0.4, 0.3, 0.2]);
        let kept = non_maximum_suppression(&detections, 0.7, 300).unwrap();
        assert_eq!(kept, [false, true, true, true, true]);
        let kept = non_maximum_suppression(&detections, 0.7, 2).unwrap();
        assert_eq!(kept, [false, true, true, true, false]);
    }

    #[test]
    fn a_perfect_class_has_an_average_precision_of_0_995() {
        let objects = list(&[(10.0, 0, 0), (50.0, 0, 0), (10.0, 2, 1)], &[]);
        let detections =
            list(&[(10.0, 0, 0), (50.0, 0, 0), (70.0, 2, 1), (11.0, 2, 1)], &[0.9, 0.8, 0.7, 0.6]);
        let matched = match_detections(&detections, &objects, 0.5).unwrap();
        assert_eq!(matched, [true, true, false, true]);
        let precision = average_precision(&detections, &matched, &objects, 3).unwrap();
        assert!((precision[0] - 0.995).abs() < 1e-9 && precision[1] == -1.0);
        // Half of the detections are right at every recall but the last.
        assert!((precision[2] - 0.4975).abs() < 1e-9, "{precision:?}");
        assert!((mean_average_precision(&precision) - 0.74625).abs() < 1e-9);
    }

    #[test]
    fn an_object_is_found_once() {
        let objects = list(&[(10.0, 0, 0)], &[]);
        let detections = list(&[(10.2, 0, 0), (10.0, 0, 0)], &[0.9, 0.8]);
        assert_eq!(match_detections(&detections, &objects, 0.5).unwrap(), [true, false]);
    }

    #[test]
    fn nothing_is_no_number_gone_wrong() {
        let (none, objects) = (BoxList::default(), list(&[(1.0, 0, 0)], &[]));
        assert_eq!(non_maximum_suppression(&none, 0.5, 10).unwrap(), [] as [bool; 0]);
        assert_eq!(average_precision(&none, &[], &objects, 2).unwrap(), [0.0, -1.0]);
        assert_eq!(average_precision(&none, &[], &none, 1).unwrap(), [-1.0]);
        assert_eq!(mean_average_precision(&[-1.0]), 0.0);
    }

    #[test]
    fn lists_must_have_one_length() {
        let mut detections = list(&[(1.0, 0, 0), (2.0, 0, 0)], &[0.5]);
        assert_eq!(non_maximum_suppression(&detections, 0.5, 9).unwrap_err().field, "detections.scores");
        detections.scores.push(f64::NAN);
        let error = match_detections(&detections, &BoxList::default(), 0.5).unwrap_err();
        assert!(error.to_string().contains("NaN (detection 1)"), "{error}");
        detections.image.pop();
        assert_eq!(non_maximum_suppression(&detections, 0.5, 9).unwrap_err().field, "detections.image");
    }
}
