"""The rows of _severities.py: (source, date, ((code, severity, action, text), …)). Data only. Runs under Python 3.8.

XIDs follow the catalogue's immediate action: RESET_GPU, RESTART_BM and the like fail; RESTART_APP and IGNORE say
nothing of the node; what it sends to a workflow or leaves open is a warning. What it lists as unused has no row.
"""

from __future__ import annotations

_CATALOGUE = "NVIDIA Xid Catalog, docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"
_APPLICATION = (8, 11, 13, 25, 31, 32, 39, 40, 41, 60, 68, 69, 70, 71, 72, 75, 76, 77, 80, 82, 83, 84, 85, 86, 88, 89,
                *range(96, 106), *range(126, 136), 139)  # fmt: skip
_NOTHING = (14, 37, 38, 43, 44, 66, 67, 93, 106, 107, 108, 137, 141, 152, 153, 160)
_NVLINK5 = (144, 145, 146, 147, 148, 149, 150)

XID_ROWS = (
    (_CATALOGUE, "2025-10-29", tuple((str(code), "ignore", "restart", "of an application") for code in _APPLICATION)),
    (_CATALOGUE, "2025-10-29", tuple((str(code), "ignore", "none", "informational") for code in _NOTHING)),
    (_CATALOGUE, "2025-10-29", (
        ("45", "ignore", "none", "clean-up after another error"),
        ("46", "fail", "reset", "the GPU stopped processing"),
        ("48", "fail", "reset", "an uncorrectable ECC error"),
        ("54", "fail", "contact", "auxiliary power is not connected"),
        ("62", "fail", "reset", "its micro-controller halted"),
        ("63", "warn", "none", "a memory row is to be remapped"),
        ("64", "fail", "reset", "a memory row could not be remapped"),
        ("74", "warn", "watch", "an NVLink error"),
        ("78", "warn", "update", "a vGPU could not start"),
        ("79", "fail", "reboot", "the GPU has fallen off the bus"),
        ("92", "warn", "watch", "a high rate of corrected ECC errors"),
        ("94", "warn", "restart", "a contained memory error"),
        ("95", "fail", "reset", "an uncontained memory error"),
        ("109", "fail", "reset", "a context switch timed out"),
        ("110", "fail", "reset", "a security fault"),
        ("119", "fail", "reset", "its system processor (GSP) does not answer"),
        ("120", "fail", "reset", "its system processor (GSP) failed"),
        ("121", "warn", "watch", "an error of the chip-to-chip link"),
        ("136", "fail", "reset", "an NVLink could not be trained"),
        ("140", "fail", "reset", "an ECC error that it could not recover from"),
        ("142", "warn", "contact", "an error of the video encoder"),
        ("143", "fail", "reset", "the GPU could not be initialised"),
        ("151", "fail", "reboot", "an error of key rotation"),
        ("154", "warn", "watch", "the recovery that the GPU needs has changed"),
        ("155", "fail", "reset", "an NVLink error that software defines"),
        ("156", "fail", "reset", "a resource was retired"),
        ("157", "warn", "contact", "a resource could not be retired"),
        ("158", "fail", "reset", "a fatal timeout of the GPU"),
        ("159", "warn", "watch", "an error of the coherent interface"),
        ("161", "warn", "watch", "a channel could not be retired"),
        ("162", "ignore", "none", "power smoothing is engaged again"),
        ("163", "warn", "watch", "power smoothing is disengaged"),
        ("164", "warn", "watch", "power smoothing reaches the end of its life"),
        ("165", "warn", "watch", "power smoothing is worn out"),
        ("171", "ignore", "none", "more about an XID 48"),
        ("172", "ignore", "none", "more about an XID 48"),
    )),
    # Of the NVLink of Blackwell the line itself says whether it is fatal; the catalogue decodes it so, too.
    (_CATALOGUE + ", sheet 'XID 144-150 Decode'", "2025-10-29", (
        *((str(code), "warn", "watch", "an NVLink error") for code in _NVLINK5),
        *((f"{code}:nonfatal", "ignore", "none", "an NVLink error that is not fatal") for code in _NVLINK5),
        *((f"{code}:fatal", "fail", "reset", "a fatal NVLink error") for code in _NVLINK5),
    )),
    ("NVML, nvmlDeviceGpuRecoveryAction_t, docs.nvidia.com/deploy/nvml-api", "2026-11-29", (
        ("154:0x0", "ignore", "none", "the GPU needs no recovery any more"),
        ("154:0x1", "fail", "reset", "the GPU has to be reset"),
        ("154:0x2", "fail", "reboot", "the node has to be rebooted"),
        ("154:0x3", "fail", "reset", "the GPU's traffic with its peers has to be drained"),
        ("154:0x4", "fail", "reset", "the GPU has to be drained and reset"),
        ("154:0x5", "fail", "reset", "the GPU's fabric or bus has to be recovered"),
        ("154:0x6", "fail", "reset", "the GPU's PCIe bus has to be reset"),
        ("154:0x7", "fail", "reboot", "the system has to be rebooted"),
    )),
)  # fmt: skip

