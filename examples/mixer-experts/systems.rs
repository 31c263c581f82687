//! Systems of three families in the plane, and their trajectories.

use burn::tensor::{Device, Tensor, TensorData};
use gatekit_examples::tasks;
use rand::RngExt;
use rand::rngs::StdRng;

/// Steps of the reference solution between two reported states.
const SUBSTEPS: usize = 20;

/// A family of systems.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    /// `x' = x - b x y`, `y' = d x y - y`: predators and prey.
    LotkaVolterra,
    /// `x' = y`, `y' = -w sin x - g y`: a damped pendulum.
    Pendulum,
    /// `x' = y`, `y' = m (1 - x^2) y - x`: van der Pol's oscillator.
    VanDerPol,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::LotkaVolterra => "Lotka",
            Self::Pendulum => "pendulum",
            Self::VanDerPol => "van der Pol",
        }
    }

    /// Parameters of a system, drawn uniformly.
    fn parameters(self, random: &mut StdRng) -> [f64; 2] {
        let [first, second] = match self {
            Self::LotkaVolterra => [[0.5, 1.5], [0.5, 1.5]],
            Self::Pendulum => [[1.0, 5.0], [0.1, 1.0]],
            Self::VanDerPol => [[0.5, 2.5], [0.0, 1.0]],
        };
        [first, second].map(|[low, high]| low + (high - low) * random.random::<f64>())
    }

    /// A state to start from.
    fn start(self, random: &mut StdRng) -> [f64; 2] {
        let mut draw = |low: f64, high: f64| low + (high - low) * random.random::<f64>();
        match self {
            Self::LotkaVolterra => [draw(0.5, 2.0), draw(0.5, 2.0)],
            Self::Pendulum => [draw(-1.5, 1.5), draw(-1.5, 1.5)],
            Self::VanDerPol => [draw(-2.0, 2.0), draw(-2.0, 2.0)],
        }
    }

    fn velocity(self, [x, y]: [f64; 2], [a, b]: [f64; 2]) -> [f64; 2] {
        match self {
            Self::LotkaVolterra => [x - a * x * y, b * x * y - y],
            Self::Pendulum => [y, -a * x.sin() - b * y],
            Self::VanDerPol => [y, a * (1.0 - x * x) * y - x],
        }
    }

    /// States at `steps + 1` times.
    fn trajectory(self, parameters: [f64; 2], start: [f64; 2], steps: usize, dt: f64) -> Vec<[f64; 2]> {
        let h = dt / SUBSTEPS as f64;
        let mut states = vec![start];
        let mut y = start;
        for _ in 0..steps {
            for _ in 0..SUBSTEPS {
                let ahead = |k: [f64; 2], share: f64| [y[0] + share * h * k[0], y[1] + share * h * k[1]];
                let k1 = self.velocity(y, parameters);
                let k2 = self.velocity(ahead(k1, 0.5), parameters);
                let k3 = self.velocity(ahead(k2, 0.5), parameters);
                let k4 = self.velocity(ahead(k3, 1.0), parameters);
                y = std::array::from_fn(|i| y[i] + h / 6.0 * (k1[i] + 2.0 * k2[i] + 2.0 * k3[i] + k4[i]));
            }
            states.push(y);
        }
        states
    }
}

/// Environments of one or several families.
pub struct World {
    /// The family of every environment.
    families: Vec<Family>,
    /// Trajectories `[M, B, T, D]` to learn from.
    pub training: Tensor<4>,
    /// New trajectories of the same systems.
    pub test: Tensor<4>,
    /// Two new systems a family: one trajectory to adapt to.
    pub new_training: Tensor<4>,
    /// Further trajectories of these.
    pub new_test: Tensor<4>,
}

impl World {
    /// Draws so many systems of every family, and `trajectories` of each; states are divided by the root of their
    /// family's mean square over the drawn trajectories, so that families count alike.
    pub fn draw(
        counts: &[(Family, usize)],
        trajectories: usize,
        steps: usize,
        dt: f64,
        seed: u64,
        device: &Device,
    ) -> Self {
        let mut random = tasks::random(seed);
        let mut parts: [Vec<f64>; 4] = Default::default();
        let mut families = Vec::new();
        for &(family, count) in counts {
            let mut drawn: [Vec<f64>; 4] = Default::default();
            let new = 2;
            for system in 0..count + new {
                let parameters = family.parameters(&mut random);
                let sizes = if system < count {
                    [(0, trajectories), (1, trajectories)]
                } else {
                    [(2, 1), (3, trajectories)]
                };
                for (part, size) in sizes {
                    for _ in 0..size {
                        let start = family.start(&mut random);
                        drawn[part].extend(family.trajectory(parameters, start, steps, dt).concat());
                    }
                }
            }
            let scale = (drawn[0].iter().map(|x| x * x).sum::<f64>() / drawn[0].len() as f64).sqrt();
            for (part, drawn) in parts.iter_mut().zip(drawn) {
                part.extend(drawn.into_iter().map(|x| x / scale));
            }
            families.extend(vec![family; count]);
        }
        let [training, test, new_training, new_test] = parts;
        let tensor = |values: Vec<f64>, size: usize| {
            let row = 2 * (steps + 1);
            let environments = values.len() / (row * size);
            Tensor::from_data(TensorData::new(values, [environments, size, steps + 1, 2]), device)
        };
        Self {
            families,
            training: tensor(training, trajectories),
            test: tensor(test, trajectories),
            new_training: tensor(new_training, 1),
            new_test: tensor(new_test, trajectories),
        }
    }

    /// Number of environments M.
    pub fn environments(&self) -> usize {
        self.families.len()
    }

    /// A name for every environment.
    pub fn names(&self) -> Vec<String> {
        self.families.iter().map(|family| family.name().to_string()).collect()
    }

    /// Share of environments whose family is the one that most environments of their expert belong to.
    pub fn purity(&self, choices: &[usize]) -> f64 {
        let count = |family: Family, expert: usize| {
            self.families
                .iter()
                .zip(choices)
                .filter(|(of, choice)| **of == family && **choice == expert)
                .count()
        };
        let experts = choices.iter().max().map_or(0, |most| most + 1);
        let own = (0..experts).map(|expert| {
            let of_families = self.families.iter().map(|family| count(*family, expert));
            of_families.max().unwrap_or(0)
        });
        own.sum::<usize>() as f64 / choices.len().max(1) as f64
    }
}
