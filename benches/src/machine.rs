//! What the figures were measured on.

use std::fs;

use burn::tensor::Device;
use serde::Serialize;

/// The workspace's manifest pins Burn; that is its version.
const MANIFEST: &str = include_str!("../../Cargo.toml");

/// The machine and the programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Model of the processor.
    pub cpu: String,
    /// Its cores that this program may use.
    pub cores: usize,
    /// Instruction sets the compiler was told of, or that are found at run time.
    pub simd: Vec<&'static str>,
    /// Of memory, bytes.
    pub memory: Option<u64>,
    /// Operating system.
    pub os: String,
    /// Versions: this package's, Burn's, the compiler's.
    pub versions: Versions,
    /// Devices by name.
    pub devices: Vec<(String, String)>,
    /// Peers by name, with version and device.
    pub peers: Vec<(String, String)>,
}

/// What was built with what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Versions {
    /// This library's.
    pub gatekit: &'static str,
    /// Burn's.
    pub burn: &'static str,
    /// The compiler's.
    pub rustc: &'static str,
}

impl Machine {
    /// This one.
    pub fn here(devices: Vec<(String, String)>, peers: Vec<(String, String)>) -> Self {
        Self {
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            simd: simd(),
            memory: memory(),
            os: os(),
            versions: Versions {
                gatekit: env!("CARGO_PKG_VERSION"),
                burn: burn_version().unwrap_or("unknown"),
                rustc: env!("GATEKIT_RUSTC"),
            },
            devices,
            peers,
        }
    }
}

/// What a device calls itself.
pub fn device_name(name: &str, device: &Device) -> String {
    match crate::plan::on_cpu(name) {
        true => cpu(),
        false => accelerator(device).unwrap_or_else(|| name.to_owned()),
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn accelerator(device: &Device) -> Option<String> {
    device.identity().map(|identity| identity.name)
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn accelerator(_: &Device) -> Option<String> {
    None
}

fn burn_version() -> Option<&'static str> {
    MANIFEST.split_once("\nburn = { version = \"=")?.1.split('"').next()
}

/// The value behind `field` in a file of `field : value` lines.
fn field(text: &str, field: &str, separator: char) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(separator)?;
        (name.trim() == field).then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    field(&text, "model name", ':').unwrap_or_else(|| format!("unknown {}", std::env::consts::ARCH))
}

fn memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: u64 = field(&text, "MemTotal", ':')?.trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn os() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = field(&text, "PRETTY_NAME", '=').unwrap_or_else(|| std::env::consts::OS.to_owned());
    match fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(kernel) => format!("{name}, kernel {}", kernel.trim()),
        Err(_) => name,
    }
}

fn simd() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let found = [("neon", cfg!(target_feature = "neon"))];
    found.into_iter().filter_map(|(name, here)| here.then_some(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_known() {
        let machine = Machine::here(Vec::new(), Vec::new());
        assert!(machine.versions.burn.split('.').count() == 3, "{}", machine.versions.burn);
        assert!(machine.versions.rustc.starts_with("rustc "), "{}", machine.versions.rustc);
        assert!(machine.cores >= 1 && !machine.cpu.is_empty() && !machine.os.is_empty());
    }

    #[test]
    fn fields_are_found() {
        let text = "NAME=\"Debian\"\nPRETTY_NAME=\"Debian 12\"\n";
        assert_eq!(field(text, "PRETTY_NAME", '='), Some("Debian 12".to_owned()));
        assert_eq!(field("model name\t: Some CPU\n", "model name", ':'), Some("Some CPU".to_owned()));
        assert_eq!(field(text, "ID", '='), None);
    }
}
