//! What a device can do, and the tile sizes that follow from it: decided here and nowhere else.
//!
//! The smallest device served has 32 KiB of shared memory (software Vulkan, Metal) and 256 units a cube; one with less
//! is left to the portable form. Where there is more, cubes take more value channels at once, so that scores are
//! computed once for 128 of them, and move accumulators through shared memory in fewer, wider strips; but no more than
//! 48 KiB, so that an NVIDIA multiprocessor (up to 227 KiB) has four cubes and more to hide the waits of each.

use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::{ElemType, FloatKind, features::TypeUsage};

use super::{
    blocks::{Planes, UNITS},
    keys::KeysPlan,
    output::OutputPlan,
    state::StatePlan,
};
use crate::{cube::float_kind, scan::DecayKind};

/// Buffers of the kernel that has most, and one of scalars and shapes.
const BINDINGS: u32 = 12;

/// Shared memory that a cube takes at most where a smaller tile does.
const SHARED_MEMORY: usize = 48 * 1024;

/// How the scans of a device are tiled for inputs of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Blueprint {
    /// Type of the inputs.
    pub input: FloatKind,
    /// Type of the operands of products in shared memory: the inputs' where matrix units take it, else float32.
    pub operand: FloatKind,
    /// Type of the states between kernels: float32, and bfloat16 for bfloat16 inputs, whose range is the same.
    pub state: FloatKind,
    /// Planes of a cube that work with matrix units.
    pub planes: Option<Planes>,
    /// Bytes of shared memory a cube may use.
    shared_memory: usize,
}

impl Blueprint {
    /// For inputs like `input`, if the device has kernels for them.
    pub fn new(input: &CubeTensor) -> Option<Self> {
        let kind = float_kind(input.dtype)?;
        let client = &input.client;
        let hardware = &client.properties().hardware;
        let usage = client.properties().type_usage(ElemType::Float(kind));
        let able = usage.contains(TypeUsage::Buffer)
            && usage.contains(TypeUsage::Conversion)
            && hardware.max_bindings >= BINDINGS
            && hardware.max_units_per_cube as usize >= UNITS
            && hardware.max_cube_dim.0 as usize >= UNITS;
        let planes = Planes::of(client, kind);
        let blueprint = Self {
            input: kind,
            operand: if planes.is_some() { kind } else { FloatKind::F32 },
            state: if kind == FloatKind::BF16 { kind } else { FloatKind::F32 },
            planes,
            shared_memory: hardware.max_shared_memory_size,
        };
        let plans = [DecayKind::None, DecayKind::PerHead, DecayKind::PerKey];
        (able && plans.into_iter().all(|decay| blueprint.fits(decay))).then_some(blueprint)
    }

    /// Bytes of an operand in shared memory.
    pub const fn operand_bytes(&self) -> usize {
        match self.operand {
            FloatKind::F32 => 4,
            _ => 2,
        }
    }

    /// Bytes of shared memory that a cube may take: no more than leaves room for other cubes.
    pub fn shared_memory(&self) -> usize {
        self.shared_memory.min(SHARED_MEMORY)
    }

    /// Whether the smallest tiles fit.
    fn fits(&self, decay: DecayKind) -> bool {
        let bytes = self.operand_bytes();
        let smallest = [
            self.state_plan(decay, false, false, 1, 1).shared_bytes(bytes),
            self.output_plan(decay, false, 1).shared_bytes(bytes),
            KeysPlan { decay, planes: self.planes }.shared_bytes(bytes),
        ];
        smallest.into_iter().all(|need| need <= self.shared_memory)
    }

    /// The first of the plans, largest tiles first, that leaves room for other cubes, or the last.
    fn choose<P>(&self, plans: impl IntoIterator<Item = P>, bytes: impl Fn(&P) -> usize) -> P {
        let limit = self.shared_memory();
        let mut last = None;
        for plan in plans {
            if bytes(&plan) <= limit {
                return plan;
            }
            last = Some(plan);
        }
        last.expect("there is a smallest plan")
    }

    fn state_plan(
        &self,
        decay: DecayKind,
        reverse: bool,
        has_initial: bool,
        strip: usize,
        slab: usize,
    ) -> StatePlan {
        StatePlan { decay, reverse, has_initial, planes: self.planes, value_blocks: 4, strip, slab }
    }

    /// For the states before the chunks, or in reverse the gradients of those after them.
    pub fn state(&self, decay: DecayKind, reverse: bool, has_initial: bool) -> StatePlan {
        let plans = [(4, 4), (4, 2), (2, 2), (1, 2), (1, 1)]
            .map(|(strip, slab)| self.state_plan(decay, reverse, has_initial, strip, slab));
        self.choose(plans, |plan| plan.shared_bytes(self.operand_bytes()))
    }

    fn output_plan(&self, decay: DecayKind, reverse: bool, value_blocks: usize) -> OutputPlan {
        OutputPlan { decay, reverse, planes: self.planes, value_blocks }
    }

    /// For the outputs, or in reverse the gradients of the values.
    pub fn output(&self, decay: DecayKind, reverse: bool, value_dim: usize) -> OutputPlan {
        let widest = if value_dim > 64 { 8 } else { 4 };
        let plans = [widest, 4, 2, 1].map(|blocks| self.output_plan(decay, reverse, blocks));
        self.choose(plans, |plan| plan.shared_bytes(self.operand_bytes()))
    }

    /// For the gradients of queries, keys and log decays.
    pub fn keys(&self, decay: DecayKind) -> KeysPlan {
        KeysPlan { decay, planes: self.planes }
    }
}
