//! Layers: gated linear attention and Mamba's mixer as a whole, and the norm and the convolution around a scan.

mod support;

use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};
use gatekit_bench::{
    case::Case,
    layers,
    op::{Form, Op, Pass, Precision},
    shape::Shape,
    work::Work,
};

const SHAPE: Shape = Shape::new(2, 512, 4, 64);

fn parts(criterion: &mut Criterion) {
    for pass in [Pass::Forward, Pass::ForwardBackward] {
        for op in [Op::GatedRmsNorm, Op::ShortConvolution, Op::Softmax] {
            support::compare(criterion, op, pass, SHAPE);
        }
    }
}

fn whole_layers(criterion: &mut Criterion) {
    let layers: [(&str, Op, fn(Case, &Device) -> Work); 2] =
        [("gla-layer", Op::Gla, layers::gla_layer), ("mamba-mixer", Op::SelectiveScan, layers::mamba_mixer)];
    for (layer, op, prepare) in layers {
        for pass in [Pass::Forward, Pass::ForwardBackward] {
            let mut group = criterion.benchmark_group(format!("{layer} {pass} {SHAPE}"));
            for (name, device) in support::devices() {
                for &form in Form::ALL {
                    let case = Case { op, form, pass, shape: SHAPE, precision: Precision::F32 };
                    support::measure(&mut group, &name, form, prepare(case, &device));
                }
            }
            group.finish();
        }
    }
}

criterion_group!(benches, parts, whole_layers);
criterion_main!(benches);
