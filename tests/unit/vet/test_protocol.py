"""Protocol files: what loads, what it becomes, and what every mistake says."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piolet.base.errors import VetError
from piolet.vet import protocol, request, yamltext
from piolet.vet.catalogue import catalogue
from piolet.vet.runner import plan

from tests.support.protocols import plan_of

LISTING = """\
name: "ML Training Node Vetting"
evals:
- name: "Check GPU"
  type: vetnode.evaluations.gpu_eval.GPUEval
  max_temp: 30
  max_used_memory: 0.2
- name: "NCCLBandwidth"
  type: vetnode.evaluations.nccl_eval.NCCLEval
  min_bandwidth: 90.0
  requirements: [torch]
- name: "CudaKernel"
  type: vetnode.evaluations.cuda_eval.CUDAEval
  requirements: [cuda-python, numpy]
"""

# The fields that vetnode's own examples and classes use, all at once.
PUBLISHED = """\
name: Image Vetting
scheduler: slurm
pip:
   index_url: "https://pypi.example.org/simple"
evals:
- name: CudaKernel
  type: vetnode.evaluations.cuda_eval.CUDAEval
  cuda_home: /usr/local/cuda
  requirements:
    - cuda-python==13.*
    - numpy
- name: Internode
  type: vetnode.evaluations.nccl_lib_eval.NcclLibEval
  topology: internode
  scheduler: slurm
  payload: 8 GB
  method: allreduce
  min_bandwidth: 15 GB/s
  warmup:
    payload: 256 MB
    runs: 2
  requirements: ["cuda-python","numpy"]
- name: Intranode
  type: vetnode.evaluations.rccl_lib_eval.RcclLibEval
  topology: intranode
  scheduler: slurm
  warmup: {payload: 512 MB, runs: 3}
- name: PyTorch
  type: vetnode.evaluations.nccl_pytorch_eval.NcclPytorchEval
  scheduler: openPBS
  method: roundrobin
  min_bandwidth: 20 GB/s
  requirements:
      - ['torch', '--index-url', 'https://download.pytorch.org/whl/cu130']
      - numpy
- name: Variables
  type: vetnode.evaluations.env_var_eval.EnvVarEval
  expected:
    NCCL_NET: "AWS Libfabric"
    NCCL_DEBUG: on
    FLAG: 1
    HOME: null
- name: Net
  type: vetnode.evaluations.internet_access.InternetAccessEval
  host: google.com
  timeout: 3
- name: Random
  type: vetnode.evaluations.random.RandomEval
