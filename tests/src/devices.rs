//! Which devices the tests run on.

use burn::tensor::Device;

use crate::failure::{Failure, Result};

/// Chooses the devices: names separated by commas.
pub const VARIABLE: &str = "GATEKIT_DEVICES";

/// A device and the name that chose it.
#[derive(Debug, Clone)]
pub struct NamedDevice {
    /// `ndarray`, `flex`, `wgpu`, `vulkan`, `metal` or `cuda`.
    pub name: String,
    /// The device, without autodiff.
    pub device: Device,
}

/// The devices named in `GATEKIT_DEVICES`; without it every CPU device compiled in, and wgpu if
/// compiled in.
///
/// # Errors
///
/// A name that is unknown or whose backend is not compiled in; no device at all.
pub fn chosen() -> Result<Vec<NamedDevice>> {
    match std::env::var(VARIABLE) {
        Ok(names) => {
            from_names(&names).map_err(|failure| Failure(format!("{VARIABLE}=\"{names}\": {failure}")))
        }
        Err(std::env::VarError::NotPresent) => from_names(&defaults().join(",")).map_err(|failure| {
            Failure(format!("no {VARIABLE} given, and the devices compiled in are not usable: {failure}"))
        }),
        Err(error) => Err(Failure(format!("{VARIABLE}: {error}"))),
    }
}

/// The devices of [`chosen`], for tests without a way to report an error.
///
/// # Panics
///
/// When [`chosen`] fails.
pub fn chosen_or_panic() -> Vec<NamedDevice> {
    chosen().unwrap_or_else(|failure| panic!("{failure}"))
}

fn defaults() -> Vec<&'static str> {
    [
        ("ndarray", cfg!(feature = "ndarray")),
        ("flex", cfg!(feature = "flex")),
        ("wgpu", cfg!(feature = "wgpu")),
    ]
    .into_iter()
    .filter_map(|(name, compiled)| compiled.then_some(name))
    .collect()
}

fn from_names(names: &str) -> Result<Vec<NamedDevice>> {
    if names.trim().is_empty() {
        return Err(Failure("no device named".into()));
    }
    names
        .split(',')
        .map(str::trim)
        .map(|name| match gatekit::device::parse(name) {
            Ok(device) => Ok(NamedDevice { name: name.to_owned(), device }),
            Err(error) => Err(Failure(error.to_string())),
        })
        .collect()
}
