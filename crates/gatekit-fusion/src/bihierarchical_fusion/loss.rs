//! What proteins and residues are taught.
//!
//! Classes of proteins (enzyme commission numbers) are taught by cross entropy, labels of residues (binding sites,
//! epitopes) by binary cross entropy, quantities (affinity, quality of a model) by squared error.

use burn::tensor::{Bool, Int, Tensor};
use gatekit_core::InputError;
use gatekit_core::cross_entropy::{binary_cross_entropies, check_labels, cross_entropies};
use gatekit_core::widen;

/// Mean cross entropy of proteins, `[1]`: `logits` `[B, classes]`, `labels` `[B]`, each a class.
///
/// # Errors
///
/// [`InputError`] names a label that is no class; and labels that are not one a protein.
pub fn class_loss(logits: Tensor<2>, labels: Tensor<1, Int>) -> Result<Tensor<1>, InputError> {
    let [batch, classes] = logits.dims();
    check_labels(&labels, batch, classes)?;
    Ok(cross_entropies(logits, labels).mean())
}

/// Mean binary cross entropy over the residues and their K labels, `[1]`; 0 without a residue.
///
/// # Shapes
///
/// - `logits`: `[B, N, K]`
/// - `labels`: `[B, N, K]`, 0 or 1, or a share in between
/// - `mask`: `[B, N]`, true where there is a residue; elsewhere neither logits nor labels are looked at
///
/// # Panics
///
/// When the shapes do not fit.
pub fn residue_loss(logits: Tensor<3>, labels: Tensor<3>, mask: &Tensor<2, Bool>) -> Tensor<1> {
    let ([batch, residues, count], got) = (logits.dims(), labels.dims());
    assert!(
        got == logits.dims() && mask.dims() == [batch, residues],
        "residue_loss: `labels` {got:?} and `mask` {:?} do not fit `logits` {:?}",
        mask.dims(),
        logits.dims()
    );
    let hidden = mask.clone().bool_not().unsqueeze_dim::<3>(2).expand(logits.dims());
    let quiet = |x: Tensor<3>| x.mask_fill(hidden.clone(), 0.0);
    let losses = binary_cross_entropies(quiet(logits), quiet(labels));
    let losses = losses.mask_fill(hidden.clone(), 0.0);
    let total = mask.clone().float().cast(losses.dtype()).sum().clamp_min(1.0) * count.max(1) as f64;
    losses.sum() / total
}

/// Mean squared error of quantities, `[1]`: `predicted` and `wanted` `[B, K]`.
///
/// # Panics
///
/// When the shapes differ.
pub fn quantity_loss(predicted: Tensor<2>, wanted: Tensor<2>) -> Tensor<1> {
    let (got, need) = (wanted.dims(), predicted.dims());
    assert!(got == need, "quantity_loss: `wanted` {got:?} for `predicted` {need:?}");
    (widen(predicted) - widen(wanted)).square().mean()
}
