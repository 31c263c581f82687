//! What can happen to a checkpoint folder.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::files::{Files, Parts, choose};

/// One thing that happens to a folder. Numbers pick among what is there, counted round and round; shares are of a
/// file's length.
#[derive(Clone, Debug)]
pub enum Damage {
    /// A file ends early.
    Truncate { file: usize, share: f64 },
    /// A file goes on.
    Extend { file: usize, bytes: usize },
    /// Bits of one byte change.
    Flip { file: usize, share: f64, mask: u8 },
    /// Bits of a byte of a header change.
    FlipHeader { file: usize, share: f64, mask: u8 },
    /// A file is gone.
    Remove { file: usize },
    /// The header's length lies.
    HeaderLength { file: usize, length: u64 },
    /// A tensor's entry in the header lies.
    Header { file: usize, tensor: usize, lie: usize },
    /// A tensor is gone, its file still sound.
    Drop { file: usize, tensor: usize },
    /// A tensor has another name.
    Rename { file: usize, tensor: usize, name: usize },
    /// A tensor has another shape of as many elements, or of more or fewer with the bytes to match.
    Reshape { file: usize, tensor: usize, shape: usize },
    /// A tensor holds this value somewhere.
    Value { file: usize, tensor: usize, share: f64, value: f32 },
    /// A value in a JSON file is replaced.
    Json { file: usize, place: usize, value: usize },
    /// A value in a JSON file is gone.
    JsonRemove { file: usize, place: usize },
    /// The configuration has a field that it had not.
    Field { field: usize, value: usize },
    /// The configuration of another folder.
    Swap { other: usize },
}

const FIELDS: [&str; 24] = [
    "rope_scaling",
    "quantization_config",
    "rope_parameters",
    "model_type",
    "architectures",
    "hidden_act",
    "sliding_window",
    "window_size",
    "num_key_value_heads",
    "num_kv_heads",
    "head_dim",
    "layer_types",
    "mlp_layer_types",
    "mlp_only_layers",
    "linear_attn_config",
    "attn",
    "decoder_sparse_step",
    "first_k_dense_replace",
    "moe_layer_freq",
    "tie_word_embeddings",
    "n_group",
    "topk_group",
    "num_experts_per_tok",
    "max_position_embeddings",
];

fn values() -> Vec<Value> {
    let mut values = vec![Value::Null, json!(true), json!(false), json!(""), json!("silu"), json!("yarn")];
    for integer in
        [-1i64, 0, 1, 2, 3, 4, 5, 7, 16, 64, 1000, 0x7fff_ffff, 0x8000_0000, 1_000_000_000_000, i64::MIN]
    {
        values.push(json!(integer));
    }
    values.push(json!(u64::MAX));
    for number in [0.0, -0.0, 0.5, -1.5, 1e-320, 1e12, 1e30, f64::MAX, -f64::MAX] {
        values.push(json!(number));
    }
    values.extend([
        json!([]),
        json!({}),
        json!([0]),
        json!([0, 0, 1]),
        json!([1, 2, 3, 4, 5, 6, 7, 8]),
        json!([-1, 1_000_000_000_000i64]),
        json!(["full_attention"]),
        json!(["linear_attention", "full_attention", "linear_attention", "full_attention"]),
        json!({ "rope_type": "yarn", "factor": 4.0 }),
        json!({ "type": "linear", "factor": 2.0 }),
        json!({ "rope_type": "default", "rope_theta": 0.0 }),
        json!({ "quant_method": "fp8" }),
        json!({ "layers": [1], "num_heads": 2, "window_size": 0 }),
        json!({ "kda_layers": [1, 2], "full_attn_layers": [2], "num_heads": 0, "head_dim": 1_000_000_000_000i64 }),
        json!(vec!["sparse"; 5000]),
        json!("x".repeat(5000)),
    ]);
    values
}

/// Which folder, and one to three damages.
pub fn damages(folders: usize) -> impl Strategy<Value = (usize, Vec<Damage>)> {
    (0..folders, prop::collection::vec(damage(), 1..=3))
}

