//! NVML as a program meets it, also with several processes on the same GPUs.
#![cfg(target_os = "linux")]

mod common;

use std::time::Duration;

use common::Player;

const MIB: u64 = 1 << 20;

#[test]
fn memory_with_what_the_driver_keeps_apart_and_without() {
    let mut player = Player::start("H100:80000MiB:9.0:reserved=559MiB:free=79000MiB", &[]);
    let total = 80_559 * MIB;
    let free = 79_000 * MIB;
    player.check(&[
        ("nvmlDeviceGetCount_v2", "1 0"), // not initialised
        ("nvmlInit_v2", "0"),
        (
            "nvmlDeviceGetMemoryInfo 0",
            &format!("0 {total} {free} {}", total - free),
        ),
        (
            "nvmlDeviceGetMemoryInfo_v2 0",
            &format!("0 {total} {} {free} {}", 559 * MIB, 1000 * MIB),
        ),
        ("nvmlDeviceGetMemoryInfo 1", "2"),
        ("nvmlDeviceGetMigMode 0", "0 0"),
        ("nvmlShutdown", "0"),
        ("nvmlShutdown", "1"),
    ]);
}

#[test]
fn an_old_driver_lacks_the_newer_calls() {
    let mut player = Player::start(
        "Tesla K80:11441MiB:3.7:pci=5",
        &[("VGPU_DRIVER", "470.256.02")],
    );
    player.check(&[
        ("nvmlInit_v2", "0"),
        ("nvmlSystemGetDriverVersion", "0 470.256.02"),
        ("nvmlDeviceGetMemoryInfo_v2 0", "13 0 0 0 0"),
        ("nvmlDeviceGetMemoryInfo 0", "0 11996758016 11996758016 0"),
        ("nvmlDeviceGetComputeRunningProcesses_v3 0", "13"),
        ("nvmlDeviceGetComputeRunningProcesses_v2 0", "0"),
        ("nvmlDeviceGetMigMode 0", "3 0"),
        (
            "nvmlDeviceGetPciInfo_v3 0",
            "0 0000:05:00.0 00000000:05:00.0",
        ),
        ("nvmlDeviceGetHandleByPciBusId_v2 00000000:05:00.0", "0 0"),
        ("nvmlDeviceGetHandleByPciBusId_v2 00000000:06:00.0", "6"),
    ]);
}

#[test]
fn a_card_in_mig_mode_is_one_instance_to_cuda() {
    let uuid = "01234567-89ab-cdef-0123-456789abcdef";
    let mig = "fe234567-89ab-cdef-0123-456789abcdef";
    let mut player = Player::start(&format!("A100:40GiB:8.0:mig=1:uuid={uuid}"), &[]);
    player.check(&[
        ("nvmlInit_v2", "0"),
        ("nvmlDeviceGetMigMode 0", "0 1"),
        ("nvmlDeviceGetUUID 0", &format!("0 GPU-{uuid}")),
        ("nvmlDeviceGetUUID 0 mig", &format!("0 MIG-{mig}")),
        ("nvmlDeviceGetName 0 mig", "0 A100 MIG 7g.40gb"),
        (&format!("nvmlDeviceGetHandleByUUID GPU-{uuid}"), "0 0"),
        ("nvmlDeviceGetHandleByUUID GPU-0", "6"),
        ("cuInit", "0"),
        ("cuDeviceGetName 0", "0 A100 MIG 7g.40gb"),
        ("cuDeviceGetUuid 0", &format!("0 {}", uuid.replace('-', ""))),
        (
            "cuDeviceGetUuid_v2 0",
            &format!("0 {}", mig.replace('-', "")),
        ),
    ]);
}

/// Takes a context and an allocation on the first GPU.
fn settle(player: &mut Player, bytes: u64) {
    player.check(&[
        ("cuInit", "0"),
        ("cuDevicePrimaryCtxRetain 0 c", "0"),
        ("cuCtxSetCurrent c", "0"),
        (&format!("cuMemAlloc_v2 {bytes} a"), "0"),
    ]);
}

