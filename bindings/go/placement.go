package vramfit

/*
#include <stdlib.h>
#include "vramfit.h"
*/
import "C"

import (
	"encoding/json"
	"fmt"
	"runtime"
	"time"
	"unsafe"
)

// Model is what a GGUF file's header says of a model.
type Model struct{ c *C.vramfit_model }

// Open reads the model at path: one file, or any part of a split model. Only the header is read.
func Open(path string) (*Model, error) {
	text := C.CString(path)
	defer C.free(unsafe.Pointer(text))
	var c *C.vramfit_model
	var failed *C.vramfit_error
	if err := failure(C.vramfit_model_open(text, &c, &failed), failed); err != nil {
		return nil, err
	}
	model := &Model{c}
	runtime.SetFinalizer(model, (*Model).Close)
	return model, nil
}

// Close frees the model; placements made of it live on.
func (m *Model) Close() {
	C.vramfit_model_free(m.c)
	m.c = nil
	runtime.SetFinalizer(m, nil)
}

// Architecture is general.architecture.
func (m *Model) Architecture() string {
	defer runtime.KeepAlive(m)
	return C.GoString(C.vramfit_model_architecture(m.c))
}

// Name is general.name, empty where there is none.
func (m *Model) Name() string {
	defer runtime.KeepAlive(m)
	return C.GoString(C.vramfit_model_name(m.c))
}

// NLayer counts blocks; the output layer is one more layer behind them.
func (m *Model) NLayer() int {
	defer runtime.KeepAlive(m)
	return int(C.vramfit_model_n_layer(m.c))
}

// FileBytes of the complete file, or files.
func (m *Model) FileBytes() uint64 {
	defer runtime.KeepAlive(m)
	return uint64(C.vramfit_model_file_bytes(m.c))
}

// GPUs in CUDA's order: the first is CUDA0.
type GPUs struct{ c *C.vramfit_gpus }

// GPU by what CUDA says of it.
type GPU struct {
	Name                   string
	TotalBytes, FreeBytes  uint64
	ComputeCapabilityMajor uint32
	ComputeCapabilityMinor uint32
}

func newGPUs(c *C.vramfit_gpus) *GPUs {
	gpus := &GPUs{c}
	runtime.SetFinalizer(gpus, (*GPUs).Close)
	return gpus
}

// ParseGPUs reads a list as estimate --gpus does: "k80x2", "rtx3060:free=9GiB", "24GiB:cc=7.5".
func ParseGPUs(text string) (*GPUs, error) {
	ctext := C.CString(text)
	defer C.free(unsafe.Pointer(ctext))
	var c *C.vramfit_gpus
	var failed *C.vramfit_error
	if err := failure(C.vramfit_gpus_parse(ctext, &c, &failed), failed); err != nil {
		return nil, err
	}
	return newGPUs(c), nil
}

// ProbeGPUs finds this machine's GPUs: text is auto, or auto:0,2 for some. program is vramfit's estimate ("" for the
// one on the path), which asks the driver in a process of its own and is killed when timeout (0 for the default) has
// passed.
func ProbeGPUs(text, program string, timeout time.Duration) (*GPUs, error) {
	ctext := C.CString(text)
	defer C.free(unsafe.Pointer(ctext))
	var cprogram *C.char
	if program != "" {
		cprogram = C.CString(program)
		defer C.free(unsafe.Pointer(cprogram))
	}
	var c *C.vramfit_gpus
	var failed *C.vramfit_error
	status := C.vramfit_gpus_probe(cprogram, ctext, C.uint32_t(timeout.Milliseconds()), &c, &failed)
	if err := failure(status, failed); err != nil {
		return nil, err
	}
	return newGPUs(c), nil
}

