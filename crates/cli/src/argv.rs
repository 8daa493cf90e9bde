//! llama.cpp's short flags have several letters, which no parser takes for one flag: they become
//! long names first.

use std::ffi::OsString;

use crate::elsewhere::error_of_flag;
use crate::flags::{FLAGS, Flag, is_short};

/// `-ngl 99` and `-ngl=99` become `--n-gpu-layers 99` and `--n-gpu-layers=99`; so do other spellings
/// of more than one letter. Values and what follows `--` are left alone. The error names a short flag
/// that there is none of, or one of llama-server's that nothing here goes by.
pub fn normalise(arguments: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let mut normal = Vec::new();
    let mut arguments = arguments.into_iter();
    normal.extend(arguments.next()); // the program's name
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            normal.push(argument);
            break;
        }
        let Some((name, value)) = argument.to_str().map(split) else {
            normal.push(argument);
            continue;
        };
        let Some((flag, long)) = find(name) else {
            if let Some(error) = error_of_flag(name) {
                return Err(error);
            }
            if is_unknown_short(name) {
                return Err(format!("unknown flag {name}"));
            }
            normal.push(argument);
            continue;
        };
        match value {
            Some(value) => normal.push(format!("{long}={value}").into()),
            None => {
                normal.push(long.into());
                if flag.takes_value() {
                    normal.extend(arguments.next());
                }
            }
        }
    }
    normal.extend(arguments);
    Ok(normal)
}

/// `-ngl=99` at its sign.
fn split(argument: &str) -> (&str, Option<&str>) {
    match argument.split_once('=') {
        Some((name, value)) if name.starts_with('-') => (name, Some(value)),
        _ => (argument, None),
    }
}

/// A flag by any of its names, and the long name that says the same.
fn find(name: &str) -> Option<(&'static Flag, &'static str)> {
    FLAGS.iter().find_map(|flag| {
        if name == flag.long || flag.aliases.contains(&name) {
            return Some((flag, flag.long));
        }
        let negative = *flag.negative.first()?;
        flag.negative.contains(&name).then_some((flag, negative))
    })
}

/// `-nglx`, but not `-1`, nor one letter, which the parser knows or not.
fn is_unknown_short(name: &str) -> bool {
    is_short(name) && name.len() > 2 && name.parse::<f64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_flags_become_long_ones() {
        let check = |given: &str, expected: &str| {
            let words = given.split(' ').map(OsString::from);
            let normal = normalise(words).unwrap_or_else(|error| vec![error.into()]);
            let words: Vec<String> = normal
                .into_iter()
                .map(|word| word.into_string().unwrap())
                .collect();
            assert_eq!(words.join(" "), expected, "{given}");
        };
        check("e m.gguf -ngl 99", "e m.gguf --n-gpu-layers 99");
        check(
            "e -ngl=99 --gpu-layers -1",
            "e --n-gpu-layers=99 --n-gpu-layers -1",
        );
        check("e -c 5 -np=2", "e --ctx-size 5 --parallel=2");
        check(
            "e -nkvo -no-kvu -kvo",
            "e --no-kv-offload --no-kv-unified --kv-offload",
        );
        // a value is no flag
        check(
            "e -ot -ngl=CPU -fa on",
            "e --override-tensor -ngl=CPU --flash-attn on",
        );
        check("e -- -ngl 5", "e -- -ngl 5");
        check("e --what -h -V", "e --what -h -V");
        check("e -nglx 5", "unknown flag -nglx");
        check(
            "e -ncffn 5",
            "-ncffn is llama-server's and not modelled here: leave it out",
        );
        check("e -c", "e --ctx-size");
    }
}
