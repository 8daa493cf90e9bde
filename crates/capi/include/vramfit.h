// vramfit: what a GGUF model takes on each GPU under llama.cpp, where every layer should go, and who holds which bytes.
//
// - A call that can fail answers a status. Its last argument, `error`, may be NULL; otherwise it is NULL behind a call
//   that did it, and an error that the caller frees behind one that did not. What is handed out through a pointer is
//   NULL where the call failed.
// - A handle belongs to the caller, who frees it once with its own function (NULL is allowed there) and does not use it
//   behind that. Strings and arrays that are returned belong to their handle and live as long as it does; those handed
//   out through a `char **` are the caller's, for `vramfit_string_free`.
// - Text is UTF-8 and ends with a NUL; paths are bytes as the system has them. All sizes are bytes.
// - Any function may be called from any thread, several at once on one handle, as long as none of them frees it.
//   Nothing is global but a pool of threads, which the first plan starts; a child of fork() may plan, too, without it.
//   A host is of the process that opened it: in a child of fork() its calls answer VRAMFIT_STATUS_STORE, as both would
//   promise the same bytes, and vramfit_host_free leaves the journal to its parent. So open it behind fork(), in one process.
// - No panic of the library passes through: it is VRAMFIT_STATUS_INTERNAL. An index beyond the end is an answer of 0 or
//   NULL, never a read beyond it.

#ifndef VRAMFIT_H
#define VRAMFIT_H

/* Made by cbindgen from crates/capi: `VRAMFIT_WRITE_HEADER=1 cargo test -p vramfit-capi` writes it anew. */

#include <stddef.h>
#include <stdint.h>

// The version of this interface. It grows when something is taken away or means something else; what is added leaves
// it as it is.
#define VRAMFIT_ABI_VERSION 1

// The host where a GPU's index is asked for.
#define VRAMFIT_HOST_MEMORY 4294967295

// What came of a call.
enum vramfit_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Done.
  VRAMFIT_STATUS_OK = 0,
  // The caller's mistake: a NULL that is not allowed, text that is not UTF-8, an index beyond the end.
  VRAMFIT_STATUS_INVALID_ARGUMENT = 1,
  // A file cannot be read, or is no GGUF.
  VRAMFIT_STATUS_OPEN = 2,
  // The file is sound, but no model that can be sized; or an adapter or projector is not for this model.
  VRAMFIT_STATUS_MODEL = 3,
  // The list of GPUs cannot be read, a GPU cannot be as described, or this machine's cannot be found.
  VRAMFIT_STATUS_GPUS = 4,
  // A setting is not one that there is, or cannot be for these GPUs.
  VRAMFIT_STATUS_SETTINGS = 5,
  // llama.cpp refuses these settings.
  VRAMFIT_STATUS_REFUSED = 6,
  // vramfit has no rule for these settings, which llama.cpp may start with.
  VRAMFIT_STATUS_NOT_MODELLED = 7,
  // Would fit on these GPUs, but not now: try again when something has been released.
  VRAMFIT_STATUS_FULL_NOW = 20,
  // As `FULL_NOW`, but reservations are still starting or leaving: try again when they have.
  VRAMFIT_STATUS_FULL_PENDING = 21,
  // Would not fit even if every GPU were empty.
  VRAMFIT_STATUS_NEVER_FITS = 22,
  // The host has no such GPU.
  VRAMFIT_STATUS_UNKNOWN_GPU = 23,
  // No such reservation, or it has been released.
  VRAMFIT_STATUS_UNKNOWN_RESERVATION = 24,
  // The ledger has moved on too often meanwhile: try again.
  VRAMFIT_STATUS_STALE_PLAN = 25,
  // What is to be replaced has not been released yet.
  VRAMFIT_STATUS_WAITS = 26,
  // The engine took more than there is room for: unload it and release the reservation.
  VRAMFIT_STATUS_TOOK_TOO_MUCH = 27,
  // Not in this phase of the reservation.
  VRAMFIT_STATUS_PHASE = 28,
  // No GPU is needed with these settings: there is nothing to reserve.
  VRAMFIT_STATUS_NO_GPU = 29,
  // The journal did not take it, or cannot be read. It is not known whether it was stored; the ledger reads the
  // journal again before it decides anything else.
  VRAMFIT_STATUS_STORE = 30,
  // A reservation was made under this key before, and is still held: `reservation` in the error's JSON.
  VRAMFIT_STATUS_KEY_TAKEN = 31,
  // vramfit's own fault. Nothing has been changed; please report it.
  VRAMFIT_STATUS_INTERNAL = 99,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vramfit_status vramfit_status;
