//! Models in Ollama's store: a name becomes a manifest, a manifest the files of model, projectors and
//! adapters, and the parameters of its Modelfile. Nothing is fetched or changed.
//!
//! ```no_run
//! use vramfit_ollama::{Name, Store};
//!
//! let store = Store::new(|name| std::env::var_os(name));
//! let name: Name = "gemma3:12b".parse()?;
//! let model = store?.find(&name)?;
//! println!("{}: num_ctx {:?}", model.model.display(), model.parameters.num_ctx);
//! # Ok::<(), vramfit_ollama::Error>(())
//! ```

mod name;
mod parameters;
mod store;

pub use name::Name;
pub use parameters::{Parameters, Variables};
pub use store::{Error, Store, StoredModel};
