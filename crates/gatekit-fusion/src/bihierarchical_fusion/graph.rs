//! Residues and who is near whom.

use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::InputError;

/// Residues of proteins of unlike length, and edges between those that are near in space; checked.
#[derive(Debug, Clone)]
pub struct ResidueGraph {
    /// `[B, N]`, true where there is a residue.
    pub mask: Tensor<2, Bool>,
    /// Sources, `[E]`, as `b N + i`.
    pub sources: Tensor<1, Int>,
    /// Targets, `[E]`, likewise.
    pub targets: Tensor<1, Int>,
    /// Distances in angstrom, `[E]`.
    pub distances: Tensor<1>,
}

impl ResidueGraph {
    /// From `mask` `[B, N]`, `edges` `[E, 2]` (source and target, `b N + i`) and `distances` `[E]` in angstrom. There may
    /// be no edge at all.
    ///
    /// # Errors
    ///
    /// [`InputError`] names the edge that lies outside, joins two proteins, touches no residue, or has a distance that
    /// is negative or not finite; and lists of unequal length.
    pub fn new(
        mask: Tensor<2, Bool>,
        edges: Tensor<2, Int>,
        distances: Tensor<1>,
    ) -> Result<Self, InputError> {
        let [_, residues] = mask.dims();
        let [count, ends] = edges.dims();
        if ends != 2 {
            return Err(InputError::new("edges", format!("{:?}", edges.dims()), "[E, 2]"));
        }
        if distances.dims() != [count] {
            let got = format!("{:?}", distances.dims());
            return Err(InputError::new("distances", got, format!("[{count}], one an edge")));
        }
        let unread = |field: &str| InputError::new(field, "a tensor that cannot be read", "values");
        let present: Vec<i64> =
            mask.clone().int().into_data().convert::<i64>().try_into_vec().map_err(|_| unread("mask"))?;
        let ids: Vec<i64> =
            edges.clone().into_data().convert::<i64>().try_into_vec().map_err(|_| unread("edges"))?;
        let lengths = distances.clone().detach().into_data().convert::<f64>();
        let lengths: Vec<f64> = lengths.try_into_vec().map_err(|_| unread("distances"))?;
        for (edge, (ends, length)) in ids.chunks_exact(2).zip(&lengths).enumerate() {
            let refused = |need: &str| {
                Err(InputError::new("edges", format!("{} -> {} (edge {edge})", ends[0], ends[1]), need))
            };
            let inside = |id: i64| usize::try_from(id).ok().filter(|&id| id < present.len());
            let (Some(source), Some(target)) = (inside(ends[0]), inside(ends[1])) else {
                return refused(&format!("residues in 0 .. {}", present.len()));
            };
            if source / residues != target / residues {
                return refused("two residues of one protein");
            }
            if present[source] == 0 || present[target] == 0 {
                return refused("residues that are there");
            }
            if !(length.is_finite() && *length >= 0.0) {
                let got = format!("{length} (edge {edge})");
                return Err(InputError::new("distances", got, "a finite number, at least 0"));
            }
        }
        let end = |index| edges.clone().narrow(1, index, 1).squeeze_dim::<1>(1);
        Ok(Self { mask, sources: end(0), targets: end(1), distances })
    }
}
