//! Fields that the API does not have. An API server drops or refuses them; here a mistyped field must not be passed over either.

use serde_json::Value;

/// A field that is not in the schema.
#[derive(Debug, PartialEq)]
pub(super) struct Unknown {
    pub field: String,
    /// What is there beside it, for people.
    pub known: String,
}

/// The first one in the document. Objects whose fields the schema leaves open are not looked into.
pub(super) fn find(value: &Value, schema: &Value) -> Option<Unknown> {
    look(value, schema, "")
}

fn look(value: &Value, schema: &Value, at: &str) -> Option<Unknown> {
    match (value, schema["properties"].as_object(), &schema["items"]) {
        (Value::Object(fields), Some(known), _) => fields.iter().find_map(|(name, value)| {
            let field = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
            match known.get(name) {
                Some(schema) => look(value, schema, &field),
                None => Some(Unknown { field, known: known.keys().map(String::as_str).collect::<Vec<_>>().join(", ") }),
            }
        }),
        (Value::Array(items), _, schema) if schema.is_object() => {
            items.iter().enumerate().find_map(|(i, item)| look(item, schema, &format!("{at}[{i}]")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_path_leads_through_objects_and_lists() {
        let schema = json!({ "properties": {
            "list": { "items": { "properties": { "a": {} } } },
            "open": { "additionalProperties": true },
        } });
        assert_eq!(find(&json!({ "list": [{ "a": { "x": 1 } }], "open": { "anything": 1 } }), &schema), None);
        let found = find(&json!({ "list": [{ "a": 1 }, { "b": 1 }] }), &schema).unwrap();
        assert_eq!((found.field.as_str(), found.known.as_str()), ("list[1].b", "a"));
        assert_eq!(find(&json!({ "lists": [] }), &schema).unwrap().field, "lists");
    }
}