#else
typedef int32_t vramfit_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// The answer in one word.
enum vramfit_verdict
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // All layers on GPUs (or, with no GPU, on the host), within free memory.
  VRAMFIT_VERDICT_FITS = 0,
  // Some layers or experts stay on the host.
  VRAMFIT_VERDICT_PARTIAL = 1,
  // Not as asked: a GPU falls short, or no layer fits on any.
  VRAMFIT_VERDICT_DOES_NOT_FIT = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vramfit_verdict vramfit_verdict;
#else
typedef int32_t vramfit_verdict;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// What bytes are for.
enum vramfit_term_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The model's weights.
  VRAMFIT_TERM_KIND_WEIGHTS = 0,
  // LoRA adapters and control vectors.
  VRAMFIT_TERM_KIND_ADAPTERS = 1,
  // KV cache and recurrent state.
  VRAMFIT_TERM_KIND_CONTEXT = 2,
  // The compute buffer.
  VRAMFIT_TERM_KIND_COMPUTE = 3,
  // A multimodal projector's weights.
  VRAMFIT_TERM_KIND_PROJECTOR_WEIGHTS = 4,
  // A multimodal projector's own compute buffers.
  VRAMFIT_TERM_KIND_PROJECTOR_COMPUTE = 5,
  // A draft model's weights.
  VRAMFIT_TERM_KIND_DRAFT_WEIGHTS = 6,
  // A draft's cache.
  VRAMFIT_TERM_KIND_DRAFT_CONTEXT = 7,
  // A draft's own compute buffers.
  VRAMFIT_TERM_KIND_DRAFT_COMPUTE = 8,
  // CUDA's pool of temporary buffers and cuBLAS's workspace.
  VRAMFIT_TERM_KIND_RUNTIME = 9,
  // CUDA's context, and what the driver keeps where that is not known.
  VRAMFIT_TERM_KIND_OVERHEAD = 10,
  // Something that this version of the header has no name for.
  VRAMFIT_TERM_KIND_OTHER = 99,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vramfit_term_kind vramfit_term_kind;
#else
typedef int32_t vramfit_term_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How sure a number is.
enum vramfit_certainty
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // llama.cpp's own bytes.
  VRAMFIT_CERTAINTY_EXACT = 0,
  // A model of what CUDA takes.
  VRAMFIT_CERTAINTY_MODELLED = 1,
  // Not above this.
  VRAMFIT_CERTAINTY_BOUND = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum vramfit_certainty vramfit_certainty;
#else
typedef int32_t vramfit_certainty;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Why a call failed. Belongs to the caller: free it with `vramfit_error_free`.
typedef struct vramfit_error vramfit_error;

// GPUs in CUDA's order: the first is CUDA0. It may be used from several threads at once; a plan is made for the list
// as it is at that moment.
typedef struct vramfit_gpus vramfit_gpus;

// The GPUs of one host and the ledger over them. Every call is atomic: what is reserved is promised to nobody else,
// whichever thread asks.
typedef struct vramfit_host vramfit_host;

// The ledger as it was at one moment: taken before the driver is asked, it says what was loaded then.
typedef struct vramfit_mark vramfit_mark;

// What a GGUF file's header says of a model. Never changes; share it between threads as you like.
typedef struct vramfit_model vramfit_model;

// Where everything goes. Never changes; share it between threads as you like. It keeps what it needs of the model.
typedef struct vramfit_placement vramfit_placement;

// A reservation that was made, and the placement that it is for. Freeing it does not release the reservation.
typedef struct vramfit_reserved vramfit_reserved;

// Bytes on one GPU of a host.
typedef struct {
  // Its index in the host's list.
  uint32_t gpu;
  // How many; never 0.
  uint64_t bytes;
} vramfit_share;

// Bytes of one kind on one device.
typedef struct {
  // What for.
  vramfit_term_kind kind;
  // How sure.
  vramfit_certainty certainty;
  // How many.
  uint64_t bytes;
} vramfit_term;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// `VRAMFIT_ABI_VERSION` of the library that is loaded: compare it with the header's before anything else.
uint32_t vramfit_abi_version(void);

