/* Reads the script of the fake NVML; see script.h for what it looks like.
 *
 * It refuses an unknown key, a value that is no number where one must be, and too much of anything: a
 * test must not pass because of a misspelt fault.
 */
#include "script.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum kind { TEXT, NUMBER };

struct key {
    const char *name;
    enum kind kind;
    size_t offset, size;
};

#define AS_NUMBER(type, field) {#field, NUMBER, offsetof(type, field), sizeof(number)}
#define AS_TEXT(type, field) {#field, TEXT, offsetof(type, field), sizeof(((type *)0)->field)}

static const struct key MACHINE_KEYS[] = {
    AS_TEXT(struct machine, driver),
    AS_TEXT(struct machine, nvml),
    AS_TEXT(struct machine, hung),
    AS_NUMBER(struct machine, cuda),
    {NULL, TEXT, 0, 0},
};

static const struct key GPU_KEYS[] = {
    AS_TEXT(struct gpu, uuid),
    AS_TEXT(struct gpu, name),
    AS_TEXT(struct gpu, serial),
    AS_NUMBER(struct gpu, bus),
    AS_NUMBER(struct gpu, minor),
    AS_NUMBER(struct gpu, temperature),
    AS_NUMBER(struct gpu, memory_temperature),
    AS_NUMBER(struct gpu, memory_total),
    AS_NUMBER(struct gpu, memory_reserved),
    AS_NUMBER(struct gpu, memory_used),
    AS_NUMBER(struct gpu, memory_by_load),
    AS_NUMBER(struct gpu, ecc_mode),
    AS_NUMBER(struct gpu, ecc_corrected_volatile),
    AS_NUMBER(struct gpu, ecc_uncorrected_volatile),
    AS_NUMBER(struct gpu, ecc_corrected_aggregate),
    AS_NUMBER(struct gpu, ecc_uncorrected_aggregate),
    AS_NUMBER(struct gpu, rows_corrected),
    AS_NUMBER(struct gpu, rows_uncorrected),
    AS_NUMBER(struct gpu, rows_pending),
    AS_NUMBER(struct gpu, rows_failed),
    AS_NUMBER(struct gpu, retired_pending),
    AS_NUMBER(struct gpu, throttle),
    AS_NUMBER(struct gpu, pcie_gen),
    AS_NUMBER(struct gpu, pcie_gen_max),
    AS_NUMBER(struct gpu, pcie_width),
    AS_NUMBER(struct gpu, pcie_width_max),
    AS_NUMBER(struct gpu, pcie_replays),
    AS_NUMBER(struct gpu, links),
    AS_NUMBER(struct gpu, links_down),
    AS_NUMBER(struct gpu, link_replays),
    AS_NUMBER(struct gpu, fabric_state),
    AS_NUMBER(struct gpu, fabric_status),
    AS_NUMBER(struct gpu, fabric_health),
    AS_NUMBER(struct gpu, fabric_summary),
    AS_NUMBER(struct gpu, recovery_action),
    AS_NUMBER(struct gpu, memory_temperature_max),
    AS_NUMBER(struct gpu, power_limit_default),
    AS_NUMBER(struct gpu, utilisation),
    AS_NUMBER(struct gpu, memory_utilisation),
    AS_NUMBER(struct gpu, power),
    AS_NUMBER(struct gpu, power_limit),
    AS_NUMBER(struct gpu, energy),
    AS_NUMBER(struct gpu, clock_graphics),
    AS_NUMBER(struct gpu, clock_sm),
    AS_NUMBER(struct gpu, clock_memory),
    AS_NUMBER(struct gpu, clock_graphics_max),
    AS_NUMBER(struct gpu, clock_sm_max),
    AS_NUMBER(struct gpu, clock_memory_max),
    AS_NUMBER(struct gpu, mig),
    {NULL, TEXT, 0, 0},
};

