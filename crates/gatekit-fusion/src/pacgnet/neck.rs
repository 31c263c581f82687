//! Paths between the levels: down from the coarse ones, and up again.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use gatekit_core::batch_norm::BatchStatistics;

use super::blocks::{C2f, ConvBlock, upsample};
use super::config::PacgNetConfig;

/// `T4 = C2f [up F5; F4]`, `N3 = C2f [up T4; F3]`, `N4 = C2f [down N3; T4]`, `N5 = C2f [down N4; F5]`.
#[derive(Module, Debug)]
pub struct PathAggregationNeck {
    /// Of T4.
    pub top4: C2f,
    /// Of N3.
    pub out3: C2f,
    /// 3x3, stride 2, from N3.
    pub down3: ConvBlock,
    /// Of N4.
    pub out4: C2f,
    /// 3x3, stride 2, from N4.
    pub down4: ConvBlock,
    /// Of N5.
    pub out5: C2f,
}

impl PathAggregationNeck {
    pub(super) fn new(config: &PacgNetConfig, device: &Device) -> Self {
        let [c3, c4, c5] = [2, 3, 4].map(|level| config.channels[level]);
        let norm = config.norm();
        let stage = |from, to| C2f::new([from, to], config.neck_depth, false, norm, device);
        let down = |channels| ConvBlock::new([channels; 2], 3, 2, norm, device);
        Self {
            top4: stage(c5 + c4, c4),
            out3: stage(c4 + c3, c3),
            down3: down(c3),
            out4: stage(c3 + c4, c4),
            down4: down(c4),
            out5: stage(c4 + c5, c5),
        }
    }

    /// F3, F4, F5 to N3, N4, N5, each of the same shape.
    ///
    /// # Panics
    ///
    /// When a level is not half the size of the one before.
    pub fn forward(&self, [f3, f4, f5]: [Tensor<4>; 3], statistics: BatchStatistics) -> [Tensor<4>; 3] {
        let join = |a, b| Tensor::cat(vec![a, b], 1);
        let t4 = self.top4.forward(join(upsample(f5.clone()), f4), statistics);
        let n3 = self.out3.forward(join(upsample(t4.clone()), f3), statistics);
        let n4 = self.out4.forward(join(self.down3.forward(n3.clone(), statistics), t4), statistics);
        let n5 = self.out5.forward(join(self.down4.forward(n4.clone(), statistics), f5), statistics);
        [n3, n4, n5]
    }
}
