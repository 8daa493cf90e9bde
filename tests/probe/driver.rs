//! What the probe says is what the driver and NVML said, however they number the GPUs.

use serde_json::{Value, json};

use crate::play::{MIB, Machine, Taker, each, fixture, notes};
use crate::schema;

/// As many as CUDA shows, each different.
fn fleet(n: u64) -> String {
    let gpu = |i: u64| {
        format!(
            "NVIDIA GeForce RTX 3090:{}MiB:8.6:sms=82:reserved=453MiB:free={}MiB:pci={:02x}:00.0",
            24_123 - i,
            20_000 - i,
            // NVML's order, by PCI, is the other way round.
            200 - i
        )
    };
    (0..n).map(gpu).collect::<Vec<_>>().join(",")
}

#[test]
fn every_gpu_is_found_with_what_the_driver_says() {
    for n in [1, 2, 8, 16] {
        let machine = Machine::new(&fleet(n)).probe();
        assert_eq!(machine["cuda"], "13.0");
        assert_eq!(machine["notes"], json!([]));
        let devices = machine["devices"].as_array().unwrap();
        assert_eq!(devices.len() as u64, n);
        for (i, device) in (0u64..).zip(devices) {
            let total = (24_123 - i) * MIB;
            let free = (20_000 - i) * MIB;
            let expected = json!({
                "cuda_index": i, "nvml_index": n - 1 - i, "uuid": device["uuid"],
                "pci_id": format!("0000:{:02x}:00.0", 200 - i), "name": "NVIDIA GeForce RTX 3090",
                "total_bytes": total, "nvml_total_bytes": total + 453 * MIB, "reserved_bytes": 453 * MIB,
                "free": {"bytes": free, "from": "nvml"}, "used_bytes": total - free, "processes": [],
                "compute_capability": "8.6", "sm_count": 82, "integrated": false, "virtual_memory": true,
                "is_mig": false, "board": null,
            });
            assert_eq!(device, &expected);
        }
    }
}

#[test]
fn the_driver_obeys_its_variables_and_nvml_is_matched() {
    let gpus = "GPU A:10GiB:8.6:free=1GiB:pci=3:uuid=aaaa0000000000000000000000000000,\
                GPU B:10GiB:8.6:free=2GiB:pci=2:uuid=bbbb0000000000000000000000000000,\
                GPU C:10GiB:8.6:free=3GiB:pci=1:uuid=bbcc0000000000000000000000000000";
    let check = |environment: &[(&str, &str)], expected: &[(&str, u64, u64)]| {
        let machine = environment
            .iter()
            .fold(Machine::new(gpus), |machine, (n, v)| machine.env(n, v))
            .probe();
        let seen: Vec<(Value, Value, u64)> = machine["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| {
                let free = d["free"]["bytes"].as_u64().unwrap() >> 30;
                (d["name"].clone(), d["nvml_index"].clone(), free)
            })
            .collect();
        let expected: Vec<(Value, Value, u64)> = expected
            .iter()
            .map(|(name, nvml, free)| (json!(format!("GPU {name}")), json!(nvml), *free))
            .collect();
        assert_eq!(seen, expected, "{environment:?}");
        let hidden = expected.len() < 3;
        assert_eq!(notes(&machine), vec!["hidden"; usize::from(hidden)]);
    };
    let (visible, order) = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER");
    check(&[], &[("A", 2, 1), ("B", 1, 2), ("C", 0, 3)]);
    check(
        &[(order, "PCI_BUS_ID")],
        &[("C", 0, 3), ("B", 1, 2), ("A", 2, 1)],
    );
    check(&[(visible, "2,0")], &[("C", 0, 3), ("A", 2, 1)]);
    check(&[(visible, "2"), (order, "PCI_BUS_ID")], &[("A", 2, 1)]);
    check(
        &[(visible, "GPU-bbcc,GPU-aaaa0000-0000-0000-0000-000000000000")],
        &[("C", 0, 3), ("A", 2, 1)],
    );
    // The first that is none hides what follows.
    check(&[(visible, "1,7,0")], &[("B", 1, 2)]);
}

#[test]
fn hidden_gpus_are_told_from_none() {
    let refusal = |visible: &str| {
        let machine = Machine::new("2*T4:15360MiB:7.5").env("CUDA_VISIBLE_DEVICES", visible);
        machine.refusal(&[])
    };
    let empty = refusal("");
    assert!(
        empty.contains("is '', which hides the 2 GPUs that NVML sees"),
        "{empty}"
    );
    assert!(refusal("-1").contains("is '-1', which hides"));
    let none = Machine::new("").refusal(&[]);
    assert!(none.contains("no GPU that it can use"), "{none}");
}