// The library's version, such as "0.1.0". Never freed.
const char *vramfit_version(void);

// The status that came with it.
vramfit_status vramfit_error_status(const vramfit_error *error);

// What is wrong and what would do, on one line. Lives as long as the error.
const char *vramfit_error_message(const vramfit_error *error);

// The same for programs: a JSON object with `status` and `message`, and what else is known. Lives as long as the
// error.
const char *vramfit_error_json(const vramfit_error *error);

// 1 where the same call may succeed later, with nothing else changed: others start, leave, or are released. Else 0.
int32_t vramfit_error_can_retry(const vramfit_error *error);

// Frees an error. NULL is allowed.
void vramfit_error_free(vramfit_error *error);

// Reads a list as `estimate --gpus` does: "k80x2", "rtx3060:free=9GiB", "24GiB:cc=7.5", "none". For "auto" there is
// `vramfit_gpus_probe`.
vramfit_status vramfit_gpus_parse(const char *gpus_text,
                                  vramfit_gpus **gpus,
                                  vramfit_error **error);

// This machine's GPUs, as the driver shows them: "auto" (which NULL is, too), or "auto:0,2" for some. `program` is
// vramfit's `estimate` (NULL: by its name, on the path), which asks the driver in a process of its own, so that a
// driver that hangs or crashes does so there; it is given `timeout_ms` (0 for the default, some seconds), then killed.
vramfit_status vramfit_gpus_probe(const char *program,
                                  const char *gpus_text,
                                  uint32_t timeout_ms,
                                  vramfit_gpus **gpus,
                                  vramfit_error **error);

// An empty list, for `vramfit_gpus_add`.
vramfit_status vramfit_gpus_new(vramfit_gpus **gpus, vramfit_error **error);

// Adds a GPU by what CUDA says of it (`cudaMemGetInfo`, the compute capability's two numbers). `name` may be NULL; a
// card of the catalogue is known by it, for others what CUDA itself takes is modelled by the compute capability.
vramfit_status vramfit_gpus_add(const vramfit_gpus *gpus,
                                const char *name,
                                uint64_t total_bytes,
                                uint64_t free_bytes,
                                uint32_t compute_capability_major,
                                uint32_t compute_capability_minor,
                                vramfit_error **error);

// Says what is free on a GPU now.
vramfit_status vramfit_gpus_set_free(const vramfit_gpus *gpus,
                                     uint32_t gpu,
                                     uint64_t free_bytes,
                                     vramfit_error **error);

// How many there are.
uint32_t vramfit_gpus_count(const vramfit_gpus *gpus);

// All memory of a GPU, bytes; 0 beyond the end.
uint64_t vramfit_gpus_total_bytes(const vramfit_gpus *gpus, uint32_t gpu);

// Free memory of a GPU, bytes; 0 beyond the end.
uint64_t vramfit_gpus_free_bytes(const vramfit_gpus *gpus, uint32_t gpu);

// Frees a list. NULL is allowed.
void vramfit_gpus_free(vramfit_gpus *gpus);

// Opens the ledger over the GPUs of host `name`. Of GPUs given by hand, what is free in the list is what models may
// take of them in all; of those that `vramfit_gpus_probe` found models may take all, and what was free is the driver's
// first figure (`vramfit_host_observe`). `gpu_ids` has a name for each, by which it is known after a restart; NULL
// takes the UUIDs of those that were found, else CUDA0, CUDA1 and so on. The ledger is kept in the file
// `journal_path`, which survives a crash and belongs to one process at a time; NULL keeps it in memory.
vramfit_status vramfit_host_open(const char *name,
                                 const vramfit_gpus *gpus,
                                 const char *const *gpu_ids,
                                 const char *journal_path,
                                 vramfit_host **host,
                                 vramfit_error **error);

// The host's GPUs with what is free of them by the ledger now: a list of its own, to be freed.
vramfit_status vramfit_host_gpus(const vramfit_host *host, vramfit_gpus **gpus, vramfit_error **error);

