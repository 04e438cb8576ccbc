"""Libfabric with the provider for HPE Slingshot, instead of what the image has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from piolet.api import Asked, Entry, Hook, Missing, Node, Step
from piolet.hooks.known import _fabric


class Cxi(Hook):
    """The node's libfabric and libcxi, or those of a network stack of the site's."""

    name = "cxi"
    text = "libfabric with the CXI provider, for HPE Slingshot (com.hooks.netstack.* says from where)"
    source = "CSCS, container engine, CXI hook; read 2026-11-29"
    reads = ("netstack",)
    hardware = "HPE Slingshot"

    @classmethod
    def where(cls, site: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The device, the site's stacks, and the node's own libraries with what they need."""
        stacks = _fabric.pattern(site, "libfabric.so.1")
        looks = ("/dev/cxi[0-9]*", *([stacks] if stacks else []))
        return looks, _fabric.HOST_LIBFABRIC + _fabric.HOST_CXI

    def entries(self, asked: Asked, node: Node, step: Step) -> Iterable[Entry]:
        """Libraries only: the devices are in the host's /dev."""
        if not node.paths("/dev/cxi[0-9]*"):
            raise Missing("there is no /dev/cxi0 on this node: it has no Slingshot adapter, or no driver")
        if _fabric.source(asked) == "artifact":
            stack = _fabric.artifact(asked, node, "libfabric.so.1")
            return _fabric.of_directory(stack, "libfabric.so.1", "libcxi.so.1")
        found: list[Entry] = _fabric.of_host(node, _fabric.HOST_CXI, "libcxi.so.1")
        return [*_fabric.of_host(node, _fabric.HOST_LIBFABRIC, "libfabric.so.1"), *found]
