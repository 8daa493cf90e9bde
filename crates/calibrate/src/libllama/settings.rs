//! llama-server's flags as settings of libllama's two structures of parameters.

use vramfit::planner::EXPERTS;

/// The buffer type of the host.
pub(super) const HOST: &str = "CPU";

/// What a run is to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Settings {
    pub n_ctx: u32,
    pub n_batch: u32,
    pub n_ubatch: u32,
    pub n_seq_max: u32,
    /// `llama_flash_attn_type`.
    pub flash_attention: i32,
    /// `ggml_type` of the keys' cache and of the values'.
    pub cache_types: [i32; 2],
    pub n_gpu_layers: i32,
    /// `llama_split_mode`.
    pub split_mode: i32,
    pub main_gpu: i32,
    pub tensor_split: Vec<f32>,
    /// Names of devices, where they are said; none of them is no GPU.
    pub devices: Option<Vec<String>>,
    /// Patterns of tensors' names, and the buffer type's name for each, first ones first.
    pub overrides: Vec<(String, String)>,
    /// `llama_load_mode`'s name, if said.
    pub load_mode: Option<String>,
    /// `llama_pooling_type`, if said.
    pub pooling: Option<i32>,
    /// Files and scales.
    pub lora: Vec<(String, f32)>,
    pub kv_unified: bool,
    pub swa_full: bool,
    pub no_kv_offload: bool,
    pub no_op_offload: bool,
    pub no_host: bool,
    pub no_repack: bool,
    pub embeddings: bool,
}

/// `ggml_type`'s numbers of what a cache may be of (ggml.h).
const CACHE_TYPES: [(&str, i32); 9] = [
    ("f32", 0),
    ("f16", 1),
    ("q4_0", 2),
    ("q4_1", 3),
    ("q5_0", 6),
    ("q5_1", 7),
    ("q8_0", 8),
    ("iq4_nl", 20),
    ("bf16", 30),
];
const F16: i32 = 1;
/// `llama_split_mode`, `llama_flash_attn_type`, `llama_pooling_type` (llama.h).
const SPLIT_MODES: [(&str, i32); 4] = [("none", 0), ("layer", 1), ("row", 2), ("tensor", 3)];
const FLASH_ATTENTION: [(&str, i32); 3] = [("auto", -1), ("off", 0), ("on", 1)];
const POOLING: [(&str, i32); 5] = [
    ("none", 0),
    ("mean", 1),
    ("cls", 2),
    ("last", 3),
    ("rank", 4),
];

impl Settings {
    /// Of flags as a plan gives them. The error names one that is for a llama-server alone.
    pub(super) fn new(flags: &[String]) -> Result<Settings, String> {
        let mut s = Settings {
            n_ctx: 4096,
            n_batch: 2048,
            n_ubatch: 512,
            n_seq_max: 1,
            flash_attention: -1,
            cache_types: [F16; 2],
            n_gpu_layers: -1,
            split_mode: 1,
            ..Settings::default()
        };
        let mut words = flags.iter().map(String::as_str);
        while let Some(flag) = words.next() {
            s.set(flag, &mut words)?;
        }
        Ok(s)
    }

    fn set<'a>(
        &mut self,
        flag: &str,
        words: &mut impl Iterator<Item = &'a str>,
    ) -> Result<(), String> {
        let mut value = || words.next().ok_or_else(|| format!("{flag} has no value"));
        match flag {
            "-c" => self.n_ctx = number(flag, value()?)?,
            "-b" => self.n_batch = number(flag, value()?)?,
            "-ub" => self.n_ubatch = number(flag, value()?)?,
            "-np" => self.n_seq_max = number(flag, value()?)?,
            "-kvu" => self.kv_unified = true,
            "-no-kvu" => self.kv_unified = false,
            "-fa" => self.flash_attention = one_of(flag, value()?, &FLASH_ATTENTION)?,
            "-ctk" => self.cache_types[0] = one_of(flag, value()?, &CACHE_TYPES)?,
            "-ctv" => self.cache_types[1] = one_of(flag, value()?, &CACHE_TYPES)?,
            "-nkvo" => self.no_kv_offload = true,
            "--swa-full" => self.swa_full = true,
            "-lm" => self.load_mode = Some(value()?.to_string()),
            "--no-host" => self.no_host = true,
            "--no-repack" => self.no_repack = true,
            "--no-op-offload" => self.no_op_offload = true,
            "--embeddings" => self.embeddings = true,
            "--pooling" => self.pooling = Some(one_of(flag, value()?, &POOLING)?),
            "-ngl" => self.n_gpu_layers = number(flag, value()?)?,
            "-dev" => self.devices = Some(devices(value()?)),
            "-sm" => self.split_mode = one_of(flag, value()?, &SPLIT_MODES)?,
            "-mg" => self.main_gpu = number(flag, value()?)?,
            "-ts" => self.tensor_split = numbers(flag, value()?)?,
            "-ot" => self.override_tensors(value()?)?,
            "-cmoe" => self.overrides.push(to_host(EXPERTS.to_string())),
            "-ncmoe" => {
                let layers = 0..number::<u32>(flag, value()?)?;
                let of = |il| to_host(format!("blk\\.{il}{EXPERTS}"));
                self.overrides.extend(layers.map(of));
            }
            "--lora" => {
                let files = value()?.split(',');
                self.lora.extend(files.map(|file| (file.to_string(), 1.0)));
            }
            "--lora-scaled" => {
                for entry in value()?.split(',') {
                    let (file, scale) = entry.rsplit_once(':').unwrap_or((entry, "1"));
                    self.lora.push((file.to_string(), number(flag, scale)?));
                }
            }
            // All is said: there is nothing to fit.
            "--fit" => drop(value()?),
            _ => {
                return Err(format!(
                    "{flag} needs more than a library: give a llama-server as --engine"
                ));
            }
        }
        Ok(())
    }

    fn override_tensors(&mut self, list: &str) -> Result<(), String> {
        for entry in list.split(',') {
            let Some((pattern, target)) = entry.split_once('=') else {
                return Err(format!("-ot {entry}: no buffer type"));
            };
            self.overrides
                .push((pattern.to_string(), target.to_string()));
        }
        Ok(())
    }
}

