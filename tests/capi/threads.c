// Many threads over one model, one list of GPUs and one ledger: nothing is promised twice, and what was promised is free
// again at the end.
//
//     threads MODEL THREADS ROUNDS

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "vramfit.h"

static vramfit_model *model;
static vramfit_gpus *gpus;
static vramfit_host *host;
static int rounds;

struct tally {
    pthread_t thread;
    unsigned seed;
    int reserved, full, failed;
};

static void round_of(struct tally *tally) {
    vramfit_error *error = NULL;
    vramfit_reserved *reserved;
    vramfit_placement *placement;
    char settings[64], load[96];
    tally->seed = tally->seed * 1664525u + 1013904223u;
    snprintf(settings, sizeof settings, "{\"n_ctx\": %u}", 1024u << (tally->seed >> 30));
    snprintf(load, sizeof load, "{\"model\": \"m%u\", \"holder\": \"thread\"}", tally->seed >> 16);
    if (vramfit_plan(model, gpus, settings, &placement, &error) != VRAMFIT_STATUS_OK) {
        vramfit_error_free(error);
        tally->failed++;
        return;
    }
    vramfit_placement_free(placement);
    if (vramfit_host_reserve(host, model, settings, load, tally->seed, &reserved, &error) != VRAMFIT_STATUS_OK) {
        vramfit_status status = vramfit_error_status(error);
        int is_full = status == VRAMFIT_STATUS_FULL_NOW || status == VRAMFIT_STATUS_FULL_PENDING;
        is_full = is_full && vramfit_error_can_retry(error);
        tally->full += is_full;
        tally->failed += !is_full;
        vramfit_error_free(error);
        return;
    }
    tally->reserved++;
    uint64_t id = vramfit_reserved_id(reserved);
    size_t violations = 1;
    tally->failed += vramfit_host_commit(host, id, NULL, 0, tally->seed, NULL) != VRAMFIT_STATUS_OK;
    tally->failed += vramfit_host_audit(host, &violations, NULL, NULL) != VRAMFIT_STATUS_OK || violations > 0;
    tally->failed += vramfit_host_release(host, id, NULL) != VRAMFIT_STATUS_OK;
    vramfit_reserved_free(reserved);
}

static void *run(void *argument) {
    for (int i = 0; i < rounds; i++) {
        round_of(argument);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        return 2;
    }
    int n_threads = atoi(argv[2]);
    rounds = atoi(argv[3]);
    uint64_t mib = 1 << 20;
    if (vramfit_model_open(argv[1], &model, NULL) || vramfit_gpus_new(&gpus, NULL) ||
        vramfit_gpus_add(gpus, "NVIDIA GeForce RTX 3060", 11906 * mib, 11906 * mib, 8, 6, NULL) ||
        vramfit_gpus_add(gpus, NULL, 8192 * mib, 8000 * mib, 7, 5, NULL) ||
        vramfit_host_open("gpu-box", gpus, NULL, NULL, &host, NULL)) {
        return 2;
    }
    struct tally *tallies = calloc((size_t)n_threads, sizeof *tallies), all = {0};
    for (int i = 0; i < n_threads; i++) {
        tallies[i].seed = (unsigned)i * 7919u;
        if (pthread_create(&tallies[i].thread, NULL, run, &tallies[i])) {
            return 2;
        }
    }
    for (int i = 0; i < n_threads; i++) {
        pthread_join(tallies[i].thread, NULL);
        all.reserved += tallies[i].reserved;
        all.full += tallies[i].full;
        all.failed += tallies[i].failed;
    }
    vramfit_gpus *now;
    if (vramfit_host_gpus(host, &now, NULL)) {
        return 2;
    }
    printf("reserved %d full %d failed %d", all.reserved, all.full, all.failed);
    printf(" free %" PRIu64 " %" PRIu64 "\n", vramfit_gpus_free_bytes(now, 0), vramfit_gpus_free_bytes(now, 1));
    vramfit_gpus_free(now);
    vramfit_host_free(host);
    vramfit_gpus_free(gpus);
    vramfit_model_free(model);
    free(tallies);
    return 0;
}
