//! Running a case: hands out its tensors, takes the results, and differentiates.

use std::collections::{BTreeMap, BTreeSet};

use burn::{
    module::Module,
    tensor::{Bool, Device, Gradients, Int, Tensor},
};
use gatekit::{
    core::{scan::ScanForm, sequence::Boundaries},
    sequence::checkpoint::{TensorLayout, load_tensors, named_gradients},
};

use crate::{
    array::{Array, Values},
    case::Case,
    failure::{Failure, Result, catch},
    fields::Fields,
    judge::judge,
};

/// What one way of computing a case produced.
#[derive(Debug)]
pub struct Produced {
    /// Which way: a form of the scan; for messages.
    pub form: &'static str,
    /// Outputs by name.
    pub outputs: BTreeMap<String, Array>,
    /// Gradients under `input.<name>` and `param.<name>`, of what the loss reaches.
    pub grads: BTreeMap<String, Array>,
}

/// Reads gradients back, by the names of the format.
type ReadGradients = Box<dyn Fn(&Gradients) -> Result<Vec<(String, Array)>>>;

/// One forward pass of a case in the making.
pub struct Evaluation<'a> {
    case: &'a Case,
    device: Device,
    inputs_read: BTreeSet<String>,
    parameters_read: bool,
    buffers_read: BTreeSet<String>,
    leaves: Vec<ReadGradients>,
    outputs: BTreeMap<String, Array>,
    loss: Option<Tensor<1>>,
}

impl<'a> Evaluation<'a> {
    /// Begins on `device`, with autodiff when the case has gradients.
    pub fn new(case: &'a Case, device: &Device) -> Self {
        let device = if case.cotangents.is_empty() { device.clone() } else { device.clone().autodiff() };
        Self {
            case,
            device,
            inputs_read: BTreeSet::new(),
            parameters_read: false,
            buffers_read: BTreeSet::new(),
            leaves: Vec::new(),
            outputs: BTreeMap::new(),
            loss: None,
        }
    }

