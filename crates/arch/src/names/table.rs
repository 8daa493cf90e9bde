//! Every tensor name of llama.cpp v0.5.0 (`llama-arch.cpp`), and the operation that its loader expects to
//! read it. Sorted by name.

use super::{Home, Use};

macro_rules! names {
    (@ty Kind) => { Use };
    (@ty Global) => { (Home, Use) };
    (@fact $used:ident) => { Use::$used };
    (@fact $home:ident $used:ident) => { (Home::$home, Use::$used) };
    ($(#[$doc:meta])* $enum:ident: $($variant:ident = $name:literal: $($fact:ident)+,)*) => {
        $(#[$doc])*
        #[allow(missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u16)]
        pub enum $enum { $($variant,)* }

        impl $enum {
            /// Every one, by name.
            pub const ALL: &'static [$enum] = &[$($enum::$variant,)*];

            const NAMES: &'static [&'static str] = &[$($name,)*];

            /// The name in the file, without layer and suffix.
            pub const fn name(self) -> &'static str {
                Self::NAMES[self as usize]
            }

            const FACTS: &'static [names!(@ty $enum)] = &[$(names!(@fact $($fact)+),)*];

            pub(super) fn from_name(name: &str) -> Option<$enum> {
                let at = Self::NAMES.binary_search(&name).ok()?;
                Self::ALL.get(at).copied()
            }
        }
    };
}

