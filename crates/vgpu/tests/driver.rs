//! The driver as a program meets it: through the dynamic linker, in a process of its own. Codes and rules are those of
//! NVIDIA's documentation of the driver API.
#![cfg(target_os = "linux")]

mod common;

use common::Player;

const TWO: &str = "Tesla K80:11441MiB:3.7:context=169MiB,NVIDIA A100:40GiB:8.0:free=30GiB:pci=0000:3b:00.0:\
                   uuid=GPU-01234567-89ab-cdef-0123-456789abcdef";

#[test]
fn devices_are_what_the_list_says() {
    let mut player = Player::start(TWO, &[("VGPU_DRIVER", "470.256.02")]);
    player.check(&[
        ("cuDeviceGetCount", "3 0"), // not initialised
        ("cuDriverGetVersion", "0 11040"),
        ("cuInit", "0"),
        ("cuDeviceGetCount", "0 2"),
        ("cuDeviceGet 1", "0 1"),
        ("cuDeviceGet 2", "101 0"),
        ("cuDeviceGet -1", "101 0"),
        ("cuDeviceGetName 0", "0 Tesla K80"),
        ("cuDeviceTotalMem_v2 0", "0 11996758016"),
        ("cuDeviceTotalMem_v2 1", "0 42949672960"),
        ("cuDeviceGetAttribute 0 75", "0 3"),
        ("cuDeviceGetAttribute 0 76", "0 7"),
        ("cuDeviceGetAttribute 1 16", "0 108"),
        ("cuDeviceGetAttribute 1 33", "0 59"),
        ("cuDeviceGetAttribute 1 102", "0 1"),
        ("cuDeviceGetAttribute 1 9999", "1 0"),
        ("cuDeviceGetUuid 1", "0 0123456789abcdef0123456789abcdef"),
        ("cuDeviceGetPCIBusId 1", "0 0000:3B:00.0"),
        ("cuDeviceGetByPCIBusId 0000:3b:00.0", "0 1"),
        ("cuDeviceGetByPCIBusId 0000:77:00.0", "101 0"),
        ("cuGetErrorName 2", "0 CUDA_ERROR_OUT_OF_MEMORY"),
        (
            "cuGetErrorString 100",
            "0 no CUDA-capable device is detected",
        ),
        ("cuGetErrorName 12345", "1 -"),
    ]);
}

#[test]
fn contexts_take_memory_and_give_it_back_with_all_that_was_allocated_in_them() {
    let mut player = Player::start(TWO, &[]);
    let total = 11_996_758_016u64;
    let context = 169 << 20;
    player.check(&[
        ("cuInit", "0"),
        ("cuMemGetInfo_v2", "201 0 0"),
        ("cuMemAlloc_v2 100 x", "201"),
    ]);
    player.check(&[
        ("cuDevicePrimaryCtxGetState 0", "0 0"),
        ("cuDevicePrimaryCtxRetain 0 k80", "0"),
        ("cuDevicePrimaryCtxRetain 0 again", "0"),
        ("cuDevicePrimaryCtxGetState 0", "0 1"),
        ("cuCtxSetCurrent k80", "0"),
        ("cuCtxGetDevice", "0 0"),
        ("cuMemGetInfo_v2", &format!("0 {} {total}", total - context)),
        ("cuMemAlloc_v2 1000 a", "0"),
        ("cuMemAlloc_v2 0 none", "1"),
        (
            "cuMemGetInfo_v2",
            &format!("0 {} {total}", total - context - 1000),
        ),
        ("cuCtxCreate_v2 1 a100", "0"),
        ("cuCtxGetDevice", "0 1"),
        (
            "cuMemGetInfo_v2",
            &format!("0 {} {}", 30u64 << 30, 40u64 << 30),
        ),
        ("cuCtxPopCurrent_v2", "0"),
        ("cuCtxGetDevice", "0 0"),
        ("cuMemFree_v2 a", "0"),
        ("cuMemFree_v2 a", "1"),
        ("cuMemAlloc_v2 5000 b", "0"),
        ("cuDevicePrimaryCtxRelease_v2 0", "0"),
        (
            "cuMemGetInfo_v2",
            &format!("0 {} {total}", total - context - 5000),
        ),
        ("cuDevicePrimaryCtxRelease_v2 0", "0"),
        ("cuDevicePrimaryCtxRelease_v2 0", "201"),
        ("cuMemGetInfo_v2", "201 0 0"),
        ("cuDevicePrimaryCtxRetain 0 new", "0"),
        ("cuCtxSetCurrent new", "0"),
        ("cuMemGetInfo_v2", &format!("0 {} {total}", total - context)),
    ]);
}

#[test]
fn what_does_not_fit_is_refused_to_the_byte() {
    for (setting, last) in [("0", "2"), ("1", "0")] {
        let mut player = Player::start(
            "Small:1000000:7.5:context=1000",
            &[("VGPU_NO_OOM", setting)],
        );
        player.check(&[
            ("cuInit", "0"),
            ("cuDevicePrimaryCtxRetain 0 c", "0"),
            ("cuCtxSetCurrent c", "0"),
            ("cuMemAlloc_v2 999000 all", "0"),
            ("cuMemGetInfo_v2", "0 0 1000000"),
            ("cuMemAlloc_v2 1 more", last),
        ]);
    }
}

