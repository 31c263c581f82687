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

/// More channels, heads, experts or tokens than any model has: a larger number in a configuration is a
/// damaged file, and products of three sizes stay below the largest integer.
const MAX_SIZE: usize = 1 << 20;

/// Refuses sizes of 0, and such as no model has.
///
/// # Errors
///
/// [`ConfigError`] names the first of the fields outside `1 ..= 2^20`.
pub fn check_sizes(sizes: &[(&str, usize)]) -> Result<(), ConfigError> {
    match sizes.iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
        Some((field, 0)) => Err(ConfigError::new(*field, 0, "at least 1")),
        Some((field, size)) => Err(ConfigError::new(*field, size, format!("at most {MAX_SIZE}"))),
        None => Ok(()),
    }
}
