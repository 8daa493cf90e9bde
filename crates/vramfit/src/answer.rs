//! From settings to a placement and its document in one call.

use std::path::Path;

use vramfit_arch::Model;
use vramfit_estimate::{Peak, PoolPeak};
use vramfit_plan::Placement;
use vramfit_report::{Estimate, Explanation, Subject};

use crate::{ENGINE, Error, GpuList, Resolved, Settings};

/// A placement, and what `estimate --json` would print of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Answer {
    /// Where everything goes.
    pub placement: Placement,
    /// The same for people and programs: as text by [`report::estimate_text`](crate::report::estimate_text), as JSON
    /// by serde.
    pub estimate: Estimate,
}

impl Answer {
    /// A placement beside its [`document`].
    pub fn new(placement: Placement, estimate: Estimate) -> Answer {
        Answer {
            placement,
            estimate,
        }
    }
}

/// Finds a placement of `model`, read from `path`, on `gpus`, with what belongs beside it by `settings`.
///
/// ```
/// use vramfit::{GpuList, Settings, report::VerdictWord};
///
/// let path = "../../fixtures/gguf/gemma-3-12b.Q4_K_M.gguf";
/// let gpus = vramfit::gpu_list("k80x2")?;
/// let settings = Settings::from_json(r#"{"n_ctx": 8192, "flash_attention": "off"}"#)?;
/// let answer = vramfit::answer(path, &vramfit::open(path)?, &gpus, &settings)?;
/// assert_eq!(answer.estimate.verdict, VerdictWord::Fits);
/// println!("{}", answer.estimate.command.join(" "));
/// # Ok::<(), vramfit::Error>(())
/// ```
pub fn answer(
    path: impl AsRef<Path>,
    model: &Model,
    gpus: &GpuList,
    settings: &Settings,
) -> Result<Answer, Error> {
    let resolved = settings.resolve(model, gpus)?;
    let placement = crate::plan(model, &resolved.run, &gpus.devices, &resolved.policy)?;
    let estimate = document(path, model, gpus, &resolved, &placement);
    Ok(Answer {
        placement,
        estimate,
    })
}

/// A placement of `model`, read from `path`, as a document: what `estimate --json` prints.
pub fn document(
    path: impl AsRef<Path>,
    model: &Model,
    gpus: &GpuList,
    resolved: &Resolved,
    placement: &Placement,
) -> Estimate {
    let mut lines: Vec<String> = gpus.entries.iter().map(|e| e.description()).collect();
    if gpus.devices.is_empty() {
        lines.push("none: no GPU, everything on the host".to_string());
    }
    let subject = Subject {
        path: path.as_ref(),
        model,
        devices: &gpus.devices,
        policy: &resolved.policy,
        engine: &ENGINE,
        gpus: &lines,
        notes: &resolved.notes,
        adapters: &resolved.flags,
    };
    Estimate::new(&subject, placement)
}

/// Which tensors make the compute buffers of `placement` as large as they are, those of a draft's context too, as a
/// document.
pub fn explanation(
    path: impl AsRef<Path>,
    model: &Model,
    placement: &Placement,
) -> Result<Explanation, Error> {
    let peaks = crate::explain(model, placement)?;
    let pools = crate::explain_pools(model, placement)?;
    let devices = &placement.layout_devices;
    let explanation = Explanation::new(path.as_ref(), model, &ENGINE, &peaks, devices);
    let explanation = explanation.with_pools(&pools, devices);
    let Some(beside) = &placement.draft else {
        return Ok(explanation);
    };
    let model = placement.loaded(model);
    let own = beside.model.as_deref().unwrap_or(&model);
    let (run, layout) = (&beside.run, &beside.layout);
    let peaks = Peak::explain(own, run, layout, &ENGINE)?;
    let pools = PoolPeak::explain(own, run, layout, &ENGINE)?;
    Ok(explanation.with_draft(&peaks, &pools, &beside.devices))
}
