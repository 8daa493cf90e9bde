//! Names of models: `gemma3`, `gemma3:12b`, `someone/model:tag`, `host/someone/model:tag`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::Error;

/// A model's name with everything that was left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// Where it came from, `registry.ollama.ai`.
    pub host: String,
    /// Whose, `library`.
    pub namespace: String,
    /// What, `gemma3`.
    pub model: String,
    /// Which, `latest`.
    pub tag: String,
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name, Error> {
        let wrong = || Error::Name {
            name: text.to_string(),
        };
        // A port has a colon, too, and stands before the last slash.
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, "latest"),
        };
        let mut parts = path.rsplit('/');
        let model = parts.next().ok_or_else(wrong)?;
        let namespace = parts.next().unwrap_or("library");
        let host = parts.next().unwrap_or("registry.ollama.ai");
        let is_sound = [host, namespace, model, tag].into_iter().all(is_part);
        if parts.next().is_some() || !is_sound {
            return Err(wrong());
        }
        Ok(Name {
            host: host.to_string(),
            namespace: namespace.to_string(),
            model: model.to_string(),
            tag: tag.to_string(),
        })
    }
}

/// Letters, digits and a few signs, so that no name leads out of the store.
fn is_part(part: &str) -> bool {
    let sign = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    !part.is_empty() && !part.starts_with('.') && part.chars().all(sign)
}

impl Name {
    /// Its manifest, from the folder of manifests.
    pub(crate) fn manifest(&self) -> PathBuf {
        [&self.host, &self.namespace, &self.model, &self.tag]
            .into_iter()
            .collect()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != "registry.ollama.ai" {
            write!(f, "{}/", self.host)?;
        }
        if self.host != "registry.ollama.ai" || self.namespace != "library" {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let check = |text: &str, manifest: &str, shown: &str| {
            let name: Name = text.parse().unwrap();
            assert_eq!(name.manifest(), PathBuf::from(manifest), "{text}");
            assert_eq!(name.to_string(), shown);
        };
        let library = "registry.ollama.ai/library";
        check(
            "gemma3",
            &format!("{library}/gemma3/latest"),
            "gemma3:latest",
        );
        check("gemma3:12b", &format!("{library}/gemma3/12b"), "gemma3:12b");
        check("me/m:q4", "registry.ollama.ai/me/m/q4", "me/m:q4");
        check("hf.co/a/b", "hf.co/a/b/latest", "hf.co/a/b:latest");
        check("host:80/a/b", "host:80/a/b/latest", "host:80/a/b:latest");
    }

    #[test]
    fn names_stay_in_the_store() {
        for text in [
            "", ":", "a:", "../x", "a/../b", "a/b/c/d", "a b", "/etc/x", "x:..", "a\\b",
        ] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
