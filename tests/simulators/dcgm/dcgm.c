/* A stand-in for libdcgm: the GPUs of a script (../nvml/script.h) behind the few calls of DCGM that Piolet makes.
 *
 * Signatures, structures, versions (size | number << 24), field numbers, return codes and blank values are those of
 * DCGM's public headers. As with the real one, values have timestamps on the grid of the watch, the first two
 * intervals of profiling fields are blank, only watched fields have values, and a version that it does not know is
 * refused. As there, nobody counts users: dcgmShutdown ends the connection and the embedded engine whoever uses them
 * still, and a second dcgmStartEmbedded succeeds with handle 0. "fail FUNCTION CODE" in the script makes a call return -CODE; "fail engine 21" means that no host engine
 * runs. piolet_dcgm_left tells tests how many groups, field groups and watches are left.
 */
#include "load.h"
#include "script.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))
#define VERSION_OF(type, number) ((unsigned int)(sizeof(type) | (number) << 24))
#define INT64_BLANK 0x7ffffffffffffff0LL
#define DOUBLE_BLANK 140737488355328.0
#define GROUPS_MAX 16
#define FIELDS_MAX 64
#define MIB 1048576.0

enum { OK = 0, BADPARAM = -1, NOT_CONFIGURED = -5, INIT_ERROR = -7, UNINITIALIZED = -10, VER_MISMATCH = -12,
       UNKNOWN_FIELD = -13, NOT_WATCHED = -16, CONNECTION_NOT_VALID = -21 };

typedef uintptr_t handle;
typedef struct { unsigned int version, persist, timeout_ms, is_unix; } connect_params;
typedef struct { unsigned int group, id; } entity;
typedef union { int64_t i64; double dbl; char str[256]; char blob[4096]; } value_of;
typedef struct { unsigned int version; unsigned short field, type; int status; int64_t ts; value_of value; } value_v1;
typedef struct {
    unsigned int version, group, id;
    unsigned short field, type;
    int status;
    unsigned int unused;
    int64_t ts;
    value_of value;
} value_v2;
typedef int (*enumerate)(unsigned int group, unsigned int id, value_v1 *values, int count, void *data);

struct field_group {
    int used, count, watched;
    unsigned short fields[FIELDS_MAX];
    double period, began;
};

static struct machine machine;
static int initialised, connected, embedded;
/* Microseconds since 1970, for tests that have the clock in their hands, too. */
EXPORT int64_t piolet_simulation_began;
static struct { int used, count; unsigned int ids[GPUS_MAX]; } groups[GROUPS_MAX];
static struct field_group field_groups[GROUPS_MAX];

/* Profiling fields, by the number of the same metric in GPM, and what turns its unit into DCGM's. */
static const struct { unsigned short field; unsigned int metric; double factor; } PROFILING[] = {
    {1001, 1, 0.01}, {1002, 2, 0.01}, {1003, 3, 0.01}, {1004, 5, 0.01}, {1005, 10, 0.01}, {1006, 11, 0.01},
    {1007, 12, 0.01}, {1008, 13, 0.01}, {1009, 20, MIB}, {1010, 21, MIB}, {1011, 61, MIB}, {1012, 60, MIB},
    {1013, 9, 0.01}, {1014, 7, 0.01}, {1015, 6, 0.01}, {1016, 4, 0.01}, {1076, 100, MIB}, {1078, 101, MIB},
};

EXPORT int piolet_dcgm_left(void) {
    int left = 0;
    for (int i = 0; i < GROUPS_MAX; i++) {
        left += groups[i].used + field_groups[i].used + field_groups[i].watched;
    }
    return left;
}

static int fault(const char *function) { return -script_fault(&machine.faults, function); }

/* Microseconds since 1970 of a second of the script: it began when the library was initialised. */
static int64_t stamp(double second) { return piolet_simulation_began + (int64_t)llround(second * 1e6); }

