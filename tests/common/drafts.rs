//! Targets with a draft beside them: rows of their table, and what vramfit says of the same.

use super::truth::{Gpu, Row, figures_of};
use vramfit_arch::Model;
use vramfit_estimate::{
    DraftKind, EngineProfile, Error, Layout, NodeRow, Pass, RunConfig, SpeculativeConfig,
    SpeculativeSettings, SpeculativeUse, node_list,
};
use vramfit_ggml::Type;

/// The columns of the table: the figures of both contexts are those of the other tables from the status on.
pub const COLUMNS: &str = "target\tdraft\tgpus\tflags\ttarget's status to graph (10)\tdraft's (10)";

/// Columns of one context.
const FIGURES: usize = 10;

/// A load of two contexts.
pub struct Pair {
    /// The target's row: all flags, its own figures.
    pub target: Row,
    /// File of the draft; none for a second context on the target.
    pub draft: Option<String>,
    /// The engine's figures of the draft.
    pub expected: String,
}

/// One line of the table.
pub fn pair(line: &str) -> Pair {
    let columns: Vec<&str> = line.split('\t').collect();
    assert_eq!(columns.len(), 4 + 2 * FIGURES, "{line}");
    let target = [&[columns[0]], &columns[2..4 + FIGURES]].concat();
    Pair {
        target: super::truth::row(&target.join("\t")),
        draft: (columns[1] != "-").then(|| columns[1].to_string()),
        expected: figures_of(&columns[4 + FIGURES..]),
    }
}

/// Flags of the draft by their names for a model by itself.
const OF_DRAFT: [(&str, &str); 5] = [
    ("-ngld", "-ngl"),
    ("-devd", "-dev"),
    ("-otd", "-ot"),
    ("--cpu-moe-draft", "--cpu-moe"),
    ("--n-cpu-moe-draft", "--n-cpu-moe"),
];

/// Flags that the target has for itself, where the draft has none of its own.
const OF_TARGET: [&str; 4] = ["-ngl", "-ot", "--cpu-moe", "--n-cpu-moe"];

impl Pair {
    /// The draft as if it were a model by itself: what its flags say of layers and devices.
    fn beside(&self) -> Row {
        let target = &self.target;
        let mut flags = String::new();
        let mut words = target.flags.split(' ').peekable();
        while let Some(word) = words.next() {
            let own = OF_DRAFT.iter().find(|(name, _)| *name == word);
            let skipped = OF_TARGET.contains(&word) || (word == "-dev" && target.has("-devd"));
            // a draft on one device is not shared out
            let on_one = target.flag("-devd").is_some_and(|d| !d.contains(','));
            if word == "-sm" && on_one {
                words.next();
                continue;
            }
            if skipped {
                words.next_if(|next| word != "--cpu-moe" && !next.starts_with("--"));
                continue;
            }
            flags += own.map_or(word, |(_, plain)| plain);
            flags.push(' ');
        }
        Row {
            model: self.draft.clone().unwrap_or_default(),
            gpus: target.gpus.clone(),
            flags: flags.trim_end().to_string(),
            status: target.status,
            expected: String::new(),
        }
    }

    /// The GPUs of the target and of the draft.
    pub fn devices(&self) -> [Vec<Gpu>; 2] {
        let target = self.target.devices();
        let draft = match self.draft {
            Some(_) => self.beside().devices(),
            None => target.clone(),
        };
        [target, draft]
    }

    fn kind(&self) -> DraftKind {
        DraftKind::from_name(self.target.flag("--spec-type").unwrap()).unwrap()
    }

    /// The target's file, or the draft's, as llama.cpp loads it.
    pub fn loaded(&self, model: Model) -> Model {
        match self.kind() {
            DraftKind::Mtp => model.with_mtp(),
            _ => model,
        }
    }