// NewGPUs makes a list of GPUs as CUDA describes them.
func NewGPUs(list ...GPU) (*GPUs, error) {
	var c *C.vramfit_gpus
	var failed *C.vramfit_error
	if err := failure(C.vramfit_gpus_new(&c, &failed), failed); err != nil {
		return nil, err
	}
	gpus := newGPUs(c)
	for _, gpu := range list {
		name := C.CString(gpu.Name)
		status := C.vramfit_gpus_add(gpus.c, name, C.uint64_t(gpu.TotalBytes), C.uint64_t(gpu.FreeBytes),
			C.uint32_t(gpu.ComputeCapabilityMajor), C.uint32_t(gpu.ComputeCapabilityMinor), &failed)
		C.free(unsafe.Pointer(name))
		if err := failure(status, failed); err != nil {
			return nil, err
		}
	}
	runtime.KeepAlive(gpus)
	return gpus, nil
}

// Len is how many there are.
func (g *GPUs) Len() int {
	defer runtime.KeepAlive(g)
	return int(C.vramfit_gpus_count(g.c))
}

// FreeBytes of a GPU; 0 beyond the end.
func (g *GPUs) FreeBytes(gpu int) uint64 {
	defer runtime.KeepAlive(g)
	return uint64(C.vramfit_gpus_free_bytes(g.c, C.uint32_t(gpu)))
}

// Close frees the list.
func (g *GPUs) Close() {
	C.vramfit_gpus_free(g.c)
	g.c = nil
	runtime.SetFinalizer(g, nil)
}

// Term is what bytes are for.
type Term int32

// The terms, in the order in which they are given.
const (
	Weights          Term = C.VRAMFIT_TERM_KIND_WEIGHTS
	Adapters         Term = C.VRAMFIT_TERM_KIND_ADAPTERS
	Context          Term = C.VRAMFIT_TERM_KIND_CONTEXT
	Compute          Term = C.VRAMFIT_TERM_KIND_COMPUTE
	ProjectorWeights Term = C.VRAMFIT_TERM_KIND_PROJECTOR_WEIGHTS
	ProjectorCompute Term = C.VRAMFIT_TERM_KIND_PROJECTOR_COMPUTE
	DraftWeights     Term = C.VRAMFIT_TERM_KIND_DRAFT_WEIGHTS
	DraftContext     Term = C.VRAMFIT_TERM_KIND_DRAFT_CONTEXT
	DraftCompute     Term = C.VRAMFIT_TERM_KIND_DRAFT_COMPUTE
	Runtime          Term = C.VRAMFIT_TERM_KIND_RUNTIME
	Overhead         Term = C.VRAMFIT_TERM_KIND_OVERHEAD
)

// Certainty is how sure a number is.
type Certainty int32

// Exact are llama.cpp's own bytes, Modelled is a model of what CUDA takes, Bound is not above this.
const (
	Exact    Certainty = C.VRAMFIT_CERTAINTY_EXACT
	Modelled Certainty = C.VRAMFIT_CERTAINTY_MODELLED
	Bound    Certainty = C.VRAMFIT_CERTAINTY_BOUND
)

// Verdict is the answer in one word.
type Verdict int32

// Fits: all layers on GPUs. Partial: some layers or experts stay on the host. DoesNotFit: not as asked.
const (
	Fits       Verdict = C.VRAMFIT_VERDICT_FITS
	Partial    Verdict = C.VRAMFIT_VERDICT_PARTIAL
	DoesNotFit Verdict = C.VRAMFIT_VERDICT_DOES_NOT_FIT
)

// Bytes of one kind on one device.
type Bytes struct {
	Term      Term
	Certainty Certainty
	Bytes     uint64
}

// Device is a GPU, or the host, and what it holds.
type Device struct {
	ID            string // CUDA0 and so on, or host
	Terms         []Bytes
	RequiredBytes uint64 // their sum: what nvidia-smi would show for the process
	HeadroomBytes int64  // free less required; 0 for the host
	Layers        []uint32
}