#[test]
fn processes_see_each_other_until_they_are_killed() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let environment = [("VGPU_STATE", state.to_str().expect("a path"))];
    let gpus = "T4:1000MiB:7.5:context=100MiB";
    let [mut first, mut second, mut watcher] = [(); 3].map(|()| Player::start(gpus, &environment));
    settle(&mut first, 300 * MIB);
    settle(&mut second, 200 * MIB);
    let line = |player: &Player, mib: u64| format!(" {}:{}", player.child.id(), mib * MIB);
    let both = format!("0{}{}", line(&first, 400), line(&second, 300));
    watcher.check(&[
        ("nvmlInit_v2", "0"),
        ("nvmlDeviceGetComputeRunningProcesses_v3 0", &both),
        (
            "nvmlDeviceGetMemoryInfo 0",
            &format!("0 {} {} {}", 1000 * MIB, 300 * MIB, 700 * MIB),
        ),
    ]);
    // What one has taken the other cannot have.
    second.check(&[
        (
            "cuMemGetInfo_v2",
            &format!("0 {} {}", 300 * MIB, 1000 * MIB),
        ),
        (&format!("cuMemAlloc_v2 {} b", 301 * MIB), "2"),
    ]);
    first.child.kill().expect("it can be killed"); // and is not waited for: a zombie holds no memory
    let alone = format!("0{}", line(&second, 300));
    while watcher.ask("nvmlDeviceGetComputeRunningProcesses_v3 0") != alone {
        std::thread::sleep(Duration::from_millis(5)); // the signal is on its way
    }
    second.check(&[
        (&format!("cuMemAlloc_v2 {} b", 700 * MIB), "0"),
        ("cuMemFree_v2 a", "0"),
        (
            "cuMemGetInfo_v2",
            &format!("0 {} {}", 200 * MIB, 1000 * MIB),
        ),
    ]);
    watcher.check(&[(
        "nvmlDeviceGetComputeRunningProcesses_v3 0",
        &format!("0{}", line(&second, 800)),
    )]);
}

#[test]
fn processes_together_never_take_more_than_there_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    let environment = [("VGPU_STATE", state.to_str().expect("a path"))];
    let mut players: Vec<Player> = (0..4)
        .map(|_| Player::start("Small:5000:7.5", &environment))
        .collect();
    for player in &mut players {
        player.check(&[
            ("cuInit", "0"),
            ("cuDevicePrimaryCtxRetain 0 c", "0"),
            ("cuCtxSetCurrent c", "0"),
        ]);
    }
    for player in &mut players {
        for _ in 0..30 {
            player.say("cuMemAlloc_v2 100 a"); // all at once; the answers are looked at later
        }
    }
    let answers: Vec<String> = players
        .iter()
        .flat_map(|player| {
            (0..30).map(|_| player.answer(Duration::from_secs(60)).expect("an answer"))
        })
        .collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "0").count(), 50);
    assert_eq!(answers.iter().filter(|answer| *answer == "2").count(), 70);
}

#[test]
fn a_file_that_is_no_state_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "something of somebody's").expect("a file");
    let mut player = Player::start(
        "T4:1GiB:7.5",
        &[("VGPU_STATE", file.to_str().expect("a path"))],
    );
    player.say("cuInit");
    assert_eq!(player.child.wait().expect("it ends").code(), Some(65));
    assert_eq!(
        std::fs::read_to_string(&file).expect("the file"),
        "something of somebody's"
    );
}

#[test]
fn without_a_common_state_a_process_sees_itself_alone() {
    let mut player = Player::start("2*T4:1000MiB:7.5:context=100MiB", &[]);
    player.check(&[
        ("nvmlInit_v2", "0"),
        ("nvmlDeviceGetComputeRunningProcesses_v3 0", "0"),
    ]);
    settle(&mut player, 10);
    let own = format!("0 {}:{}", player.child.id(), 100 * MIB + 10);
    player.check(&[
        ("nvmlDeviceGetComputeRunningProcesses_v3 0", &own),
        ("nvmlDeviceGetComputeRunningProcesses_v3 1", "0"),
    ]);
}

#[test]
fn how_much_a_process_uses_may_be_unknown() {
    let mut player = Player::start("T4:1000MiB:7.5", &[("VGPU_PROCESS_MEMORY", "0")]);
    settle(&mut player, 10);
    let own = format!("0 {}:{}", player.child.id(), u64::MAX);
    player.check(&[
        ("nvmlInit_v2", "0"),
        ("nvmlDeviceGetComputeRunningProcesses_v3 0", &own),
    ]);
}

#[test]
fn calls_fail_as_they_are_told_to() {
    let mut player = Player::start("T4:1GiB:7.5", &[("VGPU_FAIL", "nvmlInit:9,cuMemAlloc:2@2")]);
    player.check(&[("nvmlInit_v2", "9"), ("nvmlDeviceGetCount_v2", "1 0")]);
    settle(&mut player, 10);
    player.check(&[("cuMemAlloc_v2 10 b", "2"), ("cuMemFree_v2 a", "0")]);
}

#[test]
fn a_call_that_hangs_does_so_until_the_process_is_killed() {
    let mut player = Player::start("T4:1GiB:7.5", &[("VGPU_HANG", "cuInit")]);
    player.check(&[("cuDriverGetVersion", "0 13000")]);
    player.say("cuInit");
    assert_eq!(player.answer(Duration::from_millis(300)), None);
    assert!(player.child.try_wait().expect("a state").is_none());
    player.child.kill().expect("it can be killed");
    assert!(!player.child.wait().expect("it ends").success());
}