fn damage() -> impl Strategy<Value = Damage> {
    let pick = || any::<usize>();
    let share = || 0.0..1.0f64;
    // Configurations have the most ways to go wrong.
    prop_oneof![
        2 => (pick(), share()).prop_map(|(file, share)| Damage::Truncate { file, share }),
        1 => (pick(), 1..100usize).prop_map(|(file, bytes)| Damage::Extend { file, bytes }),
        2 => (pick(), share(), 1..=255u8).prop_map(|(file, share, mask)| Damage::Flip { file, share, mask }),
        2 => (pick(), share(), 1..=255u8).prop_map(|(file, share, mask)| Damage::FlipHeader { file, share, mask }),
        1 => pick().prop_map(|file| Damage::Remove { file }),
        1 => (pick(), prop_oneof![any::<u64>(), 0..100_000u64, Just(u64::MAX)])
            .prop_map(|(file, length)| Damage::HeaderLength { file, length }),
        3 => (pick(), pick(), pick()).prop_map(|(file, tensor, lie)| Damage::Header { file, tensor, lie }),
        1 => (pick(), pick()).prop_map(|(file, tensor)| Damage::Drop { file, tensor }),
        2 => (pick(), pick(), pick()).prop_map(|(file, tensor, name)| Damage::Rename { file, tensor, name }),
        2 => (pick(), pick(), pick()).prop_map(|(file, tensor, shape)| Damage::Reshape { file, tensor, shape }),
        2 => (pick(), pick(), share(), special()).prop_map(|(file, tensor, share, value)| Damage::Value { file, tensor, share, value }),
        10 => (pick(), pick(), pick()).prop_map(|(file, place, value)| Damage::Json { file, place, value }),
        2 => (pick(), pick()).prop_map(|(file, place)| Damage::JsonRemove { file, place }),
        3 => (pick(), pick()).prop_map(|(field, value)| Damage::Field { field, value }),
        1 => pick().prop_map(|other| Damage::Swap { other }),
    ]
}

fn special() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, -0.0])
}

impl Damage {
    /// Whether weights and numbers keep their values, so that a model that loads can be tried: with an epsilon of
    /// 1e308 its numbers mean nothing, which a debug build says by a panic.
    pub fn leaves_values(&self) -> bool {
        match self {
            Self::Json { value, .. } | Self::Field { value, .. } => {
                !choose(&values(), *value).is_some_and(has_fraction)
            }
            Self::Swap { .. } | Self::JsonRemove { .. } => true,
            _ => false,
        }
    }

    /// Does it. What other damage has left nothing of stays as it is.
    pub fn apply(&self, files: &mut Files, folders: &[Files]) {
        // `None`: there was nothing to damage.
        let _ = self.try_apply(files, folders);
    }

    fn try_apply(&self, files: &mut Files, folders: &[Files]) -> Option<()> {
        match *self {
            Self::Truncate { file, share } => {
                let bytes = files.0.get_mut(&files.name(file)?)?;
                bytes.truncate((bytes.len() as f64 * share) as usize);
            }
            Self::Extend { file, bytes } => {
                files.0.get_mut(&files.name(file)?)?.extend(std::iter::repeat_n(b' ', bytes));
            }
            Self::Flip { file, share, mask } => {
                let bytes = files.0.get_mut(&files.name(file)?)?;
                let at = (bytes.len() as f64 * share) as usize;
                *bytes.get_mut(at)? ^= mask;
            }
            Self::FlipHeader { file, share, mask } => {
                let bytes = files.0.get_mut(&files.name_ending(".safetensors", file)?)?;
                let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?).min(bytes.len() as u64);
                *bytes.get_mut((length as f64 * share) as usize)? ^= mask;
            }
            Self::Remove { file } => {
                let name = files.name(file)?;
                files.0.remove(&name);
            }
            Self::HeaderLength { file, length } => {
                let bytes = files.0.get_mut(&files.name_ending(".safetensors", file)?)?;
                bytes.get_mut(..8)?.copy_from_slice(&length.to_le_bytes());
            }
            Self::Header { file, tensor, lie } => weights(files, file, tensor, |parts, name| {
                let lies = [
                    ("dtype", json!("F16")),
                    ("dtype", json!("I64")),
                    ("dtype", json!("BOOL")),
                    ("dtype", json!("F8_E4M3")),
                    ("dtype", json!("F128")),
                    ("shape", json!([])),
                    ("shape", json!([0])),
                    ("shape", json!([1_000_000_000_000u64])),
                    ("shape", json!([u64::MAX, u64::MAX])),
                    ("shape", json!([-1])),
                    ("shape", json!(vec![1; 100])),
                    ("data_offsets", json!([0, 1_000_000_000_000u64])),
                    ("data_offsets", json!([u64::MAX, 0])),
                    ("data_offsets", json!([8, 4])),
                    ("data_offsets", json!([0, 0])),
                    ("data_offsets", json!("everywhere")),
                ];
                let (field, value) = choose(&lies, lie)?.clone();
                parts.header[name][field] = value;
                Some(())
            })?,
            Self::Drop { file, tensor } => weights(files, file, tensor, |parts, name| {
                parts.splice(name, Vec::new())?;
                parts.header.remove(name).map(drop)
            })?,
            Self::Rename { file, tensor, name: to } => weights(files, file, tensor, |parts, name| {
                let others = parts.names();
                let names = [
                    String::new(),
                    format!("{name}.weight"),
                    name.replace(".0.", ".1000000000000."),
                    name.replace(".0.", ".-1."),
                    name.replacen('.', "", 1),
                    name.to_uppercase(),
                    "x".repeat(10_000),
                    choose(&others, to)?.clone(),
                ];
                let entry = parts.header.remove(name)?;
                parts.header.insert(choose(&names, to)?.clone(), entry);
                Some(())
            })?,
            Self::Reshape { file, tensor, shape } => weights(files, file, tensor, |parts, name| {
                let old: Vec<usize> = serde_json::from_value(parts.header[name]["shape"].clone()).ok()?;
                let elements =
                    |shape: &[usize]| shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
                let count = elements(&old)?;
                let mut reversed = old.clone();
                reversed.reverse();
                let mut longer = old.clone();
                *longer.first_mut()? = old.first()?.checked_add(1)?;
                let mut shorter = old.clone();
                *shorter.first_mut()? = old.first()?.checked_sub(1)?;
                let shapes = [
                    vec![count],
                    vec![1, count],
                    reversed,
                    vec![count, 1, 1, 1, 1],
                    longer,
                    shorter,
                    vec![0, 3],
                ];
                let shape = choose(&shapes, shape)?.clone();
                let mut bytes = parts.data[parts.range(name)?].to_vec();
                bytes.resize(elements(&shape)?.checked_mul(bytes.len().checked_div(count)?)?, 0);
                parts.splice(name, bytes)?;
                parts.header[name]["shape"] = json!(shape);
                Some(())
            })?,
            Self::Value { file, tensor, share, value } => weights(files, file, tensor, |parts, name| {
                let range = parts.range(name)?;
                let at = range.start + (((range.len() / 4) as f64 * share) as usize) * 4;
                parts.data.get_mut(at..at + 4)?.copy_from_slice(&value.to_le_bytes());
                Some(())
            })?,
            Self::Json { file, place, value } => edit(files, file, |json| {
                *at(json, place)? = choose(&values(), value)?.clone();
                Some(())
            })?,
            Self::JsonRemove { file, place } => edit(files, file, |json| {
                let fields = json.as_object_mut()?;
                let name = choose(&fields.keys().cloned().collect::<Vec<_>>(), place)?.clone();
                fields.remove(&name).map(drop)
            })?,
            Self::Field { field, value } => {
                let bytes = files.0.get_mut("config.json")?;
                let mut json: Value = serde_json::from_slice(bytes).ok()?;
                let name = *choose(&FIELDS, field)?;
                json.as_object_mut()?.insert(name.to_string(), choose(&values(), value)?.clone());
                *bytes = json.to_string().into_bytes();
            }
            Self::Swap { other } => {
                let config = choose(folders, other)?.0.get("config.json")?.clone();
                files.0.insert("config.json".to_string(), config);
            }
        }
        Some(())
    }
}

