//! The scans with a matrix state, the elementwise and the selective one: forward, and forward and backward, in both forms.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use gatekit_bench::{
    op::{Op, Pass},
    shape::Shape,
};

const SHAPE: Shape = Shape::new(1, 1024, 4, 64);

fn scans(criterion: &mut Criterion) {
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        for op in Op::ALL
            .iter()
            .copied()
            .filter(|op| op.is_scan() || matches!(op, Op::Elementwise | Op::SelectiveScan))
        {
            support::compare(criterion, op, pass, SHAPE);
        }
    }
}

criterion_group!(benches, scans);
criterion_main!(benches);
