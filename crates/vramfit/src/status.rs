//! Errors for those who cannot match on an enum: a word for each kind, and what else is known, in JSON.

use serde_json::{Value, json};

use crate::{Error, estimate, ledger};

/// What kind of error it is. Its word is stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Status {
    /// The caller's mistake: a size of 0, a GPU named twice.
    InvalidArgument,
    /// A file cannot be read, or is no GGUF.
    Open,
    /// The file is sound, but no model that can be sized; or an adapter or projector is not for this model.
    Model,
    /// The list of GPUs cannot be read, a GPU cannot be as described, or this machine's cannot be found.
    Gpus,
    /// A setting is not one that there is, or cannot be for these GPUs.
    Settings,
    /// llama.cpp refuses these settings.
    Refused,
    /// vramfit has no rule for these settings, which llama.cpp may start with.
    NotModelled,
    /// Would fit on these GPUs, but not now: try again when something has been released.
    FullNow,
    /// As [`Status::FullNow`], but reservations are still starting or leaving: try again when they have.
    FullPending,
    /// Would not fit even if every GPU were empty.
    NeverFits,
    /// The host has no such GPU.
    UnknownGpu,
    /// No such reservation, or it has been released.
    UnknownReservation,
    /// The ledger has moved on too often meanwhile: try again.
    StalePlan,
    /// What is to be replaced has not been released yet.
    Waits,
    /// The engine took more than there is room for: unload it and release the reservation.
    TookTooMuch,
    /// Not in this phase of the reservation.
    Phase,
    /// No GPU is needed with these settings: there is nothing to reserve.
    NoGpu,
    /// A reservation was made under this key before, and is still held.
    KeyTaken,
    /// The journal did not take it, or cannot be read.
    Store,
    /// Something else.
    Other,
}

impl Status {
    /// In one word, such as `full_now`.
    pub fn word(self) -> &'static str {
        match self {
            Status::InvalidArgument => "invalid_argument",
            Status::Open => "open",
            Status::Model => "model",
            Status::Gpus => "gpus",
            Status::Settings => "settings",
            Status::Refused => "refused",
            Status::NotModelled => "not_modelled",
            Status::FullNow => "full_now",
            Status::FullPending => "full_pending",
            Status::NeverFits => "never_fits",
            Status::UnknownGpu => "unknown_gpu",
            Status::UnknownReservation => "unknown_reservation",
            Status::StalePlan => "stale_plan",
            Status::Waits => "waits",
            Status::TookTooMuch => "took_too_much",
            Status::Phase => "phase",
            Status::NoGpu => "no_gpu",
            Status::KeyTaken => "key_taken",
            Status::Store => "store",
            Status::Other => "other",
        }
    }

    fn of_ledger(error: &ledger::Error) -> Status {
        use ledger::Error;
        match error {
            Error::FullNow(_) => Status::FullNow,
            Error::FullPending { .. } => Status::FullPending,
            Error::NeverFits(_) => Status::NeverFits,
            Error::UnknownGpu(_) | Error::UnknownHost(_) => Status::UnknownGpu,
            Error::UnknownReservation(_) => Status::UnknownReservation,
            Error::KeyTaken(_) => Status::KeyTaken,
            Error::StalePlan { .. } => Status::StalePlan,
            Error::Waits { .. } => Status::Waits,
            Error::TookTooMuch { .. } => Status::TookTooMuch,
            Error::Phase { .. } | Error::NoRequest(_) => Status::Phase,
            Error::NoSize
            | Error::GpuTwice(_)
            | Error::ReportedTwice(_)
            | Error::TwoHosts(..)
            | Error::NotAsked { .. }
            | Error::EvictedTwice(_) => Status::InvalidArgument,
            Error::Store(_) => Status::Store,
            _ => Status::Other,
        }
    }
}

/// What to do about a refusal of the ledger's where its own words leave that open, as the end of its sentence.
pub(crate) fn next_step(error: &ledger::Error) -> &'static str {
    use ledger::{Error, Phase};
    match error {
        Error::UnknownReservation(_) => {
            ": never made here, released, or its lease ran out; adopt what is still loaded"
        }
        Error::UnknownGpu(_) => ": not one of the host's, or gone",
        Error::TookTooMuch { .. } => "; unload it and release it",
        Error::Waits { .. } => "; unload and release those, then commit again",
        Error::Phase { phase, .. } => match phase {
            Phase::Pending => ": commit it when the engine has loaded it, then requests can begin",
            Phase::Running => ": it has been committed",
            Phase::Leaving => ": unload it and release it",
        },
        Error::NoRequest(_) => ": each begins before it ends, and ends once",
        Error::NoSize => ": say how many bytes it takes, on each of its GPUs",
        _ => "",
    }
}

impl Error {
    /// What kind of error it is.
    pub fn status(&self) -> Status {
        match self {
            Error::Open(_) => Status::Open,
            Error::Model { .. } | Error::Projector { .. } | Error::Classic { .. } => Status::Model,
            Error::Gpus(_) | Error::Gpu(_) | Error::Probe(_) | Error::Profiles(_) => Status::Gpus,
            Error::Settings { .. } => Status::Settings,
            Error::Plan(
                estimate::Error::Refused(_) | estimate::Error::RefusedWithoutFlashAttention { .. },
            ) => Status::Refused,
            Error::Plan(estimate::Error::NotModelled(_)) => Status::NotModelled,
            Error::Plan(_) => Status::Model,
            Error::NeverFits { .. } => Status::NeverFits,
            Error::NoGpu { .. } => Status::NoGpu,
            Error::Count { .. } => Status::InvalidArgument,
            Error::Ledger(error) => Status::of_ledger(error),
        }
    }

    /// What else is known, as an object: the `decision` that refused a reservation, those that are `pending` or
    /// `leaving`, what is `short`, the `reservation` that has the key.
    pub fn details(&self) -> Value {
        use ledger::Error as Ledger;
        let Error::Ledger(error) = self else {
            return json!({});
        };
        match error {
            Ledger::FullNow(decision) | Ledger::NeverFits(decision) => {
                json!({ "decision": decision })
            }
            Ledger::FullPending { pending, decision } => {
                json!({ "pending": pending, "decision": decision })
            }
            Ledger::Waits { leaving, .. } => json!({ "leaving": leaving }),
            Ledger::TookTooMuch { short, .. } => json!({ "short": short }),
            Ledger::KeyTaken(id) => json!({ "reservation": id }),
            _ => json!({}),
        }
    }
}
