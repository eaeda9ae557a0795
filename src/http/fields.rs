//! Reading the fields of a JSON object one by one, with errors that name the field, its value and what is allowed.
//!
//! `null` counts as not given. [`Fields::finish`] refuses what nobody asked for.

use serde_json::{Map, Value};

use super::error::ApiError;
use crate::domain::draft::{FieldError, shortened};

/// The fields that have not been read yet, and the names that were asked for.
#[derive(Debug)]
pub struct Fields {
    rest: Map<String, Value>,
    known: Vec<&'static str>,
    /// Put before names in errors, such as `loras[0].`.
    prefix: String,
}

impl Fields {
    /// The fields of a whole body.
    ///
    /// # Errors
    /// The bytes are no JSON object.
    pub fn of_body(bytes: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(rest)) => Ok(Self::new(rest, "")),
            Ok(other) => Err(ApiError::NotJson(format!("it is {}", kind(&other)))),
            Err(error) => Err(ApiError::NotJson(error.to_string())),
        }
    }

    /// The fields of an object inside the body.
    pub fn new(rest: Map<String, Value>, prefix: &str) -> Self {
        Self {
            rest,
            known: Vec::new(),
            prefix: prefix.to_owned(),
        }
    }

    /// The value of a field under any of its names; two names at once are refused.
    pub fn any(&mut self, names: &[&'static str]) -> Result<Option<Value>, FieldError> {
        self.known.extend(names);
        let mut found: Option<(&str, Value)> = None;
        for name in names {
            let value = self.rest.remove(*name).filter(|value| !value.is_null());
            if let Some(value) = value {
                if let Some((first, _)) = &found {
                    let message = format!("means the same as `{first}`, which is there too; give one of them");
                    return Err(self.wrong(name, message));
                }
                found = Some((name, value));
            }
        }
        Ok(found.map(|(_, value)| value))
    }

    /// A string.
    pub fn string(&mut self, names: &[&'static str]) -> Result<Option<String>, FieldError> {
        match self.any(names)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(names, &other, "a string")),
        }
    }

    /// A whole number that fits 64 bits with a sign.
    pub fn integer(&mut self, names: &[&'static str]) -> Result<Option<i64>, FieldError> {
        match self.any(names)? {
            None => Ok(None),
            Some(value) => match whole(&value) {
                Some(number) => Ok(Some(number)),
                None => Err(self.mistyped(names, &value, "a whole number")),
            },
        }
    }

    /// A whole number, whatever its size: the largest of 64 bits without a sign is not too large for a seed.
    pub fn seed(&mut self, names: &[&'static str]) -> Result<Option<i128>, FieldError> {
        match self.any(names)? {
            None => Ok(None),
            Some(value) => {
                let exact = value.as_i64().map(i128::from).or(value.as_u64().map(i128::from));
                let float = || value.as_f64().filter(|number| number.fract() == 0.0);
                match exact.or_else(|| float().map(|number| number as i128)) {
                    Some(number) => Ok(Some(number)),
                    None => Err(self.mistyped(names, &value, "a whole number from -1 to 18446744073709551615")),
                }
            }
        }
    }

    /// A number.
    pub fn number(&mut self, names: &[&'static str]) -> Result<Option<f64>, FieldError> {
        match self.any(names)? {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| self.mistyped(names, &value, "a number")),
        }
    }

    /// Yes or no.
    pub fn boolean(&mut self, names: &[&'static str]) -> Result<Option<bool>, FieldError> {
        match self.any(names)? {
            None => Ok(None),
            Some(value) => value
                .as_bool()
                .map(Some)
                .ok_or_else(|| self.mistyped(names, &value, "true or false")),
        }
    }

    /// A field that exists elsewhere and has no effect here: only the values that ask for none are accepted.
    pub fn neutral(&mut self, name: &'static str, allowed: &[Value]) -> Result<(), FieldError> {
        match self.any(&[name])? {
            Some(value) if !allowed.contains(&value) => {
                let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
                let message = format!(
                    "{} is not supported; leave it out or send {}",
                    shortened(&value.to_string()),
                    allowed.join(" or ")
                );
                Err(self.wrong(name, message))
            }
            _ => Ok(()),
        }
    }

    /// Two whole numbers in a list.
    pub fn pair(&mut self, names: &[&'static str]) -> Result<Option<(i64, i64)>, FieldError> {
        let Some(value) = self.any(names)? else { return Ok(None) };
        let numbers: Option<Vec<i64>> = value.as_array().and_then(|items| items.iter().map(whole).collect());
        match numbers.as_deref() {
            Some(&[first, second]) => Ok(Some((first, second))),
            _ => Err(self.mistyped(names, &value, "a list of two whole numbers")),
        }
    }

    /// A list of objects.
    pub fn objects(&mut self, names: &[&'static str]) -> Result<Vec<Map<String, Value>>, FieldError> {
        let items = match self.any(names)? {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.mistyped(names, &other, "a list of objects")),
        };
        let object = |item| match item {
            Value::Object(fields) => Ok(fields),
            other => Err(self.mistyped(names, &other, "an object")),
        };
        items.into_iter().map(object).collect()
    }

    /// The whole object as it was sent, without some of its fields.
    pub fn echo(&self, without: &[&str]) -> Value {
        let kept = self.rest.iter().filter(|(name, _)| !without.contains(&name.as_str()));
        Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    /// Asks for fields that are allowed and mean nothing here.
    pub fn ignore(&mut self, names: &[&'static str]) {
        self.known.extend(names);
        for name in names {
            self.rest.remove(*name);
        }
    }

    /// Refuses every field that was not asked for.
    pub fn finish(self) -> Result<(), FieldError> {
        match self.rest.keys().next() {
            None => Ok(()),
            Some(unknown) => {
                let field = shortened(&format!("{}{unknown}", self.prefix));
                Err(FieldError::new(
                    field,
                    format!("unknown field; allowed: {}", self.known.join(", ")),
                ))
            }
        }
    }

    fn mistyped(&self, names: &[&'static str], value: &Value, expected: &str) -> FieldError {
        let text = shortened(&value.to_string());
        self.wrong(
            names.first().copied().unwrap_or_default(),
            format!("{text} is {}; it must be {expected}", kind(value)),
        )
    }

    fn wrong(&self, name: &str, message: String) -> FieldError {
        FieldError::new(format!("{}{name}", self.prefix), message)
    }
}

/// A whole number, also one written as `512.0`. One that is too large for the type is too large for any field: the
/// field's own range is named when it is checked.
fn whole(value: &Value) -> Option<i64> {
    let float = || value.as_f64().filter(|number| number.fract() == 0.0);
    value.as_i64().or_else(|| float().map(|number| number as i64))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::of_body(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_wrong_type_names_field_value_and_what_is_allowed() {
        let error = fields(r#"{"steps":"ten"}"#).integer(&["steps"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "steps: \"ten\" is a string; it must be a whole number"
        );
        let error = fields(r#"{"steps":2.5}"#).integer(&["steps"]).unwrap_err();
        assert!(error.to_string().contains("2.5 is a number with a fraction"), "{error}");
        let error = fields(r#"{"p":["a",2]}"#).pair(&["p"]).unwrap_err();
        assert!(error.to_string().contains("two whole numbers"), "{error}");
    }

    #[test]
    fn two_names_of_one_field_are_refused() {
        let error = fields(r#"{"image":"a","init_image":"b"}"#)
            .string(&["image", "init_image"])
            .unwrap_err();
        assert_eq!(error.field, "init_image");
    }

    #[test]
    fn null_is_not_given_and_the_rest_is_unknown() {
        let mut body = fields(r#"{"n":null,"stepz":3}"#);
        assert_eq!(body.integer(&["n"]), Ok(None));
        let error = body.finish().unwrap_err();
        assert_eq!(error.to_string(), "stepz: unknown field; allowed: n");
    }

    #[test]
    fn seeds_have_64_bits() {
        assert_eq!(
            fields(r#"{"seed":18446744073709551615}"#).seed(&["seed"]),
            Ok(Some(u64::MAX.into()))
        );
        assert_eq!(fields(r#"{"seed":-1}"#).seed(&["seed"]), Ok(Some(-1)));
        assert_eq!(fields(r#"{"seed":7.0}"#).seed(&["seed"]), Ok(Some(7)));
        // Too large ones arrive as they are: the draft names the range.
        let too_large = fields(r#"{"seed":18446744073709551616}"#).seed(&["seed"]);
        assert_eq!(too_large, Ok(Some(i128::from(u64::MAX) + 1)));
        assert!(fields(r#"{"seed":1.5}"#).seed(&["seed"]).is_err());
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for text in ["", "[1]", "{", "\"a\"", "{\"a\":1,}"] {
            assert!(Fields::of_body(text.as_bytes()).is_err(), "{text}");
        }
    }
}
