/* A libllama that computes nothing: it has v0.5.0's two structures of parameters, takes the memory that it is told to on
 * the GPUs that CUDA shows, and says so in its log.
 *   STAND_IN_BYTES  weights:cache:compute:pool:rest of each GPU, behind commas
 *   STAND_IN_SEEN   a file: what it was asked for, line by line
 *   STAND_IN_FAULT  "version", "defaults", "longer", "shorter", "model", "decode": where it is another one */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tensor_override { const char *pattern; void *buffer_type; };

struct model_params {
    void **devices;
    const struct tensor_override *overrides;
    int32_t n_gpu_layers, split_mode, load_mode, lazy_mode, main_gpu;
    const float *tensor_split;
    void *progress, *progress_data, *kv_overrides;
    bool vocab_only, check_tensors, use_extra_bufts, no_host, no_alloc, load_mtp;
};

struct context_params {
    uint32_t n_ctx, n_batch, n_ubatch, n_seq_max, n_rs_seq, n_outputs_max, n_outputs_max_per_seq;
    int32_t n_threads, n_threads_batch;
    int32_t context_type, rope_scaling_type, pooling_type, attention_type, flash_attention;
    float rope_freq_base, rope_freq_scale, yarn[4];
    uint32_t yarn_orig_ctx;
    float defrag_thold;
    void *eval, *eval_data;
    int32_t type_k, type_v;
    void *abort, *abort_data;
    bool embeddings, offload_kqv, no_perf, op_offload, swa_full, kv_unified;
    void *samplers;
    size_t n_samplers;
    void *other;
};

struct batch {
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos, *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
};

static bool fault(const char *name) {
    const char *said = getenv("STAND_IN_FAULT");
    return said && !strcmp(said, name);
}

static FILE *seen(void) {
    static FILE *file;
    if (!file) file = fopen(getenv("STAND_IN_SEEN"), "a");
    return file;
}

/* A GPU's part of the list; none behind the last. */
static const char *of_gpu(int gpu) {
    const char *list = getenv("STAND_IN_BYTES");
    for (; gpu > 0 && list; gpu--) if ((list = strchr(list, ','))) list++;
    return list;
}

static void take(int kind, const char *name) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW);
    int (*init)(unsigned) = dlsym(cuda, "cuInit");
    int (*retain)(void **, int) = dlsym(cuda, "cuDevicePrimaryCtxRetain");
    int (*current)(void *) = dlsym(cuda, "cuCtxSetCurrent");
    int (*alloc)(uint64_t *, size_t) = dlsym(cuda, "cuMemAlloc_v2");
    init(0);
    const char *own;
    for (int gpu = 0; (own = of_gpu(gpu)); gpu++) {
        for (int i = 0; i < kind; i++) own = strchr(own, ':') + 1;
        const size_t bytes = strtoull(own, NULL, 10);
        if (!bytes) continue;
        void *context;
        uint64_t address;
        if (retain(&context, gpu) || current(context) || alloc(&address, bytes)) abort();
        if (name) fprintf(stderr, "load: CUDA%d %s buffer size = %8.2f MiB\n", gpu, name, (double) bytes / (1 << 20));
    }
}

const char *llama_version(void) { return fault("version") ? "0.6.0" : "0.5.0"; }

struct model_params llama_model_default_params(void) {
    struct model_params p = {.n_gpu_layers = -1, .split_mode = 1, .load_mode = -1, .lazy_mode = 1, .use_extra_bufts = true};
    return p;
}

static struct context_params context_defaults(void) {
    struct context_params p = {
        .n_ctx = fault("defaults") ? 4096 : 512, .n_batch = 2048, .n_ubatch = 512, .n_seq_max = 1, .n_outputs_max_per_seq = 1,
        .n_threads = 4, .n_threads_batch = 4, .rope_scaling_type = -1, .pooling_type = -1, .attention_type = -1,
        .flash_attention = -1, .yarn = {-1, -1, -1, -1}, .defrag_thold = -1, .type_k = 1, .type_v = 1,
        .offload_kqv = true, .no_perf = true, .op_offload = true, .swa_full = true,
    };
    return p;
}

