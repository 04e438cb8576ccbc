"""What collectors measure: names, units and meanings, which data sets are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """One measured quantity: its name, its unit ('1' is a share of 0 to 1), and what it means."""

    name: str
    unit: str
    text: str


GPU_QUANTITIES = (
    Quantity("engine", "1", "share of time in which any engine of the GPU was active"),
    Quantity("sm", "1", "share of SM-cycles with at least one warp"),
    Quantity("occupancy", "1", "resident warps over the most that there could be"),
    Quantity("tensor", "1", "share of cycles in which a tensor pipe was active"),
    Quantity("tensor_int", "1", "of which integer"),
    Quantity("tensor_half", "1", "of which half precision"),
    Quantity("tensor_double", "1", "of which double precision"),
    Quantity("fp64", "1", "share of cycles in which the FP64 pipe was active"),
    Quantity("fp32", "1", "share of cycles in which the FP32 pipe was active"),
    Quantity("fp16", "1", "share of cycles in which the FP16 pipe was active"),
    Quantity("integer", "1", "share of cycles in which the integer pipe was active"),
    Quantity("dram", "1", "share of cycles in which device memory sent or received"),
    Quantity("pcie_tx", "B/s", "sent over PCIe"),
    Quantity("pcie_rx", "B/s", "received over PCIe"),
    Quantity("nvlink_tx", "B/s", "sent over NVLink"),
    Quantity("nvlink_rx", "B/s", "received over NVLink"),
    Quantity("c2c_tx", "B/s", "sent over the chip-to-chip link"),
    Quantity("c2c_rx", "B/s", "received over the chip-to-chip link"),
    Quantity("utilisation", "1", "share of time in which a kernel ran: what nvidia-smi calls GPU-Util"),
    Quantity("memory_used", "B", "device memory in use"),
    Quantity("power", "W", "power drawn"),
    Quantity("energy", "J", "the device's energy counter, which only grows"),
    Quantity("temperature", "degC", "of the GPU"),
    Quantity("memory_temperature", "degC", "of its memory"),
    Quantity("clock_sm", "MHz", "clock of the SMs"),
    Quantity("clock_memory", "MHz", "clock of the memory"),
    Quantity("clock_events", "mask", "why the clock is held back: nvmlClocksEventReason bits"),
    Quantity("xid", "code", "the last XID error; 0: none"),
)
HOST_QUANTITIES = (
    Quantity("cpu", "cores", "processor time used per second"),
    Quantity("cpu_throttled", "cores", "processors on which the CPU quota held the step up: the time of each, summed"),
    Quantity("memory", "B", "memory of the step, page cache included"),
    Quantity("memory_anon", "B", "memory of the step that is not page cache"),
    Quantity("read", "B/s", "read from block devices"),
    Quantity("write", "B/s", "written to block devices"),
    Quantity("net_rx", "B/s", "received by the node's network interfaces: of the node, not of the step"),
    Quantity("net_tx", "B/s", "sent by the node's network interfaces: of the node, not of the step"),
    Quantity("nic", "1", "what the node's busiest network interface moved in a direction, as a share of its rate"),
    Quantity("nic_rate", "B/s", "what that was"),
    Quantity("cpu_pressure", "1", "share of time in which some task waited for a CPU (PSI)"),
    Quantity("memory_pressure", "1", "share of time in which some task waited for memory (PSI)"),
    Quantity("io_pressure", "1", "share of time in which some task waited for I/O (PSI)"),
)
