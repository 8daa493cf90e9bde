//! Names of model tensors: `blk.12.attn_q.weight` becomes (12, [`Kind::AttnQ`], weight).

macro_rules! kinds {
    ($(#[$doc:meta])* $enum:ident: $($variant:ident = $name:literal,)*) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum $enum { $($variant,)* }

        impl $enum {
            /// Every kind.
            pub const ALL: &'static [$enum] = &[$($enum::$variant,)*];

            /// The name in the file, without layer and suffix.
            pub const fn name(self) -> &'static str {
                match self { $($enum::$variant => $name,)* }
            }

            fn from_name(name: &str) -> Option<$enum> {
                match name { $($name => Some($enum::$variant),)* _ => None }
            }
        }
    };
}

kinds! {
    /// A tensor of one layer.
    Kind:
    AltupCorrectCoef = "altup_correct_coef",
    AltupCorrectScale = "altup_correct_scale",
    AltupPredictCoef = "altup_predict_coef",
    AltupRouter = "altup_router",
    AltupRouterNorm = "altup_router_norm",
    AttnGate = "attn_gate",
    AttnK = "attn_k",
    AttnKB = "attn_k_b",
    AttnKNorm = "attn_k_norm",
    AttnKvAMqa = "attn_kv_a_mqa",
    AttnKvANorm = "attn_kv_a_norm",
    AttnKvB = "attn_kv_b",
    AttnNorm = "attn_norm",
    AttnNorm2 = "attn_norm_2",
    AttnOutput = "attn_output",
    AttnOutputNorm = "attn_output_norm",
    AttnPostNorm = "post_attention_norm",
    AttnQ = "attn_q",
    AttnQA = "attn_q_a",
    AttnQANorm = "attn_q_a_norm",
    AttnQB = "attn_q_b",
    AttnQNorm = "attn_q_norm",
    AttnQkv = "attn_qkv",
    AttnSinks = "attn_sinks",
    AttnV = "attn_v",
    AttnVB = "attn_v_b",
    ChannelMixKey = "channel_mix_key",
    ChannelMixLerpK = "channel_mix_lerp_k",
    ChannelMixLerpR = "channel_mix_lerp_r",
    ChannelMixReceptance = "channel_mix_receptance",
    ChannelMixValue = "channel_mix_value",
    ExpProbsB = "exp_probs_b",
    FfnDown = "ffn_down",
    FfnDownExps = "ffn_down_exps",
    FfnDownShexp = "ffn_down_shexp",
    FfnGate = "ffn_gate",
    FfnGateExps = "ffn_gate_exps",
    FfnGateInp = "ffn_gate_inp",
    FfnGateInpShexp = "ffn_gate_inp_shexp",
    FfnGateShexp = "ffn_gate_shexp",
    FfnNorm = "ffn_norm",
    FfnPostNorm = "post_ffw_norm",
    FfnUp = "ffn_up",
    FfnUpExps = "ffn_up_exps",
    FfnUpShexp = "ffn_up_shexp",
    LaurelL = "laurel_l",
    LaurelPostNorm = "laurel_post_norm",
    LaurelR = "laurel_r",
    LayerOutNorm = "layer_output_norm",
    LayerOutScale = "layer_output_scale",
    PerLayerInpGate = "inp_gate",
    PerLayerPostNorm = "post_norm",
    PerLayerProj = "proj",
    ShortConv = "shortconv.conv",
    ShortConvIn = "shortconv.in_proj",
    ShortConvOut = "shortconv.out_proj",
    SsmA = "ssm_a",
    SsmAlpha = "ssm_alpha",
    SsmBNorm = "ssm_b_norm",
    SsmBa = "ssm_ba",
    SsmBeta = "ssm_beta",
    SsmCNorm = "ssm_c_norm",
    SsmConv1d = "ssm_conv1d",
    SsmD = "ssm_d",
    SsmDt = "ssm_dt",
    SsmDtNorm = "ssm_dt_norm",
    SsmIn = "ssm_in",
    SsmNorm = "ssm_norm",
    SsmOut = "ssm_out",
    SsmX = "ssm_x",
    TimeMixDecay = "time_mix_decay",
    TimeMixDecayW1 = "time_mix_decay_w1",
    TimeMixDecayW2 = "time_mix_decay_w2",
    TimeMixFirst = "time_mix_first",
    TimeMixGate = "time_mix_gate",
    TimeMixKey = "time_mix_key",
    TimeMixLerpFused = "time_mix_lerp_fused",
    TimeMixLerpX = "time_mix_lerp_x",
    TimeMixLn = "time_mix_ln",
    TimeMixOutput = "time_mix_output",
    TimeMixReceptance = "time_mix_receptance",
    TimeMixValue = "time_mix_value",
    TimeMixW1 = "time_mix_w1",
    TimeMixW2 = "time_mix_w2",
}

