package vramfit

import "encoding/json"

// Settings are llama-server's, under llama.cpp's names; nil is llama-server's default (NCtx: 4096).
// SettingsSchema describes each.
type Settings struct {
	NCtx           *uint32 `json:"n_ctx,omitempty"`
	NBatch         *uint32 `json:"n_batch,omitempty"`
	NUbatch        *uint32 `json:"n_ubatch,omitempty"`
	NSeqMax        *uint32 `json:"n_seq_max,omitempty"`
	NOutputs       *uint32 `json:"n_outputs,omitempty"`
	KVUnified      *bool   `json:"kv_unified,omitempty"`
	FlashAttention string  `json:"flash_attention,omitempty"` // on, off, auto
	TypeK          string  `json:"type_k,omitempty"`
	TypeV          string  `json:"type_v,omitempty"`
	OffloadKQV     *bool   `json:"offload_kqv,omitempty"`
	OpOffload      *bool   `json:"op_offload,omitempty"`
	SWAFull        *bool   `json:"swa_full,omitempty"`
	Mmap           *bool   `json:"mmap,omitempty"`
	NoHost         *bool   `json:"no_host,omitempty"`
	Repack         *bool   `json:"repack,omitempty"`
	Embeddings     *bool   `json:"embeddings,omitempty"`
	Pooling        string  `json:"pooling,omitempty"`

	NGPULayers  any              `json:"n_gpu_layers,omitempty"` // a number, "all" or "auto"
	TensorSplit []float32        `json:"tensor_split,omitempty"`
	SplitMode   string           `json:"split_mode,omitempty"` // none, layer, tensor
	MainGPU     *uint32          `json:"main_gpu,omitempty"`
	Devices     *[]string        `json:"devices,omitempty"` // CUDA0 and so on; empty for the CPU alone
	Overrides   []TensorOverride `json:"overrides,omitempty"`
	CPUMoE      *bool            `json:"cpu_moe,omitempty"`
	NCPUMoE     *uint32          `json:"n_cpu_moe,omitempty"`
	Layout      string           `json:"layout,omitempty"` // best, engine
	Prefer      string           `json:"prefer,omitempty"` // most-free, first, last, tightest

	LoRAs                []AdapterFile `json:"loras,omitempty"`
	LoRAInitWithoutApply *bool         `json:"lora_init_without_apply,omitempty"`
	ControlVectors       []AdapterFile `json:"control_vectors,omitempty"`
	ControlVectorLayers  *[2]uint32    `json:"control_vector_layer_range,omitempty"` // the first and the last
	Mmproj               *MmprojFile   `json:"mmproj,omitempty"`
	Draft                *DraftFile    `json:"draft,omitempty"`
}

// TensorOverride sends tensors with Pattern in their names to Buffer: CPU, or a GPU such as CUDA0.
type TensorOverride struct {
	Pattern string `json:"pattern"`
	Buffer  string `json:"buffer"`
}

// AdapterFile is a LoRA adapter or a control vector; Scale is 1 where it is nil.
type AdapterFile struct {
	Path  string   `json:"path"`
	Scale *float32 `json:"scale,omitempty"`
}

// MmprojFile is a multimodal projector that is loaded beside the model.
type MmprojFile struct {
	Path           string  `json:"path"`
	Offload        *bool   `json:"offload,omitempty"`
	Device         string  `json:"device,omitempty"`
	ImageMinTokens *uint32 `json:"image_min_tokens,omitempty"`
	ImageMaxTokens *uint32 `json:"image_max_tokens,omitempty"`
}

// DraftFile is speculative decoding: a draft model beside the model, or its own layers for multi-token prediction.
type DraftFile struct {
	Type            string           `json:"type,omitempty"`
	Path            string           `json:"path,omitempty"`
	NMax            *uint32          `json:"n_max,omitempty"`
	NGPULayers      any              `json:"n_gpu_layers,omitempty"` // a number, "all" or "auto"
	Devices         *[]string        `json:"devices,omitempty"`
	TypeK           string           `json:"type_k,omitempty"`
	TypeV           string           `json:"type_v,omitempty"`
	Overrides       []TensorOverride `json:"overrides,omitempty"`
	CPUMoE          *bool            `json:"cpu_moe,omitempty"`
	NCPUMoE         *uint32          `json:"n_cpu_moe,omitempty"`
	BackendSampling *bool            `json:"backend_sampling,omitempty"`
}

// Ptr is for settings: Settings{NCtx: vramfit.Ptr[uint32](8192)}.
func Ptr[T any](value T) *T { return &value }

func (s Settings) json() (string, error) {
	text, err := json.Marshal(s)
	return string(text), err
}
