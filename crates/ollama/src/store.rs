//! The store: `manifests/HOST/NAMESPACE/MODEL/TAG` and `blobs/sha256-..`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{Name, Parameters};

/// A manifest is a page of text; nothing much larger is read.
const MAX_TEXT_BYTES: u64 = 4 << 20;

/// Where the service keeps its models on Linux.
const SERVICE: &str = "/usr/share/ollama/.ollama/models";

/// Why a model cannot be read from a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not a name.
    #[error("ollama:{name}: not a model's name; it is MODEL, MODEL:TAG or NAMESPACE/MODEL:TAG")]
    Name {
        /// As written.
        name: String,
    },
    /// A variable that cannot be read.
    #[error("{name}: '{text}' is not {what}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        text: String,
        /// What it should be.
        what: &'static str,
    },
    /// Neither `OLLAMA_MODELS` nor a home folder is known.
    #[error("ollama: no store; OLLAMA_MODELS names its folder")]
    NoStore,
    /// The model is not there.
    #[error(
        "ollama:{name}: not in the store {} ({} is missing); `ollama pull {name}` fetches it, OLLAMA_MODELS \
         names another store, as {SERVICE} for that of Linux's service", store.display(), manifest.display()
    )]
    NoManifest {
        /// The model.
        name: String,
        /// The store.
        store: PathBuf,
        /// Where the manifest would be.
        manifest: PathBuf,
    },
    /// The manifest is damaged.
    #[error("{}: a broken manifest: {why}; `ollama pull {name}` writes it anew", manifest.display())]
    BrokenManifest {
        /// The model.
        name: String,
        /// The manifest.
        manifest: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The model is in a form that is not read.
    #[error("ollama:{name}: {why}; only models in one GGUF file are read")]
    Unsupported {
        /// The model.
        name: String,
        /// What it is.
        why: String,
    },
    /// A file that the manifest names is not there.
    #[error("ollama:{name}: its {what} is missing from the store: {}; `ollama pull {name}` fetches it", blob.display())]
    MissingBlob {
        /// The model.
        name: String,
        /// What the file would be.
        what: &'static str,
        /// Where it would be.
        blob: PathBuf,
    },
    /// The parameters are damaged.
    #[error("{}: broken parameters of {name}: {why}", blob.display())]
    Parameters {
        /// The model.
        name: String,
        /// The file.
        blob: PathBuf,
        /// What is wrong with them.
        why: String,
    },
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// A folder of models.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Store {
    root: PathBuf,
}

/// The files of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredModel {
    /// Its full name.
    pub name: Name,
    /// The model.
    pub model: PathBuf,
    /// Projectors in files of their own.
    pub projectors: Vec<PathBuf>,
    /// LoRA adapters.
    pub adapters: Vec<PathBuf>,
    /// Of the Modelfile.
    pub parameters: Parameters,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with layers")]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(
    rename_all = "camelCase",
    expecting = "a layer with mediaType and digest"
)]
struct Layer {
    media_type: String,
    digest: String,
}

impl Store {
    /// The store that `OLLAMA_MODELS` names, else that of the user: `.ollama/models` at home.
    pub fn new(env: impl Fn(&str) -> Option<OsString>) -> Result<Store, Error> {
        let folder = |name: &str| {
            let text = env(name)?;
            // As Ollama reads its variables.
            let text = match text.to_str() {
                Some(text) => OsString::from(text.trim().trim_matches(['"', '\''])),
                None => text,
            };
            (!text.is_empty()).then(|| PathBuf::from(text))
        };
        let home = || folder("HOME").or_else(|| folder("USERPROFILE"));
        let root = folder("OLLAMA_MODELS").or_else(|| Some(home()?.join(".ollama").join("models")));
        Ok(Store {
            root: root.ok_or(Error::NoStore)?,
        })
    }

    /// The store in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Store {
        Store { root: root.into() }
    }

    /// The files of the model `name`, which all exist.
    pub fn find(&self, name: &Name) -> Result<StoredModel, Error> {
        let path = self.root.join("manifests").join(name.manifest());
        let broken = |why: String| Error::BrokenManifest {
            name: name.to_string(),
            manifest: path.clone(),
            why,
        };
        let text = read(&path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::NoManifest {
                name: name.to_string(),
                store: self.root.clone(),
                manifest: path.clone(),
            },
            _ => Error::Io {
                path: path.clone(),
                source,
            },
        })?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        let mut models = Vec::new();
        let (mut projectors, mut adapters) = (Vec::new(), Vec::new());
        let mut parameters = Parameters::default();
        let mut has_tensors = false;
        for layer in &manifest.layers {
            let kind = layer
                .media_type
                .strip_prefix("application/vnd.ollama.image.");
            let what = match kind {
                Some("model") => "model",
                Some("projector") => "projector",
                Some("adapter") => "adapter",
                Some("params") => "parameter file",
                Some("tensor") => {
                    has_tensors = true;
                    continue;
                }
                _ => continue,
            };
            let file = blob_name(&layer.digest);
            let file = file.ok_or_else(|| broken(format!("'{}' is no digest", layer.digest)))?;
            let blob = self.root.join("blobs").join(file);
            if !blob.is_file() {
                let name = name.to_string();
                return Err(Error::MissingBlob { name, what, blob });
            }
            match what {
                "model" => models.push(blob),
                "projector" => projectors.push(blob),
                "adapter" => adapters.push(blob),
                _ => parameters = self.parameters(name, blob)?,
            }
        }
        let unsupported = |why: String| {
            let name = name.to_string();
            Err(Error::Unsupported { name, why })
        };
        let n_models = models.len();
        let mut models = models.into_iter();
        match (models.next(), models.next()) {
            (Some(model), None) => Ok(StoredModel {
                name: name.clone(),
                model,
                projectors,
                adapters,
                parameters,
            }),
            (None, _) if has_tensors => unsupported("its tensors are files of their own".into()),
            (None, _) => Err(broken("it names no model".to_string())),
            (Some(_), Some(_)) => unsupported(format!("its weights are in {n_models} files")),
        }
    }

    fn parameters(&self, name: &Name, blob: PathBuf) -> Result<Parameters, Error> {
        let text = read(&blob).map_err(|source| Error::Io {
            path: blob.clone(),
            source,
        })?;
        Parameters::parse(&text).map_err(|why| Error::Parameters {
            name: name.to_string(),
            blob,
            why,
        })
    }
}

