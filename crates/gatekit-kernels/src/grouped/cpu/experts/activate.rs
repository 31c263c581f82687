//! What is done to rows between the two products.

use crate::{
    float::dot,
    gate::{Gate, GatedLoop},
    grouped::cpu::product::Lines,
    memory::Filling,
    simd::Arithmetic,
};

/// `a = w act(gate) * up` for some columns of some rows.
///
/// All rows must be there, and nothing else may access the results meanwhile.
pub(super) struct Activate<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) gate: Lines<'a, f32>,
    pub(super) up: Lines<'a, f32>,
    pub(super) weights: &'a [f32],
    /// Where the weight of every row is.
    pub(super) order: &'a [usize],
    pub(super) activations: Lines<'a, f32>,
}

impl GatedLoop for Activate<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        for row in 0..self.rows {
            let weight = self.weights[self.order[row]];
            // SAFETY: the rows are there, and this job's alone.
            let [gate, up, to] = unsafe {
                [&self.gate, &self.up, &self.activations]
                    .map(|lines| std::slice::from_raw_parts_mut(lines.line(row).cast_mut(), self.columns))
            };
            for ((gate, up), to) in gate.iter().zip(up).zip(to) {
                *to = weight * (*up * G::value::<A>(*gate));
            }
        }
    }
}

/// The gradients on the way back, where the gate's and up rows were: with `da` that of the outputs times the projection
/// back, `w da * up * act'(gate)` and `w da * act(gate)`; and that of the weight, `a . da` with the `a` of weight 1.
///
/// All rows must be there, and nothing else may access the results meanwhile.
pub(super) struct Deactivate<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) gate: Lines<'a, f32>,
    pub(super) up: Lines<'a, f32>,
    pub(super) weights: &'a [f32],
    pub(super) order: &'a [usize],
    pub(super) gradient: Lines<'a, f32>,
    /// Activations, weighted.
    pub(super) activations: Lines<'a, f32>,
    pub(super) weight_gradients: &'a Filling<'a>,
}

impl GatedLoop for Deactivate<'_> {
    #[inline(always)]
    fn run<A: Arithmetic, G: Gate>(self) {
        for row in 0..self.rows {
            let weight = self.weights[self.order[row]];
            // SAFETY: the rows are there, and this job's alone.
            let [gate, up, da, a] = unsafe {
                [&self.gate, &self.up, &self.gradient, &self.activations]
                    .map(|lines| std::slice::from_raw_parts_mut(lines.line(row).cast_mut(), self.columns))
            };
            let given = gate.iter_mut().zip(up.iter_mut()).zip(da.iter());
            for (((gate, up), da), a) in given.zip(a.iter_mut()) {
                let (value, slope) = G::value_and_slope::<A>(*gate);
                let weighted = weight * da;
                *a = *up * value;
                *gate = weighted * *up * slope;
                *up = weighted * value;
            }
            // SAFETY: every slot has a weight of its own.
            unsafe { self.weight_gradients.write(self.order[row], &[dot::<f32, A>(a, da)]) };
            a.iter_mut().for_each(|a| *a *= weight);
        }
    }
}
