//! Other libraries, each in a worker process that lives as long as the report and answers one JSON
//! object a line (`benches/peers/worker.py` has the protocol).

mod process;

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

pub use process::{Peer, PeerError};

use crate::{
    op::{Op, Pass, Precision},
    shape::Shape,
};

/// The interpreter of the Python peers; `python3` without it.
pub const PYTHON: &str = "GATEKIT_PYTHON";
/// The program of the ggml peer.
pub const GGML: &str = "GATEKIT_GGML";
/// The folder of the Python peers, where it is not the source tree's.
pub const FOLDER: &str = "GATEKIT_PEERS";

/// A library that can be measured beside ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// PyTorch on the CPU.
    Torch,
    /// ggml's fused CPU operations.
    Ggml,
    /// flash-linear-attention's Triton kernels on CUDA.
    Fla,
}

impl PeerKind {
    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::Ggml => "ggml",
            Self::Fla => "fla",
        }
    }

    /// Whether it computes on a GPU.
    pub const fn on_gpu(self) -> bool {
        matches!(self, Self::Fla)
    }

    /// What to do where it does not start.
    pub const fn install(self) -> &'static str {
        match self {
            Self::Torch => {
                "install it with `python3 -m venv venv && venv/bin/pip install torch transformers \
                 flash-linear-attention einops` and name the interpreter, GATEKIT_PYTHON=venv/bin/python"
            }
            Self::Ggml => {
                "build it with `cmake -S benches/peers -B BUILD -DLLAMA_CPP=/path/to/llama.cpp && cmake --build BUILD` \
                 (the crate llama-cpp-sys-2 carries the sources) and name the program, GATEKIT_GGML=BUILD/ggml_scan"
            }
            Self::Fla => {
                "on a machine with an NVIDIA GPU install it with `python3 -m venv venv && venv/bin/pip install torch \
                 triton flash-linear-attention einops` and name the interpreter, GATEKIT_PYTHON=venv/bin/python"
            }
        }
    }

    /// Starts the worker with its threads.
    ///
    /// # Errors
    ///
    /// It is not there or does not start; the message says how to install it.
    pub fn start(self) -> Result<Peer, PeerError> {
        let command = match self {
            Self::Ggml => {
                Command::new(env::var_os(GGML).ok_or_else(|| self.absent(format!("{GGML} is not set")))?)
            }
            Self::Torch => self.script("torch_scan.py")?,
            Self::Fla => self.script("fla_scan.py")?,
        };
        Peer::start(self, command)
    }

    fn script(self, name: &str) -> Result<Command, PeerError> {
        let folders: Vec<PathBuf> = match env::var_os(FOLDER) {
            Some(folder) => vec![folder.into()],
            None => vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("peers"), "benches/peers".into()],
        };
        let script = folders.iter().map(|folder| folder.join(name)).find(|script| script.is_file());
        let Some(script) = script else {
            return Err(self.absent(format!("no {name} in {folders:?}, name its folder in {FOLDER}")));
        };
        let mut command = Command::new(env::var_os(PYTHON).unwrap_or_else(|| "python3".into()));
        command.arg(script);
        Ok(command)
    }

    fn absent(self, reason: String) -> PeerError {
        PeerError::Absent { kind: self, reason }
    }
}

impl FromStr for PeerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Torch, Self::Ggml, Self::Fla]
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("peer `{text}` is unknown, need one of torch, ggml, fla"))
    }
}

/// The first line of a worker.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// Of the library.
    pub version: String,
    /// What it computes on.
    pub device: String,
    /// Types of inputs it takes.
    pub dtypes: Vec<Precision>,
    /// What it has.
    pub cases: Vec<PeerCase>,
}

/// An operation of a worker.
#[derive(Debug, Clone, Deserialize)]
pub struct PeerCase {
    /// The operation.
    pub op: Op,
    /// How it is computed, for people.
    pub form: String,
    /// What of it.
    pub passes: Vec<Pass>,
}

impl Ready {
    /// What the worker calls the form in which it has this pass.
    pub fn form(&self, op: Op, pass: Pass, precision: Precision) -> Option<&str> {
        let case = self.cases.iter().find(|case| case.op == op && case.passes.contains(&pass))?;
        self.dtypes.contains(&precision).then_some(&case.form)
    }
}

/// What a worker is asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Request {
    /// The operation, or `matmul`.
    pub op: String,
    /// `[batch, time, heads, key_dim, value_dim]`.
    pub shape: [usize; 5],
    /// What of it.
    pub pass: Pass,
    /// The type of the inputs.
    pub dtype: Precision,
    /// Threads of the processor.
    pub threads: usize,
    /// Of the random inputs.
    pub seed: u64,
}

impl Request {
    /// For an operation.
    pub fn new(op: &str, shape: Shape, pass: Pass, dtype: Precision, threads: usize, seed: u64) -> Self {
        Self { op: op.to_owned(), shape: shape.sizes(), pass, dtype, threads, seed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_have_names_and_advice() {
        assert_eq!("ggml".parse(), Ok(PeerKind::Ggml));
        assert!("jax".parse::<PeerKind>().expect_err("no such peer").contains("torch, ggml, fla"));
        let absent = PeerKind::Torch.absent("no python3".into()).to_string();
        assert!(absent.contains("no python3") && absent.contains("pip install torch"), "{absent}");
    }
}
