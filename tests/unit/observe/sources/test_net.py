"""Sources of networks, from recorded trees: Slingshot, InfiniBand, Ethernet, TCP."""

from __future__ import annotations

from pathlib import Path

import pytest
from piolet.api import Source, Unavailable
from piolet.observe.sources.cxi import Cxi
from piolet.observe.sources.ethernet import Ethernet
from piolet.observe.sources.infiniband import Infiniband
from piolet.observe.sources.tcp import Tcp

from .trees import only, opened, plant, told

CXI = "/sys/class/cxi/cxi0/device"
IB = "/sys/class/infiniband/mlx5_0/ports/1"


def cxi(rx: int, retried: int, timeouts: int | None) -> dict[str, str]:
    time = "@1754300000:123456789\n"
    handler = {} if timeouts is None else {"/run/cxi/cxi0/spt_timeouts": f"{timeouts}\n"}
    return {
        f"{CXI}/telemetry/hni_sts_rx_ok_octets": f"{rx}{time}",
        f"{CXI}/telemetry/hni_sts_tx_ok_octets": f"77{time}",
        f"{CXI}/telemetry/hni_pcs_uncorrected_cw": f"90049{time}",
        f"{CXI}/telemetry/pct_retry_srb_requests": f"{retried}{time}",
        f"{CXI}/net/hsn0/speed": "200000\n",
        **handler,
    }


def test_slingshot_with_its_retry_handler(tmp_path: Path) -> None:
    plant(tmp_path, cxi(1000, 3, 7))
    rows = told(opened(Cxi, tmp_path), tmp_path, cxi(11000, 23, 37))
    assert rows[0].subject == "cxi0"
    assert only(rows) == {"kind": "cxi", "rate": 25e9, "rx": 1000.0, "tx": 0.0, "errors": 3.0, "retries": 2.0}


def test_slingshot_without_its_retry_handler_says_what_errors_lack(tmp_path: Path) -> None:
    plant(tmp_path, cxi(1000, 3, None))
    source = opened(Cxi, tmp_path)
    assert "without timeouts" in source.never["errors"]


def ib(words: int, retried: int | None) -> dict[str, str]:
    hardware = {} if retried is None else {f"{IB}/hw_counters/local_ack_timeout_err": f"{retried}\n"}
    return {
        f"{IB}/state": "4: ACTIVE\n", f"{IB}/rate": "400 Gb/sec (4X NDR)\n",
        f"{IB}/counters/port_rcv_data": f"{words}\n", f"{IB}/counters/port_xmit_data": "8\n",
        f"{IB}/counters/symbol_error": "1\n", **hardware,
    }  # fmt: skip


def test_infiniband_counts_words_of_four_bytes(tmp_path: Path) -> None:
    plant(tmp_path, ib(100, 0))
    rows = told(opened(Infiniband, tmp_path), tmp_path, ib(2600, 5))
    assert rows[0].subject == "mlx5_0/1"
    assert only(rows) == {"kind": "infiniband", "rate": 5e10, "rx": 1000.0, "tx": 0.0, "errors": 0.0, "retries": 0.5}


def test_a_driver_without_counters_of_retries_has_none_and_no_zero(tmp_path: Path) -> None:
    plant(tmp_path, ib(100, None))
    source = opened(Infiniband, tmp_path)
    assert source.never == {"retries": "the driver has no hw_counters of them"}
    assert "retries" not in only(told(source, tmp_path, ib(200, None)))


def test_a_port_that_is_down_is_not_told(tmp_path: Path) -> None:
    plant(tmp_path, {**ib(100, 0), f"{IB}/state": "1: DOWN\n"})
    assert told(opened(Infiniband, tmp_path), tmp_path, {}) == []


def ethernet(rx: int, errors: int) -> dict[str, str]:
    where = "/sys/class/net/eth0"
    zero = {f"{where}/statistics/{name}": "0\n" for name in ("tx_bytes", "tx_errors")}
    return {
        f"{where}/device/vendor": "0x8086\n", f"{where}/operstate": "up\n", f"{where}/speed": "25000\n",
        f"{where}/statistics/rx_bytes": f"{rx}\n", f"{where}/statistics/rx_errors": f"{errors}\n", **zero,
    }  # fmt: skip


def test_ethernet_is_hardware_alone(tmp_path: Path) -> None:
    virtual = {"/sys/class/net/eth1/device/physfn/x": "", "/sys/class/net/bond0/speed": "50000\n"}
    plant(tmp_path, {**ethernet(0, 0), **virtual})
    rows = told(opened(Ethernet, tmp_path), tmp_path, ethernet(5000, 20))
    assert [row.subject for row in rows] == ["eth0"]
    assert only(rows) == {"kind": "ethernet", "rate": 3.125e9, "rx": 500.0, "tx": 0.0, "errors": 2.0}


def snmp(again: int) -> dict[str, str]:
    return {
        "/proc/net/snmp": "Ip: Forwarding DefaultTTL\nIp: 1 64\nTcp: RtoMin MaxConn InSegs OutSegs RetransSegs InErrs\n"
        f"Tcp: 200 -1 5 6 {again} 0\n"
    }


def test_tcp_segments_that_were_sent_again(tmp_path: Path) -> None:
    plant(tmp_path, snmp(4))
    assert only(told(opened(Tcp, tmp_path), tmp_path, snmp(29))) == {"retransmits": 2.5}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Cxi, "there is no Slingshot"),
        (Infiniband, "there is no InfiniBand"),
        (Ethernet, "no network device is hardware"),
        (Tcp, "does not tell them"),
    ],
)
def test_what_is_not_there_has_a_reason(tmp_path: Path, kind: type[Source], why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        opened(kind, tmp_path)
