//! Rules that every machine's probe keeps, on imaginary GPUs and, with `VRAMFIT_REAL_GPU=1`, on real ones.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::play::{MIB, Machine, answer, each};

/// How a command finds the GPUs in question.
type Prepare<'m> = &'m dyn Fn(&mut Command);

fn probe(prepare: Prepare<'_>, flags: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_estimate"));
    prepare(&mut command);
    let answer = answer(command.args(["gpus", "--here", "--json"]).args(flags));
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    let mut document: Value = serde_json::from_str(&answer.out).unwrap();
    document["machine"].take()
}

fn bytes(value: &Value) -> Option<u64> {
    value.as_u64()
}

fn keeps_the_rules(prepare: Prepare<'_>) -> Value {
    let first = probe(prepare, &[]);
    let devices = first["devices"].as_array().unwrap();
    assert!(!devices.is_empty());
    for device in devices {
        let total = bytes(&device["total_bytes"]).unwrap();
        assert!(total > 100 * MIB, "{device}");
        if let Some(free) = bytes(&device["free"]["bytes"]) {
            assert!(free <= total, "{device}");
        }
        if let Some(nvml) = bytes(&device["nvml_total_bytes"]) {
            assert!(total <= nvml, "CUDA has no more than the card: {device}");
            let used = bytes(&device["used_bytes"]).unwrap();
            let free = bytes(&device["free"]["bytes"]).unwrap();
            let reserved = bytes(&device["reserved_bytes"]).unwrap_or(0);
            assert!(used + free + reserved <= nvml + MIB, "{device}");
        }
        let uuid = device["uuid"].as_str().unwrap();
        let (kind, rest) = uuid.split_once('-').unwrap();
        assert_eq!(kind == "MIG", device["is_mig"] == true, "{device}");
        let lengths: Vec<usize> = rest.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{uuid}");
        assert!(device["sm_count"].as_u64().unwrap() > 0, "{device}");
    }
    let uuids: BTreeSet<String> = each(&first, "uuid").iter().map(Value::to_string).collect();
    assert_eq!(uuids.len(), devices.len(), "each has a UUID of its own");
    leaves_nothing(prepare, &first);
    each_can_be_shown_alone(prepare, &first);
    first
}

/// A second probe sees what the first did: it has made no context, which takes at least 50 MiB, and left nothing.
fn leaves_nothing(prepare: Prepare<'_>, first: &Value) {
    let second = probe(prepare, &[]);
    if each(first, "processes") != each(&second, "processes") {
        return; // somebody else has come or gone
    }
    for (one, two) in each(first, "used_bytes")
        .iter()
        .zip(each(&second, "used_bytes"))
    {
        let (Some(one), Some(two)) = (bytes(one), bytes(&two)) else {
            continue;
        };
        assert!(one.abs_diff(two) < 50 * MIB, "{one} {two}");
    }
}

fn each_can_be_shown_alone(prepare: Prepare<'_>, all: &Value) {
    for device in all["devices"].as_array().unwrap() {
        let uuid = device["uuid"].as_str().unwrap();
        let alone = probe(
            &|command| {
                prepare(command);
                command.env("CUDA_VISIBLE_DEVICES", uuid);
            },
            &[],
        );
        assert_eq!(each(&alone, "uuid"), [uuid]);
        for field in [
            "name",
            "total_bytes",
            "pci_id",
            "nvml_index",
            "nvml_total_bytes",
        ] {
            assert_eq!(alone["devices"][0][field], device[field], "{field}");
        }
    }
}

#[test]
fn imaginary_gpus_keep_the_rules() {
    for gpus in [
        "Tesla T4:14930MiB:7.5:reserved=430MiB:context=100MiB",
        "8*NVIDIA H100 80GB HBM3:81079MiB:9.0:sms=132:reserved=480MiB:free=70000MiB",
        "NVIDIA A100:40000MiB:8.0:mig=1",
    ] {
        let machine = Machine::new(gpus);
        keeps_the_rules(&|command| {
            machine.play(command);
        });
    }
}

/// On the machine's own GPUs, and against its `nvidia-smi` where there is one.
#[test]
fn real_gpus_keep_the_rules() {
    if std::env::var_os("VRAMFIT_REAL_GPU").is_none_or(|value| value != "1") {
        eprintln!("not asked for: VRAMFIT_REAL_GPU=1 does so");
        return;
    }
    let found = keeps_the_rules(&|_| {});
    let query = "--query-gpu=uuid,memory.total,driver_version";
    let smi = Command::new("nvidia-smi")
        .args([query, "--format=csv,noheader,nounits"])
        .output();
    let Ok(smi) = smi else { return };
    let smi = String::from_utf8(smi.stdout).unwrap();
    let rows: Vec<Vec<&str>> = smi.lines().map(|row| row.split(", ").collect()).collect();
    for device in found["devices"].as_array().unwrap() {
        if device["is_mig"] == true {
            continue;
        }
        let row = rows.iter().find(|row| device["uuid"] == row[0]).unwrap();
        let total = bytes(&device["nvml_total_bytes"]).map(|total| (total / MIB).to_string());
        if let Some(total) = total {
            assert_eq!(total, row[1], "{device}");
        }
        assert_eq!(found["driver"], row[2]);
    }
    // From inside a context less is free, by what the context takes.
    let inside = probe(&|_| {}, &["--probe-context"]);
    assert_eq!(each(&inside, "total_bytes"), each(&found, "total_bytes"));
}
