//! Byte n-gram models, smoothed two ways: what a language model has to beat to have learnt more than frequent strings.
//!
//! Both estimates mix the counts of a context with the estimate for the context that is one byte shorter, down to the
//! uniform distribution over the 256 bytes, and both sum to one exactly:
//!
//! * **Kneser-Ney**, interpolated, with three discounts (Chen and Goodman, "An empirical study of smoothing techniques
//!   for language modeling", 1998, section 3): the longest context uses its counts, every shorter one counts in how
//!   many *different* contexts a string was seen;
//! * **Witten-Bell**, interpolated: a context gives its lower order as many votes as it has seen different bytes.

/// The longest n-gram: a byte and the four before it.
pub const MAX_ORDER: usize = 5;

/// How often each n-gram of one order was seen, sorted, with a summary of every context.
struct Counts {
    grams: Vec<(u64, u32)>,
    contexts: Vec<Context>,
    discounts: [f64; 3],
}

/// What followed one context.
struct Context {
    key: u64,
    total: u32,
    /// How many different bytes followed it once, twice, and more often.
    types: [u32; 3],
}

impl Counts {
    /// Counts packed n-grams, of which equal ones may appear several times.
    fn new(mut keys: Vec<u64>) -> Self {
        keys.sort_unstable();
        let mut grams: Vec<(u64, u32)> = Vec::new();
        for key in keys {
            match grams.last_mut() {
                Some((last, count)) if *last == key => *count += 1,
                _ => grams.push((key, 1)),
            }
        }

        // A context is a gram without its last byte, so its grams are neighbours.
        let mut contexts: Vec<Context> = Vec::new();
        for &(gram, count) in &grams {
            let key = gram >> 8;
            if contexts.last().is_none_or(|context| context.key != key) {
                contexts.push(Context { key, total: 0, types: [0; 3] });
            }
            let context = contexts.last_mut().expect("one was just pushed");
            context.total += count;
            context.types[count.min(3) as usize - 1] += 1;
        }

        let discounts = discounts(&grams);
        Self { grams, contexts, discounts }
    }

    fn count(&self, gram: u64) -> u32 {
        self.grams.binary_search_by_key(&gram, |&(key, _)| key).map_or(0, |index| self.grams[index].1)
    }

    fn context(&self, key: u64) -> Option<&Context> {
        self.contexts
            .binary_search_by_key(&key, |context| context.key)
            .ok()
            .map(|index| &self.contexts[index])
    }

    /// `(max(c - D(c), 0) + freed * lower) / total`, where `freed` is what the discounts took from this context.
    fn kneser_ney(&self, gram: u64, lower: f64) -> f64 {
        let Some(context) = self.context(gram >> 8) else {
            return lower;
        };
        let count = self.count(gram);
        let kept = match count {
            0 => 0.0,
            _ => f64::from(count) - self.discounts[count.min(3) as usize - 1],
        };
        let freed: f64 = (self.discounts.iter().zip(context.types))
            .map(|(discount, types)| discount * f64::from(types))
            .sum();
        (kept + freed * lower) / f64::from(context.total)
    }

    /// `(c + types * lower) / (total + types)`.
    fn witten_bell(&self, gram: u64, lower: f64) -> f64 {
        let Some(context) = self.context(gram >> 8) else {
            return lower;
        };
        let types = f64::from(context.types.iter().sum::<u32>());
        (f64::from(self.count(gram)) + types * lower) / (f64::from(context.total) + types)
    }
}

/// Chen and Goodman's estimate of what a count of 1, 2 and 3 or more is too high by, from how many n-grams have each
/// count. Where a small text has no n-gram with a count that the estimate needs, one half stands in.
fn discounts(grams: &[(u64, u32)]) -> [f64; 3] {
    let mut with_count = [0.0; 5];
    for &(_, count) in grams {
        if count < 5 {
            with_count[count as usize] += 1.0;
        }
    }
    let [_, one, two, ..] = with_count;
    let slope = one / (one + 2.0 * two);
    std::array::from_fn(|index| {
        let count = (index + 1) as f64;
        let (same, next) = (with_count[index + 1], with_count[index + 2]);
        let discount = count - (count + 1.0) * slope * next / same;
        if same > 0.0 && next > 0.0 && discount >= 0.0 { discount } else { 0.5 }
    })
}

/// Both smoothed estimates of every order, 1 to [`MAX_ORDER`], for one byte or averaged over many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimates {
    /// Interpolated Kneser-Ney, orders 1 to 5.
    pub kneser_ney: [f64; MAX_ORDER],
    /// Interpolated Witten-Bell, orders 1 to 5.
    pub witten_bell: [f64; MAX_ORDER],
}

impl Estimates {
    /// The smallest of all, which for bits per byte is the best.
    pub fn best(&self) -> f64 {
        (self.kneser_ney.iter().chain(&self.witten_bell)).copied().fold(f64::INFINITY, f64::min)
    }
}

/// N-gram models of orders 1 to [`MAX_ORDER`], trained on one text.
pub struct NGrams {
    /// `occurrences[n - 1]`: how often each n-gram occurs.
    occurrences: Vec<Counts>,
    /// `continuations[n - 1]`: after how many different bytes each n-gram occurs.
    continuations: Vec<Counts>,
}