// Finds a placement of `model` on what is free by the ledger and reserves what it takes, in one step. `settings_json`
// is that of `vramfit_plan`. `load_json` says who asks: {"model": "qwen3:8b", "holder": "loader-1"}, and where wanted
// "lease_ms" (a lease to renew at least this often), "stale": {"idle_ms", "start_ms"} (which reservations may be
// evicted), "partial": true (layers or experts on the host will do, too), "stays": true and "key": "load-1" (under
// which nothing is reserved twice, so that asking again is safe where an answer was lost). Times are milliseconds of
// one clock that all holders share.
// "stays" says that its engine never unloads it by its own wish: llama-server does so only with --sleep-idle-seconds.
// Unless that is said, memory that becomes free beside it may still be its, and is not promised on where others held
// it before. It is said once: an engine that is started again with other habits is another reservation, made when the
// old one has been released.
vramfit_status vramfit_host_reserve(const vramfit_host *host,
                                    const vramfit_model *model,
                                    const char *settings_json,
                                    const char *load_json,
                                    uint64_t now_ms,
                                    vramfit_reserved **reserved,
                                    vramfit_error **error);

// The reservation's number, by which the ledger knows it, also after a restart. UINT64_MAX for NULL.
uint64_t vramfit_reserved_id(const vramfit_reserved *reserved);

// The placement that it is for. Lives as long as `reserved`; not to be freed.
const vramfit_placement *vramfit_reserved_placement(const vramfit_reserved *reserved);

// What it holds of each GPU. Lives as long as `reserved`.
const vramfit_share *vramfit_reserved_shares(const vramfit_reserved *reserved, size_t *count);

// Reservations whose models have to be unloaded, and then released, before this one is loaded, as far as they are still
// leaving then. NULL for none. Lives as long as `reserved`.
const uint64_t *vramfit_reserved_leaving(const vramfit_reserved *reserved,
                                         size_t *count);

// The grant as JSON, with the record of why: every option, each rejection with its GPU and bytes, the GPUs before and
// after. Lives as long as `reserved`.
const char *vramfit_reserved_json(const vramfit_reserved *reserved);

// Frees the handle; the reservation stays until `vramfit_host_release`. NULL is allowed.
void vramfit_reserved_free(vramfit_reserved *reserved);

// The engine has loaded it and took `shares`; NULL with a count of 0 says that it took what was reserved.
// An array of 0 is refused: an engine that took nothing holds no reservation.
vramfit_status vramfit_host_commit(const vramfit_host *host,
                                   uint64_t id,
                                   const vramfit_share *shares,
                                   size_t count,
                                   uint64_t now_ms,
                                   vramfit_error **error);

// Closes the ledger; a journal keeps it. NULL is allowed.
void vramfit_host_free(vramfit_host *host);

// The holder is alive: its lease begins anew.
vramfit_status vramfit_host_renew(const vramfit_host *host,
                                  uint64_t id,
                                  uint64_t now_ms,
                                  vramfit_error **error);

// The engine has unloaded it, or has never loaded it.
vramfit_status vramfit_host_release(const vramfit_host *host, uint64_t id, vramfit_error **error);

// A request to the loaded model begins: until it ends, the model is not evicted.
vramfit_status vramfit_host_begin_request(const vramfit_host *host,
                                          uint64_t id,
                                          uint64_t now_ms,
                                          vramfit_error **error);

// A request ends.
vramfit_status vramfit_host_end_request(const vramfit_host *host,
                                        uint64_t id,
                                        uint64_t now_ms,
                                        vramfit_error **error);

// Marks the ledger as it is now: to be taken before the driver is asked what is free, for `vramfit_host_observe` and
// `vramfit_host_reap`. Free it with `vramfit_mark_free`.
vramfit_status vramfit_host_mark(const vramfit_host *host,
                                 vramfit_mark **mark,
                                 vramfit_error **error);

// Frees a mark. NULL is allowed.
void vramfit_mark_free(vramfit_mark *mark);

// What the driver says is free of each GPU, in their order: never more than that is promised from now on, and what is
// released later is promised on with the next figures: observe again behind a release. The figures are of any moment
// since `mark`; NULL says that nothing was committed or released since the driver was asked. `count` is that of the
// host's GPUs; a list of another length changes nothing.
// Answers come in the order of their questions: ask one at a time, or leave the older one.
// An engine may unload without a word, and load again: what others hold is remembered, see "stays" of
// `vramfit_host_reserve`.
vramfit_status vramfit_host_observe(const vramfit_host *host,
                                    const vramfit_mark *mark,
                                    const uint64_t *free_bytes,
                                    size_t count,
                                    vramfit_error **error);

