//! Residues and who is near whom.

use burn::tensor::{Bool, Int, Tensor, TensorData};
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

    /// Every residue hears of the `neighbours` nearest other ones of its protein by the distance of their C-alpha atoms,
    /// as far as they lie within `cutoff` angstrom; of equally near ones those that come first.
    ///
    /// # Shapes
    ///
    /// - `mask`: `[B, N]`
    /// - `positions`: `[B, N, 3]` in angstrom; where there is no residue they are not looked at
    ///
    /// # Errors
    ///
    /// [`InputError`] for positions of another shape, one of a residue that is not finite, and a cutoff that is not above
    /// 0.
    pub fn nearest(
        mask: Tensor<2, Bool>,
        positions: Tensor<3>,
        neighbours: usize,
        cutoff: f64,
    ) -> Result<Self, InputError> {
        let [batch, residues] = mask.dims();
        if positions.dims() != [batch, residues, 3] {
            let got = format!("{:?}", positions.dims());
            return Err(InputError::new("positions", got, format!("[{batch}, {residues}, 3]")));
        }
        if !(cutoff.is_finite() && cutoff > 0.0) {
            return Err(InputError::new("cutoff", cutoff, "a finite number above 0"));
        }
        let present: Vec<bool> = mask.to_data().iter::<bool>().collect();
        let places: Vec<f64> = positions.detach().into_data().iter::<f64>().collect();
        let place = |id: usize| [places[3 * id], places[3 * id + 1], places[3 * id + 2]];
        let lost = |id: &usize| present[*id] && place(*id).iter().any(|value| !value.is_finite());
        if let Some(id) = (0..present.len()).find(lost) {
            let got = format!("{:?} (residue {} of protein {})", place(id), id % residues, id / residues);
            return Err(InputError::new("positions", got, "finite numbers"));
        }
        let (mut edges, mut distances) = (Vec::new(), Vec::new());
        for target in (0..present.len()).filter(|&id| present[id]) {
            let first = target / residues * residues;
            let others = (first..first + residues).filter(|&id| present[id] && id != target);
            let mut near: Vec<(f64, usize)> = others
                .map(|source| {
                    let (a, b) = (place(source), place(target));
                    let square: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                    (square.sqrt(), source)
                })
                .filter(|(distance, _)| *distance <= cutoff)
                .collect();
            near.sort_by(|a, b| a.0.total_cmp(&b.0));
            for (distance, source) in near.into_iter().take(neighbours) {
                edges.extend([source as i64, target as i64]);
                distances.push(distance);
            }
        }
        let (count, device) = (distances.len(), mask.device());
        let edges = Tensor::from_data(TensorData::new(edges, [count, 2]), &device);
        Self::new(mask, edges, Tensor::from_data(TensorData::new(distances, [count]), &device))
    }
}