    /// The device that tensors and modules belong on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The configuration's fields.
    pub fn config(&self) -> Fields<'a> {
        Fields::new(&self.case.config)
    }

    fn differentiates(&self) -> bool {
        !self.case.cotangents.is_empty()
    }

    fn input(&mut self, name: &str, rank: usize, kind: &str) -> Result<Option<&'a Array>> {
        let Some(array) = self.case.inputs.get(name) else { return Ok(None) };
        self.inputs_read.insert(name.to_owned());
        if array.shape.len() != rank || array.values.kind() != kind {
            return Err(Failure(format!(
                "`input.{name}` is {} {:?}, need {kind} with {rank} axes",
                array.values.kind(),
                array.shape
            )));
        }
        Ok(Some(array))
    }

    /// A float input that may be absent; its gradient is recorded.
    ///
    /// # Errors
    ///
    /// Another dtype or number of axes.
    pub fn optional_float<const D: usize>(&mut self, name: &str) -> Result<Option<Tensor<D>>> {
        let Some(array) = self.input(name, D, "F32")? else { return Ok(None) };
        let mut tensor = Tensor::<D>::from_data(array.to_data(&array.shape), &self.device);
        if self.differentiates() {
            tensor = tensor.require_grad();
            let leaf = tensor.clone();
            let name = format!("input.{name}");
            self.leaves.push(Box::new(move |gradients| {
                let gradient = leaf.grad(gradients);
                let named = |gradient: Tensor<D>| Ok((name.clone(), Array::from_data(gradient.into_data())?));
                gradient.map(named).into_iter().collect()
            }));
        }
        Ok(Some(tensor))
    }

    /// A float input.
    ///
    /// # Errors
    ///
    /// It is absent, or as [`optional_float`](Self::optional_float).
    pub fn float<const D: usize>(&mut self, name: &str) -> Result<Tensor<D>> {
        self.optional_float(name)?.ok_or_else(|| absent(name))
    }

    /// An integer input.
    ///
    /// # Errors
    ///
    /// It is absent or has another dtype or number of axes.
    pub fn int<const D: usize>(&mut self, name: &str) -> Result<Tensor<D, Int>> {
        self.optional_int(name)?.ok_or_else(|| absent(name))
    }

    /// An integer input that may be absent.
    ///
    /// # Errors
    ///
    /// Another dtype or number of axes.
    pub fn optional_int<const D: usize>(&mut self, name: &str) -> Result<Option<Tensor<D, Int>>> {
        let array = self.input(name, D, "I64")?;
        Ok(array.map(|array| Tensor::from_data(array.to_data(&array.shape), &self.device)))
    }

    /// A boolean input that may be absent, such as a mask.
    ///
    /// # Errors
    ///
    /// Another dtype or number of axes.
    pub fn optional_bool<const D: usize>(&mut self, name: &str) -> Result<Option<Tensor<D, Bool>>> {
        let array = self.input(name, D, "BOOL")?;
        Ok(array.map(|array| Tensor::from_data(array.to_data(&array.shape), &self.device)))
    }

    /// The optional input `cu_seqlens`, for a sequence of `time` steps.
    ///
    /// # Errors
    ///
    /// Another dtype or number of axes; boundaries that the library refuses.
    pub fn boundaries(&mut self, time: usize) -> Result<Option<Boundaries>> {
        let cu_seqlens = self.optional_int::<1>("cu_seqlens")?;
        Ok(cu_seqlens.map(|tensor| Boundaries::from_tensor(&tensor, time)).transpose()?)
    }

    /// A float buffer that is no part of a module.
    ///
    /// # Errors
    ///
    /// It is absent or has another dtype or number of axes.
    pub fn buffer<const D: usize>(&mut self, name: &str) -> Result<Tensor<D>> {
        let array = self.case.buffers.get(name);
        let array = array.ok_or_else(|| Failure(format!("the case lacks `buffer.{name}`")))?;
        if array.shape.len() != D || array.values.kind() != "F32" {
            let (kind, shape) = (array.values.kind(), &array.shape);
            return Err(Failure(format!("`buffer.{name}` is {kind} {shape:?}, need F32 with {D} axes")));
        }
        self.buffers_read.insert(name.to_owned());
        Ok(Tensor::from_data(array.to_data(&array.shape), &self.device))
    }

    /// An integer buffer that may be absent.
    ///
    /// # Errors
    ///
    /// Another dtype or number of axes.
    pub fn optional_int_buffer<const D: usize>(&mut self, name: &str) -> Result<Option<Tensor<D, Int>>> {
        let Some(array) = self.case.buffers.get(name) else { return Ok(None) };
        if array.shape.len() != D || array.values.kind() != "I64" {
            let (kind, shape) = (array.values.kind(), &array.shape);
            return Err(Failure(format!("`buffer.{name}` is {kind} {shape:?}, need I64 with {D} axes")));
        }
        self.buffers_read.insert(name.to_owned());
        Ok(Some(Tensor::from_data(array.to_data(&array.shape), &self.device)))
    }

    /// Whether the case has a buffer of this name.
    pub fn has_buffer(&self, name: &str) -> bool {
        self.case.buffers.contains_key(name)
    }

    /// Gives a module the case's parameters and float buffers, under their published names, and
    /// records its gradients.
    ///
    /// # Errors
    ///
    /// A parameter that the case lacks or the module does not know, or one of another shape.
    pub fn load<M: Module + 'static>(&mut self, module: M) -> Result<M> {
        self.load_as(module, &TensorLayout::default())
    }

    /// As [`load`](Self::load), for a module whose tensors have other names or forms than the
    /// published ones.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_as<M: Module + 'static>(&mut self, module: M, layout: &TensorLayout) -> Result<M> {
        let refused = |error| Failure(format!("the library refused a parameter: {error}"));
        let buffers = self.case.buffers.iter().filter(|(_, array)| array.values.kind() == "F32");
        self.buffers_read.extend(buffers.clone().map(|(name, _)| name.clone()));
        let tensors = self
            .case
            .params
            .iter()
            .chain(buffers)
            .map(|(name, array)| (name.clone(), array.to_data(&array.shape)));
        let tensors = layout.to_module(&module, tensors.collect()).map_err(refused)?;
        let module = load_tensors(module, tensors).map_err(refused)?;
        self.parameters_read = true;
        if self.differentiates() {
            let (of_module, layout) = (module.clone(), layout.clone());
            self.leaves.push(Box::new(move |gradients| {
                layout
                    .to_published(named_gradients(&of_module, gradients))
                    .into_iter()
                    .map(|(name, gradient)| Ok((format!("param.{name}"), Array::from_data(gradient)?)))
                    .collect()
            }));
        }
        Ok(module)
    }

    /// Takes a float output.
    ///
    /// # Errors
    ///
    /// A cotangent of another number of elements.
    pub fn output<const D: usize>(&mut self, name: &str, tensor: Tensor<D>) -> Result<()> {
        if let Some(cotangent) = self.case.cotangents.get(name) {
            if cotangent.len() != tensor.shape().num_elements() {
                return Err(Failure(format!(
                    "output `{name}` has shape {:?}, the reference {:?}",
                    tensor.dims(),
                    cotangent.shape
                )));
            }
            let cotangent = Tensor::<D>::from_data(cotangent.to_data(&tensor.dims()), &self.device);
            let part = (tensor.clone() * cotangent).sum();
            self.loss = Some(match self.loss.take() {
                None => part,
                Some(loss) => loss + part,
            });
        }
        self.outputs.insert(name.to_owned(), Array::from_data(tensor.into_data())?);
        Ok(())
    }

    /// Takes an integer output.
    ///
    /// # Errors
    ///
    /// The tensor cannot be read.
    pub fn int_output<const D: usize>(&mut self, name: &str, tensor: Tensor<D, Int>) -> Result<()> {
        self.outputs.insert(name.to_owned(), Array::from_data(tensor.into_data())?);
        Ok(())
    }

    /// Takes a boolean output.
    ///
    /// # Errors
    ///
    /// The tensor cannot be read.
    pub fn bool_output<const D: usize>(&mut self, name: &str, tensor: Tensor<D, Bool>) -> Result<()> {
        self.outputs.insert(name.to_owned(), Array::from_data(tensor.into_data())?);
        Ok(())
    }

    /// Takes counts or positions as an integer output.
    pub fn count_output(&mut self, name: &str, counts: &[usize]) {
        let values = counts.iter().map(|count| *count as i64).collect();
        let array = Array { shape: vec![counts.len()], values: Values::Int(values) };
        self.outputs.insert(name.to_owned(), array);
    }

    /// Compares a result with the reference's output of that name at once: for a second way to compute
    /// it, besides the one that is differentiated.
    ///
    /// # Errors
    ///
    /// The case has no such output, or the result misses it.
    pub fn compare(&self, name: &str, got: &Array) -> Result<()> {
        let want = self.case.outputs.get(name);
        let want = want.ok_or_else(|| Failure(format!("the case lacks `output.{name}`")))?;
        judge(got, want, self.case.tolerance_output)
            .map(|_| ())
            .map_err(|failure| failure.within(format_args!("output.{name}, computed otherwise")))
    }

    /// Differentiates and hands the results over.
    ///
    /// # Errors
    ///
    /// Something of the case was not used.
    fn finish(self, form: &'static str) -> Result<Produced> {
        if let Some(name) = self.case.inputs.keys().find(|name| !self.inputs_read.contains(*name)) {
            return Err(Failure(format!("`input.{name}` is not known to this component")));
        }
        if let Some(name) = self.case.params.keys().next().filter(|_| !self.parameters_read) {
            return Err(Failure(format!("`param.{name}` is not known to this component")));
        }
        if let Some(name) = self.case.buffers.keys().find(|name| !self.buffers_read.contains(*name)) {
            return Err(Failure(format!("`buffer.{name}` is not known to this component")));
        }
        let grads = match self.loss {
            None => BTreeMap::new(),
            Some(loss) if !loss.is_tracked() => {
                return Err(Failure(
                    "the outputs depend on no input or parameter that is differentiated".into(),
                ));
            }
            Some(loss) => {
                let gradients = loss.backward();
                let read = self.leaves.iter().map(|read| read(&gradients)).collect::<Result<Vec<_>>>()?;
                read.into_iter().flatten().collect()
            }
        };
        Ok(Produced { form, outputs: self.outputs, grads })
    }
}

