//! What the criterion benches share: the cases of the report program, timed by criterion.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use criterion::{BenchmarkGroup, Criterion, measurement::WallTime};
use gatekit_bench::{
    case::Case,
    op::{Form, Op, Pass, Precision},
    shape::Shape,
    work::{self, Work},
};

/// The devices: `GATEKIT_DEVICES`, as for the tests, or all CPU devices and wgpu if compiled in.
pub fn devices() -> Vec<(String, Device)> {
    gatekit_tests::devices::chosen_or_panic().into_iter().map(|one| (one.name, one.device)).collect()
}

/// All forms of an operation on all devices.
pub fn compare(criterion: &mut Criterion, op: Op, pass: Pass, shape: Shape) {
    let mut group = criterion.benchmark_group(format!("{op} {pass} {shape}"));
    for (name, device) in devices() {
        for form in Form::ALL.iter().copied().filter(|&form| op.has(form, pass)) {
            let case = Case { op, form, pass, shape, precision: Precision::F32 };
            measure(&mut group, &name, form, work::prepare(case, &device, 0));
        }
    }
    group.finish();
}

/// One form on one device.
pub fn measure(group: &mut BenchmarkGroup<WallTime>, device: &str, form: Form, mut work: Work) {
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.bench_function(format!("{device} {form}"), |bencher| {
        bencher.iter_custom(|executions| {
            let start = Instant::now();
            work.execute(executions as usize);
            start.elapsed()
        });
    });
}
