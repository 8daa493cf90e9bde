//! A program that knows nothing of imaginary GPUs: it loads `libcuda.so.1`, `libnvidia-ml.so.1`, `libcudart.so.13` and
//! `libcublas.so.13` as any would, makes the calls that it reads from stdin, one a line, and prints what they answer: the code, then values. For tests.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::io::{BufRead, Write};

use libloading::{Library, Symbol};

/// How a line is answered, or why it cannot be.
type Answer = Result<String, Box<dyn std::error::Error>>;

struct Player {
    cuda: Library,
    nvml: Library,
    runtime: Library,
    blas: Library,
    /// Contexts and allocations, by the names that the lines give them.
    named: BTreeMap<String, u64>,
}

/// A function of a library, called with these arguments.
macro_rules! call {
    ($library:expr, $name:expr, $($argument:expr => $type:ty),*) => {{
        // SAFETY: the types are those of NVIDIA's headers.
        let function: Symbol<unsafe extern "C" fn($($type),*) -> c_int> = unsafe { $library.get($name.as_bytes())? };
        // SAFETY: all pointers are to locals that outlive the call.
        unsafe { function($($argument),*) }
    }};
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(
        |_| "?".to_owned(),
        |text| text.to_string_lossy().into_owned(),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Player {
    fn new() -> Result<Self, libloading::Error> {
        // SAFETY: the libraries run nothing when they are loaded.
        unsafe {
            Ok(Player {
                cuda: Library::new("libcuda.so.1")?,
                nvml: Library::new("libnvidia-ml.so.1")?,
                runtime: Library::new("libcudart.so.13")?,
                blas: Library::new("libcublas.so.13")?,
                named: BTreeMap::new(),
            })
        }
    }

    fn named(&self, name: &str) -> Result<u64, String> {
        self.named
            .get(name)
            .copied()
            .ok_or_else(|| format!("nothing is called {name}"))
    }

    fn play(&mut self, line: &str) -> Answer {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [call, arguments @ ..] = &words[..] else {
            return Ok(String::new());
        };
        match *call {
            call if call.starts_with("nvml") => self.nvml(call, arguments),
            call if call.starts_with("cuda") || call.starts_with("vgpu") => {
                self.runtime(call, arguments)
            }
            "cublasCreate_v2" => Ok(call!(self.blas, call, &mut 0u64 => *mut u64).to_string()),
            call => self.driver(call, arguments),
        }
    }

    fn runtime(&mut self, name: &str, arguments: &[&str]) -> Answer {
        let argument = |at: usize| *arguments.get(at).unwrap_or(&"0");
        let number = |at: usize| argument(at).parse::<i64>();
        let (mut a, mut b) = (0u64, 0u64);
        let device = number(0).unwrap_or(0) as c_int;
        Ok(match name {
            "cudaGetDeviceCount" => {
                let code = call!(self.runtime, name, &mut a => *mut u64);
                format!("{code} {a}")
            }
            "cudaSetDevice" | "vgpu_launches" | "vgpu_mallocs" | "vgpu_allocated"
            | "vgpu_allocated_2m" | "vgpu_vmm" => {
                call!(self.runtime, name, device => c_int).to_string()
            }
            "cudaGetLastError" | "cudaPeekAtLastError" | "cudaDeviceReset" | "vgpu_count" => {
                call!(self.runtime, name,).to_string()
            }
            "cudaMemGetInfo" => {
                let code = call!(self.runtime, name, &mut a => *mut u64, &mut b => *mut u64);
                format!("{code} {a} {b}")
            }
            "cudaMalloc" | "cudaMallocHost" => {
                let code = call!(self.runtime, name, &mut a => *mut u64, number(0)? as u64 => u64);
                self.named.insert(argument(1).to_owned(), a);
                code.to_string()
            }
            "cudaFree" | "cudaFreeHost" => {
                call!(self.runtime, name, self.named(argument(0))? => u64).to_string()
            }
            "cudaLaunchKernel" => {
                // dim3 by value: two words, the second of which holds z alone
                let (xy, one, zero) = (1u64 | 1 << 32, 1u64, 0u64);
                call!(self.runtime, name, zero => u64, xy => u64, one => u64, xy => u64, one => u64, zero => u64, zero => u64).to_string()
            }
            "cudaGetDeviceProperties" => {
                let mut bytes = [0u8; 1008];
                let code =
                    call!(self.runtime, name, bytes.as_mut_ptr() => *mut u8, device => c_int);
                // Offsets of totalGlobalMem, major, minor, multiProcessorCount and pciBusID in CUDA 13's header.
                let word = |at: usize| {
                    bytes
                        .get(at..at + 4)
                        .map_or(0, |b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
                };
                let total = u64::from(word(288) as u32) | u64::from(word(292) as u32) << 32;
                format!(
                    "{code} {} {total} {}.{} {} {}",
                    text(&bytes),
                    word(360),
                    word(364),
                    word(384),
                    word(568)
                )
            }
            _ => Err(format!("no such line: {name}"))?,
        })
    }

    fn driver(&mut self, name: &str, arguments: &[&str]) -> Answer {
        let argument = |at: usize| *arguments.get(at).unwrap_or(&"0");
        let number = |at: usize| argument(at).parse::<i64>();
        let (mut a, mut b, mut bytes) = (0u64, 0u64, [0u8; 256]);
        let device = number(0).unwrap_or(0) as c_int;
        Ok(match name {
            "cuInit" => call!(self.cuda, name, 0 => c_uint).to_string(),
            "cuDriverGetVersion" | "cuDeviceGetCount" => {
                let code = call!(self.cuda, name, &mut a => *mut u64);
                format!("{code} {a}")
            }
            "cuDeviceGet" => format!(
                "{} {a}",
                call!(self.cuda, name, &mut a => *mut u64, device => c_int)
            ),
            "cuDeviceGetName" | "cuDeviceGetPCIBusId" => {
                let code = call!(self.cuda, name, bytes.as_mut_ptr() => *mut u8, 256 => c_int, device => c_int);
                format!("{code} {}", text(&bytes))
            }
            "cuDeviceGetUuid" | "cuDeviceGetUuid_v2" => {
                let code = call!(self.cuda, name, bytes.as_mut_ptr() => *mut u8, device => c_int);
                format!("{code} {}", hex(&bytes[..16]))
            }
            "cuDeviceGetByPCIBusId" => {
                let id = format!("{}\0", argument(0));
                let code =
                    call!(self.cuda, name, &mut a => *mut u64, id.as_ptr().cast() => *const c_char);
                format!("{code} {a}")
            }
            "cuDeviceTotalMem_v2" => {
                let code = call!(self.cuda, name, &mut a => *mut u64, device => c_int);
                format!("{code} {a}")
            }
            "cuDeviceGetAttribute" => {
                let code = call!(self.cuda, name, &mut a => *mut u64, number(1)? as c_int => c_int, device => c_int);
                format!("{code} {a}")
            }
            "cuDevicePrimaryCtxRetain" => {
                let code = call!(self.cuda, name, &mut a => *mut u64, device => c_int);
                self.named.insert(argument(1).to_owned(), a);
                code.to_string()
            }
            "cuDevicePrimaryCtxRelease_v2" | "cuDevicePrimaryCtxReset_v2" => {
                call!(self.cuda, name, device => c_int).to_string()
            }
            "cuDevicePrimaryCtxGetState" => {
                let code =
                    call!(self.cuda, name, device => c_int, &mut a => *mut u64, &mut b => *mut u64);
                format!("{code} {b}")
            }
            "cuCtxCreate_v2" => {
                let code = call!(self.cuda, name, &mut a => *mut u64, 0 => c_uint, device => c_int);
                self.named.insert(argument(1).to_owned(), a);
                code.to_string()
            }
            "cuCtxSetCurrent" | "cuCtxDestroy_v2" | "cuCtxPushCurrent_v2" => {
                let context = self.named(argument(0))?;
                call!(self.cuda, name, context => u64).to_string()
            }
            "cuCtxPopCurrent_v2" | "cuCtxGetDevice" => {
                let code = call!(self.cuda, name, &mut a => *mut u64);
                if name == "cuCtxGetDevice" {
                    format!("{code} {a}")
                } else {
                    code.to_string()
                }
            }
            "cuMemGetInfo_v2" => {
                let code = call!(self.cuda, name, &mut a => *mut u64, &mut b => *mut u64);
                format!("{code} {a} {b}")
            }
            "cuMemAlloc_v2" => {
                let code = call!(self.cuda, name, &mut a => *mut u64, number(0)? as u64 => u64);
                self.named.insert(argument(1).to_owned(), a);
                code.to_string()
            }
            "cuMemAddressReserve" => {
                let zero = 0u64;
                let code = call!(self.cuda, name, &mut a => *mut u64, number(0)? as u64 => u64, zero => u64, zero => u64, zero => u64);
                self.named.insert(argument(1).to_owned(), a);
                code.to_string()
            }
            "cuMemCreate" => {
                let properties: [c_int; 8] = [1, 0, 1, number(2)? as c_int, 0, 0, 0, 0];
                let code = call!(self.cuda, name, &mut a => *mut u64, number(0)? as u64 => u64, properties.as_ptr() => *const c_int, 0 => u64);
                self.named.insert(argument(1).to_owned(), a);
                code.to_string()
            }
            "cuMemMap" => {
                let (address, block) = (self.named(argument(0))?, self.named(argument(2))?);
                call!(self.cuda, name, address => u64, number(1)? as u64 => u64, 0 => u64, block => u64, 0 => u64).to_string()
            }
            "cuMemUnmap" => {
                call!(self.cuda, name, self.named(argument(0))? => u64, number(1)? as u64 => u64)
                    .to_string()
            }
            "cuMemRelease" | "cuMemFree_v2" => {
                call!(self.cuda, name, self.named(argument(0))? => u64).to_string()
            }
            "cuGetErrorName" | "cuGetErrorString" => {
                let mut words: *const c_char = std::ptr::null();
                let code =
                    call!(self.cuda, name, device => c_int, &mut words => *mut *const c_char);
                // SAFETY: null, or a text that lives as long as the library.
                let words = (!words.is_null()).then(|| unsafe { CStr::from_ptr(words) });
                format!("{code} {}", words.map_or("-".into(), CStr::to_string_lossy))
            }
            "cuGetProcAddress" => self.entry(argument(0), number(1)? as c_int)?,
            _ => Err(format!("no such line: {name}"))?,
        })
    }

    /// Which symbol `cuGetProcAddress` answers with.
    fn entry(&self, name: &str, cuda: c_int) -> Answer {
        let mut function: *mut c_void = std::ptr::null_mut();
        let asked = format!("{name}\0");
        let code = call!(self.cuda, "cuGetProcAddress", asked.as_ptr().cast() => *const c_char,
            &mut function => *mut *mut c_void, cuda => c_int, 0 => u64);
        let same = |symbol: &String| {
            // SAFETY: only the address is looked at.
            let found: Result<Symbol<unsafe extern "C" fn()>, _> =
                unsafe { self.cuda.get(symbol.as_bytes()) };
            found.is_ok_and(|found| *found as *const c_void == function.cast_const())
        };
        let versions = [
            format!("{name}_v4"),
            format!("{name}_v3"),
            format!("{name}_v2"),
            name.to_owned(),
        ];
        let found = versions
            .iter()
            .find(|symbol| same(symbol))
            .map_or("-", String::as_str);
        Ok(format!("{code} {found}"))
    }

    fn nvml(&mut self, name: &str, arguments: &[&str]) -> Answer {
        let (mut a, mut b, mut bytes) = (0u64, 0u64, [0u8; 256]);
        let index = arguments
            .first()
            .and_then(|index| index.parse::<c_uint>().ok())
            .unwrap_or(0);
        match name {
            "nvmlInit_v2" | "nvmlShutdown" => return Ok(call!(self.nvml, name,).to_string()),
            "nvmlDeviceGetCount_v2" => {
                let code = call!(self.nvml, name, &mut a => *mut u64);
                return Ok(format!("{code} {a}"));
            }
            "nvmlSystemGetDriverVersion" => {
                let code = call!(self.nvml, name, bytes.as_mut_ptr() => *mut u8, 80 => c_uint);
                return Ok(format!("{code} {}", text(&bytes)));
            }
            "nvmlDeviceGetHandleByUUID" | "nvmlDeviceGetHandleByPciBusId_v2" => {
                let id = format!("{}\0", arguments.first().unwrap_or(&""));
                let code =
                    call!(self.nvml, name, id.as_ptr().cast() => *const c_char, &mut a => *mut u64);
                let found = call!(self.nvml, "nvmlDeviceGetIndex", a => u64, &mut b => *mut u64);
                return Ok(if found == 0 {
                    format!("{code} {b}")
                } else {
                    code.to_string()
                });
            }
            _ => {}
        }
        let mut card = 0u64;
        let code = call!(self.nvml, "nvmlDeviceGetHandleByIndex_v2", index => c_uint, &mut card => *mut u64);
        if code != 0 {
            return Ok(code.to_string());
        }
        if arguments.get(1) == Some(&"mig") {
            let code = call!(self.nvml, "nvmlDeviceGetMigDeviceHandleByIndex", card => u64, 0 => c_uint, &mut a => *mut u64);
            if code != 0 {
                return Ok(code.to_string());
            }
            card = a;
        }
        Ok(match name {
            "nvmlDeviceGetName" | "nvmlDeviceGetUUID" => {
                let code = call!(self.nvml, name, card => u64, bytes.as_mut_ptr() => *mut u8, 96 => c_uint);
                format!("{code} {}", text(&bytes))
            }
            "nvmlDeviceGetPciInfo_v3" => {
                let code = call!(self.nvml, name, card => u64, bytes.as_mut_ptr() => *mut u8);
                format!("{code} {} {}", text(&bytes[..16]), text(&bytes[36..68]))
            }
            "nvmlDeviceGetMigMode" => {
                let code =
                    call!(self.nvml, name, card => u64, &mut a => *mut u64, &mut b => *mut u64);
                format!("{code} {a}")
            }
            "nvmlDeviceGetMemoryInfo" => {
                let mut memory = [0u64; 3];
                let code = call!(self.nvml, name, card => u64, memory.as_mut_ptr() => *mut u64);
                format!("{code} {} {} {}", memory[0], memory[1], memory[2])
            }
            "nvmlDeviceGetMemoryInfo_v2" => {
                let mut memory = [40 | 2 << 24, 0u64, 0, 0, 0];
                let code = call!(self.nvml, name, card => u64, memory.as_mut_ptr() => *mut u64);
                format!(
                    "{code} {} {} {} {}",
                    memory[1], memory[2], memory[3], memory[4]
                )
            }
            "nvmlDeviceGetComputeRunningProcesses_v3"
            | "nvmlDeviceGetComputeRunningProcesses_v2" => {
                let mut rows = [[0u64; 3]; 8];
                let mut count: c_uint = 8;
                let code = call!(self.nvml, name, card => u64, &mut count => *mut c_uint, rows.as_mut_ptr() => *mut [u64; 3]);
                let mut line = code.to_string();
                for row in rows.iter().take(if code == 0 { count as usize } else { 0 }) {
                    line += &format!(" {}:{}", row[0] as u32, row[1]);
                }
                line
            }
            _ => Err(format!("no such line: {name}"))?,
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut player = Player::new()?;
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = player
            .play(&line?)
            .unwrap_or_else(|error| format!("error: {error}"));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}