/* As any of its lengths is returned: to where the caller says. */
void *llama_context_default_params(unsigned char *to) {
    struct context_params p = context_defaults();
    size_t n = sizeof p;
    if (fault("longer")) memset(to + n, 0, 8);
    if (fault("shorter")) n -= 8;
    memcpy(to, &p, n);
    return to;
}

size_t llama_max_devices(void) { return 16; }
int32_t llama_load_mode_from_str(const char *name) { return strcmp(name, "none") ? 1 : 0; }
void llama_backend_init(void) {}
void ggml_backend_load_all_from_path(const char *folder) { fprintf(seen(), "backends %s\n", strrchr(folder, '/') + 1); }
void *ggml_backend_dev_by_name(const char *name) { return strncmp(name, "CUDA", 4) ? NULL : (void *) (uintptr_t) (1 + atoi(name + 4)); }
void *ggml_backend_dev_buffer_type(void *device) { return device; }
void *ggml_backend_cpu_buffer_type(void) { return (void *) (uintptr_t) 99; }

void *llama_model_load_from_file(const char *path, struct model_params p) {
    FILE *file = fopen(path, "r");
    if (!file || fault("model")) return NULL;
    fprintf(seen(), "model ngl=%d sm=%d mg=%d lm=%d repack=%d host=%d devices=", p.n_gpu_layers, p.split_mode, p.main_gpu, p.load_mode,
        p.use_extra_bufts, !p.no_host);
    for (void **d = p.devices; d && *d; d++) fprintf(seen(), "%d,", (int) (uintptr_t) *d - 1);
    fprintf(seen(), " ts=");
    for (int i = 0; p.tensor_split && i < 3; i++) fprintf(seen(), "%g,", p.tensor_split[i]);
    for (const struct tensor_override *o = p.overrides; o && o->pattern; o++)
        fprintf(seen(), " %s=%d", o->pattern, (int) (uintptr_t) o->buffer_type);
    fprintf(seen(), "\n");
    take(4, NULL);
    take(0, "model");
    return file;
}

void *llama_adapter_lora_init(void *model, const char *path) { return fopen(path, "r"); }
int32_t llama_set_adapters_lora(void *context, void **adapters, size_t n, float *scales) {
    fprintf(seen(), "adapters %zu of %g\n", n, scales[0]);
    return 0;
}

void *llama_init_from_model(void *model, struct context_params p) {
    fprintf(seen(), "context c=%u b=%u ub=%u np=%u outputs=%u,%u fa=%d types=%d,%d kv=%d op=%d swa=%d unified=%d embeddings=%d pooling=%d\n",
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max, p.n_outputs_max, p.n_outputs_max_per_seq, p.flash_attention, p.type_k, p.type_v,
        p.offload_kqv, p.op_offload, p.swa_full, p.kv_unified, p.embeddings, p.pooling_type);
    take(1, "KV");
    take(2, "compute");
    return model;
}

int32_t llama_decode(void *context, struct batch b) {
    static bool has_computed;
    int outputs = 0;
    for (int i = 0; i < b.n_tokens; i++) outputs += b.logits[i] != 0;
    const int last = b.n_tokens - 1;
    fprintf(seen(), "decode %d tokens, %d to %d of sequences %d to %d, %d outputs\n", b.n_tokens, b.pos[0], b.pos[last], b.seq_id[0][0],
        b.seq_id[last][0], outputs);
    if (fault("decode")) return -3;
    if (!has_computed) take(3, NULL);
    has_computed = true;
    return 0;
}

void *llama_get_memory(void *context) { return context; }
bool llama_memory_seq_rm(void *memory, int32_t seq, int32_t from, int32_t to) { return true; }
void llama_synchronize(void *context) { fflush(seen()); }
