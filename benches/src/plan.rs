//! Which contests a report runs.

use crate::{
    case::Case,
    expert_headline,
    op::{Form, Op, Pass, Precision},
    pacgnet_headline,
    peer::{PeerKind, Ready},
    row::{COPY, MATMUL, Row},
    shape::Shape,
};

/// Sizes of the square matrix products among which the peak is looked for.
const MATMUL_SIZES: [usize; 5] = [512, 1024, 2048, 4096, 8192];
/// Above this a product takes seconds on a processor.
const LARGEST_ON_CPU: usize = 2048;

/// The ops and shapes of the headline figures.
pub const HEADLINE_OPS: [Op; 3] = [Op::Gla, Op::GatedDeltaRule, Op::Kda];
/// Lengths from 2048 to 8192, head sizes 64 and 128.
pub const HEADLINE_SHAPES: [Shape; 4] = [
    Shape::new(1, 2048, 4, 64),
    Shape::new(1, 2048, 4, 128),
    Shape::new(4, 1024, 8, 64),
    Shape::new(1, 8192, 4, 64),
];
/// A state that stays in the caches, and one that does not.
pub const HEADLINE_STATES: [Shape; 2] = [Shape::new(1, 1, 16, 128), Shape::new(64, 1, 16, 128)];
/// A length and sixteen times as much.
const LENGTHS: [Shape; 2] = [Shape::new(1, 2048, 4, 64), Shape::new(1, 32768, 4, 64)];

/// Who is measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// Our code.
    Ours {
        /// The device's name.
        device: String,
        /// What it computes.
        case: Case,
    },
    /// A peer's.
    Peer {
        /// Which.
        kind: PeerKind,
        /// What it calls the form.
        form: String,
        /// The operation.
        op: Op,
        /// What of it.
        pass: Pass,
        /// The size.
        shape: Shape,
    },
    /// A square matrix product, for the peak.
    Matmul {
        /// A device of ours or a peer.
        on: Place,
        /// Rows and columns.
        size: usize,
    },
    /// A copy of a state's bytes, for the bandwidth.
    Copy {
        /// A device of ours; `None`: the processor's memory.
        device: Option<String>,
        /// Whose state it is as large as.
        shape: Shape,
    },
}

/// Where something is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A device of ours.
    Device(String),
    /// A peer.
    Peer(PeerKind),
}

/// Contestants that run alternately.
#[derive(Debug, Clone, PartialEq)]
pub struct Contest {
    /// Unique in a report.
    pub name: String,
    /// Who takes part.
    pub specs: Vec<Spec>,
}

/// What a report is asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names of devices.
    pub devices: Vec<String>,
    /// Operations.
    pub ops: Vec<Op>,
    /// Sizes.
    pub shapes: Vec<Shape>,
    /// Our forms.
    pub forms: Vec<Form>,
    /// What of the operations.
    pub passes: Vec<Pass>,
    /// Types of the inputs.
    pub precision: Precision,
    /// Threads of the processor.
    pub threads: usize,
    /// The largest matrix product for the peak.
    pub largest_matmul: usize,
}

/// Whether a device computes on the processor.
pub fn on_cpu(device: &str) -> bool {
    matches!(device, "ndarray" | "flex")
}

type Peers<'a> = &'a [(PeerKind, Ready)];

impl Settings {
    /// Every op with every shape and pass; shape by shape, so that a run cut short has all ops.
    pub fn contests(&self, peers: Peers) -> Vec<Contest> {
        let mut contests = Vec::new();
        for &shape in &self.shapes {
            for &op in &self.ops {
                for &pass in &self.passes {
                    self.push(&mut contests, op, pass, op.shape_of(pass, shape), &self.forms, peers);
                }
            }
        }
        self.with_peaks(contests, peers)
    }

    /// Exactly what the headline figures need.
    pub fn headline(&self, peers: Peers) -> Vec<Contest> {
        let (fused, both) = (&[Form::Fused][..], &[Form::Fused, Form::Portable][..]);
        let mut contests = Vec::new();
        for shape in HEADLINE_SHAPES {
            for op in HEADLINE_OPS {
                self.push(&mut contests, op, Pass::Forward, shape, fused, peers);
                self.push(&mut contests, op, Pass::ForwardBackward, shape, both, peers);
            }
        }
        for op in HEADLINE_OPS {
            for shape in HEADLINE_STATES {
                self.push(&mut contests, op, Pass::Decode, shape, fused, peers);
            }
            for device in &self.devices {
                for pass in [Pass::Forward, Pass::ForwardBackward] {
                    let case = |shape| Case { op, form: Form::Fused, pass, shape, precision: self.precision };
                    let ours = |shape| Spec::Ours { device: device.clone(), case: case(shape) };
                    let name = format!("{op} {pass} {} length {device}", self.precision);
                    contests.push(Contest { name, specs: LENGTHS.map(ours).to_vec() });
                }
            }
        }
        self.with_peaks(contests, peers)
    }