#[test]
fn two_dies_of_a_k80_are_planned_for_as_the_catalogues() {
    let k80 = "2*Tesla K80:11441MiB:3.7:sms=13:board=768";
    let machine = Machine::new(k80).env("VGPU_DRIVER", "470.256.02");
    let found = machine.probe();
    assert_eq!(
        (&found["driver"], &found["cuda"]),
        (&json!("470.256.02"), &json!("11.4"))
    );
    assert_eq!(each(&found, "virtual_memory"), [true, true]);
    // Before 510 NVML does not tell what the driver keeps.
    assert_eq!(each(&found, "reserved_bytes"), [Value::Null, Value::Null]);
    assert_eq!(found["devices"][0]["free"]["bytes"], 11_441 * MIB);
    assert_eq!(each(&found, "board"), [0, 0]);
    assert_eq!(found["notes"], json!([]));

    let model = fixture("gguf/gemma-3-12b.Q4_K_M.gguf");
    let model = model.to_str().unwrap();
    let [mut probed, mut named] =
        ["auto", "k80x2"].map(|gpus| machine.json(&[model, "--gpus", gpus, "--json"]));
    let said = |document: &Value| document["notes"].to_string();
    assert!(said(&probed).contains(
        "2 devices found on this machine, total from CUDA, free from NVML; driver 470.256.02"
    ));
    assert!(said(&probed).contains("no published build has flash attention for Tesla K80"));
    assert_eq!(
        probed["gpus"].take(),
        json!(["Tesla K80 of this machine: 2 devices, one board"])
    );
    named["gpus"].take();
    probed["notes"].take();
    named["notes"].take();
    assert_eq!(probed, named);
    // Without --gpus it is the same.
    let mut unsaid = machine.json(&[model, "--json"]);
    unsaid["gpus"].take();
    unsaid["notes"].take();
    assert_eq!(unsaid, named);
}

#[test]
fn some_of_the_gpus_can_be_picked() {
    let gpus = "2*T4:15360MiB:7.5,NVIDIA L4:22000MiB:8.9:uuid=abcd0000000000000000000000000000";
    let machine = Machine::new(gpus);
    let model = fixture("gguf/gemma-3-12b.Q4_K_M.gguf");
    let names = |gpus: &str| {
        let document = machine.json(&[model.to_str().unwrap(), "--gpus", gpus, "--json"]);
        let devices = document["devices"].as_array().unwrap().iter();
        let names: Vec<Value> = devices.map(|d| d["name"].clone()).collect();
        (names, document["notes"].to_string())
    };
    let (seen, notes) = names("auto:2,0");
    assert_eq!(seen[..2], ["NVIDIA L4", "T4"]);
    assert!(
        notes.contains("CUDA_VISIBLE_DEVICES=GPU-abcd0000-0000-0000-0000-000000000000,GPU-"),
        "{notes}"
    );
    assert_eq!(names("auto:gpu-abcd").0[0], "NVIDIA L4");
    let refused = machine.run(&[model.to_str().unwrap(), "--gpus", "auto:3"]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.err.contains("CUDA shows 3 GPUs, numbers 0 to 2"),
        "{}",
        refused.err
    );
}

#[test]
fn what_other_processes_take_is_seen_and_the_probe_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::new("2*Tesla T4:15000MiB:7.5:context=100MiB:reserved=360MiB")
        .env("VGPU_STATE", folder.path().join("state"));
    let taker = Taker::start(&machine, 1000 * MIB);
    for _ in 0..2 {
        let found = machine.probe();
        let [first, second] = [0, 1].map(|i| &found["devices"][i]);
        let taken = json!([{"pid": taker.pid(), "used_bytes": 1100 * MIB}]);
        assert_eq!(first["processes"], taken);
        assert_eq!(first["used_bytes"], 1100 * MIB);
        assert_eq!(
            first["free"],
            json!({"bytes": 13_900 * MIB, "from": "nvml"})
        );
        assert_eq!(second["processes"], json!([]));
        assert_eq!(second["free"]["bytes"], 15_000 * MIB);
    }
    let text = machine.run(&["gpus", "--here"]).out;
    let line = format!("CUDA0: taken by process {} (1100 MiB)", taker.pid());
    assert!(text.contains(&line), "{text}");
    let unknown = machine.env("VGPU_PROCESS_MEMORY", "0").probe();
    let process = &unknown["devices"][0]["processes"][0];
    assert_eq!(process, &json!({"pid": taker.pid(), "used_bytes": null}));
}

#[test]
fn a_plain_probe_makes_no_context() {
    // It would not come back.
    let hang = "cuDevicePrimaryCtxRetain,cuCtxCreate,cuMemAlloc,cuMemGetInfo,cuCtxSetCurrent";
    let machine = Machine::new(&fleet(2)).env("VGPU_HANG", hang);
    assert_eq!(machine.probe()["devices"].as_array().unwrap().len(), 2);
    // Nor where nobody else knows what is free.
    let machine = machine.env("VGPU_FAIL", "nvmlInit:9");
    assert_eq!(each(&machine.probe(), "free"), [Value::Null, Value::Null]);
}

