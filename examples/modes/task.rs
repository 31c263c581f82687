//! Questions about pictures: two digits side by side, a language and "left?" or "right?", and the digit's name spelled.

use burn::tensor::{Device, Int, Tensor, TensorData};
use gatekit::core::InputError;
use gatekit::experts::modes::TokenModalities;
use rand::RngExt;
use rand::rngs::StdRng;

/// The digits, five columns by seven rows each.
const GLYPHS: [[&str; 7]; 10] = [
    [".###.", "#...#", "#..##", "#.#.#", "##..#", "#...#", ".###."],
    ["..#..", ".##..", "..#..", "..#..", "..#..", "..#..", ".###."],
    [".###.", "#...#", "....#", "...#.", "..#..", ".#...", "#####"],
    [".###.", "#...#", "....#", "..##.", "....#", "#...#", ".###."],
    ["...#.", "..##.", ".#.#.", "#..#.", "#####", "...#.", "...#."],
    ["#####", "#....", "####.", "....#", "....#", "#...#", ".###."],
    ["..##.", ".#...", "#....", "####.", "#...#", "#...#", ".###."],
    ["#####", "....#", "...#.", "..#..", ".#...", ".#...", ".#..."],
    [".###.", "#...#", "#...#", ".###.", "#...#", "#...#", ".###."],
    [".###.", "#...#", "#...#", ".####", "....#", "...#.", ".##.."],
];
/// Their names in English, German, Spanish and Italian.
const NAMES: [[&str; 10]; 4] = [
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    ["null", "eins", "zwei", "drei", "vier", "fuenf", "sechs", "sieben", "acht", "neun"],
    ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
    ["zero", "uno", "due", "tre", "quattro", "cinque", "sei", "sette", "otto", "nove"],
];
const LANGUAGES: [&str; 4] = ["e", "g", "s", "i"];
const SIDES: [&str; 2] = ["left", "right"];
/// A digit's field is a square of this side; it stands anywhere in it.
const FIELD: usize = 8;
const PATCH: usize = 4;
/// Patches of the picture of two fields, row by row, and their pixels.
pub const PATCHES: usize = 2 * FIELD * FIELD / PIXELS;
pub const PIXELS: usize = PATCH * PATCH;
/// Deviation of the noise on every pixel.
const NOISE: f64 = 0.25;

/// Tokens: letters, then these.
const BEGIN: i64 = 26;
const ASK: i64 = 27;
const END: i64 = 28;
const PAD: i64 = 29;
pub const VOCABULARY: usize = 30;

/// Rows that go through the model together. Every row is a begin token, the patches, the question and the answer,
/// padded at its end.
pub struct Batch {
    /// Pixels, `[batch, PATCHES, PIXELS]`.
    pub patches: Tensor<3>,
    /// The begin token, and everything behind the patches, `[batch, 1 + text]`.
    pub tokens: Tensor<2, Int>,
    pub modalities: TokenModalities,
    /// Where answers are predicted: positions in the flattened `[batch, time]`, `[S]`.
    pub positions: Tensor<1, Int>,
    /// What is to be predicted there, `[S]`.
    pub targets: Tensor<1, Int>,
    /// Positions of every row.
    lengths: Vec<usize>,
}