// What others hold of a GPU, from who knows, such as an operator or NVML's figures of processes: it takes the place of
// what they are believed to hold, so that what they left beside an engine that may sleep is free at once. What the
// driver's last figure shows beside reservations counts as taken all the same, until the next. Without a figure it
// says nothing.
vramfit_status vramfit_host_others_hold(const vramfit_host *host,
                                        uint32_t gpu,
                                        uint64_t bytes,
                                        vramfit_error **error);

// The driver says no more of a GPU: what it said last does not count any longer, and all that models may take of it is
// there to be promised.
vramfit_status vramfit_host_forget_figure(const vramfit_host *host,
                                          uint32_t gpu,
                                          vramfit_error **error);

// Drops reservations whose lease has run out, together with what the driver says is free of each GPU, as for
// `vramfit_host_observe`: what an orphaned engine still holds then counts as taken by others. `reaped_json` may be
// NULL; else it is an object with `released` and `unprobed`, to be freed with `vramfit_string_free`.
//
// A lease runs out where its holder had time to renew it. Where nothing has told the host the time for a quarter of the
// lease (it was not open, or its process stopped) or its journal failed, the lease begins anew, three times in a row at
// most: call this, or `vramfit_host_expire`, several times in the shortest lease.
vramfit_status vramfit_host_reap(const vramfit_host *host,
                                 const vramfit_mark *mark,
                                 const uint64_t *free_bytes,
                                 size_t count,
                                 uint64_t now_ms,
                                 char **reaped_json,
                                 vramfit_error **error);

// As `vramfit_host_reap` where no driver can be asked: what a dead holder's engine still holds is not known then, and
// is promised on (but for what earlier figures of its GPU leave). `released_json` may be NULL; else it is an array of
// what was dropped, to be freed with `vramfit_string_free`.
vramfit_status vramfit_host_expire(const vramfit_host *host,
                                   uint64_t now_ms,
                                   char **released_json,
                                   vramfit_error **error);

// Every GPU with more promised on it than it has, as a JSON array, and how many there are: none, unless sizes were
// taken over as facts or a GPU has gone. `violations_json` may be NULL; else free it with `vramfit_string_free`.
vramfit_status vramfit_host_audit(const vramfit_host *host,
                                  size_t *count,
                                  char **violations_json,
                                  vramfit_error **error);

// The ledger as of now, as a JSON object: `gpus` with what is reserved, leaving, foreign, missing (loaded by the
// ledger, but not by the driver if others hold what is foreign), unconfirmed (released since the driver was asked) and
// free on each, and `reservations`. Free it with `vramfit_string_free`.
vramfit_status vramfit_host_state_json(const vramfit_host *host,
                                       char **state_json,
                                       vramfit_error **error);

// Something that is already loaded, as when a server starts beside running engines. A fact: it is not checked, and the
// audit shows where it is too much. `loaded_json` says what and whose: {"model": "qwen3:8b", "holder": "loader-1"},
// and where wanted "lease_ms", "stays" and "key", all as for `vramfit_host_reserve`. Figures of before it count it as
// taken by others, too: observe again behind it. `id` is UINT64_MAX where it is refused.
vramfit_status vramfit_host_adopt(const vramfit_host *host,
                                  const char *loaded_json,
                                  const vramfit_share *shares,
                                  size_t count,
                                  uint64_t now_ms,
                                  uint64_t *id,
                                  vramfit_error **error);

// What a holder's engine says it holds, as a JSON array of {"id": 7, "shares": [{"gpu": 0, "bytes": 1}]}, GPUs by
// index or, as in `vramfit_host_state_json`, as {"host": "..", "gpu": ".."}; NULL for nothing. How that differs goes
// to `differences_json` (which may be NULL): an object with `resized` (taken over), `unknown` and `missing`, to be
// freed with `vramfit_string_free`.
vramfit_status vramfit_host_reconcile(const vramfit_host *host,
                                      const char *holder,
                                      const char *held_json,
                                      char **differences_json,
                                      vramfit_error **error);