/* A healthy, idle H100 in its own words. */
static const struct gpu HEALTHY = {
    .name = "NVIDIA H100 80GB HBM3",
    .temperature = 34,
    .memory_temperature = 42,
    .memory_total = 85520809984ULL,
    .memory_reserved = 614072320ULL,
    .memory_used = 4194304ULL,
    .memory_by_load = 1,
    .ecc_mode = 1,
    .throttle = 0x1,
    .pcie_gen = 5,
    .pcie_gen_max = 5,
    .pcie_width = 16,
    .pcie_width_max = 16,
    .links = LINKS_MAX,
    .fabric_state = 3,
    .fabric_health = 0x1aa, /* nothing degraded, unhealthy or recovering; no incorrect configuration */
    .fabric_summary = 1,
    .memory_temperature_max = 95,
    .power_limit_default = 700000,
    .power = 70000,
    .power_limit = 700000,
    .energy = 1000000,
    .clock_graphics = 345,
    .clock_sm = 345,
    .clock_memory = 2619,
    .clock_graphics_max = 1980,
    .clock_sm_max = 1980,
    .clock_memory_max = 2619,
};

static int refuse(int line, const char *what, const char *value) {
    fprintf(stderr, "fake nvml: line %d of the script: %s: %s\n", line, what, value);
    return -1;
}

static int to_number(const char *text, number *result) {
    char *end;
    errno = 0;
    *result = strtoull(text, &end, 0);
    return errno != 0 || end == text || *end != '\0' || *text == '-' ? -1 : 0;
}

static struct gpu *add_gpu(struct machine *machine) {
    int index = machine->gpu_count;
    if (index == GPUS_MAX) {
        return NULL;
    }
    struct gpu *gpu = &machine->gpus[index];
    *gpu = HEALTHY;
    gpu->parent = -1;
    snprintf(gpu->uuid, sizeof gpu->uuid, "GPU-%08x-0000-0000-0000-000000000000", index);
    snprintf(gpu->serial, sizeof gpu->serial, "13236230%05d", index);
    gpu->bus = 0x10 + (number)index;
    gpu->minor = (number)index;
    machine->gpu_count++;
    return gpu;
}

/* The last GPU becomes one in MIG mode, and gets one more part of a seventh of its memory. */
static struct gpu *add_instance(struct machine *machine, struct gpu *before) {
    int parent = before->parent >= 0 ? before->parent : (int)(before - machine->gpus);
    struct gpu *gpu = add_gpu(machine), *whole = &machine->gpus[parent];
    if (gpu == NULL) {
        return NULL;
    }
    whole->mig = 1;
    gpu->parent = parent;
    gpu->instance = before->parent >= 0 ? before->instance + 1 : 1;
    gpu->memory_total = whole->memory_total / MIG_MAX;
    snprintf(gpu->uuid, sizeof gpu->uuid, "MIG-%08x-%04x-0000-0000-000000000000", parent, gpu->instance);
    snprintf(gpu->name, sizeof gpu->name, "%s", whole->name);
    return gpu;
}

static int add_fault(struct faults *faults, int line, const char *function, const char *code) {
    number value = 0;
    if (faults->count == FAULTS_MAX || strlen(function) >= sizeof faults->list[0].function) {
        return refuse(line, "too many faults, or too long a name", function);
    }
    if (code != NULL && to_number(code, &value) != 0) {
        return refuse(line, "not a number", code);
    }
    struct fault *fault = &faults->list[faults->count++];
    snprintf(fault->function, sizeof fault->function, "%s", function);
    fault->code = code == NULL ? HANG : (int)value;
    return 0;
}

static int add_process(struct gpu *gpu, int line, const char *pid, const char *memory) {
    struct process process;
    if (memory == NULL || to_number(pid, &process.pid) != 0 || to_number(memory, &process.memory) != 0) {
        return refuse(line, "a process is two numbers, pid and bytes", pid);
    }
    if (gpu->process_count == PROCESSES_MAX) {
        return refuse(line, "too many processes", pid);
    }
    gpu->processes[gpu->process_count++] = process;
    return 0;
}

static int set(void *record, const struct key *keys, int line, const char *name, const char *value) {
    for (; keys->name != NULL; keys++) {
        if (strcmp(keys->name, name) != 0) {
            continue;
        }
        char *field = (char *)record + keys->offset;
        if (keys->kind == NUMBER) {
            return to_number(value, (number *)(void *)field) == 0 ? 0 : refuse(line, "not a number", value);
        }
        if (strlen(value) >= keys->size) {
            return refuse(line, "too long", value);
        }
        snprintf(field, keys->size, "%s", value);
        return 0;
    }
    return refuse(line, "unknown key", name);
}

