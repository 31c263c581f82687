//! The configuration of a case, field by field, so that none is ignored.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};

/// Reads fields and remembers which; [`finish`](Self::finish) refuses the rest.
#[derive(Debug)]
pub struct Fields<'a> {
    fields: &'a Map<String, Value>,
    read: BTreeSet<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of a configuration.
    pub fn new(fields: &'a Map<String, Value>) -> Self {
        Self { fields, read: BTreeSet::new() }
    }

    /// A field that must be there.
    ///
    /// # Errors
    ///
    /// It is missing or has another type.
    pub fn required<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T> {
        self.read.insert(name);
        let value =
            self.fields.get(name).ok_or_else(|| Failure(format!("config lacks the field `{name}`")))?;
        convert(name, value)
    }

    /// A field with a default, which stands where the field is missing.
    ///
    /// # Errors
    ///
    /// It has another type.
    pub fn with_default<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> Result<T> {
        self.read.insert(name);
        self.fields.get(name).map_or(Ok(default), |value| convert(name, value))
    }

    /// A field that may be null or missing.
    ///
    /// # Errors
    ///
    /// It has another type.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>> {
        self.with_default(name, None)
    }

    /// Ends the reading.
    ///
    /// # Errors
    ///
    /// A field of the configuration was not asked for.
    pub fn finish(self) -> Result<()> {
        match self.fields.keys().find(|name| !self.read.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => Err(Failure(format!(
                "config field `{name}` (= {}) is not known to this component",
                self.fields[name]
            ))),
        }
    }
}

fn convert<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T> {
    serde_json::from_value(value.clone())
        .map_err(|error| Failure(format!("config field `{name}` is {value}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_must_be_read() {
        let config = serde_json::from_str(r#"{"a": 1, "b": null}"#).expect("valid JSON");
        let mut fields = Fields::new(&config);
        assert_eq!(fields.required::<usize>("a"), Ok(1));
        assert!(fields.required::<String>("a").is_err());
        assert!(fields.required::<usize>("c").is_err());
        assert_eq!(fields.with_default("d", 7), Ok(7));
        assert!(fields.finish().unwrap_err().0.contains("`b`"));

        let mut fields = Fields::new(&config);
        assert_eq!(fields.optional::<usize>("a"), Ok(Some(1)));
        assert_eq!(fields.optional::<f64>("b"), Ok(None));
        assert_eq!(fields.finish(), Ok(()));
    }
}
