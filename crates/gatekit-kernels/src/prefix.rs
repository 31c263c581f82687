//! First-order linear recurrences over many steps at once, in tensor operations.

use burn::backend::Backend;

use crate::primitive::Primitive;

/// `h_t = a_t h_{t-1} + x_t` from `h = 0` along axis 1, as a parallel prefix over pairs in `log2(time)` passes:
/// `(a2, x2) o (a1, x1) = (a1 a2, a2 x1 + x2)`. The first `a` meets nothing.
///
/// Decays are multiplied, never divided: a decay of 0 clears what came before, exactly.
pub(crate) fn prefix<B: Backend>(mut a: Primitive<B>, mut x: Primitive<B>) -> Primitive<B> {
    let time = x.dims()[1];
    let mut shift = 1;
    while shift < time {
        let later = a.narrow(1, shift..time);
        let carried = later.clone() * x.narrow(1, 0..time - shift);
        x = Primitive::cat(vec![x.narrow(1, 0..shift), x.narrow(1, shift..time) + carried], 1);
        a = Primitive::cat(vec![a.narrow(1, 0..shift), later * a.narrow(1, 0..time - shift)], 1);
        shift *= 2;
    }
    x
}