/* One line without its comment; `gpu` is the device that it is of, NULL for the machine. */
static int line_read(struct machine *machine, struct gpu **gpu, int line, char *text) {
    char *rest = NULL;
    char *name = strtok_r(text, " \t", &rest);
    if (name == NULL) {
        return 0;
    }
    rest += strspn(rest, " \t");
    for (char *end = rest + strlen(rest); end > rest && (end[-1] == ' ' || end[-1] == '\t'); *--end = '\0') {
    }
    if (strcmp(name, "gpu") == 0) {
        *gpu = add_gpu(machine);
        return *gpu != NULL ? 0 : refuse(line, "too many GPUs", name);
    }
    if (strcmp(name, "instance") == 0) {
        *gpu = *gpu == NULL ? NULL : add_instance(machine, *gpu);
        return *gpu != NULL ? 0 : refuse(line, "too many, or no GPU before it", name);
    }
    if (*rest == '\0') {
        return refuse(line, "a key without a value", name);
    }
    if (strcmp(name, "load") == 0 || strcmp(name, "driven") == 0 || strcmp(name, "blank") == 0 || strcmp(name, "xid") == 0 ||
        strcmp(name, "silent") == 0 || strcmp(name, "restart") == 0) {
        char *words[4] = {NULL}, *after = NULL;
        for (int i = 0; i < 4; i++) {
            words[i] = strtok_r(i == 0 ? rest : NULL, " \t", &after);
        }
        if (*gpu == NULL || load_line(&(*gpu)->loads, name, words) != 0) {
            return refuse(line, "no such load, or no GPU before it", name);
        }
        return 0;
    }
    if (strcmp(name, "gpus") == 0) {
        number count;
        if (to_number(rest, &count) != 0 || count > GPUS_MAX || machine->gpu_count != 0) {
            return refuse(line, "not a number of GPUs, or not the first", rest);
        }
        while (count-- > 0) {
            (void)add_gpu(machine);
        }
        return 0;
    }
    if (strcmp(name, "fail") == 0 || strcmp(name, "hang") == 0 || strcmp(name, "process") == 0) {
        char *after = NULL;
        char *first = strtok_r(rest, " \t", &after);
        char *second = strtok_r(NULL, " \t", &after);
        if (name[0] == 'p') {
            return *gpu == NULL ? refuse(line, "no GPU before it", name) : add_process(*gpu, line, first, second);
        }
        if ((name[0] == 'f') != (second != NULL)) {
            return refuse(line, "fail takes a function and a code, hang a function", first);
        }
        return add_fault(*gpu == NULL ? &machine->faults : &(*gpu)->faults, line, first, second);
    }
    return *gpu == NULL ? set(machine, MACHINE_KEYS, line, name, rest) : set(*gpu, GPU_KEYS, line, name, rest);
}

/* The script's path, with the host's name for the first "%h" in it. */
static int script_path(char *path, size_t size) {
    const char *given = getenv("PIOLET_FAKE_NVML");
    const char *mark = given == NULL ? NULL : strstr(given, "%h");
    char host[256] = "";
    if (given == NULL || gethostname(host, sizeof host - 1) != 0) {
        return -1;
    }
    int before = mark == NULL ? (int)strlen(given) : (int)(mark - given);
    int length = snprintf(path, size, "%.*s%s%s", before, given, mark == NULL ? "" : host, mark == NULL ? "" : mark + 2);
    return length < 0 || (size_t)length >= size ? -1 : 0;
}

int script_read(struct machine *machine) {
    memset(machine, 0, sizeof *machine);
    snprintf(machine->driver, sizeof machine->driver, "580.82.07");
    snprintf(machine->nvml, sizeof machine->nvml, "13.580.82.07");
    machine->cuda = 13000;
    char path[4096];
    FILE *file = script_path(path, sizeof path) == 0 ? fopen(path, "re") : NULL;
    if (file == NULL) {
        fprintf(stderr, "fake nvml: PIOLET_FAKE_NVML names no file that can be read\n");
        return -1;
    }
    char text[512];
    struct gpu *gpu = NULL;
    int line = 0, status = 0;
    while (status == 0 && fgets(text, sizeof text, file) != NULL) {
        text[strcspn(text, "#\r\n")] = '\0';
        status = line_read(machine, &gpu, ++line, text);
    }
    (void)fclose(file);
    return status;
}

int script_fault(const struct faults *faults, const char *function) {
    for (int i = 0; i < faults->count; i++) {
        if (strcmp(faults->list[i].function, function) == 0) {
            return faults->list[i].code;
        }
    }
    return 0;
}
