//! Two answers side by side.

use std::fmt::Write as _;

/// Splits an answer, as the truth tests write it, into named figures.
fn figures(answer: &str) -> Vec<(String, String)> {
    if answer.contains(": ") {
        return vec![("answer".to_owned(), answer.to_owned())];
    }
    let mut list: Vec<(String, String)> = Vec::new();
    let mut graphs = ["prompt nodes/splits", "generation nodes/splits"].into_iter();
    for word in answer.split(' ') {
        if let Some((device, bytes)) = word.split_once('=') {
            let parts = ["model", "context", "compute", "adapters"]
                .into_iter()
                .zip(bytes.split('/'));
            list.extend(parts.map(|(part, n)| (format!("{device} {part}"), n.to_owned())));
        } else if word.contains('/') {
            list.push((graphs.next().unwrap_or("graph").to_owned(), word.to_owned()));
        } else if let (Some((_, value)), false) = (
            list.last_mut(),
            word.starts_with(|c: char| c.is_ascii_lowercase()) && !word.contains('*'),
        ) {
            if !value.is_empty() {
                value.push(' ');
            }
            value.push_str(word);
        } else {
            list.push((word.to_owned(), String::new()));
        }
    }
    list
}

/// A table of both, with the differences marked.
pub fn side_by_side(engine: &str, ours: &str) -> String {
    let (theirs, our) = (figures(engine), figures(ours));
    let mut names: Vec<&String> = theirs.iter().map(|f| &f.0).collect();
    names.extend(
        our.iter()
            .map(|f| &f.0)
            .filter(|name| theirs.iter().all(|f| f.0 != **name)),
    );
    let mut text = format!("  {:<24} {:>24} {:>24}\n", "", "engine", "ours");
    for name in names {
        let of = |list: &[(String, String)]| {
            list.iter()
                .find(|f| f.0 == *name)
                .map_or("-".to_owned(), |f| f.1.clone())
        };
        let (a, b) = (of(&theirs), of(&our));
        let mark = match (a.parse::<i128>(), b.parse::<i128>()) {
            _ if a == b => String::new(),
            (Ok(a), Ok(b)) => format!("  <- {:+}", b - a),
            _ => "  <-".to_owned(),
        };
        let _ = writeln!(text, "  {name:<24} {a:>24} {b:>24}{mark}");
    }
    text
}

/// Whether both settle on the same context, batches, copies and layers; on flash attention only the graph can.
pub fn settles_alike(engine: &str, ours: &str) -> bool {
    let settings = |text: &str| {
        let figures = figures(text).into_iter().take(5);
        figures.filter(|f| f.0 != "fa").collect::<Vec<_>>()
    };
    settings(engine) == settings(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: &str = "n_ctx 4096 4096 n_batch 2048 512 fa 1 copies 4 layers host*1 CUDA0*4 CUDA0=10/20/30 host=1/2/3 90/3 90/2";

    #[test]
    fn every_figure_has_its_name() {
        let list = figures(ENGINE);
        let value = |name: &str| list.iter().find(|f| f.0 == name).map(|f| f.1.as_str());
        assert_eq!(value("n_ctx"), Some("4096 4096"));
        assert_eq!(value("layers"), Some("host*1 CUDA0*4"));
        assert_eq!(value("CUDA0 compute"), Some("30"));
        assert_eq!(value("host model"), Some("1"));
        assert_eq!(value("generation nodes/splits"), Some("90/2"));
        assert_eq!(list.len(), 13);
    }

    #[test]
    fn what_differs_is_marked_and_counted() {
        let text = side_by_side(ENGINE, &ENGINE.replace("/30 ", "/37 "));
        let marked: Vec<&str> = text.lines().filter(|line| line.contains("<-")).collect();
        assert_eq!(marked.len(), 1);
        assert!(marked[0].contains("CUDA0 compute") && marked[0].ends_with("+7"));
        assert!(side_by_side(ENGINE, "refused: no").contains("refused: no"));
    }

    #[test]
    fn a_bound_settles_as_the_engine_does() {
        assert!(settles_alike(ENGINE, &ENGINE.replace("/30 ", "/31 ")));
        assert!(settles_alike(ENGINE, &ENGINE.replace("fa 1", "fa 0")));
        let one_copy = ENGINE.replace("copies 4", "copies 1");
        assert!(!settles_alike(ENGINE, &one_copy));
        assert!(!settles_alike(ENGINE, "refused: no"));
    }
}
