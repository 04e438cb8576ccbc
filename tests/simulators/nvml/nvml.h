/* What the files of the fake NVML share: return codes, structures of the ABI, and how a function begins. */
#ifndef PIOLET_FAKE_NVML_H
#define PIOLET_FAKE_NVML_H

#include "script.h"

#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))
#define VERSION_OF(type, number) ((unsigned int)(sizeof(type) | (number) << 24))

enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_TIMEOUT = 10,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
    NVML_ERROR_UNKNOWN = 999,
};

struct pci_info {
    char bus_id_legacy[16];
    unsigned int domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};

struct memory_v1 {
    number total, free, used;
};

struct memory_v2 {
    unsigned int version;
    number total, reserved, free, used;
};

struct temperature_v1 {
    unsigned int version;
    int sensor, celsius;
};

struct utilisation {
    unsigned int gpu, memory;
};

struct process_v3 {
    unsigned int pid;
    number memory;
    unsigned int gpu_instance, compute_instance;
};

struct fabric_v2 {
    unsigned int version;
    unsigned char cluster_uuid[16];
    int status;
    unsigned int clique_id, state, health_mask;
};

struct fabric_v3 {
    unsigned int version;
    unsigned char cluster_uuid[16];
    int status;
    unsigned int clique_id, state, health_mask;
    unsigned char health_summary;
};

struct field_value {
    unsigned int id, scope;
    long long timestamp, latency;
    unsigned int type;
    int code;
    union {
        double as_double;
        number unsigned_long_long;
    } value;
};

/* Return what a function must return at once: an error of the script or of the caller, or NVML_SUCCESS. */
int nvml_enter(const struct gpu *gpu, const char *function);

/* Return the MIG instance of `gpu` with that id, NULL where there is none. */
struct gpu *nvml_instance(const struct gpu *gpu, unsigned int id);

/* Copy `text` to a caller's buffer of `size` bytes. */
int nvml_text(char *target, unsigned int size, const char *text);

#endif