impl NGrams {
    /// Counts every n-gram of `text`.
    pub fn train(text: &[u8]) -> Self {
        let occurrences: Vec<Counts> =
            (1..=MAX_ORDER).map(|order| Counts::new(text.windows(order).map(pack).collect())).collect();
        let continuations = (1..MAX_ORDER)
            .map(|order| {
                let suffix = (1_u64 << (8 * order)) - 1;
                let longer = &occurrences[order].grams;
                Counts::new(longer.iter().map(|&(gram, _)| gram & suffix).collect())
            })
            .collect();
        Self { occurrences, continuations }
    }

    /// The probability of `byte` after `history`, of which the last four bytes count.
    pub fn probabilities(&self, history: &[u8], byte: u8) -> Estimates {
        let uniform = 1.0 / 256.0;
        let mut estimates = Estimates::default();
        let mut kneser_ney_lower = uniform;
        let mut witten_bell_lower = uniform;
        for order in 1..=MAX_ORDER {
            let index = order - 1;
            let Some(start) = history.len().checked_sub(index) else {
                // The text is younger than this context: the longest one that fits stands in.
                estimates.kneser_ney[index] = estimates.kneser_ney[index - 1];
                estimates.witten_bell[index] = witten_bell_lower;
                continue;
            };
            let gram = pack(&history[start..]) << 8 | u64::from(byte);

            let occurrences = &self.occurrences[index];
            estimates.kneser_ney[index] = occurrences.kneser_ney(gram, kneser_ney_lower);
            if let Some(continuations) = self.continuations.get(index) {
                kneser_ney_lower = continuations.kneser_ney(gram, kneser_ney_lower);
            }
            witten_bell_lower = occurrences.witten_bell(gram, witten_bell_lower);
            estimates.witten_bell[index] = witten_bell_lower;
        }
        estimates
    }

    /// Mean bits per byte of `text[from..]`, every byte predicted from those before it.
    pub fn bits_per_byte(&self, text: &[u8], from: usize) -> Estimates {
        let mut bits = Estimates::default();
        for position in from..text.len() {
            let p = self.probabilities(&text[..position], text[position]);
            for index in 0..MAX_ORDER {
                bits.kneser_ney[index] -= p.kneser_ney[index].log2();
                bits.witten_bell[index] -= p.witten_bell[index].log2();
            }
        }
        let bytes = (text.len() - from) as f64;
        bits.kneser_ney = bits.kneser_ney.map(|sum| sum / bytes);
        bits.witten_bell = bits.witten_bell.map(|sum| sum / bytes);
        bits
    }
}

/// Up to eight bytes as one number, the last byte lowest.
fn pack(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |key, &byte| key << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"If music be the food of love, play on,\nGive me excess of it; that, surfeiting,\n\
        The appetite may sicken and so die.\nThat strain again! It had a dying fall;\n\
        O, it came o'er my ear like the sweet sound\nThat breathes upon a bank of violets,\n\
        Stealing and giving odour. Enough; no more;\n'Tis not so sweet now as it was before.\n";

    #[test]
    fn probabilities_sum_to_one_for_seen_and_unseen_contexts() {
        let model = NGrams::train(TEXT);
        for history in [&b""[..], b"I", b"that ", b" the", b"zzzz", b"so d", b"\xff\x00e ", b"sweet"] {
            let mut sums = Estimates::default();
            for byte in 0..=255 {
                let p = model.probabilities(history, byte);
                for index in 0..MAX_ORDER {
                    assert!(p.kneser_ney[index] > 0.0 && p.witten_bell[index] > 0.0);
                    sums.kneser_ney[index] += p.kneser_ney[index];
                    sums.witten_bell[index] += p.witten_bell[index];
                }
            }
            for sum in sums.kneser_ney.into_iter().chain(sums.witten_bell) {
                assert!((sum - 1.0).abs() < 1e-12, "after {history:?}: {sum}");
            }
        }
    }

    /// `ab` three times, `ac` once, `b` and `c` once at most before each other: small enough to do by hand.
    #[test]
    fn witten_bell_bigram_by_hand() {
        let model = NGrams::train(b"abababac");
        // Order 1: 8 bytes, 3 kinds, b three times. Order 2, after a: 4 bytes, 2 kinds, b three times.
        let unigram = (3.0 + 3.0 / 256.0) / 11.0;
        let bigram = (3.0 + 2.0 * unigram) / 6.0;
        let p = model.probabilities(b"a", b'b');
        assert!((p.witten_bell[0] - unigram).abs() < 1e-15);
        assert!((p.witten_bell[1] - bigram).abs() < 1e-15);
    }

    /// The lower order of Kneser-Ney counts contexts: `b` is frequent but follows `a` alone, `c` follows three bytes.
    #[test]
    fn kneser_ney_prefers_the_byte_seen_in_many_contexts() {
        let model = NGrams::train(b"abababababxcyczc");
        let after_unseen = |byte| model.probabilities(b"q", byte).kneser_ney[1];
        assert!(after_unseen(b'c') > after_unseen(b'b'));
        let unigram = |byte| model.probabilities(b"q", byte).kneser_ney[0];
        assert!(unigram(b'b') > unigram(b'c'));
    }

    #[test]
    fn repetition_is_learnt_and_longer_contexts_help() {
        let text = TEXT.repeat(3);
        let bits = NGrams::train(&text[..2 * TEXT.len()]).bits_per_byte(&text, 2 * TEXT.len());
        assert!(bits.kneser_ney[4] < bits.kneser_ney[1] && bits.kneser_ney[1] < bits.kneser_ney[0]);
        assert!(bits.witten_bell[4] < bits.witten_bell[1] && bits.witten_bell[1] < bits.witten_bell[0]);
        assert!(bits.best() <= bits.kneser_ney[4] && bits.best() <= bits.witten_bell[4]);
    }
}
