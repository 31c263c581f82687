//! Devices by name.

use burn::tensor::Device;
use thiserror::Error;

/// A device that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// No device has this name.
    #[error("device `{got}` is unknown, need one of {}, a GPU with an optional index as in `cuda:1`", NAMES.join(", "))]
    Unknown {
        /// The name asked for.
        got: String,
    },
    /// The library was built without this device.
    #[error("device `{name}` is not compiled in: add `--features {name}` (compiled in: {})", compiled().join(", "))]
    NotCompiled {
        /// The device, which is also the name of the feature to add.
        name: &'static str,
    },
    /// What follows the colon is no index.
    #[error("device `{got}`: need a device index after the colon, as in `cuda:1`")]
    Index {
        /// The name asked for.
        got: String,
    },
}

/// Every name that [`parse`] understands.
pub const NAMES: [&str; 6] = ["ndarray", "flex", "wgpu", "vulkan", "metal", "cuda"];

/// The names whose feature is compiled in.
pub fn compiled() -> Vec<&'static str> {
    let compiled = [
        cfg!(feature = "ndarray"),
        cfg!(feature = "flex"),
        cfg!(feature = "wgpu"),
        cfg!(feature = "vulkan"),
        cfg!(feature = "metal"),
        cfg!(feature = "cuda"),
    ];
    NAMES.into_iter().zip(compiled).filter_map(|(name, compiled)| compiled.then_some(name)).collect()
}

/// The device called `ndarray`, `flex`, `wgpu`, `vulkan`, `metal` or `cuda`; the GPUs take an
/// index, `cuda:1`.
///
/// `wgpu`, `vulkan` and `metal` without an index take the adapter that wgpu prefers. The
/// environment variable `CUBECL_WGPU_DEFAULT_DEVICE=Cpu` makes that a software driver.
///
/// # Errors
///
/// [`DeviceError`] for an unknown name, a bad index, or a device whose feature is not compiled in;
/// then it says which feature to add.
pub fn parse(name: &str) -> Result<Device, DeviceError> {
    let (kind, index) = match name.split_once(':') {
        None => (name, None),
        Some((kind, index)) => {
            let index = index.parse::<usize>().map_err(|_| DeviceError::Index { got: name.into() })?;
            (kind, Some(index))
        }
    };
    let Some(kind) = NAMES.into_iter().find(|known| *known == kind) else {
        return Err(DeviceError::Unknown { got: name.into() });
    };
    if index.is_some() && ["ndarray", "flex"].contains(&kind) {
        return Err(DeviceError::Index { got: name.into() });
    }
    open(kind, index).ok_or(DeviceError::NotCompiled { name: kind })
}

// Burn marks its `NdArray` backend as deprecated; this library supports it.
#[allow(deprecated, unused_variables)]
fn open(kind: &str, index: Option<usize>) -> Option<Device> {
    match kind {
        #[cfg(feature = "ndarray")]
        "ndarray" => Some(Device::ndarray()),
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex()),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(wgpu(index)),
        #[cfg(feature = "vulkan")]
        "vulkan" => Some(Device::vulkan(adapter(index))),
        #[cfg(feature = "metal")]
        "metal" => Some(Device::metal(adapter(index))),
        #[cfg(feature = "cuda")]
        "cuda" => Some(Device::cuda(index.unwrap_or(0))),
        _ => None,
    }
}

/// The preferred adapter, on the graphics API and with the shader compiler that suit it best.
#[cfg(feature = "wgpu")]
fn wgpu(index: Option<usize>) -> Device {
    match index {
        None => Device::new(burn_wgpu::WgpuDevice::default()),
        Some(index) => Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(index)),
    }
}

#[cfg(any(feature = "vulkan", feature = "metal"))]
fn adapter(index: Option<usize>) -> burn::tensor::DeviceKind {
    use burn::tensor::DeviceKind;
    index.map_or(DeviceKind::DefaultDevice, DeviceKind::DiscreteGpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_or_refused() {
        for name in compiled().into_iter().filter(|name| ["ndarray", "flex"].contains(name)) {
            assert!(parse(name).is_ok(), "{name}");
            assert!(matches!(parse(&format!("{name}:1")), Err(DeviceError::Index { .. })));
        }
        assert!(matches!(parse("cpu"), Err(DeviceError::Unknown { .. })));
        assert!(matches!(parse("cuda:x"), Err(DeviceError::Index { .. })));
        #[cfg(not(feature = "cuda"))]
        assert!(parse("cuda:1").unwrap_err().to_string().contains("--features cuda"));
    }
}
