//! A shared libllama, in a process of this program's own.

use std::ffi::OsString;

use super::transcript::Transcript;
use super::{LAST_LOOK, Ran, Run};
use crate::libllama::{CHILD_ARGUMENT, Done, Job};
use crate::log::said_buffers;
use crate::watch::Starter;
use crate::{Error, io};

pub fn run(run: &Run, starter: &Starter) -> Result<Ran, Error> {
    let job = Job {
        library: run.options.program.to_string_lossy().into_owned(),
        model: run.expected.model.clone(),
        flags: run.expected.flags.clone(),
        prompt_tokens: run.prompt_tokens(),
        linger_ms: u64::try_from(LAST_LOOK.as_millis()).unwrap_or(0),
    };
    let job = serde_json::to_string(&job).map_err(|error| Error::Engine(error.to_string()))?;
    let own = std::env::current_exe().map_err(io("this program cannot be found"))?;
    let out = Transcript::new()?;
    let arguments = [CHILD_ARGUMENT.to_string(), job].map(OsString::from);
    let mut held = run.start_program(&own, &arguments, Some(&out))?;
    starter.start(held.root());
    let (how, computed) = run.end_of(&mut held)?;
    let done: Option<Done> = out
        .text()?
        .lines()
        .find_map(|line| serde_json::from_str(line).ok());
    let Some(done) = done.filter(|_| how == "with exit code 0") else {
        return Err(run.failed(&format!("ended {how}")));
    };
    Ok(Ran {
        prompt_tokens: done.prompt_tokens,
        said: said_buffers(&run.log.text()?, run.expected),
        version: Some(done.version),
        cuda: done.cuda,
        computed,
    })
}
