//! One trait gives every configuration both doors: a `Result` and Burn's customary panic.

use burn::tensor::Device;

use crate::error::ConfigError;

/// A configuration that builds a module.
pub trait ModuleConfig {
    /// The module it builds.
    type Module;

    /// Builds the module on `device`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the first field that cannot be used.
    fn try_init(&self, device: &Device) -> Result<Self::Module, ConfigError>;

    /// Builds the module on `device`.
    ///
    /// # Panics
    ///
    /// With the text of the error that [`try_init`](Self::try_init) would return.
    fn init(&self, device: &Device) -> Self::Module {
        self.try_init(device).unwrap_or_else(|error| panic!("{error}"))
    }
}
