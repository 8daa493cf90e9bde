//! What this process uses of the GPUs: contexts, allocations, physical blocks of the virtual-memory calls. One for all
//! four libraries, as they are one file.

use std::collections::BTreeMap;

use crate::memory;
use crate::shared::Shared;
use crate::world::world;

/// What the report calls rounded: the block of a real driver.
const BLOCK: u64 = 2 << 20;

/// Counters of one GPU, all of this process alone.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counters {
    /// What the card has given: contexts, allocations, physical blocks, each rounded to the card's granularity.
    pub charged: u64,
    pub contexts: u64,
    /// Live bytes as asked for, their peak, the same with each request rounded to 2 MiB, and requests granted.
    pub asked: u64,
    pub asked_peak: u64,
    pub rounded: u64,
    pub rounded_peak: u64,
    pub calls: u64,
    /// Physical blocks (`cuMemCreate`), live and peak.
    pub vmm: u64,
    pub vmm_peak: u64,
}

/// A live allocation: `place` is `None` for pinned host memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block {
    pub place: Option<usize>,
    pub bytes: u64,
    mapped: usize,
    context: usize,
}

/// Physical memory of the virtual-memory calls: gone when its handle is released and nothing maps it.
#[derive(Debug, Clone, Copy)]
struct Physical {
    place: usize,
    bytes: u64,
    released: bool,
    mappings: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    pub place: usize,
    pub primary: bool,
}

/// A request that the card refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    OutOfMemory,
    /// No such address, handle or context.
    Unknown,
}

#[derive(Default)]
pub(crate) struct Live {
    pub devices: Vec<Counters>,
    blocks: BTreeMap<usize, Block>,
    physical: BTreeMap<u64, Physical>,
    /// Address of a mapping: its length and the physical block.
    mappings: BTreeMap<usize, (usize, u64)>,
    contexts: BTreeMap<usize, Context>,
    /// By place: the primary context's handle and how often it is held.
    primary: BTreeMap<usize, (usize, u32)>,
    /// By place: the primary context that the runtime holds.
    runtime: BTreeMap<usize, usize>,
    handles: u64,
    pub pinned: u64,
    pub pinned_peak: u64,
    /// The file of `VGPU_STATE`, if there is one.
    pub shared: Option<Shared>,
}

fn round_up(bytes: u64, to: u64) -> u64 {
    bytes.checked_next_multiple_of(to.max(1)).unwrap_or(bytes)
}

impl Live {
    /// Nothing used yet of so many GPUs.
    pub fn new(count: usize, shared: Option<Shared>) -> Self {
        Live {
            devices: vec![Counters::default(); count],
            shared,
            ..Live::default()
        }
    }

    /// Gives or takes back memory of a card, and contexts with it. Refused where all processes would pass what is free.
    fn charge(&mut self, place: usize, bytes: u64, contexts: u64) -> Result<(), Refusal> {
        let settings = &world().settings;
        let (Some(spec), Some(device)) = (settings.devices.get(place), self.devices.get_mut(place))
        else {
            return Err(Refusal::Unknown);
        };
        let charged = device.charged.saturating_add(bytes);
        let contexts = device.contexts.saturating_add(contexts);
        let limit = (settings.enforce && bytes > 0).then_some(spec.free_bytes);
        let granted = match &mut self.shared {
            Some(shared) => shared.say(place, charged, contexts, limit),
            None => limit.is_none_or(|limit| charged <= limit),
        };
        if !granted {
            world().trace(Some(place), || {
                format!(
                    "{bytes} -> OOM (used {} of {})",
                    device.charged, spec.free_bytes
                )
            });
            return Err(Refusal::OutOfMemory);
        }
        device.charged = charged;
        device.contexts = contexts;
        Ok(())
    }

    fn uncharge(&mut self, place: usize, bytes: u64, contexts: u64) {
        let Some(device) = self.devices.get_mut(place) else {
            return;
        };
        device.charged = device.charged.saturating_sub(bytes);
        device.contexts = device.contexts.saturating_sub(contexts);
        if let Some(shared) = &mut self.shared {
            shared.say(place, device.charged, device.contexts, None);
        }
    }

