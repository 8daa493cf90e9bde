//! `cudaDeviceProp` of CUDA 13: what a program asks of a card, in one struct.

use std::ffi::{c_int, c_uint};
use std::mem::offset_of;

use crate::spec::Spec;

/// The struct, field by field in the header's order; limits of textures and surfaces, and what is reserved, in one piece.
#[repr(C)]
pub(crate) struct Properties {
    name: [u8; 256],
    uuid: [u8; 16],
    luid: [u8; 8],
    luid_node_mask: c_uint,
    total_memory: usize,
    shared_of_block: usize,
    registers_of_block: c_int,
    warp: c_int,
    pitch: usize,
    threads_of_block: c_int,
    block: [c_int; 3],
    grid: [c_int; 3],
    constant_memory: usize,
    major: c_int,
    minor: c_int,
    texture_alignment: usize,
    texture_pitch_alignment: usize,
    multiprocessors: c_int,
    integrated: c_int,
    maps_host_memory: c_int,
    textures: [c_int; 39],
    surface_alignment: usize,
    concurrent_kernels: c_int,
    ecc: c_int,
    pci_bus: c_int,
    pci_device: c_int,
    pci_domain: c_int,
    tcc: c_int,
    copy_engines: c_int,
    unified_addressing: c_int,
    memory_bus_bits: c_int,
    l2_bytes: c_int,
    l2_persisting_bytes: c_int,
    threads_of_multiprocessor: c_int,
    stream_priorities: c_int,
    l1_for_globals: c_int,
    l1_for_locals: c_int,
    shared_of_multiprocessor: usize,
    registers_of_multiprocessor: c_int,
    managed_memory: c_int,
    multi_gpu_board: c_int,
    multi_gpu_board_group: c_int,
    host_native_atomics: c_int,
    pageable_memory_access: c_int,
    concurrent_managed_access: c_int,
    compute_preemption: c_int,
    host_pointer_for_registered: c_int,
    cooperative_launch: c_int,
    shared_of_block_optin: usize,
    host_page_tables: c_int,
    managed_access_from_host: c_int,
    blocks_of_multiprocessor: c_int,
    access_policy_window: c_int,
    shared_reserved: usize,
    host_register: c_int,
    sparse_arrays: c_int,
    host_register_read_only: c_int,
    timeline_semaphores: c_int,
    memory_pools: c_int,
    rdma: [c_int; 3],
    pool_handles: c_uint,
    deferred_mapping: c_int,
    ipc_events: c_int,
    cluster_launch: c_int,
    unified_function_pointers: c_int,
    numa_config: c_int,
    numa_node: c_int,
    mps: c_int,
    host_numa_node: c_int,
    pci_ids: [c_uint; 2],
    rest: [c_int; 57],
}

// As a C compiler lays out the header of CUDA 13.5.
const _: () = assert!(size_of::<Properties>() == 1008);
const _: () = assert!(offset_of!(Properties, total_memory) == 288);
const _: () = assert!(offset_of!(Properties, multiprocessors) == 384);
const _: () = assert!(offset_of!(Properties, surface_alignment) == 552);
const _: () = assert!(offset_of!(Properties, pci_bus) == 568);
const _: () = assert!(offset_of!(Properties, threads_of_multiprocessor) == 604);
const _: () = assert!(offset_of!(Properties, shared_of_multiprocessor) == 624);
const _: () = assert!(offset_of!(Properties, concurrent_managed_access) == 656);
const _: () = assert!(offset_of!(Properties, shared_of_block_optin) == 672);
const _: () = assert!(offset_of!(Properties, shared_reserved) == 696);
const _: () = assert!(offset_of!(Properties, memory_pools) == 720);
const _: () = assert!(offset_of!(Properties, host_numa_node) == 768);

impl Properties {
    pub fn of(spec: &Spec) -> Self {
        // SAFETY: numbers only, of which each may be zero.
        let mut all: Properties = unsafe { std::mem::zeroed() };
        for (to, from) in all.name.iter_mut().take(255).zip(spec.name.bytes()) {
            *to = from;
        }
        all.uuid = spec.uuid;
        (all.major, all.minor) = (spec.major as c_int, spec.minor as c_int);
        (all.pci_domain, all.pci_bus) = (spec.pci.domain as c_int, spec.pci.bus as c_int);
        all.pci_device = spec.pci.device as c_int;
        all.multiprocessors = spec.sms as c_int;
        all.integrated = spec.integrated.into();
        all.memory(spec);
        all.limits(spec);
        all.features(spec);
        all
    }

    fn memory(&mut self, spec: &Spec) {
        self.total_memory = spec.total_bytes as usize;
        self.constant_memory = 65_536;
        self.pitch = c_int::MAX as usize;
        self.memory_bus_bits = 384;
        self.l2_bytes = 4 << 20;
        self.host_numa_node = -1;
        self.texture_alignment = 512;
        self.texture_pitch_alignment = 32;
    }

    fn limits(&mut self, spec: &Spec) {
        self.warp = 32;
        self.threads_of_block = 1024;
        self.threads_of_multiprocessor = 2048;
        self.blocks_of_multiprocessor = 16;
        self.registers_of_block = 65_536;
        self.registers_of_multiprocessor = 65_536;
        self.shared_of_block = 49_152;
        self.shared_of_block_optin = spec.smem_optin as usize;
        self.shared_of_multiprocessor = spec.smem_optin as usize + 1024;
        self.shared_reserved = if spec.major >= 8 { 1024 } else { 0 };
        self.block = [1024, 1024, 64];
        self.grid = [c_int::MAX, 65_535, 65_535];
    }

    fn features(&mut self, spec: &Spec) {
        for feature in [
            &mut self.maps_host_memory,
            &mut self.concurrent_kernels,
            &mut self.unified_addressing,
            &mut self.managed_memory,
            &mut self.concurrent_managed_access,
            &mut self.stream_priorities,
            &mut self.l1_for_globals,
            &mut self.l1_for_locals,
            &mut self.host_register,
            &mut self.memory_pools,
        ] {
            *feature = 1;
        }
        self.copy_engines = 2;
        self.cooperative_launch = (spec.major >= 6).into();
    }
}
