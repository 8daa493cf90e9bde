//! The CUDA runtime and cuBLAS, and that all four libraries are one. Codes are those of NVIDIA's documentation.
#![cfg(target_os = "linux")]

mod common;

use common::Player;

#[test]
fn what_one_library_takes_the_others_see() {
    let mut player = Player::start("T4:1000000:7.5:context=1000,P4:2000000:6.1", &[]);
    let process = format!("0 {}:", player.child.id());
    player.check(&[
        ("cudaGetDeviceCount", "0 2"),
        ("cuDeviceGetCount", "0 2"), // the runtime has initialised the driver
        ("cuMemGetInfo_v2", "201 0 0"),
        ("nvmlInit_v2", "0"),
        ("nvmlDeviceGetComputeRunningProcesses_v3 0", "0"),
        ("cudaSetDevice 0", "0"),
        ("cuMemGetInfo_v2", "0 999000 1000000"),
        ("cudaMalloc 9000 a", "0"),
        ("cuMemAlloc_v2 10000 b", "0"),
        ("cudaMemGetInfo", "0 980000 1000000"),
        ("cuMemGetInfo_v2", "0 980000 1000000"),
        ("nvmlDeviceGetMemoryInfo 0", "0 1000000 980000 20000"),
        (
            "nvmlDeviceGetComputeRunningProcesses_v3 0",
            &format!("{process}20000"),
        ),
        ("cudaFree b", "0"),
        ("cuMemFree_v2 a", "0"),
        ("cudaFree a", "1"),
        ("cudaMemGetInfo", "0 999000 1000000"),
        ("cudaSetDevice 1", "0"),
        ("cuCtxGetDevice", "0 1"),
        ("cudaMemGetInfo", "0 2000000 2000000"),
        ("cudaDeviceReset", "0"),
        ("nvmlDeviceGetComputeRunningProcesses_v3 1", "0"),
        ("cublasCreate_v2", "0"),
    ]);
}

#[test]
fn errors_stay_until_they_are_asked_for() {
    let mut player = Player::start("T4:1000000:7.5", &[]);
    player.check(&[
        ("cudaSetDevice 1", "101"),
        ("cudaPeekAtLastError", "101"),
        ("cudaGetLastError", "101"),
        ("cudaGetLastError", "0"),
        ("cudaMalloc 1000001 a", "2"),
        ("cudaMalloc 1000000 a", "0"),
        ("cudaPeekAtLastError", "2"),
        ("cudaMalloc 0 none", "0"),
        ("cudaFree none", "0"),
    ]);
}

#[test]
fn counters_of_what_was_asked_for() {
    let mut player = Player::start(
        "T4:100MiB:7.5:granularity=2MiB,P4:100MiB:6.1",
        &[("CUDA_VISIBLE_DEVICES", "1,0")],
    );
    player.check(&[
        ("vgpu_count", "2"),
        ("cudaSetDevice 1", "0"),
        ("cudaMalloc 100 a", "0"),
        ("cudaMalloc 3000000 b", "0"),
        ("cudaMallocHost 5000 c", "0"),
        ("vgpu_allocated 1", "3000100"),
        ("vgpu_allocated_2m 1", &(6 << 20).to_string()),
        ("vgpu_mallocs 1", "2"),
        ("vgpu_allocated 0", "0"),
        ("cudaMemGetInfo", &format!("0 {} {}", 94 << 20, 100 << 20)),
        ("cudaLaunchKernel", "0"),
        ("cudaLaunchKernel", "0"),
        ("vgpu_launches 1", "2"),
        ("vgpu_launches 0", "0"),
        ("cudaFree a", "0"),
        ("cudaFreeHost c", "0"),
        ("vgpu_allocated 1", "3000000"),
        ("vgpu_allocated 7", "0"),
    ]);
}

#[test]
fn properties_lie_where_the_header_has_them() {
    let mut player = Player::start("Tesla K80:11441MiB:3.7:pci=0000:85:00.0", &[]);
    player.check(&[
        (
            "cudaGetDeviceProperties 0",
            "0 Tesla K80 11996758016 3.7 13 133",
        ),
        ("cudaGetDeviceProperties 1", "101  0 0.0 0 0"),
    ]);
}

#[test]
fn the_runtime_fails_where_the_driver_does() {
    let mut player = Player::start("T4:1GiB:7.5", &[("VGPU_FAIL", "cuInit:999")]);
    player.check(&[("cudaGetDeviceCount", "999 0"), ("cudaMalloc 1 a", "999")]);
    let mut player = Player::start("", &[]);
    player.check(&[("cudaGetDeviceCount", "100 0"), ("cudaGetLastError", "100")]);
    let mut player = Player::start("T4:1GiB:7.5", &[("VGPU_FAIL", "cublasCreate:3")]);
    player.check(&[("cublasCreate_v2", "3")]);
}
