//! What a program notes with a save: its step, metrics, whatever it wants to find again. It stands in the index as the text
//! of a JSON object, so that it is read without unpickling anything.

use s3dcp_s3::Error;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::config;

/// The longest notes, in bytes of JSON: every rank reads the index.
pub const MAX_NOTES_BYTES: usize = 64 << 10;

/// What a program noted with a save.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Notes(Map<String, Value>);

impl Notes {
    /// Reads the text of a JSON object.
    ///
    /// # Errors
    /// `Config` for what is none, or is longer than [`MAX_NOTES_BYTES`].
    pub fn parse(json: &str) -> Result<Notes, Error> {
        if json.len() > MAX_NOTES_BYTES {
            let length = json.len();
            return Err(config(format!(
                "notes: {length} bytes of JSON; at most {MAX_NOTES_BYTES} are taken"
            )));
        }
        match serde_json::from_str(json) {
            Ok(Value::Object(notes)) => Ok(Notes(notes)),
            Ok(_) => Err(config("notes: must be a JSON object")),
            Err(error) => Err(config(format!("notes: must be JSON: {error}"))),
        }
    }

    /// All of them.
    #[must_use]
    pub fn values(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The step.
    #[must_use]
    pub fn step(&self) -> Option<i64> {
        self.0.get("step")?.as_i64()
    }

    /// A metric: a finite number of this name in `metrics`, else beside it.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let in_metrics = self.0.get("metrics").and_then(|metrics| metrics.get(name));
        in_metrics.or_else(|| self.0.get(name))?.as_f64().filter(|value| value.is_finite())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_an_object_of_json_and_tell_step_and_metrics() {
        let notes = Notes::parse(r#"{"step": 7, "metrics": {"loss": 0.5, "name": "x"}, "acc": 1}"#).unwrap();
        assert_eq!(notes.step(), Some(7));
        assert_eq!(notes.metric("loss"), Some(0.5));
        assert_eq!(notes.metric("acc"), Some(1.0));
        assert_eq!((notes.metric("name"), notes.metric("none")), (None, None));
        for bad in
            ["", "[1]", "nan", "{\"a\": NaN}", &format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_NOTES_BYTES))]
        {
            assert!(Notes::parse(bad).unwrap_err().message().starts_with("notes: "), "{bad:.20}");
        }
    }
}
