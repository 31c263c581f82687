//! Configurations from and to the published `config.json`.

use super::layout::TensorLayout;
use crate::config::ModuleConfig;
use crate::error::ConfigError;
use burn::config::Config;
use burn::module::Module;
use serde_json::{Map, Value};

/// A configuration that has a published form.
pub trait PretrainedConfig: ModuleConfig<Module: Module> + Sized {
    /// Reads a published `config.json`. Fields that are missing or null get their defaults,
    /// fields that do not concern this library are passed over.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for another architecture, for a field of the wrong type, and for a feature
    /// of the published model that this library does not have.
    fn from_published(json: &Value) -> Result<Self, ConfigError>;

    /// Writes the published form.
    fn to_published(&self) -> Value;

    /// What the published files call the module's tensors. By default they are called and shaped
    /// as in the module.
    fn layout(&self) -> TensorLayout {
        TensorLayout::default()
    }
}

/// Overlays `defaults` with the fields of a JSON object; null counts as absent, and fields that
/// the configuration does not have are passed over.
///
/// # Errors
///
/// [`ConfigError`] names a field whose value is of the wrong type, and says so when `json` is no
/// object.
pub fn config_from_json<C: Config>(defaults: &C, json: &Value) -> Result<C, ConfigError> {
    let fields = json.as_object().ok_or_else(|| ConfigError::new("config", json, "a JSON object"))?;
    let unchanged = serde_json::to_value(defaults);
    let Ok(Value::Object(mut merged)) = unchanged else {
        return Err(ConfigError::new("config", "defaults that are no JSON object", "named fields"));
    };
    let read = |fields: &Map<String, Value>| serde_json::from_value::<C>(Value::Object(fields.clone()));
    // One field after the other, so that the one of the wrong type can be named.
    for (field, value) in fields {
        if !value.is_null() && merged.contains_key(field) {
            merged.insert(field.clone(), value.clone());
            read(&merged).map_err(|error| ConfigError::new(field, value, error))?;
        }
    }
    read(&merged).map_err(|error| ConfigError::new("config", json, error))
}

/// Refuses a `model_type` or `architectures` other than those of the configuration.
pub fn check_architecture(json: &Value, model_type: &str, architecture: &str) -> Result<(), ConfigError> {
    let got = &json["model_type"];
    if got != model_type {
        return Err(ConfigError::new("model_type", got, format!("\"{model_type}\"")));
    }
    match &json["architectures"] {
        Value::Null => Ok(()),
        Value::Array(names) if names.iter().any(|name| name == architecture) => Ok(()),
        other => Err(ConfigError::new("architectures", other, format!("[\"{architecture}\"]"))),
    }
}

/// Refuses a field of a published configuration that asks for what the model cannot do.
pub fn require(json: &Value, field: &str, accepted: &[Value]) -> Result<(), ConfigError> {
    let got = &json[field];
    if got.is_null() || accepted.contains(got) {
        return Ok(());
    }
    let mut need: Vec<String> = accepted.iter().map(Value::to_string).collect();
    need.push("null".into());
    Err(ConfigError::new(field, got, need.join(" or ")))
}
