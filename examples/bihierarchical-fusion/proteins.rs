//! Chains that are folded on a lattice, and labels that take both their letters and their fold.

use std::collections::HashSet;

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::InputError;
use gatekit::fusion::bihierarchical_fusion::ResidueGraph;
use rand::RngExt;
use rand::rngs::StdRng;

/// Kinds of residues.
pub const LETTERS: usize = 6;
/// What stands beyond the ends of a chain.
const NOTHING: usize = LETTERS;
/// Residues that the sequence branch reads at once: one and its two neighbours in the chain.
pub const WINDOW: usize = 3;
/// Residues of a chain.
const LENGTHS: std::ops::RangeInclusive<usize> = 40..=80;
/// How the letters are drawn in either state, and the chance to stay in it.
const EMISSIONS: [[f64; LETTERS]; 2] =
    [[0.35, 0.35, 0.1, 0.1, 0.05, 0.05], [0.05, 0.05, 0.1, 0.1, 0.35, 0.35]];
const STAY: f64 = 0.8;
/// The motif: these letters next to one another in the chain. Both residues carry it.
const MOTIF: [usize; 2] = [0, 1];
/// What the first label wants to be near.
const PARTNER: usize = 2;
/// Residues that are no further apart in the chain than this are no partners.
const APART: usize = 6;
/// Angstrom between neighbours in the chain.
const BOND: f64 = 3.8;
/// Residues within this many angstrom are near, and joined by edges: the six sides and twelve edges of a lattice cell.
pub const CUTOFF: f64 = 6.0;
/// So many neighbours are all of them.
const NEIGHBOURS: usize = 18;

/// Labels of a residue: of the first and second order.
pub const ORDERS: [&str; 2] = ["first order", "second order"];

/// A folded chain.
pub struct Protein {
    /// Letter of every residue.
    pub letters: Vec<usize>,
    /// Where it is, in steps of the lattice.
    places: Vec<[i32; 3]>,
    /// It carries the motif, and is near a residue far away in the chain that has the partner's letter, or (second order)
    /// carries the motif too.
    pub labels: Vec<[bool; 2]>,
    /// Residues near it.
    pub near: Vec<usize>,
}

impl Protein {
    /// Draws one; some are loose, some are compact.
    pub fn draw(random: &mut StdRng) -> Self {
        let length = random.random_range(LENGTHS);
        let letters = letters(length, random);
        let places = fold(length, random);
        let in_motif: Vec<bool> = (0..length)
            .map(|at| {
                let here = |start: usize| letters.get(start..start + 2).is_some_and(|pair| *pair == MOTIF);
                here(at) || at > 0 && here(at - 1)
            })
            .collect();
        let near = |at: usize| {
            (0..length).filter(move |&other| other != at).filter({
                let places = &places;
                move |&other| distance(places[at], places[other]) <= CUTOFF
            })
        };
        let labels = (0..length)
            .map(|at| {
                let far: Vec<usize> = near(at).filter(|other| other.abs_diff(at) > APART).collect();
                let partner = far.iter().any(|&other| letters[other] == PARTNER);
                let second = far.iter().any(|&other| in_motif[other]);
                [in_motif[at] && partner, in_motif[at] && second]
            })
            .collect();
        let near = (0..length).map(|at| near(at).count()).collect();
        Self { letters, places, labels, near }
    }

    /// Residues.
    pub fn len(&self) -> usize {
        self.letters.len()
    }
}

/// A two-state chain of letters.
fn letters(length: usize, random: &mut StdRng) -> Vec<usize> {
    let mut state = usize::from(random.random::<bool>());
    (0..length)
        .map(|_| {
            if random.random::<f64>() > STAY {
                state = 1 - state;
            }
            chosen(&EMISSIONS[state], random)
        })
        .collect()
}

/// An index, drawn by weights.
fn chosen(weights: &[f64], random: &mut StdRng) -> usize {
    let mut left = random.random::<f64>() * weights.iter().sum::<f64>();
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return index;
        }
    }
    weights.len() - 1
}

