//! Softmax attention in which every query sees every key.

use burn::tensor::Tensor;

use super::masked::masked_attention;

/// Softmax attention without a mask, as in encoders: `o_i = sum_j softmax_j(D^(-1/2) q_i . k_j) v_j` over all keys.
///
/// * `q` `[batch, time, heads, D]`
/// * `k` `[batch, keys, heads, D]`, `v` `[batch, keys, heads, Dv]`, at least one key
/// * returns `[batch, time, heads, Dv]`
///
/// Scores are normalised in at least float32. All of them, `[batch, heads, time, keys]`, are held at once. Vaswani et
/// al. (arXiv 1706.03762), eq. 1.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn full_attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    let ([batch, _, heads, dim], keys) = (q.dims(), k.dims()[1]);
    assert!(
        k.dims() == [batch, keys, heads, dim] && v.dims()[..3] == [batch, keys, heads] && keys > 0,
        "full_attention: `k` {:?} and `v` {:?} do not fit `q` {:?}",
        k.dims(),
        v.dims(),
        q.dims()
    );
    masked_attention(q, k, v, None, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{AttentionOptions, causal_attention};
    use crate::test_util::{assert_close, check_gradients, devices, float64, ramp, values};

    #[test]
    fn weights_are_the_softmax_of_all_scores() {
        let (q, k, v) = (ramp(12, 1.0), ramp(16, 1.3), ramp(24, 0.7));
        for device in devices() {
            let o = full_attention(
                float64(&q, [1, 3, 2, 2], &device),
                float64(&k, [1, 4, 2, 2], &device),
                float64(&v, [1, 4, 2, 3], &device),
            );
            let mut expected = Vec::new();
            for (time, head) in (0..3).flat_map(|time| (0..2).map(move |head| (time, head))) {
                let score = |key: usize| {
                    let dot = |c: usize| q[(time * 2 + head) * 2 + c] * k[(key * 2 + head) * 2 + c];
                    ((dot(0) + dot(1)) / 2f64.sqrt()).exp()
                };
                let sum: f64 = (0..4).map(score).sum();
                for c in 0..3 {
                    expected.push((0..4).map(|key| score(key) / sum * v[(key * 2 + head) * 3 + c]).sum());
                }
            }
            assert_close(&values(o), &expected, 1e-12);
        }
    }

    #[test]
    fn the_last_query_of_causal_attention_sees_the_same() {
        for device in devices() {
            let x = float64(&ramp(24, 1.0), [2, 3, 2, 2], &device);
            let full = full_attention(x.clone(), x.clone(), x.clone()).narrow(1, 2, 1);
            let causal = causal_attention(x.clone(), x.clone(), x, &AttentionOptions::default(), None);
            assert_close(&values(full), &values(causal.narrow(1, 2, 1)), 1e-12);
            check_gradients(&ramp(8, 1.0), [1, 2, 1, 4], &device, |x| {
                full_attention(x.clone(), x.clone().tanh(), x.mul_scalar(2.0))
            });
        }
    }

    #[test]
    #[should_panic(expected = "do not fit `q` [1, 2, 1, 4]")]
    fn other_shapes_are_refused() {
        let zeros = |dim| Tensor::zeros([1, 2, 1, dim], &devices().remove(0));
        full_attention(zeros(4), zeros(3), zeros(4));
    }
}
