//! Text to tokens and back, through a folder's `tokenizer.json`.

use std::path::Path;

use gatekit_examples::ExampleError;

/// A tokenizer.
#[cfg(feature = "tokenizers")]
pub struct Text(tokenizers::Tokenizer);

#[cfg(feature = "tokenizers")]
impl Text {
    /// Reads a `tokenizer.json`.
    pub fn read(path: &Path) -> Result<Self, ExampleError> {
        let unusable = |error: tokenizers::Error| ExampleError::unusable(path, error.to_string());
        tokenizers::Tokenizer::from_file(path).map(Self).map_err(unusable)
    }

    /// The tokens of a text, with those that the tokenizer puts around it.
    pub fn ids(&self, text: &str) -> Result<Vec<usize>, ExampleError> {
        let encoding = self
            .0
            .encode(text, true)
            .map_err(|error| ExampleError::unusable("the prompt", error.to_string()))?;
        Ok(encoding.get_ids().iter().map(|&id| id as usize).collect())
    }

    /// Turns one token after the other into text: what each adds, which is nothing while a letter of several tokens is
    /// incomplete.
    pub fn stream(&self) -> impl FnMut(usize) -> Result<String, ExampleError> + '_ {
        let mut stream = self.0.decode_stream(true);
        move |token| {
            let unusable =
                |error: String| ExampleError::unusable("tokenizer.json", format!("token {token}: {error}"));
            let token = u32::try_from(token).map_err(|error| unusable(error.to_string()))?;
            let text = stream.step(token).map_err(|error| unusable(error.to_string()))?;
            Ok(text.unwrap_or_default())
        }
    }
}

/// Text, in a program without a tokenizer.
#[cfg(not(feature = "tokenizers"))]
pub enum Text {}

#[cfg(not(feature = "tokenizers"))]
impl Text {
    /// Says which feature is missing.
    pub fn read(path: &Path) -> Result<Self, ExampleError> {
        let reason = "text needs the feature `tokenizers`: add `--features tokenizers`, or give --ids";
        Err(ExampleError::unusable(path, reason))
    }

    /// There is none.
    pub fn ids(&self, _text: &str) -> Result<Vec<usize>, ExampleError> {
        match *self {}
    }

    /// There is none.
    pub fn stream(&self) -> impl FnMut(usize) -> Result<String, ExampleError> + '_ {
        |_| match *self {}
    }
}

/// A tokenizer of 96 tokens for the tests.
#[cfg(all(test, feature = "tokenizers"))]
pub const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/generate/tokenizer.json");

#[cfg(all(test, feature = "tokenizers"))]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_into_tokens_and_put_together_again() {
        let text = Text::read(Path::new(FIXTURE)).expect("read");
        for (given, count) in [("the other", 4), ("whether", 3), ("In the end, yes: \"the\"", 15)] {
            let ids = text.ids(given).expect("encoded");
            assert_eq!(ids.len(), count, "{given}: {ids:?}");
            assert!(ids.iter().all(|id| *id < 96));
            let mut show = text.stream();
            let back: String = ids.iter().map(|id| show(*id).expect("decoded")).collect();
            assert_eq!(back, given);
        }
    }

    #[test]
    fn files_that_are_no_tokenizer_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("tokenizer.json");
        for content in ["", "{}", "{\"model\": {\"type\": \"BPE\"}}"] {
            std::fs::write(&path, content).expect("written");
            let error = Text::read(&path).err().expect("refused").to_string();
            assert!(error.contains("tokenizer.json"), "{error}");
        }
        assert!(Text::read(&folder.path().join("none.json")).is_err());
    }
}