#[test]
fn a_context_that_does_not_fit_is_refused() {
    let mut player = Player::start("Full:8GiB:7.5:free=100MiB:context=300MiB", &[]);
    player.check(&[
        ("cuInit", "0"),
        ("cuDevicePrimaryCtxRetain 0 c", "2"),
        ("cuDevicePrimaryCtxGetState 0", "0 0"),
    ]);
}

#[test]
fn the_card_gives_whole_blocks_where_it_is_told_to() {
    let mut player = Player::start("T4:1GiB:7.5:granularity=2MiB", &[]);
    player.check(&[
        ("cuInit", "0"),
        ("cuDevicePrimaryCtxRetain 0 c", "0"),
        ("cuCtxSetCurrent c", "0"),
        ("cuMemAlloc_v2 2097153 a", "0"),
        (
            "cuMemGetInfo_v2",
            &format!("0 {} {}", (1u64 << 30) - (4 << 20), 1u64 << 30),
        ),
    ]);
}

#[test]
fn physical_memory_lives_until_it_is_released_and_unmapped() {
    let block = 2u64 << 20;
    let all = 10 * block;
    let mut player = Player::start(&format!("P:{all}:8.6"), &[]);
    let free = |blocks: u64| format!("0 {} {all}", all - blocks * block);
    player.check(&[
        ("cuInit", "0"),
        ("cuDevicePrimaryCtxRetain 0 c", "0"),
        ("cuCtxSetCurrent c", "0"),
        (&format!("cuMemAddressReserve {} at", 32u64 << 30), "0"),
        ("cuMemCreate 1000 odd 0", "1"),
        (&format!("cuMemCreate {} p 0", 3 * block), "0"),
        ("cuMemGetInfo_v2", &free(3)),
        (&format!("cuMemMap at {} p", 3 * block), "0"),
        ("cuMemRelease p", "0"),
        ("cuMemGetInfo_v2", &free(3)),
        (&format!("cuMemCreate {} q 0", 8 * block), "2"),
        (&format!("cuMemUnmap at {}", 3 * block), "0"),
        ("cuMemGetInfo_v2", &free(0)),
        (&format!("cuMemCreate {} q 0", 8 * block), "0"),
        ("cuMemRelease q", "0"),
        ("cuMemGetInfo_v2", &free(0)),
        ("cuMemRelease q", "1"),
    ]);
    let mut player = Player::start("P:1GiB:8.6:vmm=0", &[]);
    player.check(&[
        ("cuInit", "0"),
        ("cuDeviceGetAttribute 0 102", "0 0"),
        (&format!("cuMemCreate {block} p 0"), "801"),
    ]);
}

#[test]
fn entry_points_are_those_of_the_cuda_that_asks() {
    let mut player = Player::start("T4:1GiB:7.5", &[]);
    player.check(&[
        ("cuGetProcAddress cuMemAlloc 11040", "0 cuMemAlloc_v2"),
        ("cuGetProcAddress cuInit 11040", "0 cuInit"),
        (
            "cuGetProcAddress cuDeviceGetUuid 11030",
            "0 cuDeviceGetUuid",
        ),
        (
            "cuGetProcAddress cuDeviceGetUuid 11040",
            "0 cuDeviceGetUuid_v2",
        ),
        ("cuGetProcAddress cuCtxCreate 11030", "0 cuCtxCreate_v2"),
        ("cuGetProcAddress cuCtxCreate 13000", "0 cuCtxCreate_v4"),
        ("cuGetProcAddress cuNothing 13000", "500 -"),
    ]);
}

#[test]
fn what_cuda_shows_is_what_the_environment_lets_it() {
    let list = "A:1GiB:8.0:pci=9:uuid=aaaaaaaa000000000000000000000001,\
                B:2GiB:8.0:pci=3:uuid=bbbbbbbb000000000000000000000002";
    for (visible, order, init, count, first) in [
        ("1,0", "FASTEST_FIRST", "0", "0 2", "0 B"),
        ("0", "PCI_BUS_ID", "0", "0 1", "0 B"),
        ("GPU-aaaa,5,1", "PCI_BUS_ID", "0", "0 1", "0 A"),
        ("", "PCI_BUS_ID", "100", "3 0", "3 "),
        ("-1", "FASTEST_FIRST", "100", "3 0", "3 "),
    ] {
        let environment = [
            ("CUDA_VISIBLE_DEVICES", visible),
            ("CUDA_DEVICE_ORDER", order),
        ];
        let mut player = Player::start(list, &environment);
        player.check(&[
            ("cuInit", init),
            ("cuDeviceGetCount", count),
            ("cuDeviceGetName 0", first),
        ]);
        player.check(&[
            ("nvmlInit_v2", "0"),
            ("nvmlDeviceGetCount_v2", "0 2"),
            ("nvmlDeviceGetName 0", "0 B"),
            ("nvmlDeviceGetName 1", "0 A"),
        ]);
    }
}

#[test]
fn no_gpus_and_bad_settings() {
    let mut player = Player::start("", &[]);
    player.check(&[
        ("cuInit", "100"),
        ("nvmlInit_v2", "0"),
        ("nvmlDeviceGetCount_v2", "0 0"),
    ]);
    let mut player = Player::start("Small", &[]);
    player.say("cuInit");
    let status = player.child.wait().expect("it ends");
    assert_eq!(status.code(), Some(65));
}
