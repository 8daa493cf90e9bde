// A server that has planned, and then forks its workers: a child plans, too, though the threads of its parent are not its
// own. Its parent's ledger is not its own either: both would promise the same bytes.
//
//     forks MODEL JOURNAL

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "vramfit.h"

static uint64_t bytes(const vramfit_model *model, const vramfit_gpus *gpus) {
    vramfit_placement *placement;
    if (vramfit_plan(model, gpus, NULL, &placement, NULL)) {
        return 0;
    }
    uint64_t required = vramfit_placement_required_bytes(placement, 0);
    vramfit_placement_free(placement);
    return required;
}

static const char *LOADED = "{\"model\": \"m\", \"holder\": \"h\"}";

// What a child of fork() is told by each call. It ends as any process does: what it frees, and what is closed then, is not
// its own.
static int child_is_told(vramfit_host *host) {
    vramfit_share all = {0, (uint64_t)20 << 30};
    vramfit_error *error = NULL;
    uint64_t id;
    char *json = NULL;
    int failed = vramfit_host_adopt(host, LOADED, &all, 1, 0, &id, &error) != VRAMFIT_STATUS_STORE;
    failed += !error || !strstr(vramfit_error_message(error), "before this one was forked");
    vramfit_error_free(error);
    failed += vramfit_host_release(host, 0, NULL) != VRAMFIT_STATUS_STORE;
    failed += vramfit_host_expire(host, 9, NULL, NULL) != VRAMFIT_STATUS_STORE;
    failed += vramfit_host_state_json(host, &json, NULL) != VRAMFIT_STATUS_STORE || json;
    vramfit_host_free(host);
    return failed;
}

static int forked(const vramfit_gpus *gpus, const char *journal) {
    vramfit_host *host;
    vramfit_share half = {0, (uint64_t)10 << 30};
    uint64_t first, second;
    if (vramfit_host_open("h", gpus, NULL, journal, &host, NULL)) {
        return 1;
    }
    int failed = vramfit_host_adopt(host, LOADED, &half, 1, 0, &first, NULL) != 0;
    for (int i = 0; i < 3; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(60);
            exit(child_is_told(host));
        }
        int status = 1;
        failed += child < 0 || waitpid(child, &status, 0) != child || status != 0;
        // The parent goes on with what it had.
        failed += vramfit_host_adopt(host, LOADED, &half, 1, 0, &second, NULL) != 0;
        failed += vramfit_host_release(host, second, NULL) != 0;
    }
    vramfit_host_free(host);
    if (journal) {
        failed += vramfit_host_open("h", gpus, NULL, journal, &host, NULL) != 0;
        failed += vramfit_host_release(host, first, NULL) != 0;
        vramfit_host_free(host);
    }
    return failed;
}

int main(int argc, char **argv) {
    vramfit_model *model;
    vramfit_gpus *gpus;
    if (argc < 3 || vramfit_model_open(argv[1], &model, NULL) || vramfit_gpus_parse("24GiB", &gpus, NULL)) {
        return 2;
    }
    uint64_t expected = bytes(model, gpus);
    int failed = expected == 0;
    for (int i = 0; i < 4; i++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(60);
            _exit(bytes(model, gpus) == expected ? 0 : 1);
        }
        int status = 1;
        failed += child < 0 || waitpid(child, &status, 0) != child || status != 0;
    }
    failed += bytes(model, gpus) != expected;
    failed += forked(gpus, NULL) + forked(gpus, argv[2]);
    vramfit_gpus_free(gpus);
    vramfit_model_free(model);
    printf("%d failures\n", failed);
    return failed > 0;
}