kinds! {
    /// A tensor outside the layers.
    Global:
    AltupProj = "altup_proj",
    AltupUnembdProj = "altup_unembd_proj",
    Output = "output",
    OutputNorm = "output_norm",
    PerLayerModelProj = "per_layer_model_proj",
    PerLayerProjNorm = "per_layer_proj_norm",
    PerLayerTokenEmbd = "per_layer_token_embd",
    PositionEmbd = "position_embd",
    RopeFactorsLong = "rope_factors_long",
    RopeFactorsShort = "rope_factors_short",
    RopeFreqs = "rope_freqs",
    TokenEmbd = "token_embd",
    TokenEmbdNorm = "token_embd_norm",
    TokenTypes = "token_types",
}

/// `.weight` (or no suffix at all, as `ssm_a` has it) or `.bias`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Part {
    /// `.weight` or nothing.
    Weight = 0,
    /// `.bias`.
    Bias = 1,
}

/// Which tensor a name means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Name {
    /// Of one layer.
    Layer(usize, Kind, Part),
    /// Of one layer, of a kind that no graph here reads (a multi-token-prediction head).
    LayerOther(usize),
    /// Outside the layers.
    Global(Global, Part),
    /// Outside the layers, of no known kind.
    Other,
}

impl Name {
    /// Reads a tensor's name.
    pub fn parse(name: &str) -> Name {
        let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|r| r.split_once('.')) else {
            let (base, part) = split_part(name);
            return Global::from_name(base).map_or(Name::Other, |g| Name::Global(g, part));
        };
        let Ok(layer) = layer.parse() else {
            return Name::Other;
        };
        let (base, part) = split_part(rest);
        Kind::from_name(base).map_or(Name::LayerOther(layer), |k| Name::Layer(layer, k, part))
    }
}

fn split_part(name: &str) -> (&str, Part) {
    if let Some(base) = name.strip_suffix(".bias") {
        (base, Part::Bias)
    } else {
        (name.strip_suffix(".weight").unwrap_or(name), Part::Weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse() {
        let layer = |i, k, p| Name::Layer(i, k, p);
        for (name, want) in [
            ("blk.12.attn_q.weight", layer(12, Kind::AttnQ, Part::Weight)),
            ("blk.0.ssm_a", layer(0, Kind::SsmA, Part::Weight)),
            (
                "blk.3.exp_probs_b.bias",
                layer(3, Kind::ExpProbsB, Part::Bias),
            ),
            (
                "blk.3.shortconv.conv.weight",
                layer(3, Kind::ShortConv, Part::Weight),
            ),
            ("blk.46.nextn.enorm.weight", Name::LayerOther(46)),
            ("output.weight", Name::Global(Global::Output, Part::Weight)),
            ("blk.x.attn_q.weight", Name::Other),
            ("v.patch_embd.weight", Name::Other),
        ] {
            assert_eq!(Name::parse(name), want, "{name}");
        }
    }
}
