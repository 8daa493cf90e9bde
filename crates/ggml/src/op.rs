//! The operations of a compute graph, as far as llama.cpp's model graphs use them.

use std::fmt;

/// `ggml_unary_op`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Unary {
    Abs,
    Sgn,
    Tanh,
    Relu,
    Round,
    Sigmoid,
    Gelu,
    GeluErf,
    GeluQuick,
    Silu,
    HardSigmoid,
    HardSwish,
    Elu,
    Exp,
    Neg,
    Softplus,
    Xielu,
}

/// `ggml_glu_op`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Glu {
    Reglu,
    Geglu,
    GegluErf,
    GegluQuick,
    Swiglu,
    SwigluOai,
    SwigluClamp,
}

/// `ggml_op`. What matters to memory is the shape of the result, whether it may take its source's
/// place, and which backend can run it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Op {
    /// A leaf: a weight, a cache, an input.
    None,
    Add,
    AddId,
    Arange,
    Argmax,
    Argsort,
    Clamp,
    Concat,
    Cont,
    Conv2d,
    /// A convolution with one kernel a channel.
    Conv2dDw,
    Cos,
    Cpy,
    Div,
    /// How the streams of hyper connections are mixed with each other.
    Dsv4HcComb,
    /// What a block adds, spread over the streams, and the streams themselves mixed.
    Dsv4HcPost,
    /// Streams summed by weight into what a block reads.
    Dsv4HcPre,
    Fill,
    FlashAttnExt,
    GatedDeltaNet,
    GatedLinearAttn,
    GetRows,
    Glu(Glu),
    GroupNorm,
    Im2col,
    L2Norm,
    LightningIndexer,
    Mean,
    Mul,
    MulMat,
    MulMatId,
    Norm,
    Pad,
    PadReflect1d,
    Permute,
    Pool1d,
    Pool2d,
    Repeat,
    Reshape,
    RmsNorm,
    Roll,
    Rope,
    RopeBack,
    RwkvWkv6,
    RwkvWkv7,
    Scale,
    Set,
    SetRows,
    Sin,
    SoftMax,
    Sqr,
    Sqrt,
    SsmConv,
    SsmScan,
    Sub,
    SumRows,
    TopK,
    Transpose,
    Unary(Unary),
    Upscale,
    View,
}

impl Op {
    /// `ggml_op_can_inplace`: the result may be written over a source.
    #[inline]
    pub const fn can_inplace(self) -> bool {
        matches!(
            self,
            Op::Scale
                | Op::Add
                | Op::AddId
                | Op::Sub
                | Op::Mul
                | Op::Div
                | Op::Sqr
                | Op::Sqrt
                | Op::Unary(_)
                | Op::Rope
                | Op::RopeBack
                | Op::RmsNorm
                | Op::SoftMax
                | Op::Clamp
                | Op::Fill
        )
    }

    /// `ggml_is_view_op`: nothing is computed, the result is another look at its source.
    #[inline]
    pub const fn is_view(self) -> bool {
        matches!(self, Op::View | Op::Reshape | Op::Permute | Op::Transpose)
    }

