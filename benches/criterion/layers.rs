//! Layers: gated linear attention as a whole, and the norm and the convolution around its scan.

mod support;

use criterion::{Criterion, criterion_group, criterion_main};
use gatekit_bench::{
    case::Case,
    layers,
    op::{Form, Op, Pass, Precision},
    shape::Shape,
};

const SHAPE: Shape = Shape::new(2, 512, 4, 64);

fn parts(criterion: &mut Criterion) {
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        for op in [Op::GatedRmsNorm, Op::ShortConvolution, Op::Softmax] {
            support::compare(criterion, op, pass, SHAPE);
        }
    }
}

fn gla_layer(criterion: &mut Criterion) {
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        let mut group = criterion.benchmark_group(format!("gla-layer {pass} {SHAPE}"));
        for (name, device) in support::devices() {
            for &form in Form::ALL {
                let case = Case { op: Op::Gla, form, pass, shape: SHAPE, precision: Precision::F32 };
                support::measure(&mut group, &name, form, layers::gla_layer(case, &device));
            }
        }
        group.finish();
    }
}

criterion_group!(benches, parts, gla_layer);
criterion_main!(benches);