EXPORT int dcgmInit(void) {
    if (initialised) {
        return OK;
    }
    if (script_read(&machine) != 0) {
        return INIT_ERROR;
    }
    load_begin();
    if (piolet_simulation_began == 0) {
        struct timespec now;
        (void)clock_gettime(CLOCK_REALTIME, &now);
        piolet_simulation_began = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    }
    int code = fault("dcgmInit");
    initialised = code == OK;
    return code;
}

EXPORT int dcgmShutdown(void) {
    initialised = connected = embedded = 0;
    return OK;
}

EXPORT const char *errorString(int code) {
    switch (code) {
    case OK: return "Success";
    case BADPARAM: return "Bad parameter passed to function";
    case NOT_CONFIGURED: return "Setting not configured";
    case INIT_ERROR: return "Initialization error";
    case UNINITIALIZED: return "Uninitialized";
    case VER_MISMATCH: return "API version mismatch";
    case UNKNOWN_FIELD: return "Unknown field identifier";
    case NOT_WATCHED: return "Field is not being watched";
    case CONNECTION_NOT_VALID: return "Host engine connection invalid/disconnected";
    default: return "Unknown error";
    }
}

EXPORT int dcgmConnect_v2(const char *address, connect_params *params, handle *engine) {
    (void)address;
    if (!initialised) {
        return UNINITIALIZED;
    }
    if (params->version != VERSION_OF(connect_params, 2)) {
        return VER_MISMATCH;
    }
    int code = fault("engine");
    connected = code == OK;
    *engine = 1;
    return code;
}

EXPORT int dcgmStartEmbedded(int mode, handle *engine) {
    int code = initialised ? fault("dcgmStartEmbedded") : UNINITIALIZED;
    *engine = code == OK && !embedded ? 0x7fffffff : 0;
    embedded |= code == OK;
    connected |= embedded;
    return mode == 1 || mode == 2 ? code : BADPARAM;
}

EXPORT int dcgmDisconnect(handle engine) {
    connected = 0;
    return engine == 1 ? OK : BADPARAM;
}

EXPORT int dcgmStopEmbedded(handle engine) {
    connected = embedded = 0;
    return engine == 0x7fffffff ? OK : BADPARAM;
}

EXPORT int dcgmGetAllDevices(handle engine, unsigned int ids[32], int *count) {
    if (!connected || engine == 0) {
        return CONNECTION_NOT_VALID;
    }
    *count = 0;
    for (int i = 0; i < machine.gpu_count; i++) {
        if (machine.gpus[i].parent < 0) {
            ids[(*count)++] = (unsigned int)i;
        }
    }
    return fault("dcgmGetAllDevices");
}

static void set_double(value_of *value, unsigned short *type, double number) {
    *type = 'd';
    value->dbl = number;
}

static void set_number(value_of *value, unsigned short *type, int64_t number) {
    *type = 'i';
    value->i64 = number;
}

static void set_text(value_of *value, unsigned short *type, const char *text) {
    *type = 's';
    snprintf(value->str, sizeof value->str, "%s", text);
}

