// mmproj: asks real llama.cpp (v0.5.0, CUDA backend) what a multimodal projector (--mmproj) takes on the GPU it is put
// on, on GPUs that the libraries of crates/vgpu play. One JSON object on stdout. libmtmd is not in the prebuilt engine;
// its clip.cpp is compiled in here (setup.sh writes the list of its files), so what is measured is its own code.
//
//   mmproj FILE [-fa auto|on|off] [--no-offload] [--device CUDA1] [--image-max-tokens N] [--graph FILE]
//
// As mtmd_get_memory_usage() does: weights not read, buffers really allocated, the warm-up graph reserved.

#include "mmproj-clip.h" // clip.cpp and models/*.cpp

#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "llama.h"

#include <dlfcn.h>
#include <cstdio>
#include <sstream>

using std::string;
using std::vector;

template<class F> static F vgpu_symbol(const char * name) {
    static void * lib = dlopen("libcudart.so.13", RTLD_NOW | RTLD_NOLOAD);
    return lib ? (F) dlsym(lib, name) : nullptr;
}
static size_t allocated(int gpu) { auto f = vgpu_symbol<size_t (*)(int)>("vgpu_allocated"); return f ? f(gpu) : 0; }
static int gpu_count() { auto f = vgpu_symbol<int (*)()>("vgpu_count"); return f ? f() : 0; }

static string LOG;
static void keep_log(ggml_log_level, const char * text, void *) { LOG += text; }

// ---- the graph of one tower, in the columns of oracle's --graph ----
template<class T> static string joined(const T * items) {
    std::ostringstream s;
    for (int i = 0; i < 4; i++) s << (i ? "," : "") << items[i];
    return s.str();
}

static void write_graph(FILE * out, const char * pass, clip_ctx & ctx) {
    auto batch = clip_model_loader::get_dummy_batch(ctx);
    ggml_cgraph * g = clip_get_graph_builder(&ctx, batch)->build(); // its tensors live in the context
    std::map<const ggml_tensor *, string> ids;
    std::map<const ggml_tensor *, vector<ggml_tensor *>> src; // as built: the split puts copies there
    const int n_nodes = ggml_graph_n_nodes(g);
    vector<ggml_tensor *> rows(g->leafs, g->leafs + g->n_leafs);
    for (int i = 0; i < g->n_leafs; i++) ids[rows[i]] = "l" + std::to_string(i);
    for (int i = 0; i < n_nodes; i++) { rows.push_back(ggml_graph_node(g, i)); ids[rows.back()] = "n" + std::to_string(i); }
    for (auto * t : rows) src[t].assign(t->src, t->src + GGML_MAX_SRC);
    auto id = [&](const ggml_tensor * t) { return ids.count(t) ? ids[t] : string("?") + t->name; };

    ggml_backend_sched_reset(ctx.sched.get());
    ggml_backend_sched_split_graph(ctx.sched.get(), g); // a reserve forgets the backends when it is done

    fprintf(out, "%s\tgraph\t-\t-\tleafs=%d nodes=%d splits=%d\t-\t-\t-\t-\t-\t-\t-\t-\t-\n", pass, g->n_leafs, n_nodes,
        ggml_backend_sched_get_n_splits(ctx.sched.get()));
    for (auto * t : rows) {
        string op = ggml_op_name(t->op), flags, from;
        if (t->op == GGML_OP_UNARY || t->op == GGML_OP_GLU) op += string(":") + ggml_op_desc(t);
        if (t->flags & GGML_TENSOR_FLAG_INPUT) flags = "input";
        for (auto * s : src[t]) if (s) from += (from.empty() ? "" : ",") + id(s);
        auto * buf = t->view_src ? t->view_src->buffer : t->buffer;
        auto * on = ggml_backend_sched_get_tensor_backend(ctx.sched.get(), t);
        fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t-\n", pass, ids[t][0] == 'l' ? "leaf" : "node", ids[t].c_str(),
            op.c_str(), *t->name ? t->name : "-", ggml_type_name(t->type), joined(t->ne).c_str(), joined(t->nb).c_str(),
            flags.empty() ? "-" : flags.c_str(), t->view_src ? (id(t->view_src) + "+" + std::to_string(t->view_offs)).c_str() : "-",
            from.empty() ? "-" : from.c_str(), buf && buf->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS ? ggml_backend_buft_name(buf->buft) : "-",
            on ? ggml_backend_name(on) : "-");
    }
}

