"""NCCL and RCCL over libfabric: the plugin of AWS, and the variables that CSCS sets with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import ClassVar

from piolet.api import Asked, Entry, Hook, Library, Missing, Mount, Node, Refused, Step, Variable
from piolet.hooks.known import _fabric

_VARIANTS = ("cuda12", "cuda13", "cuda-dl", "rocm5", "rocm6")
_PATH = "/opt/aws-ofi-nccl/{variant}"
_PLUGINS = ("libnccl-net.so", "librccl-net.so", "libnccl-net-ofi.so")
# CSCS, communication, NCCL: what the container engine sets; read 2026-11-29. NCCL_NET fails rather than using TCP.
_VARIABLES = {
    "NCCL_NET": "AWS Libfabric",
    "NCCL_NET_GDR_LEVEL": "PHB",
    "NCCL_CROSS_NIC": "1",
    "FI_CXI_DEFAULT_CQ_SIZE": "131072",
    "FI_CXI_DEFAULT_TX_SIZE": "32768",
    "FI_CXI_DISABLE_HOST_REGISTER": "1",
    "FI_CXI_RX_MATCH_MODE": "software",
    "FI_MR_CACHE_MONITOR": "userfaultfd",
}


class AwsOfiNccl(Hook):
    """The plugin for this variant of CUDA or ROCm, from the node or from a network stack of the site's."""

    name = "aws_ofi_nccl"
    text = "NCCL and RCCL over libfabric: the AWS plugin, and the variables that it needs on Slingshot"
    source = "CSCS, container engine, AWS OFI NCCL hook; read 2026-11-29"
    reads = ("netstack",)
    hardware = "HPE Slingshot, GPUs"
    implies = ("cxi",)
    options: ClassVar[dict[str, str]] = {"variant": ", ".join(_VARIANTS) + "; an artifact of the site's has its own"}
    settings: ClassVar[dict[str, str]] = {
        "path": f"directory of a variant, with lib/libnccl-net.so ({_PATH})",
        "variant": "what is taken where a definition does not say",
    }

    @classmethod
    def where(cls, site: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The plugins of all variants, and of the site's stacks."""
        stacks = [_fabric.pattern(site, name) for name in _PLUGINS]
        return (_pattern(site), *[one for one in stacks if one]), ()

    def check(self, asked: Asked) -> None:
        """Only variants that there are."""
        variant = asked.options.get("variant", asked.site.get("variant", ""))
        if variant and variant not in _VARIANTS:
            raise Refused(f"there is no variant '{variant[:80]}'", f"variant is one of {', '.join(_VARIANTS)}")

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """The plugin is found by its name; what the definition sets of the variables stays."""
        found: list[Entry] = [Variable(name, value) for name, value in _VARIABLES.items()]
        if _fabric.source(asked) == "artifact":
            for name in _PLUGINS:
                try:
                    return [*found, *_fabric.of_directory(_fabric.artifact(asked, node, name), name)]
                except Missing as error:
                    last = error
            raise last
        variant = asked.options.get("variant", asked.site.get("variant", ""))
        if not variant:
            raise Missing("no variant is named", f"variant is one of {', '.join(_VARIANTS)}")
        folder = asked.site.get("path", _PATH).replace("{variant}", variant)
        paths = [path for path in node.paths(_pattern(asked.site)) if path.startswith(folder + "/")]
        if not paths:
            raise Missing(f"there is no plugin for {variant} in {folder} on this node")
        for path in paths:
            place = f"{_fabric.PLACE}/{os.path.basename(path)}"
            found += [Mount(path, place), Library(os.path.basename(path), place)]
        return found


def _pattern(site: Mapping[str, str]) -> str:
    return site.get("path", _PATH).replace("{variant}", "*") + "/lib*/lib*ccl-net*.so"
