"""The node's network interfaces: found in sysfs, read, and a ceiling of the score."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from piolet.api import HOST_QUANTITIES, Target
from piolet.samples import dataset
from piolet.samples.collectors._network import Network
from piolet.samples.collectors.host import HostCollector
from piolet.score import ceilings
from piolet.score.report import html, screen
from piolet.score.summary import Summary, summarise

from tests.score import generate

SECOND = 10**9


class Tree:
    """A recorded /sys with devices."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: object) -> None:
        file = self.root / "sys" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def entry(self, kind: str, name: str, device: str, **texts: object) -> None:
        """Make /sys/class/KIND/NAME, of the PCI device."""
        (self.root / "sys/devices" / device).mkdir(parents=True, exist_ok=True)
        place = self.root / "sys/class" / kind / name
        place.mkdir(parents=True)
        os.symlink(f"../../../devices/{device}", place / "device")
        for path, text in texts.items():
            self.write(f"class/{kind}/{name}/{path.replace('__', '/')}", text)

    def ethernet(self, name: str, device: str, speed: object, bytes_: int = 0, **more: object) -> None:
        self.entry("net", name, device, speed=speed, **more)
        self.count(name, bytes_, bytes_)

    def count(self, name: str, received: int, sent: int) -> None:
        for way, value in (("rx", received), ("tx", sent)):
            self.write(f"class/net/{name}/statistics/{way}_bytes", value)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def port(tree: Tree, name: str, device: str, layer: str, rate: str, state: str = "4: ACTIVE") -> None:
    tree.entry("infiniband", name, device, ports__1__state=state, ports__1__rate=rate, ports__1__link_layer=layer)
    for counter in ("rcv", "xmit"):
        tree.write(f"class/infiniband/{name}/ports/1/counters/port_{counter}_data", 0)


def test_ethernet_by_its_line_rate(tree: Tree) -> None:
    """What is down, virtual or a function of another is none."""
    tree.ethernet("eth0", "pci0", 100_000)
    tree.ethernet("eth1", "pci1", -1)
    tree.ethernet("eth2", "pci2", "")
    tree.ethernet("vf0", "pci3", 100_000)
    (tree.root / "sys/devices/pci3/physfn").mkdir()
    tree.write("class/net/bond0/speed", 200_000)
    network = Network(str(tree.root))
    assert network.rates == {"eth0": 12.5e9}
    assert network.read(SECOND) is None
    tree.count("eth0", 25 * SECOND, 5)
    assert network.read(3 * SECOND) == pytest.approx((1.0, 12.5e9))
    tree.count("eth0", 0, 0)  # the driver was loaded again
    assert network.read(4 * SECOND) is None
    assert network.read(5 * SECOND) == (0, 0)


def test_infiniband_counts_words_and_what_passes_its_network_device(tree: Tree) -> None:
    """400 Gb/s are 50 GB/s; the network device of it counts a part of the same."""
    port(tree, "mlx5_0", "pci0", "InfiniBand", "400 Gb/sec (4X NDR)")
    tree.ethernet("ib0", "pci0", 400_000, 7)
    port(tree, "mlx5_1", "pci1", "InfiniBand", "400 Gb/sec (4X NDR)", "1: DOWN")
    network = Network(str(tree.root))
    assert network.rates == {"ib0": 50e9}
    network.read(SECOND)
    tree.write("class/infiniband/mlx5_0/ports/1/counters/port_xmit_data", 10 * SECOND)
    tree.count("ib0", 9 * SECOND, 9 * SECOND)
    assert network.read(2 * SECOND) == pytest.approx((0.8, 40e9))


def test_roce_is_counted_twice_and_each_time_another_part(tree: Tree) -> None:
    port(tree, "mlx5_0", "pci0", "Ethernet", "200 Gb/sec (4X HDR)")
    tree.ethernet("eth0", "pci0", 200_000)
    network = Network(str(tree.root))
    assert network.rates == {"eth0": 25e9}
    network.read(SECOND)
    tree.write("class/infiniband/mlx5_0/ports/1/counters/port_rcv_data", 5 * SECOND)
    tree.count("eth0", SECOND, 0)
    assert network.read(2 * SECOND) == pytest.approx((0.84, 21e9))


def test_slingshot_has_its_octets_in_telemetry(tree: Tree) -> None:
    """Programs' messages pass the network device by, whose speed is the port's."""
    for number in range(2):
        tree.entry("cxi", f"cxi{number}", f"pci{number}")
        for way in ("rx", "tx"):
            tree.write(f"devices/pci{number}/telemetry/hni_sts_{way}_ok_octets", "100@1771.5")
        tree.ethernet(f"hsn{number}", f"pci{number}", 200_000)
    network = Network(str(tree.root))
    assert network.rates == {"hsn0": 25e9, "hsn1": 25e9}
    network.read(SECOND)
    tree.write("devices/pci1/telemetry/hni_sts_tx_ok_octets", f"{100 + 24 * SECOND}@1772.5")
    assert network.read(2 * SECOND) == pytest.approx((0.96, 24e9))


