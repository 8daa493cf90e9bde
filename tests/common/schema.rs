//! As much of JSON Schema (draft 2020-12) as vramfit's own schemas use. A keyword that is not known
//! here fails, so that none passes unchecked.

use serde_json::Value;

/// Where `value` does not conform to `schema`; empty if it does.
pub fn violations(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, schema, value, "$", &mut found);
    found
}

fn check(root: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let Some(keywords) = schema.as_object() else {
        if schema != &Value::Bool(true) {
            found.push(format!("{at}: no schema"));
        }
        return;
    };
    for (keyword, rule) in keywords {
        let holds = match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "format" | "default" => true,
            "$ref" => {
                let path = rule.as_str().and_then(|path| path.strip_prefix('#'));
                match path.and_then(|path| root.pointer(path)) {
                    Some(target) => check(root, target, value, at, found),
                    None => found.push(format!("{at}: {rule} leads nowhere")),
                }
                true
            }
            "type" => match rule {
                Value::Array(types) => types.iter().any(|ty| is_of_type(value, ty)),
                ty => is_of_type(value, ty),
            },
            "const" => value == rule,
            "enum" => rule.as_array().is_some_and(|all| all.contains(value)),
            "minimum" => number(value) >= number(rule),
            "maximum" => number(value) <= number(rule),
            "minItems" => length(value) >= number(rule),
            "maxItems" => length(value) <= number(rule),
            "oneOf" | "anyOf" => {
                let fits = |s: &&Value| {
                    let mut violations = Vec::new();
                    check(root, s, value, at, &mut violations);
                    violations.is_empty()
                };
                let n = rule
                    .as_array()
                    .map_or(0, |all| all.iter().filter(fits).count());
                if keyword == "oneOf" { n == 1 } else { n > 0 }
            }
            "required" => rule.as_array().is_some_and(|names| {
                names
                    .iter()
                    .all(|name| value.get(name.as_str().unwrap_or_default()).is_some())
            }),
            "properties" => {
                for (name, schema) in rule.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value, &format!("{at}.{name}"), found);
                    }
                }
                // Keys that the schema does not describe are ours to describe.
                let known = |name: &String| rule.get(name).is_some();
                value
                    .as_object()
                    .is_none_or(|object| object.keys().all(known))
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{at}[{i}]"), found);
                }
                true
            }
            _ => false,
        };
        if !holds {
            found.push(format!("{at}: {keyword} {rule} does not hold for {value}"));
        }
    }
}

fn is_of_type(value: &Value, ty: &Value) -> bool {
    match ty.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => false,
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn length(value: &Value) -> f64 {
    value.as_array().map_or(0.0, |items| items.len() as f64)
}
