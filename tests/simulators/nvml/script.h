/* What a scripted machine looks like: the GPUs that the fake libnvidia-ml.so.1 tells of.
 *
 * The script is a text file, named by PIOLET_FAKE_NVML, in which %h stands for the host. One "key value" a line, '#' begins a comment.
 * "gpu" alone on a line begins a device; what stands before the first "gpu" is of the machine. A device
 * that says nothing of a key has the default in script.c. Example:
 *
 *     driver 580.82.07
 *     gpu
 *     uuid GPU-00000000-0000-0000-0000-000000000000
 *     temperature 41
 *     throttle 0x40
 *     process 4242 1073741824
 *     gpu
 *     fail nvmlDeviceGetTotalEccErrors 3
 *
 * "instance" alone on a line begins a MIG instance of the GPU before it, which then is in MIG mode; it takes the
 * keys and loads of a device. It has a UUID of its own ("MIG-...") and is no device that NVML counts.
 *
 * "gpus N" makes N devices with defaults at once and stands alone. "fail FUNCTION CODE" makes a function of
 * NVML return CODE for this device, or on the whole machine when it stands before the first "gpu"; the function "*"
 * stands for every one that asks a device for a figure, which is all but its handle, index, UUID, name and PCI address;
 * "hang FUNCTION" makes it never return. Lines of what the GPU computes over time are in load.h.
 */
#ifndef PIOLET_FAKE_NVML_SCRIPT_H
#define PIOLET_FAKE_NVML_SCRIPT_H

#include "load.h"

#define GPUS_MAX 16
#define LINKS_MAX 18
#define MIG_MAX 7
#define PROCESSES_MAX 16
#define FAULTS_MAX 32
#define HANG (-1)

typedef unsigned long long number;

struct process {
    number pid;
    number memory;
};

struct fault {
    char function[64];
    int code; /* of nvmlReturn_t, or HANG */
};

struct faults {
    int count;
    struct fault list[FAULTS_MAX];
};

struct gpu {
    char uuid[96];
    char name[96];
    char serial[30];
    number bus;
    number minor; /* of its device file; by default the same as its index */
    number temperature;        /* degrees Celsius */
    number memory_temperature; /* degrees Celsius */
    number memory_total, memory_reserved, memory_used; /* bytes; used without the reserved part */
    number memory_by_load;     /* 0: what it computes takes no memory, as on a GPU before the application */
    number ecc_mode;
    number ecc_corrected_volatile, ecc_uncorrected_volatile;
    number ecc_corrected_aggregate, ecc_uncorrected_aggregate;
    number rows_corrected, rows_uncorrected, rows_pending, rows_failed;
    number retired_pending;
    number throttle; /* a mask of nvmlClocksEventReason */
    number pcie_gen, pcie_gen_max, pcie_width, pcie_width_max, pcie_replays;
    number links, links_down; /* links_down is a mask: links that the GPU tells of, and which are not up */
    /* nvmlGpuFabricInfo_v3_t: state (0 none, 1 not started, 2 in progress, 3 completed), status, mask, summary */
    number fabric_state, fabric_status, fabric_health, fabric_summary;
    number recovery_action; /* nvmlDeviceGpuRecoveryAction_t */
    number link_replays;
    number utilisation, memory_utilisation; /* percent */
    number memory_temperature_max; /* degrees Celsius, of the threshold; 0: the GPU does not tell */
    number power, power_limit, power_limit_default; /* milliwatt */
    number energy;             /* millijoule */
    number clock_graphics, clock_sm, clock_memory;             /* MHz */
    number clock_graphics_max, clock_sm_max, clock_memory_max; /* MHz */
    number mig;
    int parent;   /* of a MIG instance: the index of its GPU in the machine's list; else -1 */
    int instance; /* of a MIG instance: NVML's GPU instance id, from 1 on */
    int process_count;
    struct process processes[PROCESSES_MAX];
    struct faults faults;
    struct loads loads; /* what it computes over time */
};

struct machine {
    char driver[80];
    char nvml[80];
    char hung[200]; /* what a function that hangs opens: on a file system that does not answer, not even SIGKILL ends it */
    number cuda; /* 12040 is 12.4 */
    int gpu_count;
    struct gpu gpus[GPUS_MAX];
    struct faults faults;
};

/* Fill in `machine` from the script. Returns 0, or -1 after one sentence on standard error. */
int script_read(struct machine *machine);

/* Return the code that `function` must return according to `faults`, 0 for none, HANG. */
int script_fault(const struct faults *faults, const char *function);

#endif