def test_the_host_collector_tells_of_it(tree: Tree) -> None:
    """In the header, and in the samples."""
    (tree.root / "proc").mkdir()
    (tree.root / "proc/stat").write_text("cpu  0 0 0 0 0 0 0 0\n")
    tree.ethernet("hsn0", "pci0", 200_000)
    host = HostCollector()
    host.open(Target(root=str(tree.root)))
    assert host.facts == {"nics": {"hsn0": 25e9}}
    host.read(SECOND)
    tree.count("hsn0", 20 * SECOND, 0)
    (reading,) = host.read(2 * SECOND)
    values = dict(zip(host.quantities, reading.values, strict=True))
    assert values["nic"] == pytest.approx(0.8) and values["nic_rate"] == pytest.approx(20e9)


@pytest.fixture
def moved(tmp_path: Path) -> Callable[..., Summary]:
    """Return the summary of a step that moves so much of its network's line rate, with GPUs that do little."""

    def step(share: float, **facts: Any) -> Summary:
        known = generate.facts(0, 4, 120, 1)
        known.header["facts"] = {"gpus": 4, "nics": {"hsn0": 25e9}} | facts
        directory = tmp_path / f"data{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        dataset.write(directory / "node0000.host.parquet", known, iter([host(share)]), host=True)
        chunks = [
            chunk | {name: chunk[name] * 0.1 for name in ("tensor", "dram")} for chunk in generate.samples(0, 4, 120, 1)
        ]
        dataset.write(directory / "node0000.parquet", known, iter(chunks))
        return summarise(dataset.open_dataset(directory))

    def host(share: float) -> dict[str, Any]:
        at = np.arange(1, 121)
        chunk: dict[str, Any] = {quantity.name: np.full(len(at), np.nan) for quantity in HOST_QUANTITIES}
        chunk |= {"device": np.full(len(at), 65535), "span": np.ones(len(at)), "end": generate.START + at * SECOND}
        return chunk | {"nic": np.full(len(at), share), "nic_rate": np.full(len(at), share * 25e9)}

    return step


def test_a_full_network_interface_is_the_limit(moved: Callable[..., Summary]) -> None:
    """25 GB/s of 25, which is 5.6 % of a GPU's C2C and 27 % of what these send over NVLink."""
    got = moved(0.98)
    assert got.saturation.value == pytest.approx(0.98, abs=0.01) and got.score.by_nic > 0.97
    page = screen.render(got)
    assert "communication 100 % of the time" in page
    assert "hsn0 moved 24.5 GB/s, 98 % of its line rate" in " ".join(page.replace("│", "").split()), page
    assert "hsn0 moved 24.5 GB/s" in html.render(got)
    idle = moved(0.02)
    assert idle.score.by_nic == 0 and idle.saturation.value == pytest.approx(0.27, abs=0.03)
    assert not any(advice.rule == "network bound" for advice in idle.advice)


@pytest.mark.parametrize("facts", [{"gpus": 8}, {"gpus": 0}])
def test_a_shared_nodes_network_is_not_the_steps(moved: Callable[..., Summary], facts: dict[str, int]) -> None:
    """Another job may have filled it: what the saturation is at least is without it."""
    got = moved(0.98, **facts)
    assert got.saturation.low == pytest.approx(0.27, abs=0.03) and got.saturation.high is None
    assert "not all GPUs of a node" in got.saturation.reason
    assert moved(0.02, **facts).saturation.value is not None


def test_a_part_of_a_gpu_is_not_all_of_a_node(tmp_path: Path) -> None:
    """An instance of the node's only GPU: others of it are another's."""
    known = generate.facts(0, 1, 60, 1)
    known.header["facts"] = {"gpus": 1, "nics": {"hsn0": 25e9}}
    known.header["devices"][0]["mig"] = True
    dataset.write(tmp_path / "node0000.host.parquet", known, generate.hosts(60), host=True)
    dataset.write(tmp_path / "node0000.parquet", known, generate.samples(0, 1, 60, 1))
    (node,) = dataset.open_dataset(tmp_path).nodes
    assert ceilings.of(node).is_shared
    node.facts.devices[0]["mig"] = False
    assert not ceilings.of(node).is_shared


def test_a_node_that_did_not_tell_is_judged_as_before(moved: Callable[..., Summary]) -> None:
    got = moved(0.98, nics={})
    assert got.saturation.value == pytest.approx(0.27, abs=0.03) and got.score.by_nic == 0
