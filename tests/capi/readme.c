// The example of the README.
#include <stdio.h>

#include "vramfit.h"

int main(void) {
    vramfit_model *model = NULL;
    vramfit_gpus *gpus = NULL;
    vramfit_placement *placement = NULL;
    vramfit_error *error = NULL;
    if (vramfit_model_open("model.gguf", &model, &error) || vramfit_gpus_parse("k80x2", &gpus, &error) ||
        vramfit_plan(model, gpus, "{\"n_ctx\": 8192}", &placement, &error)) {
        fprintf(stderr, "%s\n", vramfit_error_message(error));
    } else {
        printf("CUDA0 takes %llu bytes\n", (unsigned long long)vramfit_placement_required_bytes(placement, 0));
    }
    vramfit_error_free(error);
    vramfit_placement_free(placement);
    vramfit_gpus_free(gpus);
    vramfit_model_free(model);
    return error != NULL;
}
