//! The convolution of images on tensors: what the operation computes, and where it goes from there.

mod autodiff;
mod backend;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod host;
mod portable;

use burn::{backend::Dispatch, tensor::Tensor};

use crate::{absent, gate::Activation, precision::check_dtypes};

pub use backend::ImageConvolutionBackend;

/// What a convolution of images computes, besides its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageConvolutionSpec {
    /// Pixels from one place of the kernel to the next, in both directions.
    pub stride: usize,
    /// Zeros on every side of the image.
    pub padding: usize,
    /// Groups of channels that do not see one another.
    pub groups: usize,
    /// Whether each output is multiplied by a factor of its own.
    pub has_scale: bool,
    /// Whether each output has a bias.
    pub has_bias: bool,
    /// What the result goes through; `None`: nothing.
    pub activation: Option<Activation>,
}

impl ImageConvolutionSpec {
    /// Sizes of the result for an image and a kernel of these sizes.
    pub(crate) fn result(&self, image: [usize; 2], kernel: [usize; 2]) -> [usize; 2] {
        let along = |axis: usize| (image[axis] + 2 * self.padding - kernel[axis]) / self.stride + 1;
        [along(0), along(1)]
    }
}

/// What becomes of the outputs of a convolution: `act(scale y + bias)`, each part of which may be absent.
#[derive(Debug, Clone, Default)]
pub struct Finish {
    /// A factor for every output, `[outputs]`.
    pub scale: Option<Tensor<1>>,
    /// Added to every output, `[outputs]`.
    pub bias: Option<Tensor<1>>,
    /// Applied last.
    pub activation: Option<Activation>,
}

/// Which gradients a backward pass is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageGradients {
    /// That of the image.
    pub x: bool,
    /// That of the kernel.
    pub weight: bool,
    /// That of the bias.
    pub bias: bool,
}

/// `y[b,o,i,j] = act(scale[o] sum_{c,u,v} weight[o,c,u,v] x[b,c,i s + u - p,j s + v - p] + bias[o])`, zeros outside of the
/// image.
///
/// With groups, outputs `o` of a group see the channels of their group alone. Differentiable in every tensor; the backward
/// pass keeps image and kernel, and with a scale or an activation the values before them.
///
/// On the CPU a panel of the result is one blocked matrix product, over patches that are brought together in the caches;
/// so are the gradients. With one channel a group the filters are loops over rows. Other groupings, and other types than
/// float32, are Burn's own convolution.
///
/// # Shapes
///
/// - `x`: `[batch, channels, height, width]`
/// - `weight`: `[outputs, channels / groups, kernel height, kernel width]`; all tensors in the type of `x`
/// - result: `[batch, outputs, (height + 2 p - kernel height) / s + 1, ..]`
///
/// # Panics
///
/// When shapes or types do not fit, or the kernel is larger than the padded image.
pub fn image_convolution(
    x: Tensor<4>,
    weight: Tensor<4>,
    [stride, padding, groups]: [usize; 3],
    Finish { scale, bias, activation }: Finish,
) -> Tensor<4> {
    let ([_, channels, height, width], [outputs, own, rows, columns]) = (x.dims(), weight.dims());
    assert!(
        stride > 0 && groups > 0 && own * groups == channels && outputs.is_multiple_of(groups),
        "image_convolution: `x` {:?} and `weight` {:?} do not fit {groups} groups and stride {stride}",
        x.dims(),
        weight.dims()
    );
    assert!(
        (1..=height + 2 * padding).contains(&rows) && (1..=width + 2 * padding).contains(&columns),
        "image_convolution: `weight` {:?} on `x` {:?} padded by {padding}",
        weight.dims(),
        x.dims()
    );
    for (name, row) in [("scale", &scale), ("bias", &bias)] {
        let fits = row.as_ref().is_none_or(|row| row.dims() == [outputs] && row.dtype() == x.dtype());
        assert!(fits, "image_convolution: `{name}` does not have {outputs} values in {:?}", x.dtype());
    }
    check_dtypes("image_convolution", x.dtype(), []);
    assert!(
        weight.dtype() == x.dtype(),
        "image_convolution: `x` is in {:?}, `weight` in {:?}: cast one of them first",
        x.dtype(),
        weight.dtype()
    );
    let (has_scale, has_bias) = (scale.is_some(), bias.is_some());
    let spec = ImageConvolutionSpec { stride, padding, groups, has_scale, has_bias, activation };
    let [scale, bias] = [scale, bias].map(|row| row.unwrap_or_else(|| absent(&x)));
    Tensor::from_dispatch(<Dispatch as ImageConvolutionBackend>::image_convolution(
        x.into_dispatch(),
        weight.into_dispatch(),
        scale.into_dispatch(),
        bias.into_dispatch(),
        spec,
    ))
}
