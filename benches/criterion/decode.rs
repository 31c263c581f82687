//! One step: a state that stays in the caches, and one that does not.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use gatekit_bench::{
    op::{Form, Op, Pass},
    plan::HEADLINE_STATES,
};

fn decode(criterion: &mut Criterion) {
    for shape in HEADLINE_STATES {
        let with_step = |op: &Op| Form::ALL.iter().any(|&form| op.has(form, Pass::Decode));
        for op in Op::ALL.iter().copied().filter(|op| with_step(op) && *op != Op::Softmax) {
            support::compare(criterion, op, Pass::Decode, shape);
        }
    }
}

criterion_group!(benches, decode);
criterion_main!(benches);