    /// ggml's name, with the kind of a unary or gated operation behind a colon.
    pub const fn name(self) -> &'static str {
        match self {
            Op::None => "NONE",
            Op::Add => "ADD",
            Op::AddId => "ADD_ID",
            Op::Arange => "ARANGE",
            Op::Argmax => "ARGMAX",
            Op::Argsort => "ARGSORT",
            Op::Clamp => "CLAMP",
            Op::Concat => "CONCAT",
            Op::Cont => "CONT",
            Op::Conv2d => "CONV_2D",
            Op::Conv2dDw => "CONV_2D_DW",
            Op::Cos => "COS",
            Op::Cpy => "CPY",
            Op::Div => "DIV",
            Op::Dsv4HcComb => "DSV4_HC_COMB",
            Op::Dsv4HcPost => "DSV4_HC_POST",
            Op::Dsv4HcPre => "DSV4_HC_PRE",
            Op::Fill => "FILL",
            Op::FlashAttnExt => "FLASH_ATTN_EXT",
            Op::GatedDeltaNet => "GATED_DELTA_NET",
            Op::GatedLinearAttn => "GATED_LINEAR_ATTN",
            Op::GetRows => "GET_ROWS",
            Op::Glu(Glu::Reglu) => "GLU:REGLU",
            Op::Glu(Glu::Geglu) => "GLU:GEGLU",
            Op::Glu(Glu::GegluErf) => "GLU:GEGLU_ERF",
            Op::Glu(Glu::GegluQuick) => "GLU:GEGLU_QUICK",
            Op::Glu(Glu::Swiglu) => "GLU:SWIGLU",
            Op::Glu(Glu::SwigluOai) => "GLU:SWIGLU_OAI",
            Op::Im2col => "IM2COL",
            Op::L2Norm => "L2_NORM",
            Op::Glu(Glu::SwigluClamp) => "GLU:SWIGLU_CLAMP",
            Op::LightningIndexer => "LIGHTNING_INDEXER",
            Op::Mean => "MEAN",
            Op::Mul => "MUL",
            Op::MulMat => "MUL_MAT",
            Op::MulMatId => "MUL_MAT_ID",
            Op::GroupNorm => "GROUP_NORM",
            Op::Norm => "NORM",
            Op::Pad => "PAD",
            Op::PadReflect1d => "PAD_REFLECT_1D",
            Op::Permute => "PERMUTE",
            Op::Pool1d => "POOL_1D",
            Op::Pool2d => "POOL_2D",
            Op::Repeat => "REPEAT",
            Op::Reshape => "RESHAPE",
            Op::RmsNorm => "RMS_NORM",
            Op::Roll => "ROLL",
            Op::Rope => "ROPE",
            Op::RopeBack => "ROPE_BACK",
            Op::RwkvWkv6 => "RWKV_WKV6",
            Op::RwkvWkv7 => "RWKV_WKV7",
            Op::Scale => "SCALE",
            Op::Set => "SET",
            Op::SetRows => "SET_ROWS",
            Op::Sin => "SIN",
            Op::SoftMax => "SOFT_MAX",
            Op::Sqr => "SQR",
            Op::Sqrt => "SQRT",
            Op::SsmConv => "SSM_CONV",
            Op::SsmScan => "SSM_SCAN",
            Op::Sub => "SUB",
            Op::SumRows => "SUM_ROWS",
            Op::TopK => "TOP_K",
            Op::Transpose => "TRANSPOSE",
            Op::Unary(Unary::Abs) => "UNARY:ABS",
            Op::Unary(Unary::Sgn) => "UNARY:SGN",
            Op::Unary(Unary::Tanh) => "UNARY:TANH",
            Op::Unary(Unary::Relu) => "UNARY:RELU",
            Op::Unary(Unary::Round) => "UNARY:ROUND",
            Op::Unary(Unary::Sigmoid) => "UNARY:SIGMOID",
            Op::Unary(Unary::Gelu) => "UNARY:GELU",
            Op::Unary(Unary::GeluErf) => "UNARY:GELU_ERF",
            Op::Unary(Unary::GeluQuick) => "UNARY:GELU_QUICK",
            Op::Unary(Unary::Silu) => "UNARY:SILU",
            Op::Unary(Unary::HardSigmoid) => "UNARY:HARDSIGMOID",
            Op::Unary(Unary::HardSwish) => "UNARY:HARDSWISH",
            Op::Unary(Unary::Elu) => "UNARY:ELU",
            Op::Unary(Unary::Exp) => "UNARY:EXP",
            Op::Unary(Unary::Neg) => "UNARY:NEG",
            Op::Unary(Unary::Softplus) => "UNARY:SOFTPLUS",
            Op::Unary(Unary::Xielu) => "UNARY:XIELU",
            Op::Upscale => "UPSCALE",
            Op::View => "VIEW",
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
