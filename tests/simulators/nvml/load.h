/* What a scripted GPU computes over time: the lines "load", "blank", "xid" and so on.
 *
 *     load KIND SECONDS [DUTY_PERCENT PERIOD_SECONDS]   what it does, one after the other, from the start again
 *     driven FILE                                       it does what a program says in a file, see driven.h
 *     blank ID CODE                                     metric ID of GPM (or field ID of DCGM) gives CODE, no value
 *     xid CODE SECOND                                   an XID error at that second
 *     silent FROM TO                                    between those seconds profiling counters read 0, without an error
 *     restart SECOND MILLIJOULES                        there the energy counter begins again, with that
 *
 * KIND is a row of the table in load.c. Time begins when a library is initialised and is CLOCK_MONOTONIC, unless a
 * test has set `piolet_simulation_clock` to the seconds that it wants.
 */
#ifndef PIOLET_FAKE_LOAD_H
#define PIOLET_FAKE_LOAD_H

#define LOADS_MAX 32
#define BLANKS_MAX 32
#define XIDS_MAX 8

struct driven;
struct gpu;

struct work {
    const char *name;
    double engine, sm, occupancy, tensor, tensor_int, tensor_half, tensor_double;
    double fp64, fp32, fp16, integer, dram;                     /* shares of 1 */
    double pcie_tx, pcie_rx, nvlink_tx, nvlink_rx, c2c_tx, c2c_rx; /* bytes per second */
    double power, temperature, clock, memory; /* watt, degrees Celsius, MHz, share of the device's memory */
    unsigned long long events;                /* why the clock is held back */
};

struct load {
    const struct work *kind;
    double seconds, duty, period;
};

struct loads {
    int count, blank_count, xid_count;
    double silent_from, silent_to;
    int restarts;
    double restart, restart_value;
    struct driven *driven; /* NULL: it does what `list` says */
    struct load list[LOADS_MAX];
    struct {
        unsigned int id;
        int code;
    } blanks[BLANKS_MAX];
    struct {
        unsigned long long code;
        double second;
    } xids[XIDS_MAX];
};

/* Take one line; `words` has up to four. Returns 0, or -1 when it is wrong. */
int load_line(struct loads *loads, const char *name, char *const words[4]);

extern double piolet_simulation_clock;

/* Seconds since the library was initialised. */
double load_now(void);
void load_begin(void);

/* The means over the seconds `from` to `to`. */
struct work load_mean(const struct loads *loads, double from, double to);

/* Return the code that `id` must give instead of a value, 0 for none. */
int load_blank(const struct loads *loads, unsigned int id);

/* Return the code of the last XID error up to `second`, 0 for none. */
unsigned long long load_xid(const struct loads *loads, double second);

/* The means over those seconds as the profiling counters tell them. */
struct work load_counted(const struct loads *loads, double from, double to);

/* Put what the load does to the fields that NVML tells of (power, clocks, memory, ...) into `gpu`. */
void load_apply(struct gpu *gpu);

/* One metric of GPM by its number, in GPM's units. Returns -1 for a number that there is not. */
int load_metric(const struct work *mean, unsigned int id, double *value);

#endif
