// tensors METADATA.gguf [--with NAME].. [--without NAME]..: the tensors that real llama.cpp asks for where a model has
// these keys. One line a tensor on stdout, in the order of asking: name, tab, its shape. Run it as `oracle --tensors`.
//
// llama.cpp builds the model from the keys alone (llama_model_init_from_user). What it asks of its loader is answered
// here instead: every tensor exists, but for those left out. Once all are asked for, the program ends; nothing is loaded.
#include "llama.h"
#include "gguf.h"
#include "llama-model-loader.h"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include <dlfcn.h>
#include <unistd.h>

using std::string;
using strings = std::vector<string>;

enum { DONE = 0, REFUSED = 2, CRASHED = 3, BAD_USAGE = 64 };

static string LOG;
static strings WITH, WITHOUT;
static ggml_context * LISTED; // the tensors that METADATA.gguf itself lists: some shapes are read from there
static ggml_context * ASKED;

// "blk.7.attn_q.weight" -> "attn_q.weight"
static string short_name(const string & name) {
    const size_t at = name.find("blk.");
    if (at == string::npos) return name;
    const size_t end = name.find('.', at + 4);
    return end == string::npos ? name : name.substr(0, at) + name.substr(end + 1);
}
static bool glob(const char * p, const char * s) { // `*` is any text
    if (*p == '*') return glob(p + 1, s) || (*s && glob(p, s + 1));
    return *p == *s && (!*p || glob(p + 1, s + 1));
}
// A pattern names a tensor, with its layer or without, or all that begin with it and a dot: attn_q is weight and bias.
static bool named(const strings & patterns, const string & name) {
    const string s = short_name(name);
    for (auto & p : patterns) for (auto & n : {name, s})
        if (glob(p.c_str(), n.c_str()) || glob((p + ".*").c_str(), n.c_str())) return true;
    return false;
}
// Whether the model has a tensor. The second of two ways to store the same, and the scales that few file types have, are
// there only where --with names them.
static bool has(const string & name, const LLM_TN_IMPL & tn, int flags) {
    if (named(WITHOUT, name)) return false;
    if (tn.suffix && (!strcmp(tn.suffix, "scale") || !strcmp(tn.suffix, "input_scale"))) {
        for (auto & p : WITH) if (p.find("scale") != string::npos && named({p}, name)) return true;
        return false;
    }
    const bool second = (flags & llama_model_loader::TENSOR_SKIP_IF_VIRTUAL) || tn.tensor == LLM_TENSOR_FFN_GATE_UP_EXPS;
    return !second || named(WITH, name);
}

// libllama calls the four below instead of its own, as this program comes before it.

ggml_tensor * llama_model_loader::create_tensor(const llama_hparams &, const buft_list_t *, const buft_list_t *, const buft_list_t *,
        const buft_list_t *, const LLM_TN_IMPL & tn, const std::initializer_list<int64_t> & ne, int flags) {
    const string name = tn.str();
    if (auto * known = ggml_get_tensor(ASKED, name.c_str())) return known;
    if (!has(name, tn, flags)) return nullptr;
    if (ne.size() == 0) return nullptr; // not used, whatever its shape
    for (int64_t n : ne) if (n <= 0) {
        if (flags & TENSOR_NOT_REQUIRED) return nullptr;
        throw std::runtime_error("tensor " + name + " would be empty: a key that says one of its dimensions is missing");
    }
    auto * t = ggml_new_tensor(ASKED, GGML_TYPE_F32, (int) ne.size(), ne.begin());
    ggml_set_name(t, name.c_str());
    return flags & TENSOR_SKIP ? nullptr : t;
}

const llama_model_loader::llama_tensor_weight * llama_model_loader::get_weight(const char * name) const {
    struct weight { uint16_t idx; size_t offs; ggml_tensor * tensor; };
    static_assert(sizeof(weight) == sizeof(llama_tensor_weight), "llama_tensor_weight has changed");
    auto * listed = ggml_get_tensor(LISTED, name);
    // whether a layer is there is asked by a name, a shape only of what is listed
    if (!listed && (strncmp(name, "blk.", 4) || named(WITHOUT, name))) return nullptr;
    return (const llama_tensor_weight *) new weight{0, 0, listed};
}

ggml_tensor * llama_model_loader::get_tensor_meta(const char * name) const { return ggml_get_tensor(LISTED, name); }

void llama_model_loader::done_getting_tensors(bool) const {
    for (auto * t = ggml_get_first_tensor(ASKED); t; t = ggml_get_next_tensor(ASKED, t)) {
        printf("%s\t%lld", t->name, (long long) t->ne[0]);
        for (int i = 1; i < ggml_n_dims(t); i++) printf(",%lld", (long long) t->ne[i]);
        putchar('\n');
    }
    fflush(stdout);
    _exit(DONE);
}

static void log_cb(ggml_log_level level, const char * text, void *) { if (level != GGML_LOG_LEVEL_DEBUG) LOG += text; }
static void on_signal(int s) {
    fprintf(stderr, "%s\noracle: signal %d: llama.cpp crashed; its log is above\n", LOG.c_str(), s);
    _exit(CRASHED);
}

int main(int argc, char ** argv) {
    for (int s : {SIGABRT, SIGSEGV, SIGFPE}) signal(s, on_signal);
    setenv("GGML_NO_BACKTRACE", "1", 0);
    ggml_log_set(log_cb, nullptr);
    llama_log_set(log_cb, nullptr);
    bool good = argc % 2 == 0;
    for (int i = 2; i + 1 < argc; i += 2) {
        if      (!strcmp(argv[i], "--with"))    WITH.push_back(argv[i + 1]);
        else if (!strcmp(argv[i], "--without")) WITHOUT.push_back(argv[i + 1]);
        else good = false;
    }
    if (!good) { fputs("usage: oracle --tensors METADATA.gguf [--with NAME].. [--without NAME]..\n", stderr); return BAD_USAGE; }

    ASKED = ggml_init({(size_t) 1 << 27, nullptr, true});
    gguf_context * keys = gguf_init_from_file(argv[1], {true, &LISTED});
    if (!keys) { fprintf(stderr, "%s\noracle: cannot read %s\n", LOG.c_str(), argv[1]); return REFUSED; }
    Dl_info info;
    if (dladdr(dlsym(RTLD_DEFAULT, "llama_backend_init"), &info)) {
        string dir = info.dli_fname;
        ggml_backend_load_all_from_path(dir.substr(0, dir.rfind('/')).c_str());
    }
    llama_backend_init();
    llama_model_params p = llama_model_default_params();
    ggml_backend_dev_t none[] = {nullptr};
    p.devices = none;
    p.n_gpu_layers = 0;
    llama_model_init_from_user(keys, [](ggml_tensor *, void *) {}, nullptr, p);
    fprintf(stderr, "%s\noracle: llama.cpp did not ask for all tensors\n", LOG.c_str());
    return REFUSED;
}
