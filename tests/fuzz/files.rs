//! The files of a checkpoint folder in memory, and safetensors files taken apart.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

/// Contents by file name.
#[derive(Clone, Debug)]
pub struct Files(pub BTreeMap<String, Vec<u8>>);

impl Files {
    /// What a loader would read of a folder.
    pub fn read(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(folder).expect("listed") {
            let path = entry.expect("listed").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if name != "expected.safetensors" {
                files.insert(name, fs::read(&path).expect("read"));
            }
        }
        Self(files)
    }

    /// Writes them to a folder.
    pub fn write(&self, folder: &Path) {
        for (name, bytes) in &self.0 {
            fs::write(folder.join(name), bytes).expect("written");
        }
    }

    /// The name of the `pick`th file, counted round and round.
    pub fn name(&self, pick: usize) -> Option<String> {
        choose(&self.0.keys().cloned().collect::<Vec<_>>(), pick).cloned()
    }

    /// The same among the files whose name ends so.
    pub fn name_ending(&self, end: &str, pick: usize) -> Option<String> {
        let names: Vec<String> = self.0.keys().filter(|name| name.ends_with(end)).cloned().collect();
        choose(&names, pick).cloned()
    }
}

/// The `pick`th of some things, counted round and round; `None` of none.
pub fn choose<T>(things: &[T], pick: usize) -> Option<&T> {
    (!things.is_empty()).then(|| &things[pick % things.len()])
}

/// A safetensors file: its header and every tensor's bytes, in the order of the header's names.
pub struct Parts {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl Parts {
    /// Takes a file apart; `None` if other damage has left nothing to take apart.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_at_checked(8)?;
        let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (header, data) = rest.split_at_checked(length)?;
        let Value::Object(header) = serde_json::from_slice(header).ok()? else { return None };
        Some(Self { header, data: data.to_vec() })
    }

    /// Puts it together again, with the header's own length in front.
    pub fn bytes(&self) -> Vec<u8> {
        let header = Value::Object(self.header.clone()).to_string();
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &self.data].concat()
    }

    /// Names of the tensors.
    pub fn names(&self) -> Vec<String> {
        self.header.keys().filter(|name| *name != "__metadata__").cloned().collect()
    }

    /// Where a tensor's bytes are.
    pub fn range(&self, name: &str) -> Option<std::ops::Range<usize>> {
        let offsets = &self.header[name]["data_offsets"];
        let end = |index: usize| usize::try_from(offsets[index].as_u64()?).ok();
        let (start, end) = (end(0)?, end(1)?);
        (start <= end && end <= self.data.len()).then_some(start..end)
    }

    /// Replaces a tensor's bytes by others, whose number may differ, and moves what follows.
    pub fn splice(&mut self, name: &str, bytes: Vec<u8>) -> Option<()> {
        let range = self.range(name)?;
        let moved = |offset: u64| match offset as usize >= range.end {
            // Another damage may have left any number there.
            true => offset.wrapping_sub(range.len() as u64).wrapping_add(bytes.len() as u64),
            false => offset,
        };
        for other in self.names() {
            if other != name {
                for index in 0..2 {
                    let offset = self.header[&other]["data_offsets"][index].as_u64()?;
                    self.header[&other]["data_offsets"][index] = moved(offset).into();
                }
            }
        }
        self.header[name]["data_offsets"][1] = (range.start + bytes.len()).into();
        self.data.splice(range, bytes);
        Some(())
    }
}
