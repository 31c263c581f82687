//! The scans as CubeCL kernels.

mod step;

pub(crate) use step::step;
