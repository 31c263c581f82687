//! Whether training stays calm.

use burn::tensor::Tensor;
use gatekit_core::probe::Probe;

use super::sphere::widen;

/// Follows the layers of a model over the steps of its training: the RMS of their outputs, the router's
/// `logsumexp(z)^2`, and the share of outliers, entries further from 0 than `outlier` times the RMS.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use gatekit_experts::sqrtgate::StabilityProbe;
///
/// let mut probe = StabilityProbe::new(6.0);
/// let output = Tensor::<2>::from_data([[1.0, -1.0], [1.0, -1.0]], &Device::flex());
/// probe.record("layer 0", 10, output, Some(0.25));
/// assert_eq!(probe.series().last("layer 0/rms"), Some(1.0));
/// assert_eq!(probe.series().last("layer 0/outliers"), Some(0.0));
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct StabilityProbe {
    series: Probe,
    outlier: f64,
}

impl StabilityProbe {
    /// Counts entries further from 0 than `outlier` times the RMS.
    ///
    /// # Panics
    ///
    /// Unless `outlier` is a number above 0.
    pub fn new(outlier: f64) -> Self {
        assert!(outlier > 0.0, "StabilityProbe: `outlier` {outlier} must be above 0");
        Self { series: Probe::new(), outlier }
    }

    /// Adds `layer/rms`, `layer/outliers` and, where given, `layer/router_z` at `step`. An output without
    /// entries has none of the first two.
    pub fn record<const D: usize>(
        &mut self,
        layer: &str,
        step: usize,
        output: Tensor<D>,
        router_z: Option<f64>,
    ) {
        if output.shape().num_elements() > 0 {
            let output = widen(output).detach();
            let rms = output.clone().square().mean().sqrt().into_scalar::<f64>();
            let beyond = output.abs().greater_elem(self.outlier * rms).float().mean().into_scalar::<f64>();
            self.series.record(&format!("{layer}/rms"), step, rms);
            self.series.record(&format!("{layer}/outliers"), step, beyond);
        }
        if let Some(z) = router_z {
            self.series.record(&format!("{layer}/router_z"), step, z);
        }
    }

    /// All series, for tables and plots.
    pub fn series(&self) -> &Probe {
        &self.series
    }
}
