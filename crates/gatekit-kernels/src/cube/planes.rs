//! Matrix units of a device.

use cubecl::{
    client::Client,
    ir::{ElemType, FloatKind, features::MmaConfig},
};

use super::blocks::UNITS;

/// Planes of a cube that work with matrix units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Planes {
    /// How many there are.
    pub count: usize,
    /// Side of a fragment, 8 or 16: products are `side x side x side`.
    pub side: usize,
}

impl Planes {
    /// Those of a cube of 256 units for operands of this type, if the device has any.
    ///
    /// Only half-precision operands: float32 on matrix units would mean tf32, whose 10 bits of mantissa are not what
    /// float32 tensors promise.
    pub fn of(client: &Client, kind: FloatKind) -> Option<Self> {
        let hardware = &client.properties().hardware;
        let elem = ElemType::Float(kind);
        let config = |side: u32| MmaConfig {
            a_type: elem,
            b_type: elem,
            cd_type: ElemType::Float(FloatKind::F32),
            m: side,
            n: side,
            k: side,
        };
        let half = matches!(kind, FloatKind::F16 | FloatKind::BF16);
        let known = hardware.plane_size_min == hardware.plane_size_max && hardware.plane_size_min > 0;
        let side = [16, 8].into_iter().find(|side| client.features().matmul.cmma.contains(&config(*side)));
        let count = UNITS / hardware.plane_size_min.max(1) as usize;
        side.filter(|_| half && known).map(|side| Self { count, side: side as usize })
    }
}