fn to_host(pattern: String) -> (String, String) {
    (pattern, HOST.to_string())
}

fn devices(list: &str) -> Vec<String> {
    let names = list.split(',').filter(|name| *name != "none");
    names.map(str::to_string).collect()
}

fn number<T: std::str::FromStr>(flag: &str, text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{flag} {text}: no number"))
}

fn numbers(flag: &str, list: &str) -> Result<Vec<f32>, String> {
    list.split(',').map(|text| number(flag, text)).collect()
}

fn one_of(flag: &str, text: &str, names: &[(&str, i32)]) -> Result<i32, String> {
    let found = names.iter().find(|(name, _)| *name == text);
    let found = found.map(|&(_, number)| number);
    found.ok_or_else(|| format!("{flag} {text}: not known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(flags: &str) -> Result<Settings, String> {
        let words: Vec<String> = flags.split(' ').map(str::to_string).collect();
        Settings::new(&words)
    }

    #[test]
    fn flags_of_a_plan_are_settings() {
        let found = settings(
            "-c 8192 -b 512 -ub 256 -np 2 -no-kvu -fa on -ctk q8_0 -ngl 20 -dev CUDA0,CUDA2 -sm layer -mg 1 -ts 3,1 \
             --pooling cls -lm none --fit off",
        );
        let expected = Settings {
            n_ctx: 8192,
            n_batch: 512,
            n_ubatch: 256,
            n_seq_max: 2,
            flash_attention: 1,
            cache_types: [8, 1],
            n_gpu_layers: 20,
            split_mode: 1,
            main_gpu: 1,
            tensor_split: vec![3.0, 1.0],
            devices: Some(vec!["CUDA0".to_string(), "CUDA2".to_string()]),
            load_mode: Some("none".to_string()),
            pooling: Some(2),
            ..Settings::default()
        };
        assert_eq!(found, Ok(expected));
        assert_eq!(
            settings("-ngl 0 -dev none").unwrap().devices,
            Some(Vec::new())
        );
        let lora = settings("--lora a.gguf,b.gguf --lora-scaled c.gguf:0.5")
            .unwrap()
            .lora;
        let lora: Vec<(&str, f32)> = lora
            .iter()
            .map(|(file, scale)| (file.as_str(), *scale))
            .collect();
        assert_eq!(lora, [("a.gguf", 1.0), ("b.gguf", 1.0), ("c.gguf", 0.5)]);
    }

    /// In the order in which they are given, as llama.cpp takes the first that matches.
    #[test]
    fn tensors_go_where_they_are_said_to() {
        let check = |flags: &str, expected: &[(&str, &str)]| {
            let found = settings(flags).unwrap().overrides;
            let found: Vec<(&str, &str)> = found
                .iter()
                .map(|(a, b)| (a.as_str(), b.as_str()))
                .collect();
            assert_eq!(found, expected, "{flags}");
        };
        let experts = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps";
        check(
            "-ot a=CPU,b=CUDA1 -cmoe -ot c=CPU",
            &[("a", "CPU"), ("b", "CUDA1"), (experts, "CPU"), ("c", "CPU")],
        );
        let of = |il: u32| format!("blk\\.{il}{experts}");
        check("-ncmoe 2", &[(&of(0), "CPU"), (&of(1), "CPU")]);
    }

    #[test]
    fn nothing_is_left_out_in_silence() {
        for (flags, words) in [
            (
                "--mmproj p.gguf",
                "--mmproj needs more than a library: give a llama-server",
            ),
            ("-md d.gguf", "-md needs more"),
            ("--control-vector v.gguf", "--control-vector needs more"),
            ("-c", "-c has no value"),
            ("-c many", "-c many: no number"),
            ("-fa maybe", "-fa maybe: not known"),
            ("-ot a", "-ot a: no buffer type"),
        ] {
            let reason = settings(flags).unwrap_err();
            assert!(reason.starts_with(words), "{reason}");
        }
    }
}