// Placement is where everything goes.
type Placement struct {
	Verdict Verdict
	Devices []Device        // the GPUs in order, then the host
	Command []string        // the llama-server call that does it, program and arguments
	JSON    json.RawMessage // what estimate --json prints

	c     *C.vramfit_placement
	owner *reservation // what c belongs to; nil where it is the placement's own
}

// Plan finds where model goes on gpus.
func Plan(model *Model, gpus *GPUs, settings Settings) (*Placement, error) {
	text, err := settings.json()
	if err != nil {
		return nil, err
	}
	ctext := C.CString(text)
	defer C.free(unsafe.Pointer(ctext))
	var c *C.vramfit_placement
	var failed *C.vramfit_error
	status := C.vramfit_plan(model.c, gpus.c, ctext, &c, &failed)
	runtime.KeepAlive(model)
	runtime.KeepAlive(gpus)
	if err := failure(status, failed); err != nil {
		return nil, err
	}
	placement := placementOf(c, nil)
	runtime.SetFinalizer(placement, (*Placement).Close)
	return placement, nil
}

// Close frees what C holds; the fields stay.
func (p *Placement) Close() {
	if p.owner == nil {
		C.vramfit_placement_free(p.c)
	}
	p.c = nil
	runtime.SetFinalizer(p, nil)
}

func placementOf(c *C.vramfit_placement, owner *reservation) *Placement {
	p := &Placement{
		Verdict: Verdict(C.vramfit_placement_verdict(c)),
		JSON:    json.RawMessage(C.GoString(C.vramfit_placement_json(c))),
		c:       c,
		owner:   owner,
	}
	for gpu := C.uint32_t(0); gpu < C.vramfit_placement_gpu_count(c); gpu++ {
		p.Devices = append(p.Devices, deviceOf(c, gpu, fmt.Sprintf("CUDA%d", gpu)))
	}
	p.Devices = append(p.Devices, deviceOf(c, C.VRAMFIT_HOST_MEMORY, "host"))
	var count C.size_t
	words := C.vramfit_placement_command(c, &count)
	for _, word := range unsafe.Slice(words, count) {
		p.Command = append(p.Command, C.GoString(word))
	}
	return p
}

func deviceOf(c *C.vramfit_placement, device C.uint32_t, id string) Device {
	d := Device{
		ID:            id,
		RequiredBytes: uint64(C.vramfit_placement_required_bytes(c, device)),
		HeadroomBytes: int64(C.vramfit_placement_headroom_bytes(c, device)),
	}
	var count C.size_t
	terms := C.vramfit_placement_terms(c, device, &count)
	for _, term := range unsafe.Slice(terms, count) {
		d.Terms = append(d.Terms, Bytes{Term(term.kind), Certainty(term.certainty), uint64(term.bytes)})
	}
	layers := C.vramfit_placement_layers(c, device, &count)
	for _, layer := range unsafe.Slice(layers, count) {
		d.Layers = append(d.Layers, uint32(layer))
	}
	return d
}

// Text is what estimate prints, in lines of so many columns; 0 for 80.
func (p *Placement) Text(columns int) (string, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_placement_text(p.c, C.uint32_t(columns), &text, &failed)
	runtime.KeepAlive(p)
	return taken(text), failure(status, failed)
}

// Explain is what is in the compute buffers at their peaks, as estimate explain --json prints it.
func (p *Placement) Explain() (json.RawMessage, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_explain_json(p.c, &text, &failed)
	runtime.KeepAlive(p)
	return json.RawMessage(taken(text)), failure(status, failed)
}

// SettingsSchema is the JSON Schema of Settings.
func SettingsSchema() (json.RawMessage, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_settings_schema(&text, &failed)
	return json.RawMessage(taken(text)), failure(status, failed)
}

// taken makes a Go string of one that C has handed over, and frees that.
func taken(text *C.char) string {
	defer C.vramfit_string_free(text)
	return C.GoString(text)
}
