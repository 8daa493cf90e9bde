//! Comparisons and allocations for people.

use std::fmt::Write as _;

use crate::{
    Allocation, Comparison, DeviceAllocation, DeviceComparison, EngineKind, Expected, MeasuredBy,
    Of, Taken, What,
};

const MIB: f64 = (1 << 20) as f64;

fn mib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / MIB)
}

fn dash() -> String {
    "-".to_string()
}

fn signed(bytes: i64) -> String {
    format!("{:+.2}", bytes as f64 / MIB)
}

/// One model's run, a block of lines a card.
pub fn comparison_text(c: &Comparison) -> String {
    let program = match c.engine {
        EngineKind::LlamaServer => "llama-server",
        EngineKind::Oracle => "the kit's oracle",
        EngineKind::Libllama => "libllama",
    };
    let mut text = format!(
        "{}\n{program}, planned for {}; driver {}; {}, {} s\n{}\n\n",
        c.model,
        c.build,
        c.driver,
        match c.prompt_tokens {
            0 => "loaded, nothing computed".to_string(),
            n => format!("a prompt of {n} tokens a sequence"),
        },
        c.seconds,
        c.flags.join(" ")
    );
    if c.ran != c.build {
        let _ = writeln!(
            text,
            "the engine is {}, not the build that is planned for; what is learned is learned of it\n",
            c.ran
        );
    }
    let columns = ["MiB", "weights", "KV", "compute", "pool", "CUDA", "total"];
    text += &line(columns.map(str::to_string));
    for d in &c.devices {
        text += &device_text(d);
    }
    text
}

fn line(cells: [String; 7]) -> String {
    let [first, rest @ ..] = cells;
    let rest: String = rest.iter().map(|cell| format!("{cell:>17}")).collect();
    let line = format!("{first:<18}{rest}");
    format!("{}\n", line.trim_end())
}

fn device_text(d: &DeviceComparison) -> String {
    if !d.predicted.is_used {
        let seen = d
            .measured
            .map_or("nothing".to_string(), |m| mib(m.peak_bytes));
        return format!("{} {}: not planned for; measured {seen}\n", d.id, d.card);
    }
    let mut text = format!("{} {}\n{}", d.id, d.card, predicted_text(d));
    if let Some(said) = d.said {
        text += &line([
            "  the engine says".to_string(),
            mib(said.model_bytes),
            mib(said.context_bytes),
            mib(said.compute_bytes),
            dash(),
            dash(),
            dash(),
        ]);
    }
    let Some(seen) = d.measured else {
        return text + "  measured: NVML showed nothing of the engine here\n";
    };
    text += &line([
        "  measured".to_string(),
        dash(),
        dash(),
        dash(),
        dash(),
        d.residual_bytes.map_or_else(dash, signed),
        mib(seen.peak_bytes),
    ]);
    text + &verdict_text(d, seen.by)
}

/// The terms of the plan, and what of them this run does not call for.
fn predicted_text(d: &DeviceComparison) -> String {
    let p = &d.predicted;
    let mut text = String::new();
    let [model, context, compute] = p.named();
    let of_projector = p
        .projector
        .model_bytes
        .saturating_add(p.projector.compute_bytes);
    let runtime = p.runtime_bytes().saturating_sub(d.idle_bytes);
    text += &line([
        "  predicted".to_string(),
        mib(model),
        mib(context),
        mib(compute),
        mib(runtime),
        format!("{} to {}", mib(p.overhead_low_bytes), mib(p.overhead_bytes)),
        mib(p.total().saturating_sub(d.idle_bytes)),
    ]);
    if of_projector > 0 {
        let _ = writeln!(
            text,
            "  {} of the total are the projector's",
            mib(of_projector)
        );
    }
    if d.pool_short_bytes > 0 {
        let short = mib(d.pool_short_bytes);
        let _ = writeln!(
            text,
            "  up to {short} of the pool may not be called for by this run's batches"
        );
    }
    if d.idle_bytes > 0 {
        let idle = mib(d.idle_bytes);
        let _ = writeln!(
            text,
            "  {idle} more are planned that this run does not call for"
        );
    }
    text
}

