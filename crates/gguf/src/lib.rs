//! GGUF headers: read from files, split files and memory; written without data.
//!
//! [`Header`] is a validated view of a model's keys and tensors. It borrows what is large (a
//! vocabulary of 262,144 tokens is walked once and never copied) and refuses what llama.cpp v0.5.0
//! would refuse, with the byte at which the file goes wrong.
//!
//! ```no_run
//! let header = vramfit_gguf::Header::open("model.gguf")?;
//! let weight_bytes: u64 = header.tensors().iter().map(|t| t.n_bytes).sum();
//! println!("{:?}: {weight_bytes} bytes in {} tensors", header.architecture(), header.tensors().len());
//! # Ok::<(), vramfit_gguf::OpenError>(())
//! ```

mod cursor;
mod error;
mod header;
mod limits;
mod part;
mod source;
mod split;
mod strip;
mod tensor;
mod value;
mod write;

pub use cursor::ByteOrder;
pub use error::{Error, ErrorKind, OpenError, Place};
pub use header::Header;
pub use limits::Limits;
pub use part::DataState;
pub use strip::{Length, StripError, StripOptions, sparse, strip, strip_file};
pub use tensor::TensorInfo;
pub use value::{Array, Elements, Str, Value, ValueType};
pub use write::{ArrayBuf, ValueBuf, WriteError, Writer};
