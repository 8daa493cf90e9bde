//! What a command answers.

use std::process::Command;

/// Its exit code, standard output and standard error.
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs `command`, which does not panic.
pub fn answer(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    let answer = Answer {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    assert!(!answer.err.contains("panicked"), "{}", answer.err);
    answer
}
