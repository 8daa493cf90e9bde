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
    finish(&writer, header)
}

/// Names of a tower's tensors by Ollama, and by llama.cpp.
const NAMES: [(&str, &str); 9] = [
    ("v.patch_embedding.", "v.patch_embd."),
    ("v.position_embedding.", "v.position_embd."),
    ("v.post_layernorm.", "v.post_ln."),
    (".layer_norm1.", ".ln1."),
    (".layer_norm2.", ".ln2."),
    (".attn_output.", ".attn_out."),
    (".mlp.fc1.", ".ffn_up."),
    (".mlp.fc2.", ".ffn_down."),
    ("mm.mm_", "mm."),
];

/// The tower of a Gemma 3 alone, as llama.cpp has it in a projector of its own (`--mmproj`). `None` for
/// other towers: theirs are not known to be the same.
pub fn tower_alone(header: &Header) -> Option<Result<Header, Error>> {
    if header.architecture() != Some("gemma3") || tower_bytes(header) == 0 {
        return None;
    }
    let mut writer = Writer::with_format(header.version(), header.byte_order());
    for (key, value) in [
        ("general.architecture", "clip"),
        ("clip.projector_type", "gemma3"),
    ] {
        writer.key(key, value).ok()?;
    }
    for key in ["clip.has_vision_encoder", "clip.use_gelu"] {
        writer.copy_key(key, Value::Bool(true));
    }
    for key in ["clip.vision.image_mean", "clip.vision.image_std"] {
        writer.key(key, vec![0.5f32; 3]).ok()?;
    }
    for (key, value) in header.keys() {
        if let Some(rest) = key.strip_prefix("gemma3.vision.") {
            writer.copy_key(&format!("clip.vision.{rest}"), value);
        }
    }
    if let Some(width) = header.get("gemma3.embedding_length") {
        writer.copy_key("clip.vision.projection_dim", width);
    }
    for tensor in header.tensors().iter().filter(|t| is_of_tower(&t.name)) {
        let renamed = |name: String, (from, to): &(&str, &str)| name.replace(from, to);
        let name = NAMES.iter().fold(tensor.name.clone(), renamed);
        let n_dims = (tensor.n_dims as usize).min(tensor.ne.len());
        let ne = tensor.ne.get(..n_dims).unwrap_or_default();
        writer.tensor(&name, tensor.ty, ne);
    }
    Some(finish(&writer, header))
}

fn finish(writer: &Writer, header: &Header) -> Result<Header, Error> {
    match writer.finish() {
        Ok(bytes) => Header::parse(bytes),
        Err(WriteError::Malformed(error)) => Err(error),
        // Values that were read are not mixed: the header stays as it was.
        Err(_) => Ok(header.clone()),
    }
}