    /// Exactly what the figures of the expert layers need: everybody of a pass in one contest.
    pub fn experts(&self, peers: Peers) -> Vec<Contest> {
        let contest = |pass: Pass| {
            let mut specs = Vec::new();
            for op in expert_headline::OPS.into_iter().filter(|op| op.has(Form::Fused, pass)) {
                let shape = expert_headline::SHAPE;
                let case = Case { op, form: Form::Fused, pass, shape, precision: self.precision };
                specs.extend(self.devices.iter().map(|device| Spec::Ours { device: device.clone(), case }));
                specs.extend(self.peers_of(op, pass, shape, peers));
            }
            Contest { name: format!("experts {pass} {} {}", self.precision, expert_headline::SHAPE), specs }
        };
        self.with_peaks([Pass::Forward, Pass::ForwardBackward].map(contest).to_vec(), peers)
    }

    /// Exactly what the figures of PACGNet need: everybody of a pass in one contest.
    pub fn pacgnet(&self, peers: Peers) -> Vec<Contest> {
        let contest = |pass: Pass, shape: Shape| {
            let mut specs = Vec::new();
            for op in pacgnet_headline::OPS.into_iter().filter(|op| op.has(Form::Fused, pass)) {
                let case = Case { op, form: Form::Fused, pass, shape, precision: self.precision };
                specs.extend(self.devices.iter().map(|device| Spec::Ours { device: device.clone(), case }));
                specs.extend(self.peers_of(op, pass, shape, peers));
            }
            Contest { name: format!("pacgnet {pass} {} {shape}", self.precision), specs }
        };
        let [image, batch] = pacgnet_headline::SHAPES;
        vec![contest(Pass::Forward, image), contest(Pass::ForwardBackward, batch)]
    }

    fn peers_of(&self, op: Op, pass: Pass, shape: Shape, peers: Peers) -> impl Iterator<Item = Spec> {
        peers.iter().filter_map(move |(kind, ready)| {
            let form = ready.form(op, pass, self.precision)?.to_owned();
            Some(Spec::Peer { kind: *kind, form, op, pass, shape })
        })
    }

    fn push(
        &self,
        contests: &mut Vec<Contest>,
        op: Op,
        pass: Pass,
        shape: Shape,
        forms: &[Form],
        peers: Peers,
    ) {
        let name = format!("{op} {pass} {} {shape}", self.precision);
        let mut specs = Vec::new();
        for device in &self.devices {
            let forms = forms.iter().copied().filter(|&form| op.has(form, pass));
            specs.extend(forms.map(|form| {
                let case = Case { op, form, pass, shape, precision: self.precision };
                Spec::Ours { device: device.clone(), case }
            }));
        }
        // Steps do not depend on the length, so that lengths may ask for the same contest again.
        if specs.is_empty() || contests.iter().any(|contest| contest.name == name) {
            return;
        }
        specs.extend(self.peers_of(op, pass, shape, peers));
        if op.state_traffic(pass, shape).is_some() {
            let gpus = self.devices.iter().filter(|device| !on_cpu(device)).cloned().map(Some);
            let cpu = self.devices.iter().any(|device| on_cpu(device)).then_some(None);
            specs.extend(cpu.into_iter().chain(gpus).map(|device| Spec::Copy { device, shape }));
        }
        contests.push(Contest { name, specs });
    }

    /// Matrix products before everything else and once more after it, if forward passes are compared with them.
    fn with_peaks(&self, contests: Vec<Contest>, peers: Peers) -> Vec<Contest> {
        let counted = |spec: &Spec| matches!(spec, Spec::Ours { case, .. } if case.op.flops(case.pass, case.shape).is_some());
        if !contests.iter().flat_map(|contest| &contest.specs).any(counted) {
            return contests;
        }
        let peaks = |when: &str| {
            let sizes = MATMUL_SIZES.into_iter().filter(|&size| size <= self.largest_matmul);
            let contest = |size| Contest {
                name: format!("{MATMUL} {} {size} {when}", self.precision),
                specs: self.products(size, peers),
            };
            sizes.map(contest).filter(|contest| !contest.specs.is_empty()).collect::<Vec<_>>()
        };
        [peaks("before"), contests, peaks("after")].concat()
    }

    /// Square matrices multiplied, by everybody who can.
    fn products(&self, size: usize, peers: Peers) -> Vec<Spec> {
        let devices = self.devices.iter().filter(|device| size <= LARGEST_ON_CPU || !on_cpu(device));
        let libraries = peers.iter().filter(|(kind, ready)| {
            let can = ready.dtypes.contains(&self.precision) && *kind != PeerKind::Ggml;
            can && (size <= LARGEST_ON_CPU || kind.on_gpu())
        });
        let places = devices.cloned().map(Place::Device).chain(libraries.map(|(kind, _)| Place::Peer(*kind)));
        places.map(|on| Spec::Matmul { on, size }).collect()
    }

