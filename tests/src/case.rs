//! Reading a case (`golden/FORMAT.md`).

use std::{collections::BTreeMap, path::Path};

use safetensors::SafeTensors;
use serde_json::{Map, Value};

use crate::{
    array::{Array, Values},
    failure::{Failure, Result},
};

/// One case: a component with its weights, inputs, outputs and gradients.
#[derive(Debug, Clone)]
pub struct Case {
    /// The system's slug, e.g. `gla`.
    pub system: String,
    /// The part of the system, e.g. `gla-layer`.
    pub component: String,
    /// The case, e.g. `left-padding`.
    pub name: String,
    /// The component's configuration.
    pub config: Map<String, Value>,
    /// Bound on the relative error of float outputs.
    pub tolerance_output: f64,
    /// Bound on the relative error of gradients.
    pub tolerance_grad: f64,
    /// Arguments of the forward pass.
    pub inputs: BTreeMap<String, Array>,
    /// Parameters, in PyTorch's layout.
    pub params: BTreeMap<String, Array>,
    /// State that is not trained.
    pub buffers: BTreeMap<String, Array>,
    /// Results of the reference.
    pub outputs: BTreeMap<String, Array>,
    /// Weights of the float outputs in the scalar that is differentiated.
    pub cotangents: BTreeMap<String, Array>,
    /// Gradients of the reference, under `input.<name>` and `param.<name>`.
    pub grads: BTreeMap<String, Array>,
}

impl Case {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the file: not readable, not safetensors, a header entry that is
    /// missing or not as the format says, a tensor of an unknown group, a cotangent or gradient
    /// without its tensor or of another shape.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Failure(format!("cannot be read: {error}")))?;
        Self::parse(&bytes).map_err(|failure| failure.within("malformed case file"))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let unreadable = |error| Failure(format!("not a safetensors file: {error}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(unreadable)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(unreadable)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = |key: &str| {
            metadata.get(key).cloned().ok_or_else(|| Failure(format!("the header lacks `{key}`")))
        };
        let tolerance = |key: &str| {
            let text = text(key)?;
            match text.parse::<f64>() {
                Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
                _ => Err(Failure(format!("header `{key}` is {text:?}, need a number that is not negative"))),
            }
        };

        let format = text("format")?;
        if format != "1" {
            return Err(Failure(format!("header `format` is {format:?}, need \"1\"")));
        }
        let config = text("config")?;
        let config = serde_json::from_str::<Map<String, Value>>(&config)
            .map_err(|error| Failure(format!("header `config` is not a JSON object: {error}")))?;
        let mut case = Self {
            system: text("system")?,
            component: text("component")?,
            name: text("case")?,
            config,
            tolerance_output: tolerance("tolerance_output")?,
            tolerance_grad: tolerance("tolerance_grad")?,
            inputs: BTreeMap::new(),
            params: BTreeMap::new(),
            buffers: BTreeMap::new(),
            outputs: BTreeMap::new(),
            cotangents: BTreeMap::new(),
            grads: BTreeMap::new(),
        };
        for (full_name, view) in tensors.iter() {
            let array = Array::from_view(&view).map_err(|failure| failure.within(full_name))?;
            let (group, name) = full_name
                .split_once('.')
                .ok_or_else(|| Failure(format!("tensor `{full_name}` belongs to no group")))?;
            let (group, must_be_float) = match group {
                "input" => (&mut case.inputs, false),
                "param" => (&mut case.params, true),
                "buffer" => (&mut case.buffers, false),
                "output" => (&mut case.outputs, false),
                "cotangent" => (&mut case.cotangents, true),
                "grad" => (&mut case.grads, true),
                _ => return Err(Failure(format!("tensor `{full_name}` belongs to no group of the format"))),
            };
            if must_be_float && !matches!(array.values, Values::Float(_)) {
                return Err(Failure(format!("tensor `{full_name}` is {}, need F32", array.values.kind())));
            }
            group.insert(name.to_owned(), array);
        }
        case.check()?;
        Ok(case)
    }

