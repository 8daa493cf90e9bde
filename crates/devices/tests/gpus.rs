//! The `--gpus` language through the public API: text in, devices, expansions and notes out.

use proptest::prelude::*;
use vramfit_devices::{
    ComputeCapability, Device, GPUS_HELP, GpuList, Gpus, MAX_DEVICES, Machine, NoProbe, Probe,
    ProbeError, find_card, list_cards, parse_bytes,
};

/// Reads a text; each device as `name total/free cc [board]`, or the error.
fn read(text: &str) -> Result<GpuList, String> {
    let gpus: Gpus = text
        .parse()
        .map_err(|error: vramfit_devices::GpusError| error.to_string())?;
    gpus.resolve(&NoProbe).map_err(|error| error.to_string())
}

fn shown(device: &Device, board: Option<u32>) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let board = board.map_or(String::new(), |board| format!(" board {board}"));
    format!(
        "{} {}/{} {}{board}",
        device.name,
        mib(device.free_bytes),
        mib(device.total_bytes),
        device.compute_capability
    )
}

fn check(text: &str, devices: &[&str]) {
    let list = read(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
    let seen: Vec<String> = (0..)
        .zip(&list.devices)
        .map(|(i, device)| shown(device, list.board(i)))
        .collect();
    assert_eq!(seen, devices, "{text:?}");
}

#[test]
fn texts_become_devices() {
    let k80 = "Tesla K80 11441/11441 3.7 board 0";
    check("none", &[]);
    check("k80", &[k80]);
    check("k80x2", &[k80, k80]);
    check("2xk80", &[k80, k80]);
    check("2*K80", &[k80, k80]);
    check("k80*2", &[k80, k80]);
    check(" 2 x Tesla K80 ", &[k80, k80]);
    check("K80 × 2", &[k80, k80]);
    check("k80x3", &[k80, k80, "Tesla K80 11441/11441 3.7 board 1"]);
    check(
        "k80,k80:free=1GiB,k80",
        &[
            k80,
            "Tesla K80 1024/11441 3.7 board 0",
            "Tesla K80 11441/11441 3.7 board 1",
        ],
    );
    check(
        "k80,rtx3090,k80",
        &[
            k80,
            "GeForce RTX 3090 24123/24123 8.6",
            "Tesla K80 11441/11441 3.7 board 1",
        ],
    );
    check(
        "h100,rtx3060:free=9GiB",
        &[
            "NVIDIA H100 80GB HBM3 81081/81081 9.0",
            "GeForce RTX 3060 12GB 9216/11906 8.6",
        ],
    );
    check(
        "24GiB,16000MiB:cc=7.5",
        &[
            "GPU 24 GiB 24576/24576 8.6",
            "GPU 16000 MiB 16000/16000 7.5",
        ],
    );
    check(
        "2x24GiB:free=50%:name=My Card",
        &["My Card 12288/24576 8.6"; 2],
    );
    check("24 GiB x 2", &["GPU 24 GiB 24576/24576 8.6"; 2]);
    check("rtx3060", &["GeForce RTX 3060 12GB 11906/11906 8.6"]);
    check("rtx3060x1", &["GeForce RTX 3060 12GB 11906/11906 8.6"]);
    check("3090x2", &["GeForce RTX 3090 24123/24123 8.6"; 2]);
    check("2x3090", &["GeForce RTX 3090 24123/24123 8.6"; 2]);
    check("titanxx2", &["NVIDIA TITAN X (Pascal) 12288/12288 6.1"; 2]);
    check(
        "rtx4090:size=48GiB : cc=8.9 : sms=128",
        &["GeForce RTX 4090 49152/49152 8.9"],
    );
    check(
        "rtx4090:free=1073741824",
        &["GeForce RTX 4090 1024/24080 8.9"],
    );
    check("16GiB:free=12.5%", &["GPU 16 GiB 2048/16384 8.6"]);
    check("16GiB:free=0", &["GPU 16 GiB 0/16384 8.6"]);
}

#[test]
fn expansions_are_described() {
    let check = |text: &str, expected: &[&str]| {
        let list = read(text).unwrap();
        let seen: Vec<String> = list
            .entries
            .iter()
            .map(|entry| entry.description())
            .collect();
        assert_eq!(seen, expected, "{text:?}");
    };
    check("k80", &["k80: 1 device, half a board (1 of 2 dies)"]);
    check("k80x2", &["k80x2: 2 devices, one board"]);
    check("k80x4", &["k80x4: 4 devices, 2 boards"]);
    check(
        "a16:free=9GiB",
        &["a16: 1 device, part of a board (1 of 4 dies)"],
    );
    check(
        "rtx4090,2xh100",
        &["rtx4090: 1 device", "2xh100: 2 devices"],
    );
    check("24GiBx2", &["24GiBx2: 2 devices"]);
    assert_eq!(GpuList::id(1), "CUDA1");
}

#[test]
fn assumptions_are_noted() {
    let check = |text: &str, expected: &[&str]| {
        let seen: Vec<String> = read(text)
            .unwrap()
            .notes
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(seen, expected, "{text:?}");
    };
    check("k80x2,rtx4090", &[]);
    check(
        "a100",
        &["a100 taken as a100-80g (NVIDIA A100 80GB, 80 GiB); others: a100-40g"],
    );
    check(
        "24GiB,24GiB",
        &["24GiB has no compute capability; 8.6 assumed, say otherwise as 24GiB:cc=7.5"],
    );
    check("24GiB:cc=7.5", &[]);
    check(
        "24GB:cc=7.5",
        &["24GB: 24000000000 bytes, or 22888 MiB, each; cards are sized in MiB and GiB"],
    );
    check(
        "rtx5050",
        &[
            "rtx5050: 8 GiB is its nominal size, an upper bound; the driver reports that or a little less",
        ],
    );
    check("rtx5050:total=8000MiB", &[]);
    check(
        "gb10",
        &["gb10: its memory is the system's own; give what is left for it as gb10:free=..."],
    );
}

#[test]
fn errors_say_what_to_do() {
    let check = |text: &str, expected: &str| {
        let error = read(text).expect_err(text);
        assert!(error.contains(expected), "{text:?}: {error}");
    };
    check("", "no GPU named");
    check("   ", "no GPU named");
    check(",", "an empty place between commas");
    check("k80,,k80", "an empty place between commas");
    check("auto,k80", "'auto' stands alone");
    check("none:free=1", "'none' stands alone");
    check("2xk80x2", "a count on both sides");
    check("k80x0", "asks for 0 devices");
    check("0*k80", "asks for 0 devices");
    check("k80x65", "over 64 devices");
    check("k80x64,k80", "over 64 devices");
    check("k80x99999999999999999999999", "over 64 devices");
    check("rtx306", "did you mean rtx3060, ");
    check("rtx3095", "unknown GPU 'rtx3095'; did you mean rtx3090?");
    check("7900xtx", "unknown GPU '7900xtx'");
    check("k81x2", "unknown GPU 'k81'; did you mean k80");
    check("2xk81", "unknown GPU 'k81'; did you mean k80");
    check("24G", "unknown GPU '24G'");
    check("0GiB", "unknown GPU");
    check(
        "k80:fre=1GiB",
        "'fre=1GiB' in 'k80:fre=1GiB' is not an option",
    );
    check("k80:", "is not an option");
    check(
        "rtx3060:free=9GiB,cc=8.6",
        "is an option with no GPU before it",
    );
    check("k80:free=1GiB:free=2GiB", "free= is given twice");
    check("k80:total=1GiB:size=2GiB", "size= is given twice");
    check("k80:free=9G", "free= in 'k80:free=9G': '9G' is not a size");
    check("k80:free=101%", "a percentage from 0% to 100%");
    check("k80:free=x%", "a percentage from 0% to 100%");
    check("k80:free=12GiB", "free memory is part of the total");
    check("k80:total=0", "a device has some memory");
    check("k80:cc=86", "write a compute capability as 8.6");
    check("k80:sms=0", "a number from 1 to 1024");
    check("k80:name=", "1 to 80 characters");
    check("auto", "name them instead: `--gpus k80x2`");
}

#[test]
fn auto_asks_the_probe() {
    struct Found;
    impl Probe for Found {
        fn machine(&self) -> Result<Machine, ProbeError> {
            let found = r#"{"driver": "535.1", "cuda": "12.2", "notes": [], "devices": [{
                "cuda_index": 0, "name": "Tesla P40", "total_bytes": 25617956864, "compute_capability": "6.1",
                "free": {"bytes": 20000000000, "from": "nvml"}, "integrated": false, "is_mig": false}]}"#;
            Ok(serde_json::from_str(found).unwrap())
        }
    }
    let list = "Auto".parse::<Gpus>().unwrap().resolve(&Found).unwrap();
    assert_eq!(list.devices[0].free_bytes, 20_000_000_000);
    assert_eq!(list.devices[0].sm_count, Some(30), "of the catalogue");
    assert_eq!(
        list.notes[0].to_string(),
        "auto: 1 device found on this machine, total from CUDA, free from NVML; driver 535.1"
    );
    let entry = &list.entries[0];
    assert_eq!(entry.description(), "Tesla P40 of this machine: 1 device");
    assert_eq!(entry.card.unwrap().key, "p40");
    let failed = ProbeError::Failed("no driver".to_owned()).to_string();
    assert!(failed.contains("no driver") && failed.contains("--gpus 24GiB"));
}

