//! A child process that is played imaginary GPUs, and asked line by line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use vramfit_vgpu::Install;

pub struct Player {
    pub child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
    _install: Install,
}

impl Player {
    pub fn start(gpus: &str, environment: &[(&str, &str)]) -> Self {
        let install = Install::new().expect("the library is built beside this test");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vgpu-play"));
        install
            .play(&mut command, gpus)
            .envs(environment.iter().copied());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the player starts");
        let stdin = child.stdin.take().expect("stdin");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Player {
            child,
            stdin,
            answers,
            _install: install,
        }
    }

    /// A call and its answer: `alloc 10` gives its code, and what it tells.
    pub fn ask(&mut self, line: &str) -> String {
        self.say(line);
        self.answer(Duration::from_secs(60))
            .unwrap_or_else(|| panic!("no answer to {line}"))
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("the player listens");
    }

    pub fn answer(&self, limit: Duration) -> Option<String> {
        self.answers.recv_timeout(limit).ok()
    }

    /// Each line and the answer to it.
    pub fn check(&mut self, script: &[(&str, &str)]) {
        for (line, want) in script {
            assert_eq!(self.ask(line), *want, "{line}");
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