// ---- what one tower says ----
static string tower(const char * name, clip_ctx & ctx) {
    const auto & hp = ctx.model.hparams;
    std::ostringstream s;
    auto sizes = [&](const std::map<ggml_backend_dev_t, size_t> & by) {
        string list;
        for (auto & [dev, n] : by) list += (list.empty() ? "\"" : ",\"") + string(ggml_backend_dev_name(dev)) + "\":" + std::to_string(n);
        return "{" + list + "}";
    };
    const bool vision = ctx.model.modality == CLIP_MODALITY_VISION;
    s << "{\"tower\":\"" << name << "\",\"type\":\"" << PROJECTOR_TYPE_NAMES[ctx.model.proj_type] << "\",\"flash_attn\":"
      << (ctx.flash_attn_type == CLIP_FLASH_ATTN_TYPE_ENABLED ? "true" : "false") << ",\"warmup\":" << (vision ? hp.warmup_image_size : hp.warmup_audio_size)
      << ",\"weights\":" << sizes(ctx.mem_usage) << ",\"weights_allocated\":" << (ctx.buf ? ggml_backend_buffer_get_size(ctx.buf.get()) : 0)
      << ",\"compute\":" << sizes(ctx.mem_compute) << ",\"splits\":" << ggml_backend_sched_get_n_splits(ctx.sched.get()) << "}";
    return s.str();
}

int main(int argc, char ** argv) {
    clip_context_params p = {};
    p.use_gpu = p.warmup = p.no_alloc = true;
    p.flash_attn_type = CLIP_FLASH_ATTN_TYPE_AUTO;
    p.image_min_tokens = p.image_max_tokens = -1;
    string file, graph, device;
    for (int i = 1; i < argc; i++) {
        const string a = argv[i];
        auto value = [&]() { return string(i + 1 < argc ? argv[++i] : ""); };
        if      (a == "-fa")                { const auto v = value(); p.flash_attn_type = v == "on" ? CLIP_FLASH_ATTN_TYPE_ENABLED : v == "off" ? CLIP_FLASH_ATTN_TYPE_DISABLED : CLIP_FLASH_ATTN_TYPE_AUTO; }
        else if (a == "--no-offload")       p.use_gpu = false;
        else if (a == "--device")           device = value();
        else if (a == "--image-min-tokens") p.image_min_tokens = atoi(value().c_str());
        else if (a == "--image-max-tokens") p.image_max_tokens = atoi(value().c_str());
        else if (a == "--graph")            graph = value();
        else file = a;
    }
    if (file.empty()) { fprintf(stderr, "usage: mmproj FILE [-fa auto|on|off] [--no-offload] [--device NAME] [--image-min-tokens N] [--image-max-tokens N] [--graph FILE]\n"); return 64; }

    ggml_log_set(keep_log, nullptr);
    g_logger_state.log_callback = keep_log;
    Dl_info info;
    string dir = dladdr(dlsym(RTLD_DEFAULT, "llama_backend_init"), &info) ? info.dli_fname : ".";
    ggml_backend_load_all_from_path(dir.substr(0, dir.rfind('/')).c_str());
    llama_backend_init();
    if (!device.empty()) p.device = ggml_backend_dev_by_name(device.c_str());

    vector<size_t> before;
    for (int i = 0; i < gpu_count(); i++) before.push_back(allocated(i));
    const auto made = clip_init(file.c_str(), p);
    if (!made.ctx_v && !made.ctx_a && !made.ctx_gen_a) { fprintf(stderr, "%s", LOG.c_str()); return 2; }

    string towers, mallocs;
    for (auto [name, ctx] : {std::pair{"vision", made.ctx_v}, {"audio", made.ctx_a}, {"gen_audio", made.ctx_gen_a}})
        if (ctx) towers += (towers.empty() ? "" : ",") + tower(name, *ctx);
    for (int i = 0; i < gpu_count(); i++) mallocs += (i ? "," : "") + std::to_string(allocated(i) - before[i]);
    printf("{\"towers\":[%s],\"cuda_malloc\":[%s]}\n", towers.c_str(), mallocs.c_str());
    if (!graph.empty()) {
        FILE * out = graph == "-" ? stdout : fopen(graph.c_str(), "w");
        if (!out) { perror(graph.c_str()); return 74; }
        fprintf(out, "pass\tkind\tid\top\tname\ttype\tne\tnb\tflags\tview\tsrc\tbuft\tbackend\tsplit\n");
        if (made.ctx_v) write_graph(out, "vision", *made.ctx_v);
        if (made.ctx_a) write_graph(out, "audio", *made.ctx_a);
        fclose(out);
    }
    return 0; // without tearing down
}