/// How far off it is, and how that is known.
fn verdict_text(d: &DeviceComparison, by: MeasuredBy) -> String {
    let by = match by {
        MeasuredBy::Process => "of its processes",
        MeasuredBy::NewProcess => "of the one process that is new there",
        MeasuredBy::Growth => "by what the card's memory in use grew",
    };
    let agree = match d.buffers_agree {
        Some(true) => "buffers as predicted",
        Some(false) => "BUFFERS ARE NOT THE PREDICTED ONES",
        None => "the engine does not say its buffers",
    };
    format!(
        "  predicted at most {} MiB from it: {}; {agree}; measured {by}\n",
        d.error_bytes.map_or_else(dash, signed),
        match (d.outside_bytes, d.within_tolerance) {
            (Some(0), _) => "within the interval",
            (_, Some(true)) => "within 1 % or 64 MiB of the interval",
            _ => "MORE THAN 1 % AND 64 MiB OUTSIDE OF THE INTERVAL",
        }
    )
}

/// What the driver gave.
pub fn allocation_text(expected: &Expected, allocation: &Allocation) -> String {
    let mut text = format!(
        "{}\n{}\n",
        expected.model,
        match allocation.fits {
            true => "Every planned buffer could be had.",
            false => "NOT every planned buffer could be had.",
        }
    );
    for d in &allocation.devices {
        let own = |t: &&Taken| t.step.device == d.device;
        let steps: Vec<&Taken> = allocation.steps.iter().filter(own).collect();
        text += &given_text(d, &steps);
    }
    text
}

fn given_text(d: &DeviceAllocation, steps: &[&Taken]) -> String {
    let mut text = format!(
        "\nCUDA{} {}: {} MiB, {} free once a context is there\n",
        d.device,
        d.name,
        mib(d.total_bytes),
        mib(d.free_with_context_bytes)
    );
    let (mut asked, mut had) = (0u64, 0u64);
    for taken in steps {
        text += &step_text(taken);
        if taken.refused.is_none() {
            asked = asked.saturating_add(taken.step.bytes);
            had = had.saturating_add(taken.taken_bytes());
        }
    }
    let _ = writeln!(
        text,
        "  {:<26}{:>12}, taken {:>12}",
        "together",
        mib(asked),
        mib(had)
    );
    if let (Some(before), Some(after)) = (d.nvml_before_bytes, d.nvml_after_bytes) {
        let context = d.nvml_with_context_bytes.unwrap_or(before);
        let _ = writeln!(
            text,
            "  NVML: in use {} before, {} with a bare context, {} with everything{}",
            mib(before),
            mib(context),
            mib(after),
            match d.nvml_process_bytes {
                Some(own) => format!("; {} of this process", mib(own)),
                None => String::new(),
            }
        );
    } else {
        text += "  NVML shows nothing of this GPU: its figures are missing\n";
    }
    text
}

fn step_text(taken: &Taken) -> String {
    let what = match taken.step.what {
        What::Weights => "weights",
        What::Adapter => "adapter",
        What::Cache => "cache",
        What::Compute => "compute buffer",
        What::Workspace => "cuBLAS workspace",
        What::Reduce => "adding up",
        What::Pool => "runtime pool",
    };
    let what = match taken.step.of {
        Of::Model => what.to_string(),
        Of::Draft => format!("draft's {what}"),
        Of::Projector => format!("projector's {what}"),
    };
    let bytes = mib(taken.step.bytes);
    match &taken.refused {
        Some(reason) => {
            let free = mib(taken.free_before_bytes);
            format!("  {what:<26}{bytes:>12}: {reason}, {free} are free\n")
        }
        None => {
            let taken = mib(taken.taken_bytes());
            format!("  {what:<26}{bytes:>12}, taken {taken:>12}\n")
        }
    }
}
