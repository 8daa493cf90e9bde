package vramfit

/*
#include <stdlib.h>
#include "vramfit.h"
*/
import "C"

import (
	"encoding/json"
	"errors"
	"runtime"
	"time"
	"unsafe"
)

// Host is the GPUs of one host and the ledger over them. It is of the process that opened it: a child of fork() that C code
// in the program makes gets StoreFailed of every call, as both would promise the same bytes.
type Host struct {
	// Now is the clock that all holders share; time.Now where it is nil.
	Now func() time.Time

	c *C.vramfit_host
}

// HostOptions may be left empty: GPUs are then known by their UUIDs where ProbeGPUs found them, else as CUDA0, CUDA1
// and so on, and the ledger is kept in memory.
type HostOptions struct {
	IDs     []string // a name for each GPU, by which it is known after a restart
	Journal string   // a file that keeps the ledger over a crash, by the host's name and the GPUs': keep both while anything is held
}

// OpenHost opens the ledger over the GPUs of host name. Of GPUs given by hand, what is free in the list is what models
// may take of them in all; of those that ProbeGPUs found models may take all, and what was free is the driver's first
// figure (Observe).
func OpenHost(name string, gpus *GPUs, options HostOptions) (*Host, error) {
	if options.IDs != nil && len(options.IDs) != gpus.Len() {
		return nil, errors.New("vramfit: as many IDs as there are GPUs")
	}
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	var journal *C.char
	if options.Journal != "" {
		journal = C.CString(options.Journal)
		defer C.free(unsafe.Pointer(journal))
	}
	ids, freeIDs := cStrings(options.IDs)
	defer freeIDs()
	var c *C.vramfit_host
	var failed *C.vramfit_error
	status := C.vramfit_host_open(cname, gpus.c, ids, journal, &c, &failed)
	runtime.KeepAlive(gpus)
	if err := failure(status, failed); err != nil {
		return nil, err
	}
	host := &Host{c: c}
	runtime.SetFinalizer(host, (*Host).Close)
	return host, nil
}

// cStrings is an array in C's memory; nil for none.
func cStrings(texts []string) (**C.char, func()) {
	if len(texts) == 0 {
		return nil, func() {}
	}
	memory := C.malloc(C.size_t(len(texts)) * C.size_t(unsafe.Sizeof((*C.char)(nil))))
	array := unsafe.Slice((**C.char)(memory), len(texts))
	for i, text := range texts {
		array[i] = C.CString(text)
	}
	return (**C.char)(memory), func() {
		for _, text := range array {
			C.free(unsafe.Pointer(text))
		}
		C.free(memory)
	}
}

// Close closes the ledger; a journal keeps it.
func (h *Host) Close() {
	C.vramfit_host_free(h.c)
	h.c = nil
	runtime.SetFinalizer(h, nil)
}

func (h *Host) now() C.uint64_t {
	if h.Now == nil {
		return C.uint64_t(time.Now().UnixMilli())
	}
	return C.uint64_t(h.Now().UnixMilli())
}

// GPUs with what is free of them by the ledger now.
func (h *Host) GPUs() (*GPUs, error) {
	var c *C.vramfit_gpus
	var failed *C.vramfit_error
	status := C.vramfit_host_gpus(h.c, &c, &failed)
	runtime.KeepAlive(h)
	if err := failure(status, failed); err != nil {
		return nil, err
	}
	return newGPUs(c), nil
}

// Observe says what the driver says is free of each GPU, just now: since it was asked nothing was committed or released
// by anybody (else ObserveWith). Never more than that is promised from now on, and what is released later is promised
// on with the next figures: observe again behind a Release. What others hold is remembered where an engine may have
// unloaded without a word, and may load again: Load.Stays.
func (h *Host) Observe(freeBytes []uint64) error {
	return h.observe(nil, freeBytes)
}

// ObserveWith asks what is free of each GPU and takes the answer as Observe does, whatever has been loaded or released
// in the meantime. Answers come in the order of their questions: ask one at a time.
func (h *Host) ObserveWith(ask func() ([]uint64, error)) error {
	mark, err := h.mark()
	if err != nil {
		return err
	}
	defer C.vramfit_mark_free(mark)
	freeBytes, err := ask()
	if err != nil {
		return err
	}
	return h.observe(mark, freeBytes)
}