    fn check(&self) -> Result<()> {
        if self.outputs.is_empty() {
            return Err(Failure("there is no output to compare".into()));
        }
        if self.cotangents.is_empty() && !self.grads.is_empty() {
            return Err(Failure("there are gradients but no cotangents".into()));
        }
        for (name, cotangent) in &self.cotangents {
            let output = self.outputs.get(name).map(|output| (&output.shape, output.values.kind()));
            if output != Some((&cotangent.shape, "F32")) {
                return Err(Failure(format!(
                    "`cotangent.{name}` has shape {:?}, the output {output:?}",
                    cotangent.shape
                )));
            }
        }
        for (name, grad) in &self.grads {
            let of = match name.split_once('.') {
                Some(("input", name)) => self.inputs.get(name),
                Some(("param", name)) => self.params.get(name),
                _ => None,
            };
            let of = of.map(|of| (&of.shape, of.values.kind()));
            if of != Some((&grad.shape, "F32")) {
                return Err(Failure(format!("`grad.{name}` has shape {:?}, its tensor {of:?}", grad.shape)));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    /// A file with one output, and what `edit` changes.
    fn file(
        edit: impl FnOnce(&mut HashMap<String, String>, &mut Vec<(&'static str, Dtype, Vec<usize>)>),
    ) -> Vec<u8> {
        let mut metadata: HashMap<String, String> = [
            ("format", "1"),
            ("system", "s"),
            ("component", "c"),
            ("case", "x"),
            ("config", "{}"),
            ("tolerance_output", "2e-05"),
            ("tolerance_grad", "0.0001"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let mut tensors = vec![("output.o", Dtype::F32, vec![2])];
        edit(&mut metadata, &mut tensors);
        let zeros = [0_u8; 64];
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (*name, TensorView::new(*dtype, shape.clone(), &zeros[..bytes]).expect("a valid view"))
        });
        safetensors::serialize(views, Some(metadata)).expect("a valid file")
    }

    #[test]
    fn a_file_is_read() {
        let case = Case::parse(&file(|_, _| {})).expect("a valid case");
        assert_eq!((case.system.as_str(), case.component.as_str(), case.name.as_str()), ("s", "c", "x"));
        assert_eq!((case.tolerance_output, case.tolerance_grad), (2e-5, 1e-4));
        assert_eq!(case.outputs["o"].shape, [2]);
    }

    #[test]
    fn a_malformed_file_is_a_failure_that_says_why() {
        let refused = |bytes: Vec<u8>, why: &str| {
            let failure = Case::parse(&bytes).expect_err(why);
            assert!(failure.0.contains(why), "{failure} does not mention {why}");
        };
        refused(b"not a case".to_vec(), "safetensors");
        refused(file(|_, _| {})[..40].to_vec(), "safetensors");
        for key in ["format", "system", "component", "case", "config", "tolerance_output", "tolerance_grad"] {
            refused(file(|metadata, _| drop(metadata.remove(key))), key);
        }
        let set = |key: &'static str, value: &'static str| {
            file(move |metadata, _| drop(metadata.insert(key.into(), value.into())))
        };
        refused(set("format", "2"), "format");
        refused(set("config", "[1]"), "config");
        refused(set("tolerance_grad", "NaN"), "tolerance_grad");
        let add = |name, dtype, shape: &[usize]| {
            let shape = shape.to_vec();
            file(move |_, tensors| tensors.push((name, dtype, shape)))
        };
        refused(add("weird.o", Dtype::F32, &[1]), "weird.o");
        refused(add("nogroup", Dtype::F32, &[1]), "nogroup");
        refused(add("input.x", Dtype::F64, &[1]), "input.x");
        refused(add("param.w", Dtype::I64, &[1]), "param.w");
        refused(add("cotangent.o", Dtype::F32, &[3]), "cotangent.o");
        refused(add("cotangent.p", Dtype::F32, &[2]), "cotangent.p");
        refused(add("grad.input.x", Dtype::F32, &[2]), "gradients but no cotangents");
        refused(file(|_, tensors| tensors.clear()), "no output");
        let orphan = file(|_, tensors| {
            tensors.push(("cotangent.o", Dtype::F32, vec![2]));
            tensors.push(("grad.input.x", Dtype::F32, vec![2]));
        });
        refused(orphan, "grad.input.x");
    }
}