#[test]
fn the_help_shows_texts_that_work() {
    for line in GPUS_HELP.lines() {
        if let Some(example) = line
            .split_whitespace()
            .next()
            .filter(|_| line.contains("   ") && !line.starts_with(' '))
        {
            example
                .parse::<Gpus>()
                .unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}

fn near_grammar() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "k80",
        "rtx",
        "3060",
        "x",
        "*",
        "2",
        "64",
        "0",
        ":",
        "free=",
        "cc=",
        "total=",
        "sms=",
        "name=",
        ",",
        "GiB",
        "MiB",
        "GB",
        "%",
        ".",
        "80",
        "auto",
        "none",
        " ",
        "-",
        "_",
        "×",
        "é",
        "99999999999999999999",
        "nvidia",
        "titanx",
        "a100",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn holds(text: &str) {
    if let Ok(list) = read(text) {
        assert!(list.devices.len() <= MAX_DEVICES);
        let mut next = 0;
        for entry in &list.entries {
            assert_eq!(entry.devices.start, next);
            next = entry.devices.end;
            assert!(!entry.description().is_empty());
        }
        assert_eq!(next, list.devices.len());
        for device in &list.devices {
            assert!(device.free_bytes <= device.total_bytes);
            assert!(device.overhead.bytes > 0);
        }
        list.notes
            .iter()
            .for_each(|note| assert!(!note.to_string().is_empty()));
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), near in near_grammar()) {
        holds(&text);
        holds(&near);
        drop(find_card(&text));
        drop(parse_bytes(&text));
        drop(list_cards(&text));
        drop(text.parse::<ComputeCapability>());
    }
}