/* A field of a device that is no profiling field, as it is at `second`. */
static int device_field(struct gpu *gpu, int index, unsigned short field, double second, value_of *value,
                        unsigned short *type) {
    load_apply(gpu);
    switch (field) {
    case 50: set_text(value, type, gpu->name); break;
    case 51: set_text(value, type, "Tesla"); break;
    case 52: set_number(value, type, index); break;
    case 54: set_text(value, type, gpu->uuid); break;
    case 55: set_number(value, type, (int64_t)gpu->minor); break;
    case 67: set_number(value, type, (int64_t)gpu->mig); break;
    case 100: set_number(value, type, (int64_t)gpu->clock_sm); break;
    case 101: set_number(value, type, (int64_t)gpu->clock_memory); break;
    case 112: set_number(value, type, (int64_t)gpu->throttle); break;
    case 113: set_number(value, type, (int64_t)gpu->clock_sm_max); break;
    case 114: set_number(value, type, (int64_t)gpu->clock_memory_max); break;
    case 140: set_number(value, type, (int64_t)gpu->memory_temperature); break;
    case 150: set_number(value, type, (int64_t)gpu->temperature); break;
    case 155: set_double(value, type, (double)gpu->power / 1000); break;
    case 156: set_number(value, type, (int64_t)gpu->energy); break;
    case 163: set_double(value, type, (double)gpu->power_limit_default / 1000); break;
    case 164: set_double(value, type, (double)gpu->power_limit / 1000); break;
    case 203: set_number(value, type, (int64_t)gpu->utilisation); break;
    case 230: set_number(value, type, (int64_t)load_xid(&gpu->loads, second)); break;
    case 250: set_number(value, type, (int64_t)(gpu->memory_total / 1048576)); break;
    case 252: set_number(value, type, (int64_t)(gpu->memory_used / 1048576)); break;
    default: return UNKNOWN_FIELD;
    }
    int code = load_blank(&gpu->loads, field);
    if (code != 0 && *type == 'i') {
        value->i64 = INT64_BLANK + code;
    } else if (code != 0 && *type == 'd') {
        value->dbl = DOUBLE_BLANK + code;
    }
    return OK;
}

EXPORT int dcgmEntitiesGetLatestValues(handle engine, entity entities[], unsigned int entity_count,
                                       unsigned short fields[], unsigned int field_count, unsigned int flags,
                                       value_v2 values[]) {
    if (!connected || engine == 0) {
        return CONNECTION_NOT_VALID;
    }
    if ((flags & 1) == 0) {
        return NOT_WATCHED;
    }
    for (unsigned int i = 0; i < entity_count * field_count; i++) {
        unsigned int id = entities[i / field_count].id;
        if (entities[i / field_count].group != 1 || id >= (unsigned int)machine.gpu_count) {
            return BADPARAM;
        }
        value_v2 *value = &values[i];
        memset(value, 0, sizeof *value);
        value->version = VERSION_OF(value_v2, 2);
        value->group = 1;
        value->id = id;
        value->field = fields[i % field_count];
        value->ts = stamp(load_now());
        value->status = device_field(&machine.gpus[id], (int)id, value->field, load_now(), &value->value, &value->type);
    }
    return OK;
}

EXPORT int dcgmGroupCreate(handle engine, int type, const char *name, handle *group) {
    (void)name;
    for (int i = 0; connected && engine != 0 && type == 1 && i < GROUPS_MAX; i++) {
        if (!groups[i].used) {
            memset(&groups[i], 0, sizeof groups[i]);
            groups[i].used = 1;
            *group = (handle)i + 100;
            return fault("dcgmGroupCreate");
        }
    }
    return connected ? BADPARAM : CONNECTION_NOT_VALID;
}

static int group_index(handle group) {
    return group >= 100 && group < 100 + GROUPS_MAX && groups[group - 100].used ? (int)(group - 100) : -1;
}

static struct field_group *fields_of(handle group) {
    return group >= 200 && group < 200 + GROUPS_MAX && field_groups[group - 200].used ? &field_groups[group - 200] : NULL;
}

EXPORT int dcgmGroupAddEntity(handle engine, handle group, unsigned int entity_group, unsigned int id) {
    int i = group_index(group);
    if (engine == 0 || i < 0 || entity_group != 1 || id >= (unsigned int)machine.gpu_count || groups[i].count == GPUS_MAX) {
        return BADPARAM;
    }
    groups[i].ids[groups[i].count++] = id;
    return OK;
}

EXPORT int dcgmGroupDestroy(handle engine, handle group) {
    int i = group_index(group);
    if (engine == 0 || i < 0) {
        return NOT_CONFIGURED;
    }
    groups[i].used = 0;
    return OK;
}

EXPORT int dcgmFieldGroupCreate(handle engine, int count, unsigned short *fields, const char *name, handle *group) {
    (void)name;
    for (int i = 0; engine != 0 && count > 0 && count <= FIELDS_MAX && i < GROUPS_MAX; i++) {
        if (!field_groups[i].used) {
            field_groups[i] = (struct field_group){.used = 1, .count = count};
            memcpy(field_groups[i].fields, fields, (size_t)count * sizeof *fields);
            *group = (handle)i + 200;
            return OK;
        }
    }
    return BADPARAM;
}

