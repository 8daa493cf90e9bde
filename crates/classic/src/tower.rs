//! Models of Ollama's library without what only its own engine reads.

use vramfit_gguf::{Error, Header, Value, WriteError, Writer};

/// Whether a tensor belongs to a vision tower or to the projection behind it.
fn is_of_tower(name: &str) -> bool {
    name.starts_with("v.") || name.starts_with("mm.")
}

/// Bytes of the vision tower in the file, and of the projection behind it; 0 without one.
pub fn tower_bytes(header: &Header) -> u64 {
    let tower = header.tensors().iter().filter(|t| is_of_tower(&t.name));
    tower.fold(0, |sum, t| sum.saturating_add(t.n_bytes))
}

/// The language model alone, as llama.cpp would load it: without the tower, and with the key that
/// llama.cpp asks for and Ollama leaves to its default.
pub fn without_tower(header: &Header) -> Result<Header, Error> {
    let mut writer = Writer::with_format(header.version(), header.byte_order());
    for (name, value) in header.keys() {
        writer.copy_key(name, value);
    }
    let epsilon = "gemma3.attention.layer_norm_rms_epsilon";
    if header.architecture() == Some("gemma3") && header.get(epsilon).is_none() {
        writer.copy_key(epsilon, Value::F32(1e-6));
    }
    for tensor in header.tensors().iter().filter(|t| !is_of_tower(&t.name)) {
        let n_dims = (tensor.n_dims as usize).min(tensor.ne.len());
        let ne = tensor.ne.get(..n_dims).unwrap_or_default();
        writer.tensor(&tensor.name, tensor.ty, ne);
    }
    match writer.finish() {
        Ok(bytes) => Header::parse(bytes),
        Err(WriteError::Malformed(error)) => Err(error),
        // Values that were read are not mixed: the header stays as it was.
        Err(_) => Ok(header.clone()),
    }
}