impl Batch {
    /// Draws `rows` questions.
    pub fn draw(rows: usize, random: &mut StdRng, device: &Device) -> Result<Self, InputError> {
        let questions: Vec<Question> = (0..rows).map(|_| Question::draw(random)).collect();
        let longest = questions.iter().map(|question| question.text.len()).max().unwrap_or(0);
        let time = 1 + PATCHES + longest;
        let (mut pixels, mut tokens, mut codes, mut real) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut positions, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for (row, question) in questions.into_iter().enumerate() {
            let length = question.text.len();
            let padding = longest - length;
            pixels.extend(question.pixels);
            // The last letter's answer is the end.
            let first = row * time + PATCHES + question.asked;
            positions.extend((0..=length - question.asked).map(|at| (first + at) as i64));
            targets.extend(question.text[question.asked..].iter().copied().chain([END]));
            lengths.push(length - question.asked + 1);
            tokens.push(BEGIN);
            tokens.extend(question.text.into_iter().chain(vec![PAD; padding]));
            codes.extend([vec![2], vec![1; PATCHES], vec![0; longest]].concat());
            real.extend([vec![true; time - padding], vec![false; padding]].concat());
        }
        let count = positions.len();
        Ok(Self {
            patches: Tensor::from_data(TensorData::new(pixels, [rows, PATCHES, PIXELS]), device),
            tokens: Tensor::from_data(TensorData::new(tokens, [rows, 1 + longest]), device),
            modalities: TokenModalities::from_codes(&codes)?.with_mask(real)?,
            positions: Tensor::from_data(TensorData::new(positions, [count]), device),
            targets: Tensor::from_data(TensorData::new(targets, [count]), device),
            lengths,
        })
    }

    /// Rows whose whole answer is the likeliest, letter by letter, which is what greedy decoding would write; and all
    /// rows. `logits` `[S, VOCABULARY]`.
    pub fn right(&self, logits: Tensor<2>) -> (usize, usize) {
        let likeliest = logits.argmax(1).into_data();
        let targets = self.targets.to_data();
        let hits: Vec<bool> =
            likeliest.iter::<i64>().zip(targets.iter::<i64>()).map(|(got, need)| got == need).collect();
        let (mut start, mut right) = (0, 0);
        for length in &self.lengths {
            right += usize::from(hits[start..start + length].iter().all(|hit| *hit));
            start += length;
        }
        (right, self.lengths.len())
    }
}

struct Question {
    /// Patch by patch.
    pixels: Vec<f32>,
    /// Question and answer, without the end.
    text: Vec<i64>,
    /// Tokens of the question.
    asked: usize,
}

impl Question {
    fn draw(random: &mut StdRng) -> Self {
        let digits = [random.random_range(0..10), random.random_range(0..10)];
        let side = random.random_range(0..2);
        let letters = |word: &str| word.bytes().map(|byte| i64::from(byte - b'a')).collect::<Vec<_>>();
        let language = random.random_range(0..LANGUAGES.len());
        let question = [letters(LANGUAGES[language]), letters(SIDES[side]), vec![ASK]].concat();
        let (asked, answer) = (question.len(), letters(NAMES[language][digits[side]]));
        Self { pixels: picture(digits, random), text: [question, answer].concat(), asked }
    }
}

fn picture(digits: [usize; 2], random: &mut StdRng) -> Vec<f32> {
    let width = 2 * FIELD;
    let mut pixels = vec![0.0f32; width * FIELD];
    for (field, digit) in digits.into_iter().enumerate() {
        let (down, right) = (random.random_range(0..=FIELD - 7), random.random_range(0..=FIELD - 5));
        let ink = random.random_range(0.7..1.3);
        for (row, line) in GLYPHS[digit].iter().enumerate() {
            for (column, _) in line.bytes().enumerate().filter(|(_, byte)| *byte == b'#') {
                pixels[(down + row) * width + field * FIELD + right + column] = ink;
            }
        }
    }
    for pixel in &mut pixels {
        // The sum of four uniform draws is close to normal.
        let noise: f64 = (0..4).map(|_| random.random_range(-1.0..1.0)).sum();
        *pixel += (NOISE * noise * (3.0f64 / 4.0).sqrt()) as f32;
    }
    let across = width / PATCH;
    let patch = |index: usize| {
        let (top, left) = (index / across * PATCH, index % across * PATCH);
        (0..PIXELS).map(move |pixel| (top + pixel / PATCH) * width + left + pixel % PATCH)
    };
    (0..PATCHES).flat_map(patch).map(|at| pixels[at]).collect()
}
