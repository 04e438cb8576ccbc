/* GPM of the fake NVML (two samples, then the metrics between them), and XID events. */
#include "nvml.h"

#include <stdlib.h>
#include <string.h>

#define METRICS_MAX 333 /* NVML_GPM_METRIC_MAX grows with the driver; nothing here depends on it */

struct sample {
    struct gpu *gpu;
    double at;
};

struct metric {
    unsigned int id;
    int code;
    double value;
    const char *short_name, *long_name, *unit;
};

struct metrics_get {
    unsigned int version, count;
    struct sample *first, *second;
    struct metric metrics[METRICS_MAX];
};

struct support {
    unsigned int version, supported;
};

struct event {
    struct gpu *gpu;
    number type, data;
    unsigned int gpu_instance, compute_instance;
};

struct event_set {
    int count;
    struct gpu *gpus[GPUS_MAX];
    double seen[GPUS_MAX];
};

EXPORT int nvmlGpmQueryDeviceSupport(struct gpu *gpu, struct support *support) {
    int code = nvml_enter(gpu, __func__);
    support->supported = code == NVML_SUCCESS && strstr(gpu->name, "A100") == NULL;
    return code;
}

EXPORT int nvmlGpmSampleAlloc(struct sample **sample) {
    *sample = calloc(1, sizeof **sample);
    return *sample == NULL ? NVML_ERROR_UNKNOWN : NVML_SUCCESS;
}

EXPORT int nvmlGpmSampleFree(struct sample *sample) {
    free(sample);
    return NVML_SUCCESS;
}

EXPORT int nvmlGpmSampleGet(struct gpu *gpu, struct sample *sample) {
    int code = nvml_enter(gpu, __func__);
    sample->gpu = gpu;
    sample->at = load_now();
    return code;
}

EXPORT int nvmlGpmMigSampleGet(struct gpu *gpu, unsigned int id, struct sample *sample) {
    int code = nvml_enter(gpu, __func__);
    sample->gpu = code == NVML_SUCCESS ? nvml_instance(gpu, id) : NULL;
    sample->at = load_now();
    return code == NVML_SUCCESS && sample->gpu == NULL ? NVML_ERROR_INVALID_ARGUMENT : code;
}

EXPORT int nvmlGpmMetricsGet(struct metrics_get *get) {
    if (get->version != 1) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    if (get->first == NULL || get->second == NULL || get->first->gpu != get->second->gpu || get->count > METRICS_MAX) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    int code = nvml_enter(get->second->gpu, __func__);
    if (code != NVML_SUCCESS) {
        return code;
    }
    const struct loads *loads = &get->second->gpu->loads;
    struct work mean = load_counted(loads, get->first->at, get->second->at);
    for (unsigned int i = 0; i < get->count; i++) {
        struct metric *metric = &get->metrics[i];
        metric->code = load_blank(loads, metric->id);
        if (metric->code == 0 && load_metric(&mean, metric->id, &metric->value) != 0) {
            metric->code = NVML_ERROR_NOT_SUPPORTED;
        }
    }
    return NVML_SUCCESS;
}

EXPORT int nvmlEventSetCreate(struct event_set **set) {
    *set = calloc(1, sizeof **set);
    return *set == NULL ? NVML_ERROR_UNKNOWN : NVML_SUCCESS;
}

EXPORT int nvmlEventSetFree(struct event_set *set) {
    free(set);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceRegisterEvents(struct gpu *gpu, number types, struct event_set *set) {
    int code = nvml_enter(gpu, __func__);
    if (code != NVML_SUCCESS || (types & 8) == 0 || set->count == GPUS_MAX) {
        return code != NVML_SUCCESS ? code : NVML_ERROR_NOT_SUPPORTED;
    }
    set->seen[set->count] = -1;
    set->gpus[set->count++] = gpu;
    return NVML_SUCCESS;
}

EXPORT int nvmlEventSetWait_v2(struct event_set *set, struct event *event, unsigned int milliseconds) {
    (void)milliseconds; /* it never waits: what comes later is not there yet */
    for (int i = 0; i < set->count; i++) {
        const struct loads *loads = &set->gpus[i]->loads;
        for (int k = 0; k < loads->xid_count; k++) {
            if (loads->xids[k].second > set->seen[i] && loads->xids[k].second <= load_now()) {
                set->seen[i] = loads->xids[k].second;
                *event = (struct event){set->gpus[i], 8, loads->xids[k].code, ~0U, ~0U};
                return NVML_SUCCESS;
            }
        }
    }
    return NVML_ERROR_TIMEOUT;
}
