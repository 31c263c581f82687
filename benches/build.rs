//! Tells the program which compiler built it.

use std::{env, process::Command};

fn main() {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo::rustc-env=GATEKIT_RUSTC={}", version.unwrap_or_else(|_| "rustc unknown".to_owned()));
    println!("cargo::rerun-if-changed=build.rs");
}
