/* A stand-in for libnvidia-ml.so.1: tells of the GPUs in a script (script.h) instead of real ones.
 *
 * Signatures, structures and numbers are those that nvidia-ml-py calls with, which are NVML's documented
 * ABI. A device's handle is a pointer to its record. What is not here, nvidia-ml-py reports as
 * NVML_ERROR_FUNCTION_NOT_FOUND, as it does with an old driver.
 */
#include "nvml.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static struct machine machine;
static int initialised;

/* How a function on a device begins: what the script wants to go wrong, goes wrong. */
#define ENTER(device)                                     \
    do {                                                  \
        int code = nvml_enter((device), __func__);        \
        if (code != NVML_SUCCESS) {                       \
            return code;                                  \
        }                                                 \
    } while (0)

#define GETTER(function, type, expression)                \
    EXPORT int function(struct gpu *gpu, type *result) {  \
        ENTER(gpu);                                       \
        *result = (type)(expression);                     \
        return NVML_SUCCESS;                              \
    }

static int fault_now(const struct faults *faults, const char *function) {
    int code = script_fault(faults, function);
    while (code == HANG) {
        if (machine.hung[0] != '\0') {
            (void)open(machine.hung, O_RDONLY);
        }
        pause();
    }
    return code;
}

/* Return whether a function tells which device it is, and not how it is. */
static int names_it(const char *function) {
    static const char *const NAMES[] = {"GetUUID", "GetName", "GetSerial", "GetIndex", "GetMinorNumber", "GetPciInfo_v3",
                                        "GetMigMode", "IsMigDeviceHandle"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; i++) {
        if (strcmp(function + strlen("nvmlDevice"), NAMES[i]) == 0) {
            return 1;
        }
    }
    return 0;
}

int nvml_enter(const struct gpu *gpu, const char *function) {
    if (!initialised) {
        return NVML_ERROR_UNINITIALIZED;
    }
    int code = fault_now(&machine.faults, function);
    if (code != NVML_SUCCESS || gpu == NULL) {
        return code;
    }
    if (gpu < machine.gpus || gpu >= machine.gpus + machine.gpu_count) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    load_apply(&machine.gpus[gpu - machine.gpus]);
    code = fault_now(&gpu->faults, function);
    return code != NVML_SUCCESS || names_it(function) ? code : fault_now(&gpu->faults, "*");
}

int nvml_text(char *target, unsigned int size, const char *text) {
    if (strlen(text) >= size) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    memcpy(target, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

/* -- the library and the machine */

EXPORT int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    /* As with the real one, only the first of several users begins, and only the last one ends. */
    if (initialised) {
        initialised++;
        return NVML_SUCCESS;
    }
    if (script_read(&machine) != 0) {
        return NVML_ERROR_UNKNOWN;
    }
    load_begin();
    int code = fault_now(&machine.faults, "nvmlInitWithFlags");
    initialised = code == NVML_SUCCESS;
    return code;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
    if (!initialised) {
        return NVML_ERROR_UNINITIALIZED;
    }
    initialised--;
    return NVML_SUCCESS;
}

EXPORT const char *nvmlErrorString(int code) {
    switch (code) {
    case NVML_SUCCESS:
        return "Success";
    case NVML_ERROR_UNINITIALIZED:
        return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT:
        return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED:
        return "Not Supported";
    case NVML_ERROR_GPU_IS_LOST:
        return "GPU is lost";
    default:
        return "Unknown Error";
    }
}

EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    ENTER(NULL);
    return nvml_text(text, size, machine.driver);
}

EXPORT int nvmlSystemGetNVMLVersion(char *text, unsigned int size) {
    ENTER(NULL);
    return nvml_text(text, size, machine.nvml);
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version) {
    ENTER(NULL);
    *version = (int)machine.cuda;
    return NVML_SUCCESS;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }

/* -- which devices */