fn absent(name: &str) -> Failure {
    Failure(format!("the case lacks `input.{name}`"))
}

/// Runs a component that has one way of computing.
///
/// # Errors
///
/// What `body` returns, a panic, or anything of the case that was not used.
pub fn once(
    case: &Case,
    device: &Device,
    body: impl Fn(&mut Evaluation<'_>) -> Result<()>,
) -> Result<Vec<Produced>> {
    catch(|| {
        let mut evaluation = Evaluation::new(case, device);
        body(&mut evaluation)?;
        Ok(vec![evaluation.finish("only")?])
    })
}

/// Runs a component with its scan in every form.
///
/// # Errors
///
/// What `body` returns, a panic, or anything of the case that was not used; names the form.
pub fn every_form(
    case: &Case,
    device: &Device,
    body: impl Fn(&mut Evaluation<'_>, ScanForm) -> Result<()>,
) -> Result<Vec<Produced>> {
    [(ScanForm::Auto, "auto"), (ScanForm::Portable, "portable"), (ScanForm::Recurrent, "recurrent")]
        .into_iter()
        .map(|(form, name)| {
            catch(|| {
                let mut evaluation = Evaluation::new(case, device);
                body(&mut evaluation, form)?;
                evaluation.finish(name)
            })
            .map_err(|failure| failure.within(format_args!("form {name}")))
        })
        .collect()
}
