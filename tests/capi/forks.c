// A server that has planned, and then forks its workers: a child plans, too, though the threads of its parent are not its
// own.
//
//     forks MODEL

#include <stdio.h>
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

int main(int argc, char **argv) {
    vramfit_model *model;
    vramfit_gpus *gpus;
    if (argc < 2 || vramfit_model_open(argv[1], &model, NULL) || vramfit_gpus_parse("24GiB", &gpus, NULL)) {
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
    vramfit_gpus_free(gpus);
    vramfit_model_free(model);
    printf("%d failures\n", failed);
    return failed > 0;
}
