//! Sizes as Ollama's log shows them.

/// `8.6 GiB`, `736.0 MiB`, `0 B`.
pub fn human(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    let unit = UNITS.iter().find(|(size, _)| bytes >= *size);
    match unit {
        Some(&(size, name)) => format!("{:.1} {name}", bytes as f64 / size as f64),
        None => format!("{bytes} B"),
    }
}

/// `[3.3 GiB 8.6 GiB]`.
pub fn list(sizes: impl IntoIterator<Item = u64>) -> String {
    let sizes: Vec<String> = sizes.into_iter().map(human).collect();
    format!("[{}]", sizes.join(" "))
}