    /// The row of a contestant, still without times.
    pub fn row(&self, contest: &Contest, spec: &Spec) -> Row {
        let (op, form, device, pass, shape) = match spec {
            Spec::Ours { device, case } => {
                (case.op.name(), case.form.name(), device.as_str(), case.pass, case.shape)
            }
            Spec::Peer { kind, form, op, pass, shape } => {
                (op.name(), form.as_str(), kind.name(), *pass, *shape)
            }
            Spec::Matmul { on, size } => {
                let device = match on {
                    Place::Device(device) => device.as_str(),
                    Place::Peer(kind) => kind.name(),
                };
                (MATMUL, "product", device, Pass::Forward, Shape::new(1, *size, 1, *size))
            }
            Spec::Copy { device, shape } => {
                (COPY, "copy", device.as_deref().unwrap_or("memory"), Pass::Decode, *shape)
            }
        };
        let Shape { batch, time, heads, key_dim, value_dim } = shape;
        Row {
            contest: contest.name.clone(),
            op: op.to_owned(),
            form: form.to_owned(),
            device: device.to_owned(),
            dtype: self.precision.name().to_owned(),
            pass,
            batch,
            time,
            heads,
            key_dim,
            value_dim,
            threads: self.threads,
            median_s: None,
            lower_quartile_s: None,
            upper_quartile_s: None,
            minimum_s: None,
            samples: 0,
            executions: 0,
            flops: None,
            bytes_per_s: None,
            input_bytes: None,
            extra_bytes: None,
            difference: None,
            error: String::new(),
        }
    }
}

impl Spec {
    /// Floating-point operations of an execution, where they are counted.
    pub fn flops(&self) -> Option<f64> {
        match self {
            Self::Ours { case, .. } => case.op.flops(case.pass, case.shape),
            Self::Peer { op, pass, shape, .. } => op.flops(*pass, *shape),
            Self::Matmul { size, .. } => Some(2.0 * (*size as f64).powi(3)),
            Self::Copy { .. } => None,
        }
    }

    /// Bytes that an execution moves, where they are counted.
    pub fn traffic(&self) -> Option<f64> {
        match self {
            Self::Ours { case, .. } => case.op.state_traffic(case.pass, case.shape),
            Self::Peer { op, pass, shape, .. } => op.state_traffic(*pass, *shape),
            Self::Matmul { .. } => None,
            Self::Copy { shape, .. } => Some(2.0 * shape.state_bytes() as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn settings() -> Settings {
        Settings {
            devices: vec!["flex".into(), "wgpu".into()],
            ops: vec![Op::Gla, Op::Softmax],
            shapes: vec![Shape::new(1, 64, 2, 8), Shape::new(1, 128, 2, 8)],
            forms: Form::ALL.to_vec(),
            passes: Pass::ALL.to_vec(),
            precision: Precision::F32,
            threads: 2,
            largest_matmul: 4096,
        }
    }

    fn ggml() -> Vec<(PeerKind, Ready)> {
        let text = r#"{"version": "1", "device": "cpu", "dtypes": ["f32"],
            "cases": [{"op": "gla", "form": "fused per token", "passes": ["forward", "decode"]}]}"#;
        vec![(PeerKind::Ggml, serde_json::from_str(text).expect("a greeting"))]
    }

    #[test]
    fn forms_devices_and_peers_meet_in_one_contest() {
        let contests = settings().contests(&ggml());
        let named = |name: &str| contests.iter().find(|contest| contest.name == name).expect(name);
        assert_eq!(named("gla forward f32 1x64x2x8").specs.len(), 2 * 2 + 1);
        assert_eq!(named("gla forward+backward f32 1x128x2x8").specs.len(), 2 * 2);
        // One contest for the step, whatever the length, with a copy in memory and one on the GPU.
        assert_eq!(named("gla decode f32 1x1x2x8").specs.len(), 2 * 2 + 1 + 2);
        assert_eq!(named("softmax decode f32 1x128x2x8").specs.len(), 2);
        // The processor is spared the largest product.
        assert_eq!(named("matmul f32 4096 before").specs.len(), 1);
        let names: HashSet<_> = contests.iter().map(|contest| &contest.name).collect();
        assert_eq!(names.len(), contests.len());
    }

    #[test]
    fn rows_of_a_report_differ() {
        let settings = Settings { ops: Op::ALL.to_vec(), ..settings() };
        let peers = ggml();
        let all = [Settings::contests, Settings::headline, Settings::experts, Settings::pacgnet];
        for contests in all.map(|contests| contests(&settings, &peers)) {
            let mut keys = HashSet::new();
            for contest in &contests {
                for spec in &contest.specs {
                    assert!(keys.insert(settings.row(contest, spec).key()), "{} {spec:?}", contest.name);
                }
            }
        }
    }

    #[test]
    fn no_peak_without_something_to_compare_with_it() {
        let decode = Settings { passes: vec![Pass::Decode], ..settings() };
        assert!(decode.contests(&[]).iter().all(|contest| !contest.name.starts_with(MATMUL)));
    }
}