/// `sha256-12ab..` for `sha256:12ab..`.
fn blob_name(digest: &str) -> Option<String> {
    let hex = digest
        .strip_prefix("sha256:")
        .or(digest.strip_prefix("sha256-"))?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then(|| format!("sha256-{hex}"))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_TEXT_BYTES {
        return Err(io::Error::other("too large for what it should be"));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const MANIFEST: &str = "manifests/registry.ollama.ai/library/m/1b";

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn layer(kind: &str, letter: char) -> String {
        let digest = digest(letter);
        format!(
            r#"{{"mediaType":"application/vnd.ollama.image.{kind}","digest":"{digest}","size":1}}"#
        )
    }

    /// A store with `layers` in the manifest of `m:1b`, and blobs by letter.
    fn store(layers: &[String], blobs: &[(char, &str)]) -> (TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let layers = layers.join(",");
        write(
            MANIFEST,
            &format!(r#"{{"schemaVersion":2,"layers":[{layers}]}}"#),
        );
        for (letter, text) in blobs {
            write(
                &format!("blobs/{}", digest(*letter).replace(':', "-")),
                text,
            );
        }
        let store = Store::at(folder.path());
        (folder, store)
    }

    fn name() -> Name {
        "m:1b".parse().unwrap()
    }

    #[test]
    fn a_manifest_is_its_files() {
        let layers = [
            layer("license", 'f'),
            layer("model", 'a'),
            layer("projector", 'b'),
            layer("adapter", 'c'),
            layer("params", 'd'),
        ];
        let blobs = [
            ('a', ""),
            ('b', ""),
            ('c', ""),
            ('d', r#"{"num_ctx": 8192}"#),
        ];
        let (folder, store) = store(&layers, &blobs);
        let found = store.find(&name()).unwrap();
        let blob = |letter| {
            let name = digest(letter).replace(':', "-");
            folder.path().join("blobs").join(name)
        };
        assert_eq!(found.model, blob('a'));
        assert_eq!(found.projectors, [blob('b')]);
        assert_eq!(found.adapters, [blob('c')]);
        assert_eq!(found.parameters.num_ctx, Some(8192));
    }

    #[test]
    fn errors_say_what_is_missing_and_what_helps() {
        let check = |layers: &[String], blobs: &[(char, &str)], expected: &[&str]| {
            let (_folder, store) = store(layers, blobs);
            let error = store.find(&name()).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{error}");
            }
            assert_eq!(error.lines().count(), 1, "{error}");
        };
        let model = || layer("model", 'a');
        check(
            &[model()],
            &[],
            &["its model is missing", "sha256-aaa", "ollama pull m:1b"],
        );
        let both = [model(), layer("projector", 'b')];
        check(
            &both,
            &[('a', "")],
            &["its projector is missing", "sha256-bbb"],
        );
        check(&[], &[], &["broken manifest", "names no model"]);
        check(
            &[model(), layer("model", 'b')],
            &[('a', ""), ('b', "")],
            &["ollama:m:1b: its weights are in 2 files", "one GGUF file"],
        );
        let tensors = [layer("tensor", 'a')];
        check(&tensors, &[], &["its tensors are files of their own"]);
        check(&["7".into()], &[], &["expected a layer with mediaType"]);
        check(&["{".into()], &[], &["broken manifest", MANIFEST]);
        let digest = model().replace(&"a".repeat(64), "../../x");
        check(&[digest], &[], &["broken manifest", "is no digest"]);
        let params = [model(), layer("params", 'd')];
        check(
            &params,
            &[('a', ""), ('d', "num_ctx 5")],
            &["broken parameters of m:1b"],
        );

        let (_folder, store) = store(&[], &[]);
        let error = store.find(&"other".parse().unwrap()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("other:latest: not in the store"), "{error}");
    }

    #[test]
    fn the_store_is_where_the_variable_says() {
        let check = |line: &str, expected: Option<&str>| {
            let (name, value) = line.split_once('=').unwrap_or_default();
            let store = Store::new(|asked| (asked == name).then(|| OsString::from(value)));
            assert_eq!(store.ok(), expected.map(Store::at), "{line}");
        };
        check("OLLAMA_MODELS=/m", Some("/m"));
        check("OLLAMA_MODELS= '/m' ", Some("/m"));
        check("HOME=/h", Some("/h/.ollama/models"));
        check("", None);
    }
}
