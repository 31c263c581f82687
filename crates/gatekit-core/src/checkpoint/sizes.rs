//! Sizes in a `config.json` that no model has, refused before anything is made of them.

use serde_json::Value;

use crate::error::ConfigError;

/// The largest integer accepted where a configuration says how large something is. Products of two
/// such sizes are far from overflowing.
const MAX_SIZE: u64 = i32::MAX as u64;
/// More layers than any model has.
const MAX_LAYERS: u64 = 10_000;
/// What the number of layers is called.
const LAYERS: [&str; 4] = ["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
/// Integers that are no size: they may be anything.
const NO_SIZE: [&str; 2] = ["seed", "run"];

/// Refuses integers that are too large for a size, and more layers than the weight files have
/// tensors (`tensors`, if the files could be read): every layer has one of its own.
pub(super) fn check_sizes(json: &Value, tensors: Option<usize>) -> Result<(), ConfigError> {
    let Some(fields) = json.as_object() else { return Ok(()) };
    for (field, value) in fields.iter().filter(|(field, _)| !NO_SIZE.contains(&field.as_str())) {
        check_size(field, value)?;
    }
    let most = tensors.map_or(MAX_LAYERS, |tensors| (tensors as u64).min(MAX_LAYERS));
    for field in LAYERS {
        if let Some(layers) = fields.get(field).and_then(Value::as_u64).filter(|layers| *layers > most) {
            let need = match tensors {
                Some(tensors) => format!("at most {most}: the weight files have {tensors} tensors"),
                None => format!("at most {most}"),
            };
            return Err(ConfigError::new(field, layers, need));
        }
    }
    Ok(())
}

fn check_size(field: &str, value: &Value) -> Result<(), ConfigError> {
    match value {
        Value::Number(number) => match number.as_u64() {
            Some(size) if size > MAX_SIZE => {
                Err(ConfigError::new(field, size, format!("at most {MAX_SIZE}")))
            }
            _ => Ok(()),
        },
        Value::Array(values) => values.iter().try_for_each(|value| check_size(field, value)),
        Value::Object(fields) => fields
            .iter()
            .try_for_each(|(name, value)| check_size(name, value).map_err(|error| error.within(field))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_beyond_any_model_are_refused_by_name() {
        let refused = |json: Value| check_sizes(&json, Some(20)).expect_err("refused").field;
        assert_eq!(refused(json!({ "vocab_size": 1_000_000_000_000u64 })), "vocab_size");
        assert_eq!(refused(json!({ "attn": { "layers": [0, u64::MAX] } })), "attn.layers");
        assert_eq!(refused(json!({ "num_hidden_layers": 21 })), "num_hidden_layers");
        assert!(check_sizes(&json!({ "num_hidden_layers": 21 }), None).is_ok());
        assert!(check_sizes(&json!({ "num_hidden_layers": 10_001 }), None).is_err());
        let sound =
            json!({ "vocab_size": 163_840, "num_hidden_layers": 20, "seed": u64::MAX, "rope_theta": 1e12 });
        assert!(check_sizes(&sound, Some(20)).is_ok());
        assert!(check_sizes(&json!("text"), Some(20)).is_ok());
    }
}