"""


def build(text: str) -> plan.Plan:
    return plan_of(text, ("/here",))


def one(text: str) -> plan.Task:
    return build(f"evals:\n- {text}\n").tasks[0]


def test_the_listing_of_the_paper_loads() -> None:
    found = build(LISTING)
    assert found.name == "ML Training Node Vetting"
    gpu, nccl, cuda = found.tasks
    assert (gpu.kind, gpu.parameters) == ("gpu", {"max_temp": 30.0, "max_used_memory": 0.2})
    assert (nccl.kind, nccl.parameters["min_bandwidth"], nccl.scope) == ("nccl_bandwidth", 90.0, "group")
    assert cuda.requirements == (("cuda-python",), ("numpy",))
    assert {task.on_inconclusive for task in found.tasks} == {"fail"}


def test_the_published_fields_load() -> None:
    found = build(PUBLISHED)
    assert found.index_url == "https://pypi.example.org/simple"
    tasks = {task.name: task for task in found.tasks}
    assert tasks["Internode"].parameters["payload"] == 8e9
    assert tasks["Internode"].parameters["min_bandwidth"] == 15.0
    assert tasks["Internode"].parameters["warmup"] == {"payload": 256e6, "runs": 2}
    assert tasks["Internode"].scope == "group"
    assert tasks["Intranode"].scope == "node"
    assert tasks["PyTorch"].requirements[0] == ("torch", "--index-url", "https://download.pytorch.org/whl/cu130")
    expected = tasks["Variables"].parameters["expected"]
    assert expected == {"NCCL_NET": "AWS Libfabric", "NCCL_DEBUG": "on", "FLAG": "1", "HOME": None}
    assert tasks["Net"].timeout_s == 3.0
    assert tasks["Random"].kind == "random"


def test_a_plan_survives_its_journey() -> None:
    found = build(PUBLISHED)
    assert plan.from_json(found.to_json()) == found
    assert found.digest() == build(PUBLISHED + "\n# a comment\n").digest()


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"version": 2}', b'{"version":1,"tasks":[{}],"name":""}', b"[" * 100_000,
     b'{"version":1,"name":"","tasks":[{"name":"a","kind":"b","target":"c","requirements":[],"timeout_s":0}]}'],
)  # fmt: skip
def test_a_malformed_plan_is_refused(data: bytes) -> None:
    with pytest.raises(VetError):
        plan.from_json(data)


def test_a_plan_that_is_too_long_is_refused() -> None:
    with pytest.raises(VetError, match="more than the limit"):
        plan.from_json(b" " * (plan.LIMIT_BYTES + 1))


def test_one_limit_for_check_and_srun() -> None:
    """What srun would refuse is refused when it is read; what it adds fits."""
    evals = "".join(f"- {{type: limits, name: n{number}}}\n" for number in range(1000))
    with pytest.raises(VetError, match="bytes long when it is worked out, more than 98048"):
        build("evals:\n" + evals)
    most, refused = 300, 399
    asked = request.parse("p.yaml,budget=3599.5s,min_nodes=1000000,on_inconclusive=warn")
    while refused - most > 1:
        count = (most + refused) // 2
        try:
            found = build("evals:\n" + "".join(f"- {{type: limits, name: n{n}}}\n" for n in range(count)))
        except VetError:
            refused = count
            continue
        most = count
        plan.from_json(plan.text(dataclasses.replace(asked.apply(found), requirements_s=86399.5)).encode())
    assert 300 < most < 398


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("class X(Eval):\n    better = 'higher'\n", None),
        ("@dataclass(frozen=True)\nclass X(api.Eval):\n    better: ClassVar[str] = 'lower'\n", None),
        ("@dataclass(frozen=True)\nclass X(api.Eval):\n    name = 'x'\n", "its class does not say what is better"),
        ("class X(Eval):\n    name = 'x'\n", "its class does not say what is better"),
        ("from mine import Eval as Own\nclass X(Own):\n    name = 'x'\n", None),
        ("class X(Eval):\n    better = 'bigger'\n", "its class says better = 'bigger'"),
        # What cannot be told without executing it is asked on the nodes.
        ("class X(Base):\n    pass\n", None),
        ("@improved\nclass X(Eval):\n    pass\n", None),
        ("class X(Eval):\n    better = WORD\n", None),
        ("X = make()\n", None),
        ("-" * 100_000 + "1", None),
    ],
)
def test_what_a_users_class_says_is_read_and_not_executed(tmp_path: Path, body: str, message: str | None) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "mine.py").write_text(
        "from piolet.api import Eval\nfrom piolet import api\nraise SystemExit('executed')\n" + body
    )
    where = ("/nowhere", str(tmp_path))
    text = "evals:\n- type: package.mine.X\n  baseline: peers\n"
    if message is None:
        assert plan_of(text, where).tasks[0].baseline == "peers"
        return
    with pytest.raises(VetError, match=f"'package.mine.X' cannot be compared with peers: {message}"):
        plan_of(text, where)
    assert plan_of(text.replace("  baseline: peers\n", ""), where).tasks[0].baseline == "absolute"


def test_what_can_be_added() -> None:
    found = build(
        "budget: 2 min\nmin_nodes: 3\nspares: 2\nevals:\n- {type: cpu_gemm, timeout: 5s, where: environment,"
        " on_fail: warn, on_inconclusive: pass, baseline: peers, cache: 30min}\n"
    )
    assert (found.budget_s, found.min_nodes, found.spares) == (120.0, 3, 2)
    task = found.tasks[0]
    assert (task.timeout_s, task.where, task.on_fail, task.on_inconclusive) == (5.0, "environment", "warn", "pass")
    assert (task.baseline, task.cache_s) == ("peers", 1800.0)


def test_a_users_class_is_not_imported_here() -> None:
    task = one("{type: no.such.module.Class, a: 1, b: 1.5, c: yes, d: true, e: null, f: [x, '2'], g: {h: 2}}")
    assert task.target == "no.such.module:Class"
    assert task.search == ("/here",)
    assert task.parameters == {
        "a": 1, "b": 1.5, "c": "yes", "d": True, "e": None, "f": ["x", "2"], "g": {"h": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("evals:\n- type: gpu\n  max_tmp: 3\n", 3, 3, "unknown key 'max_tmp'", "did you mean 'max_temp'?"),
        ("evals:\n- type: gpu\n  timout: 3\n", 3, 3, "unknown key 'timout'", "did you mean 'timeout'?"),
        ("eval:\n- type: gpu\n", 1, 1, "unknown key 'eval'", "did you mean 'evals'?"),
        ("name: x\n", 1, 1, "no 'evals'", "list the checks"),
        ("evals: []\n", 1, 8, "at least one eval", None),
        ("evals:\n- gpu\n", 2, 3, "an eval must be a table", None),
        ("evals:\n- name: x\n", 2, 3, "has no 'type'", None),
        ("evals:\n- typ: gpu\n", 2, 3, "unknown key 'typ'", "did you mean 'type'?"),
        ("evals:\n- type: gpo\n", 2, 9, "there is no eval 'gpo'", "did you mean 'gpu'?"),
        ("evals:\n- type: vetnode.evaluations.gpu_eval.GPUEvl\n", 2, 9, "there is no eval", "did you mean"),
        ("evals:\n- type: zzzzzzz\n", 2, 9, "there is no eval 'zzzzzzz'", "piolet vet list"),
        ("evals:\n- type: gpu\n- type: gpu\n", 3, 3, "two evals with the name 'gpu'", "another 'name'"),
        ("evals:\n- type: gpu\n  max_temp: hot\n", 3, 13, "'max_temp' must be a number (degC), not 'hot'", None),
        ("evals:\n- type: gpu\n  max_temp: -1\n", 3, 13, "at least 0", None),
        ("evals:\n- type: gpu\n  max_temp: .nan\n", 3, 13, "must be a number", None),
        ("evals:\n- type: gpu\n  count: 1.5\n", 3, 10, "a whole number", None),
        ("evals:\n- type: gpu\n  timeout: 0\n", 3, 12, "more than 0", None),
        ("evals:\n- type: gpu\n  timeout: 3 GB\n", 3, 12, "a number in s", None),
        ("evals:\n- type: gpu\n  where: there\n", 3, 10, "'host' or 'environment'", None),
        (
            "evals:\n- type: env\n  baseline: peers\n",
            3,
            13,
            "cannot be compared with peers: its class does not say",
            None,
        ),
        ("evals:\n- type: limits\n  memlock_unlimited: 7\n", 3, 22, "true or false", None),
        ("evals:\n- type: internet_access\n", 2, 3, "needs 'host'", None),
        ("evals:\n- type: nccl_bandwidth\n  warmup: {payloads: 1}\n", 3, 12, "unknown key 'payloads'", "'payload'"),
        ("evals:\n- type: nccl_bandwidth\n  method: magic\n", 3, 11, "'method' must be", None),
        ("evals:\n- type: gpu\n  requirements: torch\n", 3, 17, "a list of what pip should install", None),
        ("evals:\n- type: gpu\n  requirements: [--index-url]\n", 3, 18, "begins with a package", None),
        ("evals:\n- type: gpu\n  type: cpu\n", 3, 3, "'type' is there twice, first in line 2", "leave one out"),
        ("evals: &a\n- type: gpu\nname: *a\n", 1, 8, "anchors and aliases", "write the values out"),
        ("evals: !!python/object:os.system x\n", 1, 8, "tags are not allowed", None),
        ("evals:\n- type: gpu\n\tmax_temp: 3\n", 3, 1, "not valid YAML", "spaces, not with tabs"),
        ("evals: [\n", 1, 9, "not valid YAML", None),
        ("? [a, b]\n: c\n", 1, 3, "a key must be a word", None),
        ("scheduler: pbs\nevals:\n- type: gpu\n", 1, 12, "'slurm', 'standalone' or 'openPBS'", None),
        ("pip: {index: x}\nevals:\n- type: gpu\n", 1, 7, "unknown key 'index'", "'index_url'"),
        ("- type: gpu\n", 1, 1, "a protocol must be a table", None),
    ],
)
def test_every_mistake_has_its_place(text: str, line: int, column: int, message: str, hint: str | None) -> None:
    with pytest.raises(VetError) as caught:
        build(text)
    error = caught.value
    assert message in error.message
    assert error.location is not None
    assert (error.location.line, error.location.column) == (min(line, error.location.line), column)
    assert abs(error.location.line - line) <= 1  # an end of file is on the last line
    assert "^" in error.render()
    if hint is not None:
        assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xff\xfe\x00", "is not UTF-8"),
        (b"a" * (yamltext.SIZE_LIMIT + 1), "longer than the limit"),
        (b"evals: " + b"[" * 5000, "nested more than"),
        (b"evals: [{type: gpu}]\n---\nname: x\n", "more than one document"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    with pytest.raises(VetError, match=message):
        protocol.load(str(path), catalogue())


def test_a_definition_file_is_no_protocol(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('image = "ubuntu"\n')
    with pytest.raises(VetError) as caught:
        protocol.load(str(path), catalogue())
    assert caught.value.hint == "a protocol is YAML; a definition file of a container is given by --environment"


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(VetError, match="No such file"):
        protocol.load(str(tmp_path / "none"), catalogue())
    with pytest.raises(VetError):
        protocol.load(str(tmp_path), catalogue())
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(VetError, match="not a regular file"):
        protocol.load(str(tmp_path / "fifo"), catalogue())


@given(st.text(max_size=60))
def test_any_text_is_a_plan_or_an_error(text: str) -> None:
    try:
        build(text)
    except VetError as error:
        assert error.render()


@given(st.text(alphabet="evals:- typgu{}[]\n&*!#'\"|>%@`,?\t", max_size=80))
def test_any_yaml_is_a_plan_or_an_error(text: str) -> None:
    try:
        build("evals:\n- type: gpu\n" + text)
    except VetError as error:
        assert error.render()
