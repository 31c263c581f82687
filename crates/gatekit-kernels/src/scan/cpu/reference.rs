//! The scan and its reverse pass in double precision, step by step: what the kernels are compared with.

use super::problem::{Decay, Problem};

/// Results and gradients, in the order of the kernels' own.
pub(super) struct Reference {
    pub(super) output: Vec<f64>,
    pub(super) state: Vec<f64>,
    pub(super) q: Vec<f64>,
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
    pub(super) decay: Vec<f64>,
    pub(super) beta: Vec<f64>,
    pub(super) initial_state: Vec<f64>,
}

/// Runs the recurrence, keeping every state, and differentiates
/// `sum(output * grad_output) + sum(state * grad_state)` by it.
pub(super) fn reference(p: &Problem, grad_output: &[f32], grad_state: &[f32]) -> Reference {
    let (kd, vd) = (p.key_dim, p.value_dim);
    let decays = match p.decay {
        Decay::None => 0,
        Decay::PerHead(g) | Decay::PerKey(g) => g.len(),
    };
    let mut r = Reference {
        output: vec![0.0; p.v.len()],
        state: vec![0.0; grad_state.len()],
        q: vec![0.0; p.q.len()],
        k: vec![0.0; p.k.len()],
        v: vec![0.0; p.v.len()],
        decay: vec![0.0; decays],
        beta: vec![0.0; p.beta.map_or(0, <[f32]>::len)],
        initial_state: vec![0.0; grad_state.len()],
    };
    for segment in p.segments {
        for head in 0..p.heads {
            let base = (segment.state * p.heads + head) * kd * vd;
            let mut s: Vec<f64> =
                (0..kd * vd).map(|i| p.initial_state.map_or(0.0, |s0| f64::from(s0[base + i]))).collect();
            // Before each step: the decayed state; after it: the state. The value written.
            let (mut decayed, mut states, mut written) = (vec![], vec![], vec![]);
            let tokens: Vec<usize> =
                (segment.start..segment.end).map(|t| (segment.row * p.time + t) * p.heads + head).collect();
            let decay_index = |token: usize, c: usize| match p.decay {
                Decay::None => None,
                Decay::PerHead(_) => Some(token),
                Decay::PerKey(_) => Some(token * kd + c),
            };
            let factor = |token: usize, c: usize| match p.decay {
                Decay::None => 1.0,
                Decay::PerHead(g) | Decay::PerKey(g) => f64::from(g[decay_index(token, c).unwrap()]).exp(),
            };
            let key = |token: usize, c: usize| f64::from(p.k[token * kd + c]);
            let query = |token: usize, c: usize| f64::from(p.scale) * f64::from(p.q[token * kd + c]);
            let value = |token: usize, j: usize| f64::from(p.v[token * vd + j]);
            let strength = |token: usize| p.beta.map(|beta| f64::from(beta[token]));
            for &token in &tokens {
                for c in 0..kd {
                    for j in 0..vd {
                        s[c * vd + j] *= factor(token, c);
                    }
                }
                decayed.push(s.clone());
                let mut d: Vec<f64> = (0..vd).map(|j| value(token, j)).collect();
                if let Some(beta) = strength(token) {
                    for (j, d) in d.iter_mut().enumerate() {
                        let held: f64 = (0..kd).map(|c| s[c * vd + j] * key(token, c)).sum();
                        *d = beta * (*d - held);
                    }
                }
                for c in 0..kd {
                    for j in 0..vd {
                        s[c * vd + j] += key(token, c) * d[j];
                    }
                }
                for j in 0..vd {
                    r.output[token * vd + j] = (0..kd).map(|c| s[c * vd + j] * query(token, c)).sum();
                }
                states.push(s.clone());
                written.push(d);
            }
            r.state[base..base + kd * vd].copy_from_slice(&s);

            // g is the gradient of the state after the step at hand.
            let mut g: Vec<f64> = grad_state[base..base + kd * vd].iter().map(|x| f64::from(*x)).collect();
            for (i, &token) in tokens.iter().enumerate().rev() {
                let out = |j: usize| f64::from(grad_output[token * vd + j]);
                for c in 0..kd {
                    for j in 0..vd {
                        g[c * vd + j] += query(token, c) * out(j);
                        r.q[token * kd + c] += f64::from(p.scale) * states[i][c * vd + j] * out(j);
                    }
                }
                let dd: Vec<f64> =
                    (0..vd).map(|j| (0..kd).map(|c| g[c * vd + j] * key(token, c)).sum()).collect();
                for c in 0..kd {
                    for j in 0..vd {
                        r.k[token * kd + c] += g[c * vd + j] * written[i][j];
                    }
                }
                match strength(token) {
                    None => r.v[token * vd..][..vd].copy_from_slice(&dd),
                    Some(beta) => {
                        for j in 0..vd {
                            let held: f64 = (0..kd).map(|c| decayed[i][c * vd + j] * key(token, c)).sum();
                            r.beta[token] += dd[j] * (value(token, j) - held);
                            r.v[token * vd + j] = beta * dd[j];
                            for c in 0..kd {
                                r.k[token * kd + c] -= beta * decayed[i][c * vd + j] * dd[j];
                                g[c * vd + j] -= beta * key(token, c) * dd[j];
                            }
                        }
                    }
                }
                for c in 0..kd {
                    for j in 0..vd {
                        if let Some(index) = decay_index(token, c) {
                            r.decay[index] += g[c * vd + j] * decayed[i][c * vd + j];
                        }
                        g[c * vd + j] *= factor(token, c);
                    }
                }
            }
            r.initial_state[base..base + kd * vd].copy_from_slice(&g);
        }
    }
    r
}