EXPORT int dcgmFieldGroupDestroy(handle engine, handle group) {
    struct field_group *fields = fields_of(group);
    if (engine == 0 || fields == NULL) {
        return NOT_CONFIGURED;
    }
    fields->used = 0;
    return OK;
}

EXPORT int dcgmWatchFields(handle engine, handle group, handle field_group, long long us, double age_s, int samples) {
    (void)age_s;
    (void)samples;
    struct field_group *fields = fields_of(field_group);
    if (engine == 0 || group_index(group) < 0 || fields == NULL || us < 100000) {
        return BADPARAM;
    }
    fields->watched = 1;
    fields->period = (double)us * 1e-6;
    fields->began = load_now();
    return fault("dcgmWatchFields");
}

EXPORT int dcgmUnwatchFields(handle engine, handle group, handle field_group) {
    struct field_group *fields = fields_of(field_group);
    if (engine == 0 || group_index(group) < 0 || fields == NULL) {
        return NOT_CONFIGURED;
    }
    fields->watched = 0;
    return OK;
}

/* Sample k of a field, k = 1, 2, …: what the watch saw between k - 1 and k periods after it began. */
static void sample(struct gpu *gpu, int index, const struct field_group *fields, unsigned short field, long k,
                   value_v1 *value) {
    double end = fields->began + (double)k * fields->period;
    value->version = VERSION_OF(value_v1, 1);
    value->field = field;
    value->ts = stamp(end);
    for (size_t i = 0; i < sizeof PROFILING / sizeof PROFILING[0]; i++) {
        if (PROFILING[i].field != field) {
            continue;
        }
        struct work mean = load_counted(&gpu->loads, end - fields->period, end);
        double number = 0;
        int blank = load_blank(&gpu->loads, field);
        (void)load_metric(&mean, PROFILING[i].metric, &number);
        number *= PROFILING[i].factor;
        int bytes = PROFILING[i].factor > 1;
        if (k <= 2 || blank != 0) {
            number = DOUBLE_BLANK + blank;
        }
        if (bytes) {
            set_number(&value->value, &value->type, k <= 2 || blank != 0 ? INT64_BLANK + blank : (int64_t)number);
        } else {
            set_double(&value->value, &value->type, number);
        }
        return;
    }
    value->status = device_field(gpu, index, field, end, &value->value, &value->type);
}

EXPORT int dcgmGetValuesSince_v2(handle engine, handle group, handle field_group, long long since, long long *next,
                                 enumerate callback, void *data) {
    int g = group_index(group);
    struct field_group *fields = fields_of(field_group);
    if (!connected || engine == 0 || g < 0 || fields == NULL || callback == NULL) {
        return connected ? BADPARAM : CONNECTION_NOT_VALID;
    }
    if (!fields->watched) {
        return NOT_WATCHED;
    }
    int code = fault("dcgmGetValuesSince_v2");
    if (code != OK) {
        return code;
    }
    long newest = (long)floor((load_now() - fields->began) / fields->period + 1e-9);
    long oldest = newest - 4096;
    long long last = since;
    for (int i = 0; i < groups[g].count; i++) {
        for (int f = 0; f < fields->count; f++) {
            for (long k = oldest < 1 ? 1 : oldest; k <= newest; k++) {
                value_v1 value;
                memset(&value, 0, sizeof value);
                int index = (int)groups[g].ids[i];
                if (stamp(fields->began + (double)k * fields->period) < since) {
                    continue;
                }
                sample(&machine.gpus[index], index, fields, fields->fields[f], k, &value);
                if (value.ts >= last) {
                    last = value.ts + 1;
                }
                if (callback(1, (unsigned int)index, &value, 1, data) != 0) {
                    return OK;
                }
            }
        }
    }
    *next = last;
    return OK;
}
