//! Breaking lines, and making sure that what a file says cannot break them.

/// Text from outside on one line: control characters, escape sequences among them, become `?`.
pub fn one_line(text: &str) -> String {
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    text.chars()
        .map(|c| if breaks(c) { '?' } else { c })
        .collect()
}

/// Columns that `text` takes, colour codes not counted.
pub(crate) fn columns(text: &str) -> usize {
    let (mut n, mut in_code) = (0, false);
    for c in text.chars() {
        match c {
            '\u{1b}' => in_code = true,
            'm' if in_code => in_code = false,
            _ => n += usize::from(!in_code),
        }
    }
    n
}

/// Cut to `width` columns; plain text only.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// Puts `pieces` on lines of at most `width` columns, `separator` between those on one line.
/// The first line begins with `first`, the others with `rest`. No piece is broken.
pub(crate) fn fill(
    pieces: &[String],
    separator: &str,
    first: &str,
    rest: &str,
    width: usize,
) -> String {
    let mut lines = String::new();
    let mut line = first.to_string();
    let mut is_empty = true;
    for piece in pieces {
        let wanted = columns(&line) + columns(separator) + columns(piece);
        if is_empty {
            line += piece;
        } else if wanted <= width {
            line += separator;
            line += piece;
        } else {
            lines += line.trim_end();
            lines.push('\n');
            line = format!("{rest}{piece}");
        }
        is_empty = false;
    }
    lines += line.trim_end();
    lines.push('\n');
    lines
}

/// A sentence over several lines: the first begins with `first`, the others with `rest`.
pub fn words(text: &str, first: &str, rest: &str, width: usize) -> String {
    let pieces: Vec<String> = text.split_whitespace().map(str::to_string).collect();
    fill(&pieces, " ", first, rest, width)
}

/// An argument as a POSIX shell reads it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%^".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_string()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

/// A command to paste into a shell, over several lines; a flag and its value stay together.
pub fn command_line(command: &[String], indent: &str, width: usize) -> String {
    let mut pieces: Vec<String> = Vec::new();
    let mut open = false;
    for argument in command {
        let is_flag = argument.starts_with('-') && argument.parse::<f64>().is_err();
        match pieces.last_mut() {
            Some(piece) if open && !is_flag => {
                piece.push(' ');
                piece.push_str(&quoted(argument));
                open = false;
            }
            _ => {
                pieces.push(quoted(argument));
                open = is_flag;
            }
        }
    }
    let rest = format!("{indent}  ");
    let text = fill(&pieces, " ", indent, &rest, width.saturating_sub(2));
    let lines: Vec<&str> = text.lines().collect();
    lines.join(" \\\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &str) -> Vec<String> {
        words.split(' ').map(str::to_string).collect()
    }

    #[test]
    fn commands_can_be_pasted() {
        let mut command = strings("llama-server -m x.gguf -c 4096 -ngl 99 --no-mmap -ts 1,0 -ot");
        command.push(r"blk\.(1|2)=CPU".to_string());
        let expected = [
            r"  llama-server -m x.gguf -c 4096 \",
            r"    -ngl 99 --no-mmap -ts 1,0 \",
            r"    -ot 'blk\.(1|2)=CPU'",
            "",
        ];
        assert_eq!(command_line(&command, "  ", 36), expected.join("\n"));
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn lines_break_between_words_only() {
        let text = words("a calm sentence of several words", "- ", "  ", 16);
        assert_eq!(text, "- a calm\n  sentence of\n  several words\n");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(columns("\u{1b}[1mbold\u{1b}[0m"), 4);
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a?b?[31m");
    }
}