/// A self-avoiding walk on the cubic lattice that grows towards where it has neighbours, more or less so from chain to
/// chain. Where it is caught it goes back some steps.
fn fold(length: usize, random: &mut StdRng) -> Vec<[i32; 3]> {
    let attraction = random.random_range(0.0..1.5);
    let mut walk = vec![[0, 0, 0]];
    let mut taken = HashSet::from([walk[0]]);
    while walk.len() < length {
        let end = walk[walk.len() - 1];
        let free: Vec<[i32; 3]> = sides(end).filter(|place| !taken.contains(place)).collect();
        if free.is_empty() {
            let keep = walk.len().saturating_sub(random.random_range(3..12)).max(1);
            for place in walk.drain(keep..) {
                taken.remove(&place);
            }
            continue;
        }
        let touching = |place: &[i32; 3]| sides(*place).filter(|side| taken.contains(side)).count();
        let weights: Vec<f64> =
            free.iter().map(|place| (attraction * touching(place) as f64).exp()).collect();
        let next = free[chosen(&weights, random)];
        walk.push(next);
        taken.insert(next);
    }
    walk
}

fn sides(place: [i32; 3]) -> impl Iterator<Item = [i32; 3]> {
    (0..6).map(move |side| {
        let mut next = place;
        next[side / 2] += if side % 2 == 0 { 1 } else { -1 };
        next
    })
}

fn distance(a: [i32; 3], b: [i32; 3]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    BOND * squares.sum::<f64>().sqrt()
}

/// A branch of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    Sequence,
    Structure,
}

/// What happens to a branch at test time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Removed(Branch),
    /// Letters by chance; for the structure also the fold of another chain.
    Noise(Branch),
}

/// Proteins that go through a model together, padded to the longest.
pub struct Batch {
    /// What the sequence branch reads of the residue before, the residue, and the residue after, `[B, N]` each, in
    /// `0 ..= LETTERS`.
    pub letters: [Tensor<2, Int>; WINDOW],
    /// What the nodes of the graph are, `[B, N]`.
    pub nodes: Tensor<2, Int>,
    pub graph: ResidueGraph,
    /// `[B, N, 2]`.
    pub labels: Tensor<3>,
    /// The branch that is not there.
    pub removed: Option<Branch>,
}

impl Batch {
    /// Brings proteins to a device; what a fault puts in the place of a branch comes from `random`.
    pub fn new(
        proteins: &[&Protein],
        fault: Fault,
        random: &mut StdRng,
        device: &Device,
    ) -> Result<Self, InputError> {
        let (batch, longest) =
            (proteins.len(), proteins.iter().map(|protein| protein.len()).max().unwrap_or(0));
        let mut letters: [Vec<i64>; WINDOW] = Default::default();
        let (mut nodes, mut mask) = (Vec::new(), Vec::new());
        let (mut places, mut labels) = (Vec::new(), Vec::new());
        for protein in proteins {
            let length = protein.len();
            let mut any = || (0..length).map(|_| random.random_range(0..LETTERS)).collect::<Vec<_>>();
            let of_sequence =
                if fault == Fault::Noise(Branch::Sequence) { any() } else { protein.letters.clone() };
            let of_nodes =
                if fault == Fault::Noise(Branch::Structure) { any() } else { protein.letters.clone() };
            let folded = match fault {
                Fault::Noise(Branch::Structure) => fold(length, random),
                _ => protein.places.clone(),
            };
            for at in 0..longest {
                for (offset, letters) in letters.iter_mut().enumerate() {
                    let letter = (at + offset).checked_sub(1).and_then(|at| of_sequence.get(at));
                    letters.push(*letter.unwrap_or(&NOTHING) as i64);
                }
                nodes.push(of_nodes.get(at).copied().unwrap_or(0) as i64);
                mask.push(at < length);
                places.extend(folded.get(at).copied().unwrap_or_default().map(|step| BOND * f64::from(step)));
                labels.extend(protein.labels.get(at).copied().unwrap_or_default().map(f32::from));
            }
        }
        let ids = |ids: Vec<i64>| Tensor::from_data(TensorData::new(ids, [batch, longest]), device);
        let removed = match fault {
            Fault::Removed(branch) => Some(branch),
            _ => None,
        };
        let neighbours = if removed == Some(Branch::Structure) { 0 } else { NEIGHBOURS };
        let mask = Tensor::from_data(TensorData::new(mask, [batch, longest]), device);
        let places = Tensor::from_data(TensorData::new(places, [batch, longest, 3]), device);
        Ok(Self {
            letters: letters.map(ids),
            nodes: ids(nodes),
            graph: ResidueGraph::nearest(mask, places, neighbours, CUTOFF)?,
            labels: Tensor::from_data(TensorData::new(labels, [batch, longest, 2]), device),
            removed,
        })
    }
}