names! {
    /// A tensor of one layer.
    Kind:
    AltupCorrectCoef = "altup_correct_coef": MulMat,
    AltupCorrectScale = "altup_correct_scale": Mul,
    AltupPredictCoef = "altup_predict_coef": MulMat,
    AltupRouter = "altup_router": MulMat,
    AltupRouterNorm = "altup_router_norm": Mul,
    AttnCompressorApe = "attn_compressor_ape": GetRows,
    AttnCompressorGate = "attn_compressor_gate": MulMat,
    AttnCompressorKv = "attn_compressor_kv": MulMat,
    AttnCompressorNorm = "attn_compressor_norm": Mul,
    AttnConvBase = "attn_conv_base": Mul,
    AttnConvProj = "attn_conv_proj": MulMat,
    AttnGate = "attn_gate": MulMat,
    AttnK = "attn_k": MulMat,
    AttnKB = "attn_k_b": MulMat,
    AttnKNorm = "attn_k_norm": Mul,
    AttnKv = "attn_kv": MulMat,
    AttnKvAMqa = "attn_kv_a_mqa": MulMat,
    AttnKvANorm = "attn_kv_a_norm": Mul,
    AttnKvB = "attn_kv_b": MulMat,
    AttnNorm = "attn_norm": Mul,
    AttnNorm2 = "attn_norm_2": Mul,
    AttnOutput = "attn_output": MulMat,
    AttnOutputA = "attn_output_a": MulMat,
    AttnOutputB = "attn_output_b": MulMat,
    AttnOutputNorm = "attn_output_norm": Mul,
    AttnQ = "attn_q": MulMat,
    AttnQA = "attn_q_a": MulMat,
    AttnQANorm = "attn_q_a_norm": Mul,
    AttnQB = "attn_q_b": MulMat,
    AttnQNorm = "attn_q_norm": Mul,
    AttnQkv = "attn_qkv": MulMat,
    AttnResScore = "attn_res_score": Mul,
    AttnSinks = "attn_sinks": Scale,
    AttnSubNorm = "attn_sub_norm": Mul,
    AttnV = "attn_v": MulMat,
    AttnVB = "attn_v_b": MulMat,
    ChannelMixKey = "channel_mix_key": MulMat,
    ChannelMixLerpK = "channel_mix_lerp_k": Mul,
    ChannelMixLerpR = "channel_mix_lerp_r": Mul,
    ChannelMixReceptance = "channel_mix_receptance": MulMat,
    ChannelMixValue = "channel_mix_value": MulMat,
    ConvnextDw = "convnext.dw": Im2col,
    ConvnextGamma = "convnext.gamma": Mul,
    ConvnextNorm = "convnext.norm": Mul,
    ConvnextPw1 = "convnext.pw1": MulMat,
    ConvnextPw2 = "convnext.pw2": MulMat,
    DecAttnK = "dec.attn_k": MulMat,
    DecAttnNorm = "dec.attn_norm": Mul,
    DecAttnO = "dec.attn_o": MulMat,
    DecAttnQ = "dec.attn_q": MulMat,
    DecAttnRelB = "dec.attn_rel_b": GetRows,
    DecAttnV = "dec.attn_v": MulMat,
    DecCrossAttnK = "dec.cross_attn_k": MulMat,
    DecCrossAttnNorm = "dec.cross_attn_norm": Mul,
    DecCrossAttnO = "dec.cross_attn_o": MulMat,
    DecCrossAttnQ = "dec.cross_attn_q": MulMat,
    DecCrossAttnRelB = "dec.cross_attn_rel_b": Unused,
    DecCrossAttnV = "dec.cross_attn_v": MulMat,
    DecFfnDown = "dec.ffn_down": MulMat,
    DecFfnGate = "dec.ffn_gate": MulMat,
    DecFfnNorm = "dec.ffn_norm": Mul,
    DecFfnUp = "dec.ffn_up": MulMat,
    EncAttnK = "enc.attn_k": MulMat,
    EncAttnNorm = "enc.attn_norm": Mul,
    EncAttnO = "enc.attn_o": MulMat,
    EncAttnQ = "enc.attn_q": MulMat,
    EncAttnRelB = "enc.attn_rel_b": GetRows,
    EncAttnV = "enc.attn_v": MulMat,
    EncFfnDown = "enc.ffn_down": MulMat,
    EncFfnGate = "enc.ffn_gate": MulMat,
    EncFfnNorm = "enc.ffn_norm": Mul,
    EncFfnUp = "enc.ffn_up": MulMat,
    ExpProbsB = "exp_probs_b": Add,
    ExpProbsBVl = "exp_probs_b_vl": Add,
    FfnAct = "ffn.act": Div,
    FfnConvBase = "ffn_conv_base": Mul,
    FfnConvProj = "ffn_conv_proj": MulMat,
    FfnDown = "ffn_down": MulMat,
    FfnDownChexps = "ffn_down_chexps": MulMatId,
    FfnDownExps = "ffn_down_exps": MulMatId,
    FfnDownShexp = "ffn_down_shexp": MulMat,
    FfnGate = "ffn_gate": MulMat,
    FfnGateChexps = "ffn_gate_chexps": MulMatId,
    FfnGateExps = "ffn_gate_exps": MulMatId,
    FfnGateInp = "ffn_gate_inp": MulMat,
    FfnGateInpShexp = "ffn_gate_inp_shexp": MulMat,
    FfnGateShexp = "ffn_gate_shexp": MulMat,
    FfnGateTid2eid = "ffn_gate_tid2eid": GetRows,
    FfnGateUpExps = "ffn_gate_up_exps": MulMatId,
    FfnLatentDown = "ffn_latent_down": MulMat,
    FfnLatentUp = "ffn_latent_up": MulMat,
    FfnNorm = "ffn_norm": Mul,
    FfnNormExps = "ffn_norm_exps": Mul,
    FfnResScore = "ffn_res_score": Mul,
    FfnRoutedDown = "ffn_routed_down": MulMat,
    FfnRoutedNorm = "ffn_routed_norm": Mul,
    FfnRoutedUp = "ffn_routed_up": MulMat,
    FfnSubNorm = "ffn_sub_norm": Mul,
    FfnUp = "ffn_up": MulMat,
    FfnUpChexps = "ffn_up_chexps": MulMatId,
    FfnUpExps = "ffn_up_exps": MulMatId,
    FfnUpShexp = "ffn_up_shexp": MulMat,
    HcAttnBase = "hc_attn_base": Add,
    HcAttnDown = "hc_attn_down": MulMat,
    HcAttnFn = "hc_attn_fn": MulMat,
    HcAttnInject = "hc_attn_inject": MulMat,
    HcAttnNorm = "hc_attn_norm": Mul,
    HcAttnScale = "hc_attn_scale": Mul,
    HcAttnUp = "hc_attn_up": MulMat,
    HcFfnBase = "hc_ffn_base": Add,
    HcFfnDown = "hc_ffn_down": MulMat,
    HcFfnFn = "hc_ffn_fn": MulMat,
    HcFfnInject = "hc_ffn_inject": MulMat,
    HcFfnNorm = "hc_ffn_norm": Mul,
    HcFfnScale = "hc_ffn_scale": Mul,
    HcFfnUp = "hc_ffn_up": MulMat,
    IndexerAttnK = "indexer.attn_k": MulMat,
    IndexerAttnQB = "indexer.attn_q_b": MulMat,
    IndexerKNorm = "indexer.k_norm": Mul,
    IndexerKProj = "indexer.k_proj": MulMat,
    IndexerProj = "indexer.proj": MulMat,
    IndexerQNorm = "indexer.q_norm": Mul,
    IndexerQProj = "indexer.q_proj": MulMat,
    IndexerCompressorApe = "indexer_compressor_ape": GetRows,
    IndexerCompressorGate = "indexer_compressor_gate": MulMat,
    IndexerCompressorKv = "indexer_compressor_kv": MulMat,
    IndexerCompressorNorm = "indexer_compressor_norm": Mul,
    PerLayerInpGate = "inp_gate": MulMat,
    LaurelL = "laurel_l": MulMat,
    LaurelPostNorm = "laurel_post_norm": Mul,
    LaurelR = "laurel_r": MulMat,
    LayerOutNorm = "layer_output_norm": Mul,
    LayerOutScale = "layer_output_scale": Mul,
    NextnEhProj = "nextn.eh_proj": MulMat,
    NextnEmbedTokens = "nextn.embed_tokens": GetRows,
    NextnEnorm = "nextn.enorm": Mul,
    NextnHnorm = "nextn.hnorm": Mul,
    NextnSharedHeadHead = "nextn.shared_head_head": MulMat,
    NextnSharedHeadNorm = "nextn.shared_head_norm": Mul,
    PleConv1d = "ple_conv1d": SsmConv,
    PleKey = "ple_key": MulMat,
    PleNormConv = "ple_norm_conv": Mul,
    PleNormKey = "ple_norm_key": Mul,
    PleNormQuery = "ple_norm_query": Mul,
    PleValue = "ple_value": MulMat,
    PosnetAttnK = "posnet.attn_k": MulMat,
    PosnetAttnNorm = "posnet.attn_norm": Mul,
    PosnetAttnOutput = "posnet.attn_output": MulMat,
    PosnetAttnQ = "posnet.attn_q": MulMat,
    PosnetAttnV = "posnet.attn_v": MulMat,
    PosnetConv1 = "posnet.conv1": Im2col,
    PosnetConv2 = "posnet.conv2": Im2col,
    PosnetNorm = "posnet.norm": Mul,
    PosnetNorm1 = "posnet.norm1": Mul,
    PosnetNorm2 = "posnet.norm2": Mul,
    AttnPostNorm = "post_attention_norm": Mul,
    FfnPostNorm = "post_ffw_norm": Mul,
    PostFfwNorm1 = "post_ffw_norm_1": Mul,
    PostFfwNorm2 = "post_ffw_norm_2": Mul,
    PerLayerPostNorm = "post_norm": Mul,
    PreFfwNorm2 = "pre_ffw_norm_2": Mul,
    PerLayerProj = "proj": MulMat,
    ShortConv = "shortconv.conv": SsmConv,
    ShortConvIn = "shortconv.in_proj": MulMat,
    ShortConvOut = "shortconv.out_proj": MulMat,
    SsmA = "ssm_a": SsmScan,
    SsmAlpha = "ssm_alpha": MulMat,
    SsmBNorm = "ssm_b_norm": Mul,
    SsmBa = "ssm_ba": MulMat,
    SsmBeta = "ssm_beta": MulMat,
    SsmCNorm = "ssm_c_norm": Mul,
    SsmConv1d = "ssm_conv1d": SsmConv,
    SsmConv1dK = "ssm_conv1d_k": Mul,
    SsmConv1dQ = "ssm_conv1d_q": Mul,
    SsmConv1dV = "ssm_conv1d_v": Mul,
    SsmD = "ssm_d": Mul,
    SsmDt = "ssm_dt": MulMat,
    SsmDtNorm = "ssm_dt_norm": Mul,
    SsmFA = "ssm_f_a": MulMat,
    SsmFB = "ssm_f_b": MulMat,
    SsmG = "ssm_g": MulMat,
    SsmGA = "ssm_g_a": MulMat,
    SsmGB = "ssm_g_b": MulMat,
    SsmIn = "ssm_in": MulMat,
    SsmNorm = "ssm_norm": Mul,
    SsmOut = "ssm_out": MulMat,
    SsmX = "ssm_x": MulMat,
    TimeMixA0 = "time_mix_a0": Add,
    TimeMixA1 = "time_mix_a1": MulMat,
    TimeMixA2 = "time_mix_a2": MulMat,
    TimeMixDecay = "time_mix_decay": Add,
    TimeMixDecayW1 = "time_mix_decay_w1": MulMat,
    TimeMixDecayW2 = "time_mix_decay_w2": MulMat,
    TimeMixFirst = "time_mix_first": Wkv6,
    TimeMixG1 = "time_mix_g1": MulMat,
    TimeMixG2 = "time_mix_g2": MulMat,
    TimeMixGate = "time_mix_gate": MulMat,
    TimeMixKA = "time_mix_k_a": Mul,
    TimeMixKK = "time_mix_k_k": Mul,
    TimeMixKey = "time_mix_key": MulMat,
    TimeMixLerpFused = "time_mix_lerp_fused": Add,
    TimeMixLerpG = "time_mix_lerp_g": Add,
    TimeMixLerpK = "time_mix_lerp_k": Add,
    TimeMixLerpR = "time_mix_lerp_r": Add,
    TimeMixLerpV = "time_mix_lerp_v": Add,
    TimeMixLerpW = "time_mix_lerp_w": Add,
    TimeMixLerpX = "time_mix_lerp_x": Mul,
    TimeMixLn = "time_mix_ln": Mul,
    TimeMixOutput = "time_mix_output": MulMat,
    TimeMixRK = "time_mix_r_k": Mul,
    TimeMixReceptance = "time_mix_receptance": MulMat,
    TimeMixV0 = "time_mix_v0": Add,
    TimeMixV1 = "time_mix_v1": MulMat,
    TimeMixV2 = "time_mix_v2": MulMat,
    TimeMixValue = "time_mix_value": MulMat,
    TimeMixW0 = "time_mix_w0": Add,
    TimeMixW1 = "time_mix_w1": MulMat,
    TimeMixW2 = "time_mix_w2": MulMat,
    VisAttnOutput = "vis_attn_output": MulMat,
    VisAttnQkv = "vis_attn_qkv": MulMat,
    VisDown = "vis_down": MulMat,
    VisGate = "vis_gate": MulMat,
    VisUp = "vis_up": MulMat,
}

