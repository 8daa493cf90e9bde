//! `(Model, RunConfig, [Device], Policy) -> Placement`: proposes layouts, lets the estimate score
//! them, and says why the others were not taken.

mod device;
mod placement;
mod policy;

pub use device::{Allowance, Device};
pub use placement::{Certainty, DevicePlacement, Fix, Placement, Rejected, Shortfall, Verdict};
pub use policy::{LayoutMode, Override, OverrideTarget, Pinned, Policy, Prefer, SplitMode};

use vramfit_arch::Model;
use vramfit_estimate::{EngineProfile, Error, RunConfig};

/// Finds a placement. [`Error`] where llama.cpp refuses the settings whatever the layout.
pub fn plan(
    _model: &Model,
    _run: &RunConfig,
    _devices: &[Device],
    _policy: &Policy,
    _profile: &EngineProfile,
) -> Result<Placement, Error> {
    todo!()
}
