/* What scripted GPUs compute over time; see load.h. */
#include "load.h"

#include "driven.h"
#include "script.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Seconds for tests that bring their own clock; below 0: the real one. */
__attribute__((visibility("default"))) double piolet_simulation_clock = -1;

/* How the library says what it is: every figure that comes from it is marked with this. */
__attribute__((visibility("default"))) const char piolet_simulation[] = "scripted GPUs";

static double began;

#define GB 1e9
static const struct work KINDS[] = {
    /* Figures are of the size that an H100 shows; they are no measurements. */
    {.name = "idle", .power = 70, .temperature = 34, .clock = 345, .memory = 0.01, .events = 0x1},
    {.name = "spin", .engine = 1, .sm = 1 / 132.0, .occupancy = 0.0002, .fp32 = 0.0003, .integer = 0.0005, .power = 120,
     .temperature = 38, .clock = 1980, .memory = 0.01},
    {.name = "copy", .engine = 1, .sm = 0.97, .occupancy = 0.6, .fp32 = 0.02, .integer = 0.08, .dram = 0.92, .power = 480,
     .temperature = 55, .clock = 1980, .memory = 0.6},
    {.name = "matmul", .engine = 1, .sm = 0.99, .occupancy = 0.12, .tensor = 0.9, .tensor_half = 0.9, .fp32 = 0.02,
     .integer = 0.05, .dram = 0.35, .power = 660, .temperature = 62, .clock = 1755, .memory = 0.7},
    {.name = "fp32", .engine = 1, .sm = 0.99, .occupancy = 0.5, .fp32 = 0.85, .integer = 0.1, .dram = 0.2, .power = 560,
     .temperature = 60, .clock = 1980, .memory = 0.5},
    {.name = "fp64", .engine = 1, .sm = 0.99, .occupancy = 0.3, .fp64 = 0.9, .dram = 0.2, .power = 600, .temperature = 60,
     .clock = 1900, .memory = 0.4},
    {.name = "integer", .engine = 1, .sm = 0.99, .occupancy = 0.5, .integer = 0.95, .power = 350, .temperature = 52,
     .clock = 1980, .memory = 0.1},
    {.name = "small", .engine = 0.97, .sm = 0.14, .occupancy = 0.03, .tensor = 0.05, .tensor_half = 0.05, .fp32 = 0.02,
     .dram = 0.06, .power = 210, .temperature = 44, .clock = 1980, .memory = 0.15},
    {.name = "allreduce", .engine = 1, .sm = 0.2, .occupancy = 0.1, .dram = 0.3, .nvlink_tx = 400 * GB,
     .nvlink_rx = 400 * GB, .power = 300, .temperature = 50, .clock = 1980, .memory = 0.6},
    {.name = "offload", .engine = 1, .sm = 0.1, .occupancy = 0.05, .dram = 0.1, .pcie_tx = 20 * GB, .pcie_rx = 55 * GB,
     .power = 200, .temperature = 45, .clock = 1980, .memory = 0.95},
    {.name = "hot", .engine = 1, .sm = 0.99, .occupancy = 0.12, .tensor = 0.85, .tensor_half = 0.85, .dram = 0.3,
     .power = 400, .temperature = 90, .clock = 1100, .memory = 0.7, .events = 0x40},
    {.name = "capped", .engine = 1, .sm = 0.99, .occupancy = 0.12, .tensor = 0.85, .tensor_half = 0.85, .dram = 0.3,
     .power = 699, .temperature = 70, .clock = 1200, .memory = 0.7, .events = 0x4},
    {.name = "full", .engine = 1, .sm = 0.9, .occupancy = 0.2, .tensor = 0.7, .tensor_half = 0.7, .dram = 0.5, .power = 600,
     .temperature = 60, .clock = 1800, .memory = 0.985},
};

/* What a driven GPU does, in the order of driven.h: a program has it and leaves it alone, computes, waits for others.
 * Of a collective among few GPUs a few blocks poll, one on a multiprocessor. */
static const struct work DRIVEN[DRIVEN_KINDS] = {
    {.name = "ready", .power = 118, .temperature = 40, .clock = 1980, .memory = 0.7},
    {.name = "computes", .engine = 1, .sm = 0.99, .occupancy = 0.12, .tensor = 0.9, .tensor_half = 0.9, .fp32 = 0.02,
     .integer = 0.05, .dram = 0.35, .power = 660, .temperature = 62, .clock = 1755, .memory = 0.7},
    {.name = "polls", .engine = 1, .sm = 8 / 132.0, .occupancy = 0.01, .integer = 0.01, .dram = 0.01, .power = 165,
     .temperature = 43, .clock = 1980, .memory = 0.7},
};