// Reads the model at `model_path`: one file, or any part of a split model. Only the header is read, in milliseconds.
vramfit_status vramfit_model_open(const char *model_path,
                                  vramfit_model **model,
                                  vramfit_error **error);

// `general.architecture`. Lives as long as the model.
const char *vramfit_model_architecture(const vramfit_model *model);

// `general.name`, empty where there is none. Lives as long as the model.
const char *vramfit_model_name(const vramfit_model *model);

// Blocks. The output layer is one more layer behind them.
uint64_t vramfit_model_n_layer(const vramfit_model *model);

// Elements of all tensors.
uint64_t vramfit_model_n_params(const vramfit_model *model);

// The context that the model was trained with: what llama-server takes without `-c`.
uint64_t vramfit_model_n_ctx_train(const vramfit_model *model);

// Bytes of the complete file, or files.
uint64_t vramfit_model_file_bytes(const vramfit_model *model);

// Frees a model; placements made of it live on. NULL is allowed.
void vramfit_model_free(vramfit_model *model);

// Finds where `model` goes on `gpus`. `settings_json` is a JSON object, or NULL for llama-server's defaults:
// {"n_ctx": 32768, "type_k": "q8_0"}; `vramfit_settings_schema` describes all of it.
vramfit_status vramfit_plan(const vramfit_model *model,
                            const vramfit_gpus *gpus,
                            const char *settings_json,
                            vramfit_placement **placement,
                            vramfit_error **error);

// The JSON Schema (draft 2020-12) of `settings_json`. Free it with `vramfit_string_free`.
vramfit_status vramfit_settings_schema(char **schema_json, vramfit_error **error);

// The answer in one word.
vramfit_verdict vramfit_placement_verdict(const vramfit_placement *placement);

// How many GPUs were given, used or not.
uint32_t vramfit_placement_gpu_count(const vramfit_placement *placement);

// What a GPU, or `VRAMFIT_HOST_MEMORY`, holds, split in terms; their sum is `vramfit_placement_required_bytes`. NULL
// beyond the end. Lives as long as the placement.
const vramfit_term *vramfit_placement_terms(const vramfit_placement *placement,
                                            uint32_t device,
                                            size_t *count);

// What a GPU, or `VRAMFIT_HOST_MEMORY`, takes in all: what nvidia-smi would show for the process. 0 beyond the end.
uint64_t vramfit_placement_required_bytes(const vramfit_placement *placement,
                                          uint32_t device);

// Free less required on a GPU; below 0 what is missing. 0 for the host and beyond the end.
int64_t vramfit_placement_headroom_bytes(const vramfit_placement *placement, uint32_t device);

// Layers on a GPU, or on `VRAMFIT_HOST_MEMORY`, ascending; the output layer is `vramfit_model_n_layer`. NULL for none.
// Lives as long as the placement.
const uint32_t *vramfit_placement_layers(const vramfit_placement *placement,
                                         uint32_t device,
                                         size_t *count);

// The llama-server call that does it, program and arguments. Lives as long as the placement.
const char *const *vramfit_placement_command(const vramfit_placement *placement, size_t *count);

// All of it as JSON: what `estimate --json` prints, `vramfit.estimate/1`. Lives as long as the placement.
const char *vramfit_placement_json(const vramfit_placement *placement);

// All of it for people, in lines of `columns` (0 for 80). Free it with `vramfit_string_free`.
vramfit_status vramfit_placement_text(const vramfit_placement *placement,
                                      uint32_t columns,
                                      char **text,
                                      vramfit_error **error);

// What is in the compute buffers at their peaks, for people, in lines of `columns` (0 for 80), with the `most` largest
// tensors of each (0 for all). Free it with `vramfit_string_free`.
vramfit_status vramfit_explain_text(const vramfit_placement *placement,
                                    uint32_t most,
                                    uint32_t columns,
                                    char **text,
                                    vramfit_error **error);

// The same as JSON, `vramfit.explain/1`. Free it with `vramfit_string_free`.
vramfit_status vramfit_explain_json(const vramfit_placement *placement, char **json, vramfit_error **error);

// Frees a placement. NULL is allowed.
void vramfit_placement_free(vramfit_placement *placement);

// Frees a text that was handed over through a `char **`. NULL is allowed.
void vramfit_string_free(char *text);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* VRAMFIT_H */
