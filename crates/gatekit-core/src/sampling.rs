//! Drawing a token from a model's scores.

use burn::config::Config;

use crate::error::{ConfigError, InputError};

/// How a token is drawn from logits.
#[derive(Config, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits: below 1 the likely tokens become likelier. 0: always the likeliest token (the first of
    /// equals), whatever the fields below say.
    #[config(default = 1.0)]
    pub temperature: f64,
    /// Draw from the `top_k` likeliest tokens only.
    pub top_k: Option<usize>,
    /// Draw from the nucleus only: the smallest set of likeliest tokens that together have at least this probability,
    /// in (0, 1]. Applied after `top_k` (Holtzman et al. 2019, arXiv 1904.09751).
    pub top_p: Option<f64>,
}

impl Sampling {
    /// Refuses what describes no distribution.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a temperature that is negative or not finite, a `top_k` of 0, or a `top_p` outside (0, 1].
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(ConfigError::new("temperature", self.temperature, "a number of at least 0"));
        }
        if self.top_k == Some(0) {
            return Err(ConfigError::new("top_k", 0, "at least 1, or null"));
        }
        match self.top_p {
            Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                Err(ConfigError::new("top_p", top_p, "a number in (0, 1], or null"))
            }
            _ => Ok(()),
        }
    }

    /// The token that a uniform number `draw` in [0, 1) falls on, when the tokens lie beside one another, likeliest
    /// first.
    ///
    /// # Errors
    ///
    /// [`InputError`] when a logit is NaN or positive infinity, or none is above negative infinity (which stands for an
    /// excluded token).
    pub fn pick(&self, logits: &[f32], draw: f64) -> Result<usize, InputError> {
        let refuse = |got: String| Err(InputError::new("logits", got, "finite numbers"));
        if let Some(index) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return refuse(format!("{} for token {index}", logits[index]));
        }
        let best_first = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let Some(best) = (0..logits.len()).min_by(best_first).filter(|&best| logits[best].is_finite()) else {
            return refuse("no token with a finite logit".to_string());
        };
        if self.temperature == 0.0 {
            return Ok(best);
        }

        let mut tokens: Vec<usize> = (0..logits.len()).collect();
        if let Some(top_k) = self.top_k.filter(|top_k| *top_k < tokens.len()) {
            tokens.select_nth_unstable_by(top_k.saturating_sub(1), best_first);
            tokens.truncate(top_k);
        }
        tokens.sort_unstable_by(best_first);
        let weight =
            |token: &usize| ((f64::from(logits[*token]) - f64::from(logits[best])) / self.temperature).exp();
        let mut weights: Vec<f64> = tokens.iter().map(weight).collect();
        let nucleus = self.top_p.unwrap_or(1.0) * weights.iter().sum::<f64>();
        let mut total = 0.0;
        let kept = weights.iter().position(|weight| {
            total += weight;
            total >= nucleus
        });
        weights.truncate(kept.map_or(weights.len(), |last| last + 1));

        let mut draw = draw * weights.iter().sum::<f64>();
        let place = weights.iter().position(|weight| {
            draw -= weight;
            draw < 0.0
        });
        // Rounding can leave a rest at the end; the likeliest token is always possible.
        Ok(tokens[place.unwrap_or(0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_fall_on_the_tokens_of_the_nucleus() {
        let logits: Vec<f32> = [0.1f64, 0.4, 0.2, 0.3].iter().map(|p| p.ln() as f32).collect();
        let pick = |sampling: &Sampling, draw| sampling.pick(&logits, draw).expect("finite");
        let all = Sampling::new();
        let drawn: Vec<usize> = [0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91].map(|draw| pick(&all, draw)).into();
        assert_eq!(drawn, [1, 1, 3, 3, 2, 2, 0]);
        // The nucleus of 0.6 is {1, 3}, with shares 4/7 and 3/7.
        let nucleus = Sampling::new().with_top_p(Some(0.6));
        assert_eq!([0.0, 0.56, 0.58, 0.999].map(|draw| pick(&nucleus, draw)), [1, 1, 3, 3]);
        assert_eq!(pick(&Sampling::new().with_top_k(Some(1)), 0.999), 1);
        assert_eq!(pick(&Sampling::new().with_temperature(0.0), 0.999), 1);
        assert_eq!(pick(&Sampling::new().with_temperature(0.01), 0.999), 1);
        let excluded = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
        assert_eq!(all.pick(&excluded, 0.999), Ok(1));
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        for logits in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY], &[]] {
            assert_eq!(Sampling::new().pick(logits, 0.5).unwrap_err().field, "logits");
        }
        for (field, sampling) in [
            ("temperature", Sampling::new().with_temperature(-1.0)),
            ("temperature", Sampling::new().with_temperature(f64::NAN)),
            ("top_k", Sampling::new().with_top_k(Some(0))),
            ("top_p", Sampling::new().with_top_p(Some(0.0))),
            ("top_p", Sampling::new().with_top_p(Some(1.5))),
        ] {
            assert_eq!(sampling.check().unwrap_err().field, field);
        }
    }
}
