//! Mamba: a selective state space as the whole block, without attention or feed-forward layer.
//!
//! Gu, Dao: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv
//! 2312.00752. Every channel keeps `N` numbers; how far a token moves them (the step `Delta`), what
//! it writes (`B`) and what is read (`C`) depend on the token, so the state can skip what does not
//! matter and keep what does:
//!
//! ```text
//! s_t = exp(Delta_t A) s_{t-1} + (Delta_t h_t) B_t^T        y_t = s_t C_t + D h_t
//! ```
//!
//! Names of fields and parameters are those of the published models in the `transformers` format
//! (state-spaces/mamba-130m-hf, ...), so [`load_pretrained`](crate::load_pretrained) reads these.
//! What such a gate learns in context, and a closed form of it, is in
//! [`mamba_icl`](crate::mamba_icl).

mod config;
mod mixer;
mod model;
mod state;

pub use config::{MambaConfig, MambaMixerConfig};
pub use mixer::MambaMixer;
pub use model::{MambaBlock, MambaForCausalLm, MambaModel, MambaModelState};
pub use state::MambaState;
