// What a careless caller does: each is a status and a message, never a crash.
//
//     errors MODEL NOT_A_MODEL

#include <stdio.h>
#include <string.h>

#include "vramfit.h"

static int failures;

#define CHECK(condition)                                             \
    do {                                                             \
        if (!(condition)) {                                          \
            printf("line %d: %s\n", __LINE__, #condition);           \
            failures++;                                              \
        }                                                            \
    } while (0)

static vramfit_error *error;

// The call failed with this status and a message that has these words in it.
static void expect(vramfit_status status, vramfit_status expected, const char *words, int line) {
    const char *message = vramfit_error_message(error);
    if (status != expected || vramfit_error_status(error) != expected || !message || !strstr(message, words) ||
        strchr(message, '\n') || !strstr(vramfit_error_json(error), "\"status\"")) {
        printf("line %d: status %d, %s\n", line, (int)status, message ? message : "no error");
        failures++;
    }
    vramfit_error_free(error);
    error = NULL;
}

#define EXPECT(call, status, words) expect((call), VRAMFIT_STATUS_##status, (words), __LINE__)

int main(int argc, char **argv) {
    if (argc < 3) {
        return 2;
    }
    vramfit_model *model = (vramfit_model *)&failures;
    vramfit_gpus *gpus, *small;
    vramfit_placement *placement;
    vramfit_host *host;
    vramfit_reserved *reserved;
    uint64_t free_bytes[1] = {1};
    vramfit_share nothing = {0, 0}, unknown = {7, 1};

    EXPECT(vramfit_model_open(NULL, &model, &error), INVALID_ARGUMENT, "model_path is NULL");
    CHECK(model == NULL);
    EXPECT(vramfit_model_open(argv[1], NULL, &error), INVALID_ARGUMENT, "model is NULL");
    EXPECT(vramfit_model_open("no such file", &model, &error), OPEN, "no such file");
    EXPECT(vramfit_model_open(argv[2], &model, &error), OPEN, "");
    CHECK(vramfit_model_open("no such file", &model, NULL) == VRAMFIT_STATUS_OPEN);
    CHECK(vramfit_model_open(argv[1], &model, &error) == VRAMFIT_STATUS_OK && error == NULL);

    EXPECT(vramfit_gpus_parse("\xff", &gpus, &error), INVALID_ARGUMENT, "gpus_text is not UTF-8");
    EXPECT(vramfit_gpus_parse("rtx9999", &gpus, &error), GPUS, "rtx9999");
    EXPECT(vramfit_gpus_parse("auto", &gpus, &error), GPUS, "look for GPUs");
    EXPECT(vramfit_gpus_probe("no such program", NULL, 1000, &gpus, &error), GPUS, "no such program");
    CHECK(gpus == NULL);
    CHECK(vramfit_gpus_new(&gpus, &error) == VRAMFIT_STATUS_OK);
    EXPECT(vramfit_gpus_add(gpus, NULL, 0, 0, 8, 6, &error), GPUS, "no memory");
    EXPECT(vramfit_gpus_add(gpus, NULL, 1, 2, 8, 6, &error), GPUS, "2 bytes are free of 1");
    EXPECT(vramfit_gpus_add(gpus, NULL, 1, 1, 0, 6, &error), GPUS, "not a compute capability");
    EXPECT(vramfit_gpus_set_free(gpus, 0, 1, &error), INVALID_ARGUMENT, "none of the 0 GPUs");
    CHECK(vramfit_gpus_add(gpus, "a card", 9ull << 30, 8ull << 30, 8, 6, &error) == VRAMFIT_STATUS_OK);
    EXPECT(vramfit_gpus_set_free(gpus, 0, UINT64_MAX, &error), GPUS, "free memory is part of the total");
    CHECK(vramfit_gpus_set_free(gpus, 0, 7ull << 30, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_gpus_count(gpus) == 1 && vramfit_gpus_free_bytes(gpus, 0) == 7ull << 30);
    CHECK(vramfit_gpus_total_bytes(gpus, 0) == 9ull << 30 && vramfit_gpus_total_bytes(gpus, 1) == 0);

    EXPECT(vramfit_plan(NULL, gpus, NULL, &placement, &error), INVALID_ARGUMENT, "model is NULL");
    EXPECT(vramfit_plan(model, NULL, NULL, &placement, &error), INVALID_ARGUMENT, "gpus is NULL");
    EXPECT(vramfit_plan(model, gpus, "{", &placement, &error), SETTINGS, "settings: EOF");
    EXPECT(vramfit_plan(model, gpus, "{\"ctx\": 1}", &placement, &error), SETTINGS, "unknown field `ctx`");
    EXPECT(vramfit_plan(model, gpus, "{\"devices\": [\"CUDA1\"]}", &placement, &error), SETTINGS, "none of the 1 GPUs");
    EXPECT(vramfit_plan(model, gpus, "{\"type_v\": \"q8_0\", \"flash_attention\": \"off\"}", &placement, &error),
           REFUSED, "llama.cpp refuses this");
    EXPECT(vramfit_plan(model, gpus, "{\"loras\": [{\"path\": \"none\"}]}", &placement, &error), OPEN, "none");
    CHECK(placement == NULL);

    CHECK(vramfit_plan(model, gpus, NULL, &placement, &error) == VRAMFIT_STATUS_OK);
    size_t count = 5;
    CHECK(vramfit_placement_terms(placement, 1, &count) == NULL && count == 0);
    count = 5;
    CHECK(vramfit_placement_layers(placement, 1, &count) == NULL && count == 0);
    CHECK(vramfit_placement_terms(placement, 0, NULL) != NULL);
    CHECK(vramfit_placement_required_bytes(placement, 1) == 0 && vramfit_placement_headroom_bytes(placement, 1) == 0);
    CHECK(vramfit_placement_terms(NULL, 0, &count) == NULL && vramfit_placement_gpu_count(NULL) == 0);
    CHECK(vramfit_placement_command(NULL, &count) == NULL && vramfit_placement_json(NULL) == NULL);
    CHECK(vramfit_placement_verdict(NULL) == VRAMFIT_VERDICT_DOES_NOT_FIT);
    EXPECT(vramfit_placement_text(placement, 80, NULL, &error), INVALID_ARGUMENT, "text is NULL");
    vramfit_placement_free(placement);

    EXPECT(vramfit_host_open(NULL, gpus, NULL, NULL, &host, &error), INVALID_ARGUMENT, "name is NULL");
    EXPECT(vramfit_host_open("h", gpus, NULL, "no/such/folder/journal", &host, &error), STORE, "");
    const char *ids[1] = {NULL};
    EXPECT(vramfit_host_open("h", gpus, ids, NULL, &host, &error), INVALID_ARGUMENT, "gpu_ids is NULL");
    CHECK(vramfit_gpus_parse("2GiB", &small, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_open("h", small, NULL, NULL, &host, &error) == VRAMFIT_STATUS_OK);
    const char *load = "{\"model\": \"m\", \"holder\": \"h\"}";
    EXPECT(vramfit_host_reserve(host, model, NULL, NULL, 0, &reserved, &error), INVALID_ARGUMENT, "load_json is NULL");
    EXPECT(vramfit_host_reserve(host, model, NULL, "{}", 0, &reserved, &error), INVALID_ARGUMENT, "missing field `model`");
    EXPECT(vramfit_host_reserve(host, model, NULL, "{\"model\": \"m\", \"holder\": \"h\", \"lease_ms\": 0}", 0, &reserved,
                                &error), INVALID_ARGUMENT, "lease of 0");
    EXPECT(vramfit_host_reserve(host, model, NULL, "[\"m\", \"h\"]", 0, &reserved, &error), INVALID_ARGUMENT, "expected an object");
    EXPECT(vramfit_host_reserve(host, model, "[4096]", load, 0, &reserved, &error), SETTINGS, "expected an object");
    EXPECT(vramfit_host_reserve(host, model, NULL, load, 0, &reserved, &error), NEVER_FITS, "does not fit");
    EXPECT(vramfit_host_reserve(host, model, "{\"n_gpu_layers\": 0, \"offload_kqv\": false, \"op_offload\": false, \"devices\": []}",
                                load, 0, &reserved, &error), NO_GPU, "nothing to reserve");
    CHECK(reserved == NULL);
    EXPECT(vramfit_host_commit(host, 9, NULL, 0, 0, &error), UNKNOWN_RESERVATION, "#9");
    EXPECT(vramfit_host_commit(host, 9, &nothing, 1, 0, &error), INVALID_ARGUMENT, "zero or unknown");
    EXPECT(vramfit_host_commit(host, 9, &unknown, 1, 0, &error), UNKNOWN_GPU, "CUDA7");
    EXPECT(vramfit_host_commit(host, 9, NULL, 1, 0, &error), INVALID_ARGUMENT, "shares is NULL");
    EXPECT(vramfit_host_commit(host, 9, &nothing, 0, 0, &error), INVALID_ARGUMENT, "an array of 0");
    EXPECT(vramfit_host_renew(host, 9, 0, &error), UNKNOWN_RESERVATION, "#9");
    EXPECT(vramfit_host_release(NULL, 9, &error), INVALID_ARGUMENT, "host is NULL");
    EXPECT(vramfit_host_begin_request(host, 9, 0, &error), UNKNOWN_RESERVATION, "#9");
    EXPECT(vramfit_host_reconcile(host, "h", "[1]", NULL, &error), INVALID_ARGUMENT, "held_json");
    EXPECT(vramfit_host_reconcile(host, "h", "[[1, []]]", NULL, &error), INVALID_ARGUMENT, "expected an object");

    // A fact that cannot be: it is taken over, the audit shows it, and nothing more is promised.
    uint64_t id = 7, again;
    size_t violations = 0;
    char *json = NULL;
    vramfit_share much = {0, 3ull << 30};
    EXPECT(vramfit_host_adopt(host, NULL, &much, 1, 0, &id, &error), INVALID_ARGUMENT, "loaded_json is NULL");
    EXPECT(vramfit_host_adopt(host, "{\"model\": \"m\"}", &much, 1, 0, &id, &error), INVALID_ARGUMENT, "missing field `holder`");
    EXPECT(vramfit_host_adopt(host, "{\"model\": \"m\", \"holder\": \"h\", \"lease_ms\": 0}", &much, 1, 0, &id, &error),
           INVALID_ARGUMENT, "loaded_json: lease_ms: a lease of 0");
    EXPECT(vramfit_host_adopt(host, load, NULL, 0, 0, &id, &error), INVALID_ARGUMENT, "zero or unknown");
    CHECK(id == UINT64_MAX);
    CHECK(vramfit_host_adopt(host, load, &much, 1, 0, &id, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_audit(host, &violations, &json, &error) == VRAMFIT_STATUS_OK && violations == 1);
    CHECK(json && strstr(json, "3221225472"));
    vramfit_string_free(json);
    CHECK(vramfit_host_reconcile(host, "h", NULL, &json, &error) == VRAMFIT_STATUS_OK);
    CHECK(json && strstr(json, "\"missing\":["));
    vramfit_string_free(json);
    // An engine's own list: GPUs by index or by name, and sizes that are taken over.
    char held[128];
    snprintf(held, sizeof held, "[{\"id\": %llu, \"shares\": [{\"gpu\": 0, \"bytes\": 1024}]}]", (unsigned long long)id);
    CHECK(vramfit_host_reconcile(host, "h", held, &json, &error) == VRAMFIT_STATUS_OK);
    CHECK(json && strstr(json, "\"resized\":[0]") && strstr(json, "\"missing\":[]"));
    vramfit_string_free(json);
    snprintf(held, sizeof held,
             "[{\"id\": %llu, \"shares\": [{\"gpu\": {\"host\": \"h\", \"gpu\": \"CUDA0\"}, \"bytes\": 1024}]}]",
             (unsigned long long)id);
    CHECK(vramfit_host_reconcile(host, "h", held, &json, &error) == VRAMFIT_STATUS_OK);
    CHECK(json && strstr(json, "\"resized\":[]"));
    vramfit_string_free(json);
    snprintf(held, sizeof held, "[{\"id\": %llu, \"shares\": [{\"gpu\": 5, \"bytes\": 1024}]}]", (unsigned long long)id);
    EXPECT(vramfit_host_reconcile(host, "h", held, &json, &error), UNKNOWN_GPU, "CUDA5");
    CHECK(vramfit_host_release(host, id, &error) == VRAMFIT_STATUS_OK);
    EXPECT(vramfit_host_observe(host, NULL, free_bytes, 0, &error), INVALID_ARGUMENT, "0 figures of free memory for 1 GPUs");
    EXPECT(vramfit_host_reap(host, NULL, NULL, 0, 1, &json, &error), INVALID_ARGUMENT, "0 figures of free memory for 1 GPUs");
    CHECK(vramfit_host_observe(host, NULL, free_bytes, 1, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_reap(host, NULL, free_bytes, 1, 1, &json, &error) == VRAMFIT_STATUS_OK);
    CHECK(json && strstr(json, "\"released\":[]"));
    vramfit_string_free(json);
    // What is loaded while the driver is asked is not in its figure: half of the card is others', and stays so.
    vramfit_mark *mark = NULL;
    EXPECT(vramfit_host_mark(NULL, &mark, &error), INVALID_ARGUMENT, "host is NULL");
    CHECK(vramfit_host_mark(host, &mark, &error) == VRAMFIT_STATUS_OK && mark);
    vramfit_gpus *now = NULL;
    CHECK(vramfit_host_gpus(host, &now, &error) == VRAMFIT_STATUS_OK);
    uint64_t capacity = vramfit_gpus_free_bytes(small, 0), half = capacity / 2;
    vramfit_gpus_free(now);
    vramfit_share quarter = {0, capacity / 4};
    const char *leased = "{\"model\": \"m\", \"holder\": \"h\", \"lease_ms\": 1000, \"stays\": true, \"key\": \"found\"}";
    CHECK(vramfit_host_adopt(host, leased, &quarter, 1, 5, &id, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_observe(host, mark, &half, 1, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_gpus(host, &now, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_gpus_free_bytes(now, 0) == half - capacity / 4);
    vramfit_gpus_free(now);
    // Its lease has run out, as the host was there all the time, and the driver says that nothing is left of it.
    for (uint64_t now_ms = 5; now_ms <= 1005; now_ms += 250) {
        CHECK(vramfit_host_expire(host, now_ms, NULL, &error) == VRAMFIT_STATUS_OK);
    }
    CHECK(vramfit_host_reap(host, NULL, &capacity, 1, 1006, &json, &error) == VRAMFIT_STATUS_OK);
    CHECK(json && !strstr(json, "\"released\":[]"));
    vramfit_string_free(json);
    vramfit_host *other = NULL;
    CHECK(vramfit_host_open("h", small, NULL, NULL, &other, &error) == VRAMFIT_STATUS_OK);
    EXPECT(vramfit_host_observe(other, mark, &half, 1, &error), INVALID_ARGUMENT, "mark is another host's");
    EXPECT(vramfit_host_reap(other, mark, &half, 1, 0, NULL, &error), INVALID_ARGUMENT, "mark is another host's");
    vramfit_host_free(other);
    vramfit_mark_free(mark);
    vramfit_mark_free(NULL);
    // What others hold is said by who knows, or no more.
    EXPECT(vramfit_host_others_hold(host, 1, 0, &error), UNKNOWN_GPU, "CUDA1");
    EXPECT(vramfit_host_forget_figure(host, 1, &error), UNKNOWN_GPU, "CUDA1");
    CHECK(vramfit_host_forget_figure(host, 0, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_gpus(host, &now, &error) == VRAMFIT_STATUS_OK);
    capacity = vramfit_gpus_free_bytes(now, 0);
    vramfit_gpus_free(now);
    CHECK(vramfit_host_observe(host, NULL, &capacity, 1, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_others_hold(host, 0, half, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_gpus(host, &now, &error) == VRAMFIT_STATUS_OK && vramfit_gpus_free_bytes(now, 0) == capacity - half);
    vramfit_gpus_free(now);
    CHECK(vramfit_host_forget_figure(host, 0, &error) == VRAMFIT_STATUS_OK);
    CHECK(vramfit_host_gpus(host, &now, &error) == VRAMFIT_STATUS_OK && vramfit_gpus_free_bytes(now, 0) == capacity);
    vramfit_gpus_free(now);
    // And where nobody can be asked.
    CHECK(vramfit_host_adopt(host, leased, &quarter, 1, 5, &id, &error) == VRAMFIT_STATUS_OK);
    // The answer was lost: under its key it is not taken in again.
    EXPECT(vramfit_host_adopt(host, leased, &quarter, 1, 6, &again, &error), KEY_TAKEN, "reserved under this key before");
    // Nobody could renew its lease while the host was not there: it begins anew.
    for (uint64_t now_ms = 9000; now_ms <= 10000; now_ms += 250) {
        CHECK(vramfit_host_expire(host, now_ms, &json, &error) == VRAMFIT_STATUS_OK && json && strcmp(json, "[]") == 0);
        vramfit_string_free(json);
    }
    CHECK(vramfit_host_expire(host, 10001, &json, &error) == VRAMFIT_STATUS_OK);
    CHECK(json && strstr(json, "\"lease_ms\":1000") && strstr(json, "\"stays\":true"));
    vramfit_string_free(json);
    EXPECT(vramfit_host_release(host, id, &error), UNKNOWN_RESERVATION, "#");
    CHECK(vramfit_settings_schema(&json, &error) == VRAMFIT_STATUS_OK && strstr(json, "n_gpu_layers"));
    vramfit_string_free(json);

    CHECK(vramfit_error_message(NULL) == NULL && vramfit_error_json(NULL) == NULL);
    CHECK(vramfit_error_status(NULL) == VRAMFIT_STATUS_OK && vramfit_error_can_retry(NULL) == 0);
    CHECK(vramfit_model_name(NULL) == NULL && vramfit_model_n_layer(NULL) == 0);
    CHECK(vramfit_reserved_id(NULL) == UINT64_MAX && vramfit_reserved_placement(NULL) == NULL);
    CHECK(vramfit_reserved_shares(NULL, &count) == NULL && vramfit_reserved_leaving(NULL, NULL) == NULL);
    CHECK(strlen(vramfit_version()) > 0);
    vramfit_error_free(NULL);
    vramfit_string_free(NULL);
    vramfit_model_free(NULL);
    vramfit_placement_free(NULL);
    vramfit_reserved_free(NULL);
    vramfit_host_free(host);
    vramfit_host_free(NULL);
    vramfit_gpus_free(small);
    vramfit_gpus_free(gpus);
    vramfit_gpus_free(NULL);
    vramfit_model_free(model);
    printf("%d failures\n", failures);
    return failures > 0;
}