static int number_of(const char *text, double *result) {
    char *end;
    if (text == NULL) {
        return -1;
    }
    *result = strtod(text, &end);
    return end == text || *end != '\0' || !isfinite(*result) || *result < 0 ? -1 : 0;
}

static int load_add(struct loads *loads, char *const words[4]) {
    struct load load = {NULL, 0, 1, 1};
    double percent = 100;
    for (size_t i = 0; words[0] != NULL && i < sizeof KINDS / sizeof KINDS[0]; i++) {
        if (strcmp(KINDS[i].name, words[0]) == 0) {
            load.kind = &KINDS[i];
        }
    }
    if (load.kind == NULL || loads->count == LOADS_MAX || number_of(words[1], &load.seconds) != 0 || load.seconds <= 0) {
        return -1;
    }
    if (words[2] != NULL && (number_of(words[2], &percent) != 0 || percent > 100 || number_of(words[3], &load.period) != 0)) {
        return -1;
    }
    load.duty = percent / 100;
    loads->list[loads->count++] = load;
    return load.period > 0 ? 0 : -1;
}

int load_line(struct loads *loads, const char *name, char *const words[4]) {
    double first, second;
    if (strcmp(name, "load") == 0) {
        return load_add(loads, words);
    }
    if (strcmp(name, "driven") == 0) {
        loads->driven = loads->driven == NULL && words[0] != NULL && words[1] == NULL ? driven_by(words[0]) : NULL;
        return loads->driven != NULL ? 0 : -1;
    }
    if (number_of(words[0], &first) != 0 || number_of(words[1], &second) != 0 || words[2] != NULL) {
        return -1;
    }
    if (strcmp(name, "blank") == 0 && loads->blank_count < BLANKS_MAX) {
        loads->blanks[loads->blank_count].id = (unsigned int)first;
        loads->blanks[loads->blank_count++].code = (int)second;
        return 0;
    }
    if (strcmp(name, "silent") == 0) {
        loads->silent_from = first;
        loads->silent_to = second;
        return 0;
    }
    if (strcmp(name, "restart") == 0) {
        loads->restarts = 1;
        loads->restart = first;
        loads->restart_value = second;
        return 0;
    }
    if (strcmp(name, "xid") == 0 && loads->xid_count < XIDS_MAX) {
        loads->xids[loads->xid_count].code = (unsigned long long)first;
        loads->xids[loads->xid_count++].second = second;
        return 0;
    }
    return -1;
}