    fn granularity(&self, place: usize) -> u64 {
        world().spec(place).map_or(1, |spec| spec.granularity)
    }

    /// Device memory: address space that nobody can read, so that it costs nothing.
    pub fn allocate(
        &mut self,
        place: usize,
        context: usize,
        bytes: u64,
        call: &str,
    ) -> Result<usize, Refusal> {
        let charged = round_up(bytes, self.granularity(place));
        self.charge(place, charged, 0)?;
        let mapped = memory::pages(bytes);
        let Some(address) = mapped.and_then(|length| memory::reserve(length, false)) else {
            self.uncharge(place, charged, 0);
            return Err(Refusal::OutOfMemory);
        };
        let mapped = mapped.unwrap_or(0);
        self.blocks.insert(
            address,
            Block {
                place: Some(place),
                bytes,
                mapped,
                context,
            },
        );
        if let Some(device) = self.devices.get_mut(place) {
            device.calls += 1;
            device.asked += bytes;
            device.rounded += round_up(bytes, BLOCK);
            device.asked_peak = device.asked_peak.max(device.asked);
            device.rounded_peak = device.rounded_peak.max(device.rounded);
            world().trace(Some(place), || {
                format!("{call} {bytes} -> {address:#x} (live {})", device.asked)
            });
        }
        Ok(address)
    }

    /// Pinned host memory, which is real memory.
    pub fn allocate_host(&mut self, bytes: u64) -> Result<usize, Refusal> {
        let mapped = memory::pages(bytes).ok_or(Refusal::OutOfMemory)?;
        let address = memory::reserve(mapped, true).ok_or(Refusal::OutOfMemory)?;
        self.blocks.insert(
            address,
            Block {
                place: None,
                bytes,
                mapped,
                context: 0,
            },
        );
        self.pinned += bytes;
        self.pinned_peak = self.pinned_peak.max(self.pinned);
        world().trace(None, || format!("pinned {bytes} (live {})", self.pinned));
        Ok(address)
    }

    /// Frees what `allocate` or `allocate_host` gave.
    pub fn free(&mut self, address: usize) -> Result<(), Refusal> {
        let block = self.blocks.remove(&address).ok_or(Refusal::Unknown)?;
        memory::give_back(address, block.mapped);
        let Some(place) = block.place else {
            self.pinned -= block.bytes;
            return Ok(());
        };
        self.uncharge(place, round_up(block.bytes, self.granularity(place)), 0);
        if let Some(device) = self.devices.get_mut(place) {
            device.asked -= block.bytes;
            device.rounded -= round_up(block.bytes, BLOCK);
            world().trace(Some(place), || {
                format!(
                    "cudaFree {} -> {address:#x} (live {})",
                    block.bytes, device.asked
                )
            });
        }
        Ok(())
    }

    /// The allocation that an address lies in, and where it begins.
    pub fn block_at(&self, address: usize) -> Option<(usize, Block)> {
        let (start, block) = self.blocks.range(..=address).next_back()?;
        let length = usize::try_from(block.bytes).ok()?.max(1);
        (address - start < length).then_some((*start, *block))
    }

    /// Physical memory, without an address.
    pub fn create_physical(&mut self, place: usize, bytes: u64) -> Result<u64, Refusal> {
        self.charge(place, round_up(bytes, self.granularity(place)), 0)?;
        if let Some(device) = self.devices.get_mut(place) {
            device.vmm += bytes;
            device.vmm_peak = device.vmm_peak.max(device.vmm);
        }
        self.handles += 1;
        self.physical.insert(
            self.handles,
            Physical {
                place,
                bytes,
                released: false,
                mappings: 0,
            },
        );
        Ok(self.handles)
    }

    pub fn map_physical(
        &mut self,
        address: usize,
        length: usize,
        handle: u64,
    ) -> Result<(), Refusal> {
        let physical = self.physical.get_mut(&handle).ok_or(Refusal::Unknown)?;
        physical.mappings += 1;
        self.mappings.insert(address, (length, handle));
        Ok(())
    }