names! {
    /// A tensor outside the layers.
    Global:
    AltupProj = "altup_proj": Output MulMat,
    AltupUnembdProj = "altup_unembd_proj": Output MulMat,
    Cls = "cls": Output MulMat,
    ClsNorm = "cls.norm": Output Mul,
    ClsOutput = "cls.output": Output MulMat,
    ConfProj = "conf_proj": Output MulMat,
    Conv1d = "conv1d": Layer Im2col,
    D2t = "d2t": Output GetRows,
    DecOutputNorm = "dec.output_norm": Output Mul,
    Dense2 = "dense_2": Output MulMat,
    Dense3 = "dense_3": Output MulMat,
    EncOutputNorm = "enc.output_norm": Output Mul,
    Fc = "fc": Output MulMat,
    HrmZLInit = "hrm.z_l_init": Input Add,
    MarkovW1 = "markov_w1": Output GetRows,
    MarkovW2 = "markov_w2": Output MulMat,
    MaskedEmbdCentroids = "masked_embd_centroids": Input Unused,
    MaskedEmbdOrdering = "masked_embd_ordering": Input Unused,
    NextnPostProjection = "nextn.post_projection": Output MulMat,
    NextnPreProjection = "nextn.pre_projection": Layer MulMat,
    Output = "output": Output MulMat,
    OutputHcBase = "output_hc_base": Output Add,
    OutputHcDown = "output_hc_down": Output MulMat,
    OutputHcFn = "output_hc_fn": Output MulMat,
    OutputHcNorm = "output_hc_norm": Output Mul,
    OutputHcScale = "output_hc_scale": Output Mul,
    OutputHcUp = "output_hc_up": Output MulMat,
    OutputNorm = "output_norm": Output Mul,
    OutputResScore = "output_res_score": Output Mul,
    PerLayerModelProj = "per_layer_model_proj": Layer MulMat,
    PerLayerProjNorm = "per_layer_proj_norm": Layer Mul,
    PerLayerTokenEmbd = "per_layer_token_embd": Input GetRows,
    PositionEmbd = "position_embd": Input GetRows,
    RopeFactorsLong = "rope_factors_long": Layer Rope,
    RopeFactorsShort = "rope_factors_short": Layer Rope,
    RopeFreqs = "rope_freqs": Layer Rope,
    SelectorHidden = "selector_hidden": Output MulMat,
    SelectorPredecessor = "selector_predecessor": Output GetRows,
    SelectorSuccessor = "selector_successor": Output GetRows,
    TokenEmbd = "token_embd": Input GetRows,
    TokenEmbdNorm = "token_embd_norm": Layer Mul,
    TokenTypes = "token_types": Input GetRows,
}

impl Kind {
    /// What reads the tensor.
    pub const fn used_by(self) -> Use {
        Self::FACTS[self as usize]
    }
}

impl Global {
    /// What reads the tensor.
    pub const fn used_by(self) -> Use {
        Self::FACTS[self as usize].1
    }

    /// The memory it goes to by itself.
    pub const fn home(self) -> Home {
        Self::FACTS[self as usize].0
    }
}
