#!/bin/sh
# run.sh [DIRECTORY [--seconds N]]: on a node with NVIDIA GPUs, in at most ten minutes: do the figures of --score and the verdicts of
# --vet agree with what a load knows of itself? It leaves DIRECTORY/hardware.json, and prints a table of the same.
#
# It needs no root, no Slurm and no daemon, and takes the first GPU that it may use (CUDA_VISIBLE_DEVICES). PYTHON is a
# Python from 3.11 on with numpy, pyarrow, psutil, PyYAML and nvidia-ml-py, and with torch for the loads; TORCH_PYTHON,
# where torch is in another one. What is missing is told as "not here", by name. DCGM is used where libdcgm is found.
# Exit status: 0 all that could be checked agrees; 1 something does not; 2 nothing of real hardware could be checked.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$here/build/hardware}
[ $# -eq 0 ] || shift
mkdir -p "$out"
python=${PYTHON:-}
[ -n "$python" ] || for candidate in "$here/build/venv/bin/python" python3; do
	command -v "$candidate" >/dev/null 2>&1 && { python=$candidate; break; }
done
[ -n "$python" ] || { echo "run.sh: there is no Python" >&2; echo "hint: name one with PYTHON=" >&2; exit 2; }
# The sampler runs isolated (-I), so PYTHONPATH would not reach it: a virtual environment names our sources and what
# the chosen Python has. Nothing is installed.
room=$(mktemp -d "${TMPDIR:-/tmp}/piolet-hardware.XXXXXX")
trap 'rm -rf "$room"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv --without-pip "$room/venv"
"$python" - "$here" "$room/venv" <<'PYTHON'
import glob, sys
here, venv = sys.argv[1:]
(place,) = glob.glob(venv + "/lib/python3*/site-packages")
# A piolet that is installed in the chosen Python comes after the one of this checkout.
paths = [here + "/daemons", here, *(path for path in sys.path if path.endswith("-packages"))]
open(place + "/piolet.pth", "w").writelines(path + "\n" for path in paths)
PYTHON
# Not exec: the room goes with this shell.
status=0
TORCH_PYTHON=${TORCH_PYTHON:-$room/venv/bin/python} timeout 600 \
	"$room/venv/bin/python" -m tests.hardware --out "$out" --room "$room" "$@" || status=$?
exit "$status"
