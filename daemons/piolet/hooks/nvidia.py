"""A specification of a node's NVIDIA GPUs, made from the driver's own files, for nodes where nobody has made one.

It looks at the node, once; what it returns is what a file of nvidia-ctk would say. The names are those that NVIDIA's
own tools take for computing, video and graphics (NVIDIA/libnvidia-container, src/nvc_info.c;
NVIDIA/nvidia-container-toolkit, `nvidia-ctk cdi generate`), read 2026-11-29. Untested on hardware:
tests/simulators/driver.py stands in for a driver.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
from typing import Any

KIND = "nvidia.com/gpu"
_FOLDERS = (
    *("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"),
    *("/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/aarch64-linux-gnu/nvidia/current", "/lib64"),
)
# Each is libNAME.so.VERSION.
LIBRARIES = (
    *("nvidia-ml", "nvidia-cfg", "nvidia-nscq", "nvidia-gpucomp", "nvidia-sandboxutils"),
    *("cuda", "cudadebugger", "nvidia-opencl", "nvidia-ptxjitcompiler", "nvidia-fatbinaryloader", "nvidia-allocator"),
    *("nvidia-compiler", "nvidia-pkcs11", "nvidia-pkcs11-openssl3", "nvidia-nvvm", "nvidia-tileiras"),
    *("nvidia-encode", "nvidia-opticalflow", "nvcuvid", "vdpau_nvidia"),
    *("nvidia-eglcore", "nvidia-glcore", "nvidia-tls", "nvidia-glsi", "nvidia-fbc", "nvidia-rtcore", "nvoptix"),
    *("GLX_nvidia", "EGL_nvidia", "GLESv2_nvidia", "GLESv1_CM_nvidia", "nvidia-glvkspirv", "nvidia-cbl"),
)
_PROGRAMS = (
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
)
_SOCKETS = ("/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket")
_VERSION = re.compile(r"(?:Kernel Module|Kernel Module for \S+)\s+(\d[\d.]*)")
_UUID = re.compile(r"^GPU UUID:\s*(GPU-\S+)$", re.MULTILINE)
_MINOR = re.compile(r"^Device Minor:\s*(\d+)$", re.MULTILINE)


def make(root: str = "/") -> dict[str, Any] | None:
    """Return a specification of the GPUs of this node, or None: it has no driver of NVIDIA's that is loaded.

    root  where the driver is installed
    """
    root = root.rstrip("/")
    version = _version(root)
    gpus = _gpus(root)
    if version is None or not gpus:
        return None
    folder = next((one for one in _FOLDERS if os.path.exists(f"{root}{one}/libcuda.so.{version}")), None)
    if folder is None:
        return None
    mounts, links = [], []
    for name in LIBRARIES:
        for place in (folder, f"{folder}/vdpau"):
            path = f"{place}/lib{name}.so.{version}"
            if os.path.exists(root + path):
                mounts.append(_mount(root, path))
    if f"{folder}/libcuda.so.{version}" in {mount["containerPath"] for mount in mounts}:
        # Some programs load it by this name, which no library has for itself.
        links = ["--link", f"libcuda.so.1::{folder}/libcuda.so"]
    mounts += [_mount(root, f"/usr/bin/{name}") for name in _PROGRAMS if os.path.exists(f"{root}/usr/bin/{name}")]
    mounts += [_mount(root, path) for path in _SOCKETS if os.path.exists(root + path)]
    for path in sorted(glob.glob(f"{root}/lib/firmware/nvidia/{glob.escape(version)}/gsp*.bin")):
        mounts.append(_mount(root, path[len(root) :]))
    hooks = [
        _hook("create-symlinks", *links),
        _hook("enable-cuda-compat", f"--host-driver-version={version}"),
        _hook("update-ldcache", "--folder", folder, "--folder", f"{folder}/vdpau"),
    ]
    devices = [{"name": name, "containerEdits": {}} for name in [*gpus, "all"]]
    return {
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": devices,
        "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "mounts": mounts, "hooks": hooks},
    }


def is_asked_for(environment: dict[str, str]) -> bool:
    """Return whether an image with these variables wants GPUs, as those of CUDA do."""
    return environment.get("NVIDIA_VISIBLE_DEVICES", "") not in ("", "void", "none")


def _version(root: str) -> str | None:
    """Return the driver's version, as the module that is loaded says."""
    for path, pattern in (
        ("/sys/module/nvidia/version", re.compile(r"(\d[\d.]*)")),
        ("/proc/driver/nvidia/version", _VERSION),
    ):
        for place in dict.fromkeys((root + path, path)):
            with contextlib.suppress(OSError), open(place, encoding="ascii", errors="replace") as file:
                found = pattern.search(file.read(4096))
                if found:
                    return found[1].rstrip(".")
    return None


def _gpus(root: str) -> list[str]:
    """Return the names of the GPUs: their numbers, and what each calls itself."""
    names: dict[str, None] = {}
    for place in dict.fromkeys((root, "")):
        for path in glob.glob(f"{place}/dev/nvidia[0-9]*"):
            number = os.path.basename(path)[len("nvidia") :]
            if number.isdigit():
                names[number] = None
        for path in glob.glob(f"{place}/proc/driver/nvidia/gpus/*/information"):
            with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
                text = file.read(8192)
                minor, uuid = _MINOR.search(text), _UUID.search(text)
                if minor and uuid and minor[1] in names:
                    names[uuid[1]] = None
    return sorted(names, key=lambda name: (not name.isdigit(), len(name), name))


def _mount(root: str, path: str) -> dict[str, Any]:
    return {"hostPath": root + path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}


def _hook(name: str, *words: str) -> dict[str, Any]:
    path = "/usr/bin/nvidia-cdi-hook"
    return {"hookName": "createContainer", "path": path, "args": ["nvidia-cdi-hook", name, *words]}