    fn config(
        &self,
        target: &Model,
        draft: Option<&Model>,
    ) -> Result<(RunConfig, Layout, SpeculativeConfig), String> {
        let [gpus, own] = self.devices();
        let (run, layout) = self.target.settings(&gpus, target)?;
        let mut config = SpeculativeConfig::new(self.kind(), &layout);
        if let Some(draft) = draft {
            config.layout = self.beside().settings(&own, draft)?.1;
            if !self.target.has("-ts") {
                config.layout.tensor_split.clear();
                config.free_bytes = own.iter().map(|gpu| gpu.total_bytes).collect();
            }
        }
        config.devices = gpus
            .iter()
            .map(|gpu| own.iter().position(|o| o.index == gpu.index))
            .collect();
        let ty = |name| Type::from_name(self.target.flag(name).unwrap_or("f16")).unwrap();
        (config.type_k, config.type_v) = (ty("-ctkd"), ty("-ctvd"));
        config.n_draft = self.target.number("--spec-draft-n-max", 3);
        config.device_sampling = !self.target.has("--no-spec-draft-backend-sampling");
        Ok((run, layout, config))
    }

    /// What vramfit says of both, as the table writes it.
    pub fn estimate(&self, target: &Model, draft: Option<&Model>) -> [String; 2] {
        let both = |text: String| [text.clone(), text];
        let (run, layout, config) = match self.config(target, draft) {
            Ok(config) => config,
            Err(error) => return both(format!("refused: {error}")),
        };
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        let used = SpeculativeUse::estimate(target, &run, &layout, draft, &config, &profile);
        match used {
            Ok(used) => {
                let [gpus, own] = self.devices();
                [
                    Row::figures(&used.target, &gpus),
                    Row::figures(&used.draft, &own),
                ]
            }
            Err(Error::Refused(refusal)) => both(format!("refused: {refusal}")),
            Err(error) => both(format!("error: {error}")),
        }
    }

    /// The settings of both contexts, and where the target goes.
    pub fn contexts(
        &self,
        target: &Model,
        draft: Option<&Model>,
    ) -> Result<(SpeculativeSettings, Layout), String> {
        let (run, layout, config) = self.config(target, draft)?;
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        SpeculativeUse::settings(target, &run, &layout, draft, &config, &profile)
            .map(|settings| (settings, layout))
            .map_err(|e| e.to_string())
    }

    /// Our node lists of both contexts.
    pub fn node_lists(
        &self,
        target: &Model,
        draft: Option<&Model>,
        pass: Pass,
    ) -> Result<[Vec<NodeRow>; 2], String> {
        let (settings, layout) = self.contexts(target, draft)?;
        let profile = EngineProfile::LLAMA_CPP_V0_5_0;
        let own = draft.unwrap_or(target);
        let lists = [
            node_list(target, &settings.target, &layout, &profile, pass),
            node_list(own, &settings.draft, &settings.draft_layout, &profile, pass),
        ];
        let [target, draft] = lists.map(|list| list.map_err(|e| e.to_string()));
        let mut lists = [target?, draft?];
        let shared_out = [&layout, &settings.draft_layout].map(|l| l.split_tensors);
        for ((rows, gpus), shared_out) in lists.iter_mut().zip(self.devices()).zip(shared_out) {
            let names: Vec<String> = gpus.iter().map(|g| format!("CUDA{}", g.index)).collect();
            for row in rows {
                if shared_out && row.backend.starts_with("CUDA") {
                    row.backend = format!("Meta({})", names.join(","));
                    continue;
                }
                let number = row
                    .backend
                    .strip_prefix("CUDA")
                    .and_then(|i| i.parse().ok());
                if let Some(gpu) = number.and_then(|i: usize| gpus.get(i)) {
                    row.backend = format!("CUDA{}", gpu.index);
                }
            }
        }
        Ok(lists)
    }

    /// The line's first four columns.
    pub fn key(&self) -> String {
        let (target, draft) = (&self.target, self.draft.as_deref().unwrap_or("-"));
        format!(
            "{}\t{draft}\t{}\t{}",
            target.model, target.gpus, target.flags
        )
    }
}