/* Return number `index` of the whole GPUs (parent -1) or of a GPU's instances, NULL where there is none. */
static struct gpu *nth(int parent, unsigned int index) {
    for (int i = 0; i < machine.gpu_count; i++) {
        if (machine.gpus[i].parent == parent && index-- == 0) {
            return &machine.gpus[i];
        }
    }
    return NULL;
}

EXPORT int nvmlDeviceGetCount_v2(unsigned int *count) {
    ENTER(NULL);
    for (*count = 0; nth(-1, *count) != NULL; ++*count) {
    }
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct gpu **gpu) {
    ENTER(NULL);
    *gpu = nth(-1, index);
    return *gpu == NULL ? NVML_ERROR_INVALID_ARGUMENT : fault_now(&(*gpu)->faults, __func__);
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **gpu) {
    ENTER(NULL);
    for (int i = 0; i < machine.gpu_count; i++) {
        if (strcmp(machine.gpus[i].uuid, uuid) == 0) {
            *gpu = &machine.gpus[i];
            return fault_now(&(*gpu)->faults, __func__);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

EXPORT int nvmlDeviceGetUUID(struct gpu *gpu, char *text, unsigned int size) {
    ENTER(gpu);
    return nvml_text(text, size, gpu->uuid);
}

EXPORT int nvmlDeviceGetName(struct gpu *gpu, char *text, unsigned int size) {
    ENTER(gpu);
    return nvml_text(text, size, gpu->name);
}

EXPORT int nvmlDeviceGetSerial(struct gpu *gpu, char *text, unsigned int size) {
    ENTER(gpu);
    return nvml_text(text, size, gpu->serial);
}

GETTER(nvmlDeviceGetIndex, unsigned int, gpu - machine.gpus)
GETTER(nvmlDeviceGetMinorNumber, unsigned int, gpu->minor)

EXPORT int nvmlDeviceGetPciInfo_v3(struct gpu *gpu, struct pci_info *info) {
    ENTER(gpu);
    memset(info, 0, sizeof *info);
    info->bus = (unsigned int)gpu->bus;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus);
    snprintf(info->bus_id_legacy, sizeof info->bus_id_legacy, "0000:%02X:00.0", info->bus);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetMigMode(struct gpu *gpu, unsigned int *current, unsigned int *pending) {
    ENTER(gpu);
    *current = *pending = (unsigned int)gpu->mig;
    return NVML_SUCCESS;
}

/* -- MIG: an instance tells of itself by a handle of its own, and by its number to the GPU that it is a part of */

GETTER(nvmlDeviceIsMigDeviceHandle, unsigned int, gpu->parent >= 0)
GETTER(nvmlDeviceGetMaxMigDeviceCount, unsigned int, MIG_MAX)

EXPORT int nvmlDeviceGetMigDeviceHandleByIndex(struct gpu *gpu, unsigned int index, struct gpu **instance) {
    ENTER(gpu);
    *instance = nth((int)(gpu - machine.gpus), index);
    return *instance == NULL ? NVML_ERROR_NOT_FOUND : NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct gpu *gpu, struct gpu **whole) {
    ENTER(gpu);
    *whole = gpu->parent < 0 ? NULL : &machine.gpus[gpu->parent];
    return *whole == NULL ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetGpuInstanceId(struct gpu *gpu, unsigned int *id) {
    ENTER(gpu);
    *id = (unsigned int)gpu->instance;
    return gpu->parent < 0 ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

struct gpu *nvml_instance(const struct gpu *gpu, unsigned int id) {
    struct gpu *instance;
    for (unsigned int i = 0; (instance = nth((int)(gpu - machine.gpus), i)) != NULL; i++) {
        if (instance->instance == (int)id) {
            return instance;
        }
    }
    return NULL;
}

/* -- memory and its health */

EXPORT int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory_v1 *info) {
    ENTER(gpu);
    /* Version 1 counts what the driver reserves as used, and this is what surprises people. */
    info->total = gpu->memory_total;
    info->used = gpu->memory_used + gpu->memory_reserved;
    info->free = gpu->memory_total - info->used;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetMemoryInfo_v2(struct gpu *gpu, struct memory_v2 *info) {
    ENTER(gpu);
    if (info->version != VERSION_OF(struct memory_v2, 2)) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    info->total = gpu->memory_total;
    info->reserved = gpu->memory_reserved;
    info->used = gpu->memory_used;
    info->free = gpu->memory_total - gpu->memory_reserved - gpu->memory_used;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetEccMode(struct gpu *gpu, unsigned int *current, unsigned int *pending) {
    ENTER(gpu);
    *current = *pending = (unsigned int)gpu->ecc_mode;
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetTotalEccErrors(struct gpu *gpu, int type, int counter, number *result) {
    ENTER(gpu);
    if (!gpu->ecc_mode) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    number volatiles[] = {gpu->ecc_corrected_volatile, gpu->ecc_uncorrected_volatile};
    number aggregates[] = {gpu->ecc_corrected_aggregate, gpu->ecc_uncorrected_aggregate};
    if (type < 0 || type > 1 || counter < 0 || counter > 1) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    *result = counter == 0 ? volatiles[type] : aggregates[type];
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetRemappedRows(struct gpu *gpu, unsigned int *corrected, unsigned int *uncorrected,
                                     unsigned int *pending, unsigned int *failed) {
    ENTER(gpu);
    *corrected = (unsigned int)gpu->rows_corrected;
    *uncorrected = (unsigned int)gpu->rows_uncorrected;
    *pending = (unsigned int)gpu->rows_pending;
    *failed = (unsigned int)gpu->rows_failed;
    return NVML_SUCCESS;
}

GETTER(nvmlDeviceGetRetiredPagesPendingStatus, unsigned int, gpu->retired_pending)

/* -- links */

GETTER(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, gpu->pcie_gen)
GETTER(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, gpu->pcie_gen_max)
GETTER(nvmlDeviceGetGpuMaxPcieLinkGeneration, unsigned int, gpu->pcie_gen_max)
GETTER(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, gpu->pcie_width)
GETTER(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, gpu->pcie_width_max)
GETTER(nvmlDeviceGetPcieReplayCounter, unsigned int, gpu->pcie_replays)

EXPORT int nvmlDeviceGetNvLinkState(struct gpu *gpu, unsigned int link, unsigned int *active) {
    ENTER(gpu);
    if (link >= LINKS_MAX) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (link >= gpu->links) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *active = !(gpu->links_down >> link & 1);
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetNvLinkErrorCounter(struct gpu *gpu, unsigned int link, int counter, number *result) {
    ENTER(gpu);
    if (link >= gpu->links) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *result = counter == 0 ? gpu->link_replays : 0;
    return NVML_SUCCESS;
}

/* -- what it does at the moment */

EXPORT int nvmlDeviceGetTemperature(struct gpu *gpu, int sensor, unsigned int *celsius) {
    ENTER(gpu);
    *celsius = (unsigned int)gpu->temperature;
    return sensor == 0 ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetTemperatureV(struct gpu *gpu, struct temperature_v1 *info) {
    ENTER(gpu);
    if (info->version != VERSION_OF(struct temperature_v1, 1)) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    info->celsius = (int)gpu->temperature;
    return info->sensor == 0 ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

EXPORT int nvmlDeviceGetUtilizationRates(struct gpu *gpu, struct utilisation *info) {
    ENTER(gpu);
    if (gpu->mig || gpu->parent >= 0) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    info->gpu = (unsigned int)gpu->utilisation;
    info->memory = (unsigned int)gpu->memory_utilisation;
    return NVML_SUCCESS;
}

GETTER(nvmlDeviceGetCurrentClocksEventReasons, number, gpu->throttle)
GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, number, gpu->throttle)
GETTER(nvmlDeviceGetPowerUsage, unsigned int, gpu->power)
GETTER(nvmlDeviceGetEnforcedPowerLimit, unsigned int, gpu->power_limit)
GETTER(nvmlDeviceGetPowerManagementLimit, unsigned int, gpu->power_limit)
GETTER(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, gpu->power_limit_default)
GETTER(nvmlDeviceGetTotalEnergyConsumption, number, gpu->energy)

EXPORT int nvmlDeviceGetTemperatureThreshold(struct gpu *gpu, int threshold, unsigned int *celsius) {
    ENTER(gpu);
    *celsius = (unsigned int)gpu->memory_temperature_max;
    return threshold == 2 && gpu->memory_temperature_max != 0 ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
}

EXPORT int nvmlDeviceGetGpuFabricInfoV(struct gpu *gpu, struct fabric_v3 *info) {
    ENTER(gpu);
    unsigned int version = info->version;
    if (version != VERSION_OF(struct fabric_v3, 3) && version != VERSION_OF(struct fabric_v2, 2)) {
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    }
    info->status = (int)gpu->fabric_status;
    info->clique_id = 0;
    info->state = (unsigned int)gpu->fabric_state;
    info->health_mask = (unsigned int)gpu->fabric_health;
    if (version == VERSION_OF(struct fabric_v3, 3)) {
        info->health_summary = (unsigned char)gpu->fabric_summary;
    }
    return NVML_SUCCESS;
}

static int clock_of(int type, number graphics, number sm, number memory, unsigned int *megahertz) {
    const number clocks[] = {graphics, sm, memory};
    if (type < 0 || type > 2) {
        return NVML_ERROR_NOT_SUPPORTED;
    }
    *megahertz = (unsigned int)clocks[type];
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetClockInfo(struct gpu *gpu, int type, unsigned int *megahertz) {
    ENTER(gpu);
    return clock_of(type, gpu->clock_graphics, gpu->clock_sm, gpu->clock_memory, megahertz);
}

EXPORT int nvmlDeviceGetMaxClockInfo(struct gpu *gpu, int type, unsigned int *megahertz) {
    ENTER(gpu);
    return clock_of(type, gpu->clock_graphics_max, gpu->clock_sm_max, gpu->clock_memory_max, megahertz);
}

EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *gpu, unsigned int *count, struct process_v3 *list) {
    ENTER(gpu);
    unsigned int room = *count;
    *count = (unsigned int)gpu->process_count;
    if (room < *count) {
        return NVML_ERROR_INSUFFICIENT_SIZE;
    }
    for (unsigned int i = 0; i < *count && list != NULL; i++) {
        list[i] = (struct process_v3){(unsigned int)gpu->processes[i].pid, gpu->processes[i].memory, ~0U, ~0U};
    }
    return NVML_SUCCESS;
}

EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(struct gpu *gpu, unsigned int *count, struct process_v3 *list) {
    ENTER(gpu);
    (void)list;
    *count = 0;
    return NVML_SUCCESS;
}

/* -- fields by number: a table, to which a line is all that has to be added */

struct field {
    unsigned int id;
    size_t offset;
};

static const struct field FIELDS[] = {
    {82, offsetof(struct gpu, memory_temperature)},
    {83, offsetof(struct gpu, energy)},
    {91, offsetof(struct gpu, links)},
    {161, offsetof(struct gpu, link_replays)},
    {230, offsetof(struct gpu, recovery_action)},
};

EXPORT int nvmlDeviceGetFieldValues(struct gpu *gpu, int count, struct field_value *values) {
    ENTER(gpu);
    for (int i = 0; i < count; i++) {
        values[i].code = NVML_ERROR_NOT_SUPPORTED;
        for (size_t k = 0; k < sizeof FIELDS / sizeof FIELDS[0]; k++) {
            if (FIELDS[k].id == values[i].id) {
                const number *field = (const number *)(const void *)((const char *)gpu + FIELDS[k].offset);
                values[i].type = 3;
                values[i].value.unsigned_long_long = *field;
                values[i].code = NVML_SUCCESS;
            }
        }
    }
    return NVML_SUCCESS;
}
