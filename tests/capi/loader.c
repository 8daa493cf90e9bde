// A small loader: opens a model and a host's ledger, reserves, "loads", commits and releases. Prints what it was told, for
// tests/capi.rs to compare.
//
//     loader MODEL GPUS SETTINGS [JOURNAL]

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "vramfit.h"

static void fail(vramfit_error *error) {
    fprintf(stderr, "%s\n", vramfit_error_message(error));
    vramfit_error_free(error);
    exit(1);
}

static void check(vramfit_status status, vramfit_error *error) {
    if (status != VRAMFIT_STATUS_OK) {
        fail(error);
    }
}

static void print_device(const vramfit_placement *placement, const char *id, uint32_t device) {
    size_t n_terms, n_layers;
    const vramfit_term *terms = vramfit_placement_terms(placement, device, &n_terms);
    const uint32_t *layers = vramfit_placement_layers(placement, device, &n_layers);
    uint64_t sum = 0;
    for (size_t i = 0; i < n_terms; i++) {
        printf("%s term %" PRId32 " %" PRId32 " %" PRIu64 "\n", id, (int32_t)terms[i].kind,
               (int32_t)terms[i].certainty, terms[i].bytes);
        sum += terms[i].bytes;
    }
    printf("%s sum %" PRIu64 " required %" PRIu64 " headroom %" PRId64 " layers", id, sum,
           vramfit_placement_required_bytes(placement, device), vramfit_placement_headroom_bytes(placement, device));
    for (size_t i = 0; i < n_layers; i++) {
        printf(" %" PRIu32, layers[i]);
    }
    printf("\n");
}

static void print_placement(const vramfit_placement *placement) {
    printf("verdict %" PRId32 "\n", (int32_t)vramfit_placement_verdict(placement));
    for (uint32_t gpu = 0; gpu < vramfit_placement_gpu_count(placement); gpu++) {
        char id[16];
        snprintf(id, sizeof id, "CUDA%" PRIu32, gpu);
        print_device(placement, id, gpu);
    }
    print_device(placement, "host", VRAMFIT_HOST_MEMORY);
    size_t n_words;
    const char *const *command = vramfit_placement_command(placement, &n_words);
    for (size_t i = 0; i < n_words; i++) {
        printf("word %s\n", command[i]);
    }
    printf("json %s\n", vramfit_placement_json(placement));
}

static void print_text(const vramfit_placement *placement) {
    vramfit_error *error;
    char *text;
    check(vramfit_placement_text(placement, 0, &text, &error), error);
    printf("text begins: %.5s\n", text);
    vramfit_string_free(text);
    check(vramfit_explain_text(placement, 3, 100, &text, &error), error);
    printf("explanation begins: %.5s\n", text);
    vramfit_string_free(text);
    check(vramfit_explain_json(placement, &text, &error), error);
    printf("explanation %s\n", text);
    vramfit_string_free(text);
}

static void reserve_and_release(vramfit_host *host, vramfit_model *model, const char *settings) {
    vramfit_error *error;
    vramfit_reserved *reserved;
    // Called without --sleep-idle-seconds, llama-server never unloads by itself: it stays.
    const char *load = "{\"model\": \"the model\", \"holder\": \"loader.c\", \"lease_ms\": 60000, \"stays\": true}";
    check(vramfit_host_reserve(host, model, settings, load, 1000, &reserved, &error), error);
    uint64_t id = vramfit_reserved_id(reserved);
    size_t n_shares, n_leaving;
    const vramfit_share *shares = vramfit_reserved_shares(reserved, &n_shares);
    vramfit_reserved_leaving(reserved, &n_leaving);
    for (size_t i = 0; i < n_shares; i++) {
        printf("reserved CUDA%" PRIu32 " %" PRIu64 " leaving %zu\n", shares[i].gpu, shares[i].bytes, n_leaving);
    }
    // Here the engine would be started, with vramfit_placement_command of this placement.
    print_placement(vramfit_reserved_placement(reserved));
    check(vramfit_host_commit(host, id, shares, n_shares, 2000, &error), error);
    check(vramfit_host_begin_request(host, id, 3000, &error), error);
    check(vramfit_host_end_request(host, id, 4000, &error), error);
    check(vramfit_host_renew(host, id, 5000, &error), error);
    char *json;
    check(vramfit_host_state_json(host, &json, &error), error);
    printf("state %s\n", json);
    vramfit_string_free(json);
    check(vramfit_host_release(host, id, &error), error);
    if (vramfit_host_release(host, id, &error) != VRAMFIT_STATUS_UNKNOWN_RESERVATION) {
        exit(2);
    }
    printf("released twice: %s\n", vramfit_error_message(error));
    vramfit_error_free(error);
    vramfit_reserved_free(reserved);
}

int main(int argc, char **argv) {
    if (argc < 4 || vramfit_abi_version() != VRAMFIT_ABI_VERSION) {
        return 2;
    }
    const char *settings = argv[3], *journal = argc > 4 ? argv[4] : NULL;
    vramfit_error *error;
    vramfit_model *model;
    vramfit_gpus *gpus;
    vramfit_placement *placement;
    vramfit_host *host;
    check(vramfit_model_open(argv[1], &model, &error), error);
    check(vramfit_gpus_parse(argv[2], &gpus, &error), error);
    check(vramfit_plan(model, gpus, settings, &placement, &error), error);
    printf("model %s %s %" PRIu64 " %" PRIu64 "\n", vramfit_model_architecture(model), vramfit_model_name(model),
           vramfit_model_n_layer(model), vramfit_model_file_bytes(model));
    print_placement(placement);
    print_text(placement);

    check(vramfit_host_open("gpu-box", gpus, NULL, journal, &host, &error), error);
    vramfit_gpus_free(gpus);
    reserve_and_release(host, model, settings);
    size_t violations;
    check(vramfit_host_audit(host, &violations, NULL, &error), error);
    printf("violations %zu\n", violations);
    vramfit_host_free(host);
    vramfit_model_free(model);
    // A placement keeps what it needs of its model.
    print_text(placement);
    vramfit_placement_free(placement);
    return 0;
}
