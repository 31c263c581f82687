//! The pull towards the parameters before an outer step.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

/// The parameters of a module as they are, by their ids.
pub(super) fn snapshot<M: Module>(module: &M) -> GradientsParams {
    struct Snapshot(GradientsParams);
    impl ModuleVisitor for Snapshot {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.register(param.id, untracked(param));
        }
    }
    let mut snapshot = Snapshot(GradientsParams::new());
    module.visit(&mut snapshot);
    snapshot.0
}

/// Adds the gradient of `beta / 2 * mean (theta - theta_old)^2` to that of a loss, the mean being over all entries
/// of all parameters. A parameter that the loss does not reach gets this gradient alone.
pub(super) fn add_proximal<M: Module>(
    module: &M,
    old: &GradientsParams,
    beta: f64,
    gradients: GradientsParams,
) -> GradientsParams {
    struct Proximal<'a> {
        old: &'a GradientsParams,
        factor: f64,
        gradients: GradientsParams,
    }
    impl ModuleVisitor for Proximal<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let Some(old) = self.old.get::<D>(param.id) else { return };
            let pull = (untracked(param) - old).mul_scalar(self.factor);
            let gradient = match self.gradients.remove::<D>(param.id) {
                Some(gradient) => gradient + pull,
                None => pull,
            };
            self.gradients.register(param.id, gradient);
        }
    }
    let factor = beta / module.num_params().max(1) as f64;
    let mut proximal = Proximal { old, factor, gradients };
    module.visit(&mut proximal);
    proximal.gradients
}

fn untracked<const D: usize>(param: &Param<Tensor<D>>) -> Tensor<D> {
    let value = param.val();
    if value.device().is_autodiff() { value.inner() } else { value }
}