#[test]
fn an_instance_in_mig_mode_is_itself() {
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let gpu = format!("NVIDIA A100:40000MiB:8.0:mig=1:free=30000MiB:uuid={uuid}");
    let found = Machine::new(&gpu).probe();
    let device = &found["devices"][0];
    assert_eq!(notes(&found), ["mig_instance"]);
    assert_eq!(device["is_mig"], true);
    assert!(device["uuid"].as_str().unwrap().starts_with("MIG-"));
    assert_eq!(device["nvml_index"], 0);
    assert_eq!(device["free"]["bytes"], 30_000 * MIB);
    // Found by its PCI address alone it is the whole card's memory that NVML tells: not the instance's.
    let found = Machine::new(&gpu)
        .env("VGPU_FAIL", "nvmlDeviceGetHandleByUUID:6")
        .probe();
    assert_eq!(notes(&found), ["mig_instance_unknown", "free_unknown"]);
    assert_eq!(found["devices"][0]["free"], Value::Null);
    assert_eq!(found["devices"][0]["total_bytes"], 40_000 * MIB);
}

#[test]
fn an_integrated_gpu_has_the_systems_memory() {
    let machine = Machine::new("Orin:62827MiB:8.7:integrated=1").env("VGPU_FAIL", "nvmlInit:12");
    let found = machine.probe();
    assert_eq!(notes(&found), ["no_nvml", "shared_memory"]);
    let device = &found["devices"][0];
    assert_eq!(device["integrated"], true);
    assert_eq!(device["free"]["from"], "system");
    let free = device["free"]["bytes"].as_u64().unwrap();
    assert!(free > 0 && free <= 62_827 * MIB, "{free}");
}

#[test]
fn a_pool_of_the_legacy_kind_is_said_and_counted() {
    let machine = Machine::new("Tesla T4:15GiB:7.5:vmm=0");
    assert_eq!(notes(&machine.probe()), ["older_pool"]);
    let model = fixture("gguf/gemma-3-4b.Q4_K_M.gguf");
    let plan = machine.json(&[model.to_str().unwrap(), "--gpus", "auto", "--json"]);
    assert!(
        plan["notes"].to_string().contains("legacy kind"),
        "{}",
        plan["notes"]
    );
    let runtime = |plan: &Value| plan["devices"][0]["runtime_bytes"].as_u64().unwrap();
    let by_hand = |gpus: &str| machine.json(&[model.to_str().unwrap(), "--gpus", gpus, "--json"]);
    let [legacy, vmm] =
        ["vmm=0", "vmm=1"].map(|kind| by_hand(&format!("15GiB:cc=7.5:sms=40:{kind}")));
    assert_eq!(runtime(&plan), runtime(&legacy));
    assert!(runtime(&legacy) != runtime(&vmm), "{}", runtime(&vmm));
}

#[test]
fn the_gpus_are_shown_before_the_catalogue() {
    let machine = Machine::new(&fleet(2));
    let text = machine.run(&["gpus"]);
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    let [here, catalogue] = ["NVIDIA GeForce RTX 3090 ", "k80 "].map(|t| text.out.find(t).unwrap());
    assert!(here < catalogue, "{}", text.out);
    assert!(
        text.out.starts_with("This machine: 2 GPUs · driver "),
        "{}",
        text.out
    );
    let alone = machine.run(&["gpus", "--here"]).out;
    assert!(
        alone.contains("24123  20000  4123  8.6   82") && !alone.contains("Tesla K80"),
        "{alone}"
    );
    let catalogue = machine.run(&["gpus", "--catalogue"]).out;
    assert!(!catalogue.contains("This machine"), "{catalogue}");
    // A name that is looked for is one of the catalogue's, and no driver is asked.
    let hangs = Machine::new(&fleet(2)).env("VGPU_HANG", "cuInit");
    assert!(hangs.run(&["gpus", "p40"]).out.contains("Tesla P40"));
}

#[test]
fn json_is_what_its_schema_says() {
    let machine = Machine::new(&fleet(2)).env("CUDA_VISIBLE_DEVICES", "1");
    let schema = machine.json(&["schema", "gpus"]);
    let documents = [
        machine.json(&["gpus", "--json"]),
        machine.json(&["gpus", "--json", "--catalogue"]),
        Machine::new("").json(&["gpus", "--json"]),
    ];
    for document in &documents {
        assert_eq!(document["schema"], "vramfit.gpus/1");
        assert_eq!(schema::violations(&schema, document), Vec::<String>::new());
    }
    assert_eq!(
        documents[0]["machine"]["devices"].as_array().unwrap().len(),
        1
    );
    assert!(documents[1]["machine"].is_null() && documents[1]["problem"].is_null());
    assert!(documents[2]["problem"].as_str().unwrap().contains("no GPU"));
    let p40 = |card: &&Value| card["key"] == "p40";
    let catalogue = documents[2]["catalogue"].as_array().unwrap();
    assert_eq!(catalogue.iter().find(p40).unwrap()["sm_count"], 30);
}
