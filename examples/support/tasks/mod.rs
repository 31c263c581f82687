//! What models learn in the experiments, and how well they do it.
//!
//! Inputs and labels are token tensors `[batch, time]` as
//! [`CausalLm::loss`](gatekit::sequence::CausalLm::loss) takes them: labels stand where their token stands and are
//! shifted there, -100 where nothing is asked.

mod corpus;
mod ranking;
mod synthetic;

use burn::tensor::{Int, Tensor};
use gatekit::sequence::lm::IGNORED_LABEL;
use rand::SeedableRng;
use rand::rngs::StdRng;

pub use corpus::{Corpus, held_out_from, shakespeare};
pub use ranking::average_precision;
pub use synthetic::{Palindrome, Recall};

/// A source of random numbers that depends on the seed alone.
pub fn random(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Share of the asked positions whose likeliest token is the label.
///
/// `logits` is `[batch, time, vocab]`; position `t` is judged by label `t + 1`, as in the loss.
///
/// # Panics
///
/// When the shapes disagree or no label asks anything.
pub fn accuracy(logits: Tensor<3>, labels: Tensor<2, Int>) -> f64 {
    let [batch, time, _] = logits.dims();
    assert!(labels.dims() == [batch, time], "labels {:?} for logits {:?}", labels.dims(), logits.dims());
    let likeliest: Vec<i64> = logits.argmax(2).into_data().iter::<i64>().collect();
    let labels: Vec<i64> = labels.into_data().iter::<i64>().collect();
    let asked = (0..batch * time).filter(|at| at % time > 0 && labels[*at] != IGNORED_LABEL);
    let (mut right, mut count) = (0, 0);
    for at in asked {
        count += 1;
        right += usize::from(likeliest[at - 1] == labels[at]);
    }
    assert!(count > 0, "accuracy: no label asks anything");
    right as f64 / count as f64
}

#[cfg(test)]
mod tests {
    use burn::prelude::*;

    use super::*;

    #[test]
    fn accuracy_is_judged_by_the_next_label_where_one_is() {
        let device = Device::default();
        // The likeliest token is the position's own number.
        let logits = Tensor::<2>::eye(4, &device).unsqueeze_dim::<3>(0).repeat_dim(0, 2);
        let labels = Tensor::<2, Int>::from_data([[3, 0, -100, 2], [-100, 0, 0, -100]], &device);
        // Asked: row 0 positions 1 (0: right) and 3 (2: right), row 1 positions 1 (right) and 2 (wrong).
        assert_eq!(accuracy(logits, labels), 0.75);
    }
}