    pub fn release_physical(&mut self, handle: u64) -> Result<(), Refusal> {
        self.physical
            .get_mut(&handle)
            .ok_or(Refusal::Unknown)?
            .released = true;
        self.drop_physical(handle);
        Ok(())
    }

    /// Ends every mapping that begins in a range of addresses.
    pub fn unmap_physical(&mut self, address: usize, length: usize) {
        let range = address..address.saturating_add(length);
        let found: Vec<(usize, u64)> = self
            .mappings
            .range(range)
            .map(|(at, (_, handle))| (*at, *handle))
            .collect();
        for (at, handle) in found {
            self.mappings.remove(&at);
            if let Some(physical) = self.physical.get_mut(&handle) {
                physical.mappings = physical.mappings.saturating_sub(1);
            }
            self.drop_physical(handle);
        }
    }

    fn drop_physical(&mut self, handle: u64) {
        let gone = self
            .physical
            .get(&handle)
            .copied()
            .filter(|p| p.released && p.mappings == 0);
        if let Some(physical) = gone {
            self.physical.remove(&handle);
            self.uncharge(
                physical.place,
                round_up(physical.bytes, self.granularity(physical.place)),
                0,
            );
            if let Some(device) = self.devices.get_mut(physical.place) {
                device.vmm -= physical.bytes;
            }
        }
    }

    pub fn context(&self, handle: usize) -> Option<Context> {
        self.contexts.get(&handle).copied()
    }

    pub fn create_context(&mut self, place: usize, primary: bool) -> Result<usize, Refusal> {
        let bytes = world().spec(place).ok_or(Refusal::Unknown)?.context_bytes;
        self.charge(place, bytes, 1)?;
        let handle = memory::handle();
        self.contexts.insert(handle, Context { place, primary });
        Ok(handle)
    }

    /// Ends a context, and frees what was allocated in it.
    pub fn destroy_context(&mut self, handle: usize) -> Result<(), Refusal> {
        let context = self.contexts.remove(&handle).ok_or(Refusal::Unknown)?;
        let owned: Vec<usize> = self
            .blocks
            .iter()
            .filter(|(_, block)| block.context == handle)
            .map(|(address, _)| *address)
            .collect();
        for address in owned {
            self.free(address)?;
        }
        let bytes = world()
            .spec(context.place)
            .map_or(0, |spec| spec.context_bytes);
        self.uncharge(context.place, bytes, 1);
        memory::drop_handle(handle);
        Ok(())
    }

    /// The primary context of a GPU, made when it is first held.
    pub fn retain_primary(&mut self, place: usize) -> Result<usize, Refusal> {
        if let Some((handle, held)) = self.primary.get_mut(&place) {
            *held += 1;
            return Ok(*handle);
        }
        let handle = self.create_context(place, true)?;
        self.primary.insert(place, (handle, 1));
        Ok(handle)
    }

    /// The same for the runtime, which holds it once, from its first use to its end.
    pub fn runtime_context(&mut self, place: usize) -> Result<usize, Refusal> {
        if let Some(handle) = self.runtime.get(&place) {
            return Ok(*handle);
        }
        let handle = self.retain_primary(place)?;
        self.runtime.insert(place, handle);
        Ok(handle)
    }

    pub fn release_primary(&mut self, place: usize) -> Result<(), Refusal> {
        let (_, held) = self.primary.get_mut(&place).ok_or(Refusal::Unknown)?;
        *held -= 1;
        if *held == 0 {
            self.reset_primary(place)?;
        }
        Ok(())
    }

    /// Ends the primary context however often it is held.
    pub fn reset_primary(&mut self, place: usize) -> Result<(), Refusal> {
        self.runtime.remove(&place);
        match self.primary.remove(&place) {
            Some((handle, _)) => self.destroy_context(handle),
            None => Ok(()),
        }
    }

    pub fn primary_is_active(&self, place: usize) -> bool {
        self.primary.contains_key(&place)
    }
}