SXID_ROWS = (
    # The driver writes "Fatal" or "Non-fatal" into the line, which is what the guide tells administrators to act upon.
    ("NVIDIA Fabric Manager User Guide, 'NVSwitch errors'", "2026-11-29", (
        ("any:fatal", "fail", "reset", "a fatal NVSwitch error"),
        ("any:nonfatal", "warn", "watch", "an NVSwitch error that is not fatal"),
        ("any", "ignore", "none", "more about an NVSwitch error"),
    )),
)  # fmt: skip

# Codes are patterns that are searched for in a line of the kernel's log; the first that is found counts.
LOG_ROWS = (
    ("NVIDIA/NVSentinel issue 155; NVIDIA open-gpu-kernel-modules, nv-pci.c", "2026-11-29", (
        (r"NVRM: GPU [0-9a-fA-F:.]+: RmInitAdapter failed", "fail", "reset", "a GPU could not be initialised"),
        (r"NVRM: The NVIDIA GPU .*fallen off the bus", "fail", "reboot", "a GPU has fallen off the bus"),
    )),
    ("Linux, Documentation/PCI/pcieaer-howto.rst", "2026-11-29", (
        (r"AER: .*Uncorrect(?:ed|able) \(Fatal\)|severity=Uncorrect(?:ed|able) \(Fatal\)", "fail", "contact",
         "a fatal PCIe error"),
        (r"AER: .*Uncorrect(?:ed|able) \(Non-Fatal\)|severity=Uncorrect(?:ed|able) \(Non-Fatal\)", "warn", "watch",
         "an uncorrected PCIe error"),
        (r"AER: .*(?:Corrected|Correctable)|severity=Correct(?:ed|able)", "ignore", "none", "a corrected PCIe error"),
    )),
    ("Linux, Documentation/firmware-guide/acpi/apei and drivers/acpi/apei/ghes.c", "2026-11-29", (
        (r"\[Hardware Error\]: event severity: fatal", "fail", "contact", "a fatal hardware error of the firmware"),
        (r"\[Hardware Error\]: event severity: recoverable", "warn", "watch", "a hardware error that was recovered"),
    )),
    ("Linux, arch/x86/kernel/cpu/mce, Documentation/arch/x86/x86_64/machinecheck.rst", "2026-11-29", (
        (r"\[Hardware Error\]: CPU \d+: Machine Check Exception", "fail", "contact", "a machine check exception"),
        (r"mce: .*Uncorrected hardware memory error", "fail", "contact", "an uncorrected memory error"),
        (r"\[Hardware Error\]: Uncorrected", "fail", "contact", "an uncorrected machine check"),
        (r"above threshold, cpu clock (?:is )?throttled", "warn", "watch", "a CPU is too hot"),
    )),
    ("Linux, Documentation/driver-api/edac.rst: UE are uncorrected errors, CE corrected ones", "2026-11-29", (
        (r"EDAC \w+: \d+ UE ", "fail", "contact", "an uncorrected memory error"),
        (r"EDAC \w+: \d+ CE ", "ignore", "none", "a corrected memory error"),
    )),
    ("Linux, mm/memory-failure.c, Documentation/mm/hwpoison.rst", "2026-11-29", (
        (r"Memory failure: 0x[0-9a-f]+: recovery action for [\w /-]+: (?:Failed|Ignored)", "fail", "reboot",
         "a bad page of memory is still in use"),
        (r"Memory failure: 0x[0-9a-f]+: recovery action for", "warn", "watch", "a page of memory was taken out of use"),
    )),
    ("Linux, drivers/nvme/host/pci.c", "2026-11-29", (
        (r"nvme nvme\d+: .*(?:Removing after probe failure|Disabling device after reset failure)", "fail", "contact",
         "an NVMe drive is gone"),
        (r"nvme nvme\d+: controller is down; will reset", "warn", "watch", "an NVMe drive was reset"),
        (r"nvme nvme\d+: .*timeout.*, reset controller", "warn", "watch", "an NVMe drive was reset"),
    )),
    ("Linux, drivers/net/ethernet/mellanox/mlx5/core/health.c", "2026-11-29", (
        (r"mlx5_core .*device's health compromised", "fail", "reset", "a network adapter does not answer"),
        (r"mlx5_core .*(?:Fatal error|firmware internal error)", "warn", "watch", "an error inside a network adapter"),
        (r"mlx5_core .*High [Tt]emperature", "warn", "watch", "a network adapter is too hot"),
    )),
    ("Linux, drivers/gpu/drm/amd/amdgpu", "2026-11-29", (
        (r"amdgpu .*uncorrectable hardware errors detected", "fail", "reset", "an uncorrectable error of an AMD GPU"),
        (r"amdgpu .*GPU reset begin", "warn", "watch", "an AMD GPU was reset"),
    )),
)  # fmt: skip