func (h *Host) observe(mark *C.vramfit_mark, freeBytes []uint64) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_observe(h.c, mark, bytesOf(freeBytes), C.size_t(len(freeBytes)), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// OthersHold says what others hold of a GPU, from who knows, such as an operator or NVML's figures of processes: it
// takes the place of what they are believed to hold, so that what they left beside an engine that may sleep is free at
// once. What the driver's last figure shows beside reservations counts as taken all the same, until the next. Without
// a figure it says nothing.
func (h *Host) OthersHold(gpu uint32, bytes uint64) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_others_hold(h.c, C.uint32_t(gpu), C.uint64_t(bytes), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// ForgetFigure says that the driver says no more of a GPU: what it said last does not count any longer, and all that
// models may take of it is there to be promised.
func (h *Host) ForgetFigure(gpu uint32) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_forget_figure(h.c, C.uint32_t(gpu), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// mark is the ledger as it is now, to be freed.
func (h *Host) mark() (*C.vramfit_mark, error) {
	var mark *C.vramfit_mark
	var failed *C.vramfit_error
	status := C.vramfit_host_mark(h.c, &mark, &failed)
	runtime.KeepAlive(h)
	return mark, failure(status, failed)
}

func bytesOf(values []uint64) *C.uint64_t {
	return (*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(values)))
}

// Load is who asks for what.
type Load struct {
	Model   string        // what the ledger calls it; its own reservations are never evicted for it
	Holder  string        // the process to look for when the lease runs out
	Lease   time.Duration // to be renewed at least this often, a millisecond or more; 0 for none
	Stale   *Stale        // which reservations may be evicted; nil for none
	Partial bool          // layers or experts on the host will do, too

	// Its engine never unloads it by its own wish: llama-server does so only with --sleep-idle-seconds. Unless that is
	// said, memory that becomes free beside it may still be its, and is not promised on where others held it before. It is
	// said once: an engine that is started again with other habits is another reservation, made when the old one is
	// released.
	Stays bool
	// A name under which nothing is reserved twice, so that asking again is safe where an answer was lost; "" for none.
	Key string
}

// Stale is when a reservation may be evicted: idle for longer than Idle, or not started within Start.
type Stale struct{ Idle, Start time.Duration }

func (l Load) json() (string, error) {
	load := map[string]any{"model": l.Model, "holder": l.Holder, "partial": l.Partial, "stays": l.Stays}
	if l.Key != "" {
		load["key"] = l.Key
	}
	if l.Lease != 0 {
		load["lease_ms"] = l.Lease.Milliseconds()
	}
	if l.Stale != nil {
		load["stale"] = map[string]int64{"idle_ms": l.Stale.Idle.Milliseconds(), "start_ms": l.Stale.Start.Milliseconds()}
	}
	text, err := json.Marshal(load)
	return string(text), err
}

// Share is bytes on one GPU.
type Share struct {
	GPU   uint32 // its index
	Bytes uint64
}

// Reserved is a reservation that was made, and the placement that it is for.
type Reserved struct {
	ID        uint64
	Placement *Placement
	Shares    []Share
	Leaving   []uint64        // to be unloaded and released, as far as they still leave, before this one is loaded
	JSON      json.RawMessage // the grant, with the record of why
}

// reservation is what C holds of a Reserved and of its placement. It refers to neither, so that it can be collected.
type reservation struct{ c *C.vramfit_reserved }

// Reserve finds a placement of model on what is free by the ledger and reserves what it takes, in one step.
func (h *Host) Reserve(model *Model, load Load, settings Settings) (*Reserved, error) {
	settingsText, err := settings.json()
	if err != nil {
		return nil, err
	}
	loadText, err := load.json()
	if err != nil {
		return nil, err
	}
	csettings, cload := C.CString(settingsText), C.CString(loadText)
	defer C.free(unsafe.Pointer(csettings))
	defer C.free(unsafe.Pointer(cload))
	var c *C.vramfit_reserved
	var failed *C.vramfit_error
	status := C.vramfit_host_reserve(h.c, model.c, csettings, cload, h.now(), &c, &failed)
	runtime.KeepAlive(h)
	runtime.KeepAlive(model)
	if err := failure(status, failed); err != nil {
		return nil, err
	}
	return reservedOf(c), nil
}

func reservedOf(c *C.vramfit_reserved) *Reserved {
	held := &reservation{c}
	runtime.SetFinalizer(held, func(held *reservation) { C.vramfit_reserved_free(held.c) })
	r := &Reserved{
		ID:        uint64(C.vramfit_reserved_id(c)),
		JSON:      json.RawMessage(C.GoString(C.vramfit_reserved_json(c))),
		Placement: placementOf(C.vramfit_reserved_placement(c), held),
	}
	var count C.size_t
	shares := C.vramfit_reserved_shares(c, &count)
	for _, share := range unsafe.Slice(shares, count) {
		r.Shares = append(r.Shares, Share{uint32(share.gpu), uint64(share.bytes)})
	}
	leaving := C.vramfit_reserved_leaving(c, &count)
	for _, id := range unsafe.Slice(leaving, count) {
		r.Leaving = append(r.Leaving, uint64(id))
	}
	runtime.KeepAlive(held)
	return r
}

// Commit says that the engine has loaded it and took shares; nil says that it took what was reserved.
func (h *Host) Commit(id uint64, shares []Share) error {
	cshares := sharesOf(shares)
	var failed *C.vramfit_error
	status := C.vramfit_host_commit(h.c, C.uint64_t(id), unsafe.SliceData(cshares), C.size_t(len(cshares)), h.now(), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// sharesOf is shares for C; nil for nil: a list of no shares is refused.
func sharesOf(shares []Share) []C.vramfit_share {
	if shares == nil {
		return nil
	}
	cshares := make([]C.vramfit_share, len(shares))
	for i, share := range shares {
		cshares[i] = C.vramfit_share{gpu: C.uint32_t(share.GPU), bytes: C.uint64_t(share.Bytes)}
	}
	return cshares
}

// Renew says that the holder is alive: its lease begins anew.
func (h *Host) Renew(id uint64) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_renew(h.c, C.uint64_t(id), h.now(), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// Release says that the engine has unloaded it, or has never loaded it.
func (h *Host) Release(id uint64) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_release(h.c, C.uint64_t(id), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// BeginRequest says that a request to the loaded model begins: until it ends, the model is not evicted.
func (h *Host) BeginRequest(id uint64) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_begin_request(h.c, C.uint64_t(id), h.now(), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// EndRequest says that a request ends.
func (h *Host) EndRequest(id uint64) error {
	var failed *C.vramfit_error
	status := C.vramfit_host_end_request(h.c, C.uint64_t(id), h.now(), &failed)
	runtime.KeepAlive(h)
	return failure(status, failed)
}

// Loaded is something that is already loaded.
type Loaded struct {
	Model  string        // what the ledger is to call it
	Holder string        // the process to look for when the lease runs out
	Shares []Share       // what it takes of each GPU
	Lease  time.Duration // to be renewed at least this often, a millisecond or more; 0 for none
	Stays  bool          // see Load
	Key    string        // see Load: under it nothing is adopted twice; "" for none
}

func (l Loaded) json() (string, error) {
	loaded := map[string]any{"model": l.Model, "holder": l.Holder, "stays": l.Stays}
	if l.Key != "" {
		loaded["key"] = l.Key
	}
	if l.Lease != 0 {
		loaded["lease_ms"] = l.Lease.Milliseconds()
	}
	text, err := json.Marshal(loaded)
	return string(text), err
}

// Adopt takes over something that is already loaded. A fact: it is not checked, and the audit shows where it is too
// much. Figures of before it count it as taken by others, too: observe again behind it.
func (h *Host) Adopt(loaded Loaded) (uint64, error) {
	text, err := loaded.json()
	if err != nil {
		return 0, err
	}
	cloaded := C.CString(text)
	defer C.free(unsafe.Pointer(cloaded))
	cshares := sharesOf(loaded.Shares)
	var id C.uint64_t
	var failed *C.vramfit_error
	status := C.vramfit_host_adopt(h.c, cloaded, unsafe.SliceData(cshares), C.size_t(len(cshares)), h.now(), &id, &failed)
	runtime.KeepAlive(h)
	if err := failure(status, failed); err != nil {
		return 0, err
	}
	return uint64(id), nil
}

// Held is what an engine says it holds, by the number of its reservation.
type Held struct {
	ID     uint64
	Shares []Share
}

// Differences is how a holder's report differs from the ledger.
type Differences struct {
	Resized []uint64 // held in other sizes: the ledger has them as reported now
	Unknown []uint64 // reported, but not in the ledger as this holder's: adopt or unload them
	Missing []uint64 // loaded by the ledger, running or told to leave, but not reported: release them
}

// Reconcile holds what a holder's engines say they hold, all of it, against the ledger.
func (h *Host) Reconcile(holder string, held []Held) (Differences, error) {
	type share struct {
		GPU   uint32 `json:"gpu"`
		Bytes uint64 `json:"bytes"`
	}
	type report struct {
		ID     uint64  `json:"id"`
		Shares []share `json:"shares"`
	}
	reports := []report{}
	for _, held := range held {
		shares := []share{}
		for _, s := range held.Shares {
			shares = append(shares, share(s))
		}
		reports = append(reports, report{held.ID, shares})
	}
	text, err := json.Marshal(reports)
	if err != nil {
		return Differences{}, err
	}
	cholder, cheld := C.CString(holder), C.CString(string(text))
	defer C.free(unsafe.Pointer(cholder))
	defer C.free(unsafe.Pointer(cheld))
	var found *C.char
	var failed *C.vramfit_error
	status := C.vramfit_host_reconcile(h.c, cholder, cheld, &found, &failed)
	runtime.KeepAlive(h)
	if err := failure(status, failed); err != nil {
		return Differences{}, err
	}
	var differences Differences
	err = json.Unmarshal([]byte(taken(found)), &differences)
	return differences, err
}

// Violation is a GPU with more promised on it than it has.
type Violation struct {
	GPU struct {
		Host string `json:"host"`
		GPU  string `json:"gpu"`
	} `json:"gpu"`
	CapacityBytes uint64   `json:"capacity_bytes"`
	ReservedBytes uint64   `json:"reserved_bytes"`
	Reservations  []uint64 `json:"reservations"`
}

// Audit lists every GPU with more promised on it than it has.
func (h *Host) Audit() ([]Violation, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_host_audit(h.c, nil, &text, &failed)
	runtime.KeepAlive(h)
	if err := failure(status, failed); err != nil {
		return nil, err
	}
	var violations []Violation
	err := json.Unmarshal([]byte(taken(text)), &violations)
	return violations, err
}

// State is the ledger as of now: gpus and reservations.
func (h *Host) State() (json.RawMessage, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_host_state_json(h.c, &text, &failed)
	runtime.KeepAlive(h)
	return json.RawMessage(taken(text)), failure(status, failed)
}

// Reap drops reservations whose lease has run out, together with what the driver says is free of each GPU, just now, as
// for Observe. A lease runs out where its holder had time to renew it: where the host was away for a quarter of the
// lease (not open, its process stopped, or not called) or its journal failed, the lease begins anew, three times in a
// row at most. So call this, or Expire, several times in the shortest lease.
func (h *Host) Reap(freeBytes []uint64) (json.RawMessage, error) {
	return h.reap(nil, freeBytes)
}

// ReapWith is to Reap what ObserveWith is to Observe.
func (h *Host) ReapWith(ask func() ([]uint64, error)) (json.RawMessage, error) {
	mark, err := h.mark()
	if err != nil {
		return nil, err
	}
	defer C.vramfit_mark_free(mark)
	freeBytes, err := ask()
	if err != nil {
		return nil, err
	}
	return h.reap(mark, freeBytes)
}

// Expire is to be called instead of Reap where no driver can be asked: what a dead holder's engine still holds is not
// known then, and is promised on (but for what earlier figures of its GPU leave).
func (h *Host) Expire() (json.RawMessage, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_host_expire(h.c, h.now(), &text, &failed)
	runtime.KeepAlive(h)
	return json.RawMessage(taken(text)), failure(status, failed)
}

func (h *Host) reap(mark *C.vramfit_mark, freeBytes []uint64) (json.RawMessage, error) {
	var text *C.char
	var failed *C.vramfit_error
	status := C.vramfit_host_reap(h.c, mark, bytesOf(freeBytes), C.size_t(len(freeBytes)), h.now(), &text, &failed)
	runtime.KeepAlive(h)
	return json.RawMessage(taken(text)), failure(status, failed)
}
