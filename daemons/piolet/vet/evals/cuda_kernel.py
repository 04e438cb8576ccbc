"""Can a kernel be compiled and run on every GPU, and does it compute the right thing?"""

from __future__ import annotations

import ctypes
import importlib
from array import array
from dataclasses import dataclass
from typing import Any

from piolet.api import FAIL, NODE, PASS, USER, Context, Eval, Inconclusive, Verdict, parameter

_SOURCE = b"""
extern "C" __global__ void fill(unsigned int *out, unsigned int n) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = i * 2654435761u ^ (i >> 3);
    }
}
"""
_COUNT = 1 << 16


@dataclass(frozen=True)
class CudaKernel(Eval):
    """Compiles once for each architecture, runs everywhere."""

    name = "cuda_kernel"
    text = "a kernel is compiled and run on every GPU, and its result checked"
    how = "NVRTC and the driver API; integers, so that the result is exact"
    source = "cuda-python"
    needs = "cuda-python, the CUDA driver and NVRTC"
    loads = frozenset({"gpu"})
    timeout_s = 30.0

    cuda_home: str = parameter("", text="where CUDA is; its NVRTC is loaded first")

    def check(self, context: Context) -> Verdict:
        """Run the kernel on every device."""
        if self.cuda_home:
            self._load_nvrtc()
        driver, nvrtc = _bindings()
        call = _Caller(driver, nvrtc)
        call(driver.cuInit(0))
        count = call(driver.cuDeviceGetCount())
        if not count:
            raise Inconclusive("there is no CUDA device")
        binaries: dict[str, bytes] = {}
        for index in range(count):
            device = call(driver.cuDeviceGet(index))
            try:
                problem = _run(call, driver, device, lambda name: _compile(call, nvrtc, name, binaries))
            except _CudaError as error:
                return Verdict(FAIL, f"GPU {index}: {error}", whose=NODE)
            if problem:
                return Verdict(FAIL, f"GPU {index}: {problem}", whose=NODE)
        version = ".".join(str(part) for part in call(nvrtc.nvrtcVersion()))
        details = {"devices": count, "architectures": sorted(binaries), "nvrtc": version}
        return Verdict(PASS, "", "devices", count, None, "", details)

    def _load_nvrtc(self) -> None:
        for folder in ("lib64", "lib"):
            try:
                ctypes.CDLL(f"{self.cuda_home}/{folder}/libnvrtc.so", mode=ctypes.RTLD_GLOBAL)
                return
            except OSError as error:
                why = str(error)
        raise Inconclusive(f"there is no NVRTC in cuda_home: {why}", USER)


class _CudaError(Exception):
    """A call of CUDA failed."""


class _Caller:
    """Takes the error off what cuda-python's functions return."""

    def __init__(self, driver: Any, nvrtc: Any) -> None:
        self._driver = driver
        self._nvrtc = nvrtc

    def __call__(self, answer: Any) -> Any:
        error, *values = answer
        if int(error) != 0:
            name = getattr(error, "name", str(error))
            if name in ("CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_STUB_LIBRARY", "CUDA_ERROR_INVALID_DEVICE"):
                raise Inconclusive(f"there is no CUDA device: {name}")
            raise _CudaError(name)
        return values[0] if len(values) == 1 else tuple(values)


def _bindings() -> tuple[Any, Any]:
    for package in ("cuda.bindings.", "cuda."):  # before version 12.6 they were at the top
        try:
            return importlib.import_module(f"{package}driver" if package != "cuda." else "cuda.cuda"), (
                importlib.import_module(f"{package}nvrtc")
            )
        except ImportError:
            continue
        except RuntimeError as error:
            raise Inconclusive(f"cuda-python cannot be used: {error}") from None
    raise Inconclusive("cuda-python is not installed", USER)


def _compile(call: _Caller, nvrtc: Any, architecture: str, binaries: dict[str, bytes]) -> bytes:
    if architecture not in binaries:
        program = call(nvrtc.nvrtcCreateProgram(_SOURCE, b"piolet.cu", 0, [], []))
        call(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture={architecture}".encode()]))
        text = b" " * call(nvrtc.nvrtcGetPTXSize(program))
        call(nvrtc.nvrtcGetPTX(program, text))
        binaries[architecture] = text
    return binaries[architecture]


def _run(call: _Caller, driver: Any, device: Any, compiled: Any) -> str:
    """Return what is wrong, or ''."""
    names = driver.CUdevice_attribute
    major = call(driver.cuDeviceGetAttribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = call(driver.cuDeviceGetAttribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    # The primary context takes no version-dependent arguments, unlike cuCtxCreate.
    call(driver.cuCtxSetCurrent(call(driver.cuDevicePrimaryCtxRetain(device))))
    try:
        module = call(driver.cuModuleLoadData(compiled(f"compute_{major}{minor}")))
        kernel = call(driver.cuModuleGetFunction(module, b"fill"))
        memory = call(driver.cuMemAlloc(4 * _COUNT))
        call(driver.cuMemsetD8(memory, 0, 4 * _COUNT))
        arguments = ((int(memory), _COUNT), (ctypes.c_void_p, ctypes.c_uint))
        call(driver.cuLaunchKernel(kernel, _COUNT // 256, 1, 1, 256, 1, 1, 0, 0, arguments, 0))
        call(driver.cuCtxSynchronize())
        found = array("I", bytes(4 * _COUNT))
        call(driver.cuMemcpyDtoH(found.buffer_info()[0], memory, 4 * _COUNT))
        call(driver.cuMemFree(memory))
    finally:
        driver.cuDevicePrimaryCtxRelease(device)
    wrong = sum(1 for i, value in enumerate(found) if value != (i * 2654435761 & 0xFFFFFFFF) ^ (i >> 3))
    return f"{wrong} of {_COUNT} results are wrong" if wrong else ""
