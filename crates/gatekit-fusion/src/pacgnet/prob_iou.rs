//! ProbIoU: how similar two oriented boxes are, as Gaussians.
//!
//! A box `(x, y, w, h, theta)` is a Gaussian around its centre with the variances of a uniform box, `w^2 / 12` and
//! `h^2 / 12`, turned by theta. The similarity is one minus the Hellinger distance of two of them. Llerena et al.
//! (arXiv 2106.06072), in the form of YOLOv8's oriented loss.

use burn::tensor::Tensor;

/// Keeps quotients and roots finite.
const EPSILON: f64 = 1e-7;
/// Largest Bhattacharyya distance: boxes farther apart have no gradient.
const FARTHEST: f64 = 100.0;

/// An oriented box: centre x and y, width, height, angle in radians.
pub type OrientedBox = [f64; 5];

/// Similarity of two boxes, at most 1 (reached up to the epsilon, 3e-4 below) and slightly below 0 for boxes far apart.
pub fn prob_iou(first: OrientedBox, second: OrientedBox) -> f64 {
    let covariance = |[_, _, w, h, theta]: OrientedBox| {
        let (a, b) = (w * w / 12.0, h * h / 12.0);
        let (sin, cos) = theta.sin_cos();
        (a * cos * cos + b * sin * sin, a * sin * sin + b * cos * cos, (a - b) * sin * cos)
    };
    let ((a1, b1, c1), (a2, b2, c2)) = (covariance(first), covariance(second));
    let (a, b, c) = (a1 + a2, b1 + b2, c1 + c2);
    let determinant = a * b - c * c;
    let (dx, dy) = (first[0] - second[0], first[1] - second[1]);
    let t1 = (a * dy * dy + b * dx * dx) / (4.0 * (determinant + EPSILON));
    let t2 = c * -dx * dy / (2.0 * (determinant + EPSILON));
    let own = |a: f64, b: f64, c: f64| (a * b - c * c).max(0.0);
    let t3 =
        0.5 * (determinant / (4.0 * (own(a1, b1, c1) * own(a2, b2, c2)).sqrt() + EPSILON) + EPSILON).ln();
    let distance = (t1 + t2 + t3).clamp(EPSILON, FARTHEST);
    1.0 - (1.0 - (-distance).exp() + EPSILON).sqrt()
}

/// [`prob_iou`] of paired boxes, `[N, 5]` each, to `[N]`, with gradients.
///
/// # Panics
///
/// When the shapes differ.
pub fn prob_iou_pairs(first: Tensor<2>, second: Tensor<2>) -> Tensor<1> {
    assert!(
        first.dims() == second.dims() && first.dims()[1] == 5,
        "prob_iou_pairs: `first` {:?} and `second` {:?} are not both [N, 5]",
        first.dims(),
        second.dims()
    );
    let column = |boxes: &Tensor<2>, index: usize| boxes.clone().narrow(1, index, 1).squeeze_dim::<1>(1);
    let covariance = |boxes: &Tensor<2>| {
        let a = column(boxes, 2).square() / 12.0;
        let b = column(boxes, 3).square() / 12.0;
        let (sin, cos) = (column(boxes, 4).sin(), column(boxes, 4).cos());
        let (sin2, cos2) = (sin.clone().square(), cos.clone().square());
        (
            a.clone() * cos2.clone() + b.clone() * sin2.clone(),
            a.clone() * sin2 + b.clone() * cos2,
            (a - b) * sin * cos,
        )
    };
    let determinant =
        |a: &Tensor<1>, b: &Tensor<1>, c: &Tensor<1>| a.clone() * b.clone() - c.clone().square();
    let ((a1, b1, c1), (a2, b2, c2)) = (covariance(&first), covariance(&second));
    let own = determinant(&a1, &b1, &c1).clamp_min(0.0) * determinant(&a2, &b2, &c2).clamp_min(0.0);
    let (a, b, c) = (a1 + a2, b1 + b2, c1 + c2);
    let of_sum = determinant(&a, &b, &c);
    let dx = column(&first, 0) - column(&second, 0);
    let dy = column(&first, 1) - column(&second, 1);
    let t1 = (a * dy.clone().square() + b * dx.clone().square()) / ((of_sum.clone() + EPSILON) * 4.0);
    let t2 = c * dx.neg() * dy / ((of_sum.clone() + EPSILON) * 2.0);
    let t3 = (of_sum / (own.sqrt() * 4.0 + EPSILON) + EPSILON).log() * 0.5;
    let distance = (t1 + t2 + t3).clamp(EPSILON, FARTHEST);
    (distance.neg().exp().neg() + (1.0 + EPSILON)).sqrt().neg() + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_most_similar_to_itself() {
        let one = [20.0, 10.0, 12.0, 4.0, 0.4];
        assert!((prob_iou(one, one) - 1.0).abs() < 1e-3);
        // Half a turn changes nothing; nor does a quarter with the sides exchanged.
        let turned = [20.0, 10.0, 12.0, 4.0, 0.4 + std::f64::consts::PI];
        let exchanged = [20.0, 10.0, 4.0, 12.0, 0.4 + std::f64::consts::FRAC_PI_2];
        assert!((prob_iou(one, turned) - prob_iou(one, one)).abs() < 1e-6);
        assert!((prob_iou(one, exchanged) - prob_iou(one, one)).abs() < 1e-6);
        let mut last = prob_iou(one, one);
        for shift in [1.0, 3.0, 8.0, 20.0] {
            let moved = [20.0 + shift, 10.0, 12.0, 4.0, 0.4];
            let similarity = prob_iou(one, moved);
            assert!(similarity < last && (similarity - prob_iou(moved, one)).abs() < 1e-12);
            last = similarity;
        }
        assert!(prob_iou(one, [900.0, 900.0, 12.0, 4.0, 0.0]) <= 0.0);
    }
}