NVML_ROWS = (
    ("NVIDIA GPU Memory Error Management, docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt", "2026-11-29", (
        ("rows_failed", "fail", "contact", "a memory row could not be remapped"),
        ("rows_pending", "fail", "reset", "a memory row waits to be remapped: the GPU has to be reset"),
        ("rows_remapped", "warn", "none", "memory rows are remapped for uncorrected errors"),
        ("pages_pending", "fail", "reset", "a memory page waits to be retired: the GPU has to be reset"),
        ("ecc_uncorrected", "fail", "reset", "uncorrected ECC errors since the driver was loaded"),
        ("ecc_corrected", "warn", "watch", "corrected ECC errors at a high rate"),
    )),
    ("NVML, nvmlGpuFabricInfoV_t, docs.nvidia.com/deploy/nvml-api, group__nvmlFabricDefs", "2026-11-29", (
        ("fabric_state", "fail", "reset", "the GPU is not registered with its NVLink fabric"),
        ("fabric_status", "fail", "reset", "the GPU's registration with its NVLink fabric failed"),
        ("fabric_unhealthy", "fail", "reset", "the NVLink fabric is not healthy"),
        ("fabric_limited", "warn", "watch", "the NVLink fabric has less than its whole capacity"),
    )),
    ("NVML, nvmlTemperatureThresholds_t: where slowdown for the memory begins", "2026-11-29", (
        ("memory_temperature", "fail", "contact", "the GPU's memory is above its limit"),
    )),
    ("NVML, nvmlDeviceGetPowerManagementDefaultLimit; the shares are ours: half and nine tenths", "2026-11-29", (
        ("power_limit_low", "fail", "contact", "its power limit is far below the board's default"),
        ("power_limit_lowered", "warn", "none", "its power limit is below the board's default"),
    )),
    ("NVML, nvmlClocksEventReasonNone: clocks are as high as they can be; the share of a third is ours", "2026-11-29", (
        ("clocks_stuck", "fail", "reset", "its clocks are low, and no reason is given"),
        ("clocks_locked", "warn", "none", "its clocks are set low"),
        ("clocks_slowed", "fail", "contact", "its clocks are lowered"),
        ("clocks_capped", "warn", "watch", "its clocks are very low"),
    )),
)  # fmt: skip