static double real_seconds(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void load_begin(void) {
    if (began == 0) {
        began = real_seconds();
    }
}

double load_now(void) { return piolet_simulation_clock >= 0 ? piolet_simulation_clock : real_seconds() - began; }

/* Seconds of work in the first `t` seconds of a load: whole periods, then the working part of the last one. */
static double worked(const struct load *load, double t) {
    double periods = floor(t / load->period);
    return periods * load->duty * load->period + fmin(t - periods * load->period, load->duty * load->period);
}

static void add(struct work *sum, const struct work *kind, double weight) {
    sum->engine += weight * kind->engine;
    sum->sm += weight * kind->sm;
    sum->occupancy += weight * kind->occupancy;
    sum->tensor += weight * kind->tensor;
    sum->tensor_int += weight * kind->tensor_int;
    sum->tensor_half += weight * kind->tensor_half;
    sum->tensor_double += weight * kind->tensor_double;
    sum->fp64 += weight * kind->fp64;
    sum->fp32 += weight * kind->fp32;
    sum->fp16 += weight * kind->fp16;
    sum->integer += weight * kind->integer;
    sum->dram += weight * kind->dram;
    sum->pcie_tx += weight * kind->pcie_tx;
    sum->pcie_rx += weight * kind->pcie_rx;
    sum->nvlink_tx += weight * kind->nvlink_tx;
    sum->nvlink_rx += weight * kind->nvlink_rx;
    sum->c2c_tx += weight * kind->c2c_tx;
    sum->c2c_rx += weight * kind->c2c_rx;
    sum->power += weight * kind->power;
    sum->temperature += weight * kind->temperature;
    sum->clock += weight * kind->clock;
    sum->memory = fmax(sum->memory, weight > 0 ? kind->memory : 0);
    sum->events |= weight > 0 ? kind->events : 0;
}

/* The means of a GPU that a program drives; a program that has it keeps its clocks up. */
static struct work driven_mean(struct driven *driven, double from, double to) {
    struct work mean = {.name = "mean"};
    double seconds[DRIVEN_KINDS], told = 0, zero = piolet_simulation_clock >= 0 ? 0 : began;
    driven_seconds(driven, zero + from, zero + to, zero + load_now(), seconds);
    for (int kind = 0; kind < DRIVEN_KINDS; kind++) {
        told += seconds[kind];
    }
    for (int kind = 0; kind < DRIVEN_KINDS; kind++) {
        add(&mean, &DRIVEN[kind], seconds[kind] / fmax(told, to - from)); /* it began before somebody looked */
    }
    if (told < to - from) {
        add(&mean, &KINDS[0], 1 - told / (to - from));
    }
    return mean;
}

struct work load_mean(const struct loads *loads, double from, double to) {
    struct work mean = {.name = "mean"};
    double cycle = 0;
    if (loads->driven != NULL) {
        return driven_mean(loads->driven, from, fmax(to, from + 1e-6));
    }
    for (int i = 0; i < loads->count; i++) {
        cycle += loads->list[i].seconds;
    }
    if (cycle == 0) {
        add(&mean, &KINDS[0], 1);
        return mean;
    }
    if (to <= from) {
        to = from + 1e-6;
    }
    double start = floor(from / cycle) * cycle;
    for (int i = 0; start < to; i = (i + 1) % loads->count) {
        const struct load *load = &loads->list[i];
        double left = fmax(from, start) - start, right = fmin(to, start + load->seconds) - start;
        if (right > left) {
            double work = worked(load, right) - worked(load, left);
            add(&mean, load->kind, work / (to - from));
            add(&mean, &KINDS[0], (right - left - work) / (to - from));
            if (load->kind != &KINDS[0] && work > (to - from) / 2) { /* what idles does not hold the clock back */
                mean.events &= ~1ULL;
            }
        }
        start += load->seconds;
    }
    return mean;
}

struct work load_counted(const struct loads *loads, double from, double to) {
    if (to > loads->silent_from && to <= loads->silent_to) {
        return (struct work){.name = "silent"};
    }
    return load_mean(loads, from, to);
}

int load_blank(const struct loads *loads, unsigned int id) {
    for (int i = 0; i < loads->blank_count; i++) {
        if (loads->blanks[i].id == id) {
            return loads->blanks[i].code;
        }
    }
    return 0;
}

unsigned long long load_xid(const struct loads *loads, double second) {
    unsigned long long code = 0;
    for (int i = 0; i < loads->xid_count; i++) {
        if (loads->xids[i].second <= second) {
            code = loads->xids[i].code;
        }
    }
    return code;
}

void load_apply(struct gpu *gpu) {
    if (gpu->loads.count == 0 && gpu->loads.driven == NULL) {
        return;
    }
    double now = load_now();
    struct work mean = load_mean(&gpu->loads, fmax(0, now - 1), now); /* NVML's own figures are means of about 1 s */
    gpu->utilisation = (number)lround(mean.engine * 100);
    gpu->memory_utilisation = (number)lround(mean.dram * 100);
    gpu->power = (number)lround(mean.power * 1000);
    double base = 1000000, from = 0;
    if (gpu->loads.restarts && now >= gpu->loads.restart) {
        base = gpu->loads.restart_value;
        from = gpu->loads.restart;
    }
    gpu->energy = (number)llround(base + load_mean(&gpu->loads, from, fmax(now, from + 1e-6)).power * (now - from) * 1000);
    gpu->temperature = (number)lround(mean.temperature);
    gpu->memory_temperature = gpu->temperature + 8;
    struct work instant = load_mean(&gpu->loads, fmax(0, now - 0.001), now); /* a clock is that of now */
    gpu->clock_graphics = gpu->clock_sm = (number)lround(instant.clock);
    gpu->throttle = instant.events;
    if (gpu->memory_by_load) {
        gpu->memory_used = (number)(mean.memory * (double)(gpu->memory_total - gpu->memory_reserved));
    }
}

int load_metric(const struct work *mean, unsigned int id, double *value) {
    const double mib = 1048576.0;
    const struct {
        unsigned int id;
        double value;
    } table[] = {
        {1, mean->engine * 100},          {2, mean->sm * 100},           {3, mean->occupancy * 100},
        {4, mean->integer * 100},         {5, mean->tensor * 100},       {6, mean->tensor_double * 100},
        {7, mean->tensor_half * 100},     {9, mean->tensor_int * 100},   {10, mean->dram * 100},
        {11, mean->fp64 * 100},           {12, mean->fp32 * 100},        {13, mean->fp16 * 100},
        {20, mean->pcie_tx / mib},        {21, mean->pcie_rx / mib},     {60, mean->nvlink_rx / mib},
        {61, mean->nvlink_tx / mib},      {100, mean->c2c_tx / mib},     {101, mean->c2c_rx / mib},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].id == id) {
            *value = table[i].value;
            return 0;
        }
    }
    return -1;
}
