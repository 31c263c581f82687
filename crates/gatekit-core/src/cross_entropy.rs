//! Cross entropies of classifiers, one a sample, and labels that are checked.

use burn::tensor::{Int, Tensor, activation::log_softmax};

use crate::common::widen;
use crate::decay::softplus_stable;
use crate::error::InputError;

/// `-log softmax(logits)[label]` of every sample in nats, `[batch]`, in at least float32.
///
/// # Shapes
///
/// - `logits`: `[batch, classes]`
/// - `labels`: `[batch]`, each a class; see [`check_labels`]
///
/// # Panics
///
/// When the shapes do not fit.
pub fn cross_entropies(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    let ([batch, _], [count]) = (logits.dims(), labels.dims());
    assert!(batch == count, "cross_entropies: {count} `labels` for {batch} rows of `logits`");
    log_softmax(widen(logits), 1).gather(1, labels.unsqueeze_dim(1)).squeeze_dim::<1>(1).neg()
}

/// `-y log sigmoid(z) - (1 - y) log(1 - sigmoid(z)) = softplus(z) - y z` of every logit z and its target y in [0, 1],
/// in nats, of the logits' shape, in at least float32.
///
/// # Panics
///
/// When the shapes differ.
pub fn binary_cross_entropies<const D: usize>(logits: Tensor<D>, targets: Tensor<D>) -> Tensor<D> {
    let (got, need) = (targets.dims(), logits.dims());
    assert!(got == need, "binary_cross_entropies: `targets` {got:?} for `logits` {need:?}");
    let logits = widen(logits);
    let targets = targets.cast(logits.dtype());
    softplus_stable(logits.clone()) - logits * targets
}

/// Reads labels `[batch]` back and refuses such as are no class.
///
/// # Errors
///
/// [`InputError`] names the first label outside `0 .. classes`, and refuses labels of another number
/// than `batch`.
pub fn check_labels(labels: &Tensor<1, Int>, batch: usize, classes: usize) -> Result<Vec<usize>, InputError> {
    let labels: Vec<i64> = labels.to_data().iter::<i64>().collect();
    if labels.len() != batch {
        return Err(InputError::new("labels", format!("{} labels", labels.len()), format!("{batch}")));
    }
    let class = |(place, label): (usize, i64)| match usize::try_from(label) {
        Ok(class) if class < classes => Ok(class),
        _ => Err(InputError::new("labels", format!("{label} at {place}"), format!("0 .. {classes}"))),
    };
    labels.into_iter().enumerate().map(class).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::test_util::{assert_close, check_gradients, devices, float32, values};

    #[test]
    fn matches_the_equation_and_refuses_labels_that_are_none() {
        for device in devices() {
            let logits = float32(&[1.0, 2.0, 0.5, 300.0, 0.0, -300.0], [2, 3], &device);
            let labels = Tensor::<1, Int>::from_data(TensorData::from([1i64, 2]), &device);
            let first = (1f64.exp() + 2f64.exp() + 0.5f64.exp()).ln() - 2.0;
            assert_close(&values(cross_entropies(logits, labels.clone())), &[first, 600.0], 1e-6);
            assert_eq!(check_labels(&labels, 2, 3).unwrap(), [1, 2]);
            let error = check_labels(&labels, 2, 2).unwrap_err();
            assert_eq!((error.field.as_str(), error.got.as_str()), ("labels", "2 at 1"));
            assert_eq!(check_labels(&labels, 3, 3).unwrap_err().got, "2 labels");
            let negative = Tensor::<1, Int>::from_data(TensorData::from([-1i64]), &device);
            assert!(check_labels(&negative, 1, 3).is_err());
        }
    }

    #[test]
    fn binary_ones_are_finite_far_out_and_have_their_gradients() {
        for device in devices() {
            let (z, y) = ([0.0, 2.0, -3.0, 1e4, -1e4], [1.0, 0.25, 0.0, 0.0, 1.0]);
            let got = binary_cross_entropies(float32(&z, [5], &device), float32(&y, [5], &device));
            let want = |(z, y): (&f64, &f64)| z.max(0.0) - z * y + (-z.abs()).exp().ln_1p();
            assert_close(&values(got), &z.iter().zip(&y).map(want).collect::<Vec<_>>(), 1e-6);
            check_gradients(&[0.0, 2.0, -3.0, 0.5], [4], &device, |z| {
                let y = z.ones_like() * 0.3;
                binary_cross_entropies(z, y)
            });
        }
    }
}