fn has_fraction(json: &Value) -> bool {
    match json {
        Value::Number(number) => number.is_f64(),
        Value::Array(values) => values.iter().any(has_fraction),
        Value::Object(fields) => fields.values().any(has_fraction),
        _ => false,
    }
}

/// Changes a tensor of a weight file.
fn weights(
    files: &mut Files,
    file: usize,
    tensor: usize,
    change: impl FnOnce(&mut Parts, &str) -> Option<()>,
) -> Option<()> {
    let bytes = files.0.get_mut(&files.name_ending(".safetensors", file)?)?;
    let mut parts = Parts::of(bytes)?;
    let name = choose(&parts.names(), tensor)?.clone();
    change(&mut parts, &name)?;
    *bytes = parts.bytes();
    Some(())
}

/// Changes a JSON file.
fn edit(files: &mut Files, file: usize, change: impl FnOnce(&mut Value) -> Option<()>) -> Option<()> {
    // The configuration nine times of ten, else the index of the shards.
    let name = match file.is_multiple_of(10) {
        true => files.name_ending(".json", file / 10)?,
        false => "config.json".to_string(),
    };
    let bytes = files.0.get_mut(&name)?;
    let mut json: Value = serde_json::from_slice(bytes).ok()?;
    change(&mut json)?;
    *bytes = json.to_string().into_bytes();
    Some(())
}

/// The `place`th value within a JSON value, the elements of arrays and objects included.
fn at(json: &mut Value, place: usize) -> Option<&mut Value> {
    fn count(json: &Value) -> usize {
        1 + match json {
            Value::Array(values) => values.iter().map(count).sum(),
            Value::Object(fields) => fields.values().map(count).sum(),
            _ => 0,
        }
    }
    fn find(json: &mut Value, mut place: usize) -> Option<&mut Value> {
        if place == 0 {
            return Some(json);
        }
        place -= 1;
        let children: Vec<&mut Value> = match json {
            Value::Array(values) => values.iter_mut().collect(),
            Value::Object(fields) => fields.values_mut().collect(),
            _ => Vec::new(),
        };
        for child in children {
            let size = count(child);
            if place < size {
                return find(child, place);
            }
            place -= size;
        }
        None
    }
    let size = count(json);
    // Not the whole document, mostly.
    find(json, if place.is_multiple_of(50) { 0 } else { 1 + place % (size - 1).max(1) })
}
