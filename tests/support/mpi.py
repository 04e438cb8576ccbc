"""Images with a real MPI inside: a small program, linked with what Debian has, and all that it loads.

The node's compilers make the program; the image has a copy of the libraries, and needs nothing of the node's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support import oci

PROGRAM = r"""
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	int rank, size, sum = 0;

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	printf("rank %d of %d, sum %d, %s\n", rank, size, sum, access("/marker", F_OK) ? "outside" : "inside");
#ifdef NO_FINALIZE
	MPI_Barrier(MPI_COMM_WORLD);
	fflush(stdout);
	_exit(0);
#endif
	MPI_Finalize();
	return 0;
}
"""
# MPICH 4.0.2 of Debian 12, with UCX, at times never returns from MPI_Finalize on a busy machine, without a container as
# well: one rank drives UCX until its peers have closed their ends, and these wait in PMI's barrier for that rank.
FLAGS = {"openmpi": (), "mpich": ("-DNO_FINALIZE",)}
# What each loads by name, and not as a library that it is linked with.
PARTS = {"openmpi": ("lib/*/openmpi/lib/openmpi3", "lib/*/pmix2", "share/openmpi"), "mpich": ()}
_ETC = ("/etc/openmpi", "/etc/pmix", "/etc/libibverbs.d")


def lacking(name: str) -> str:
    """Return why there is no image of this MPI here; empty if there can be one."""
    return "" if shutil.which(f"mpicc.{name}") else f"not installed: mpicc.{name} (tools/bootstrap.sh mpi)"


def slurm_lacks_pmix() -> str:
    """Return why slurmd cannot serve PMIx here; empty if it can."""
    for there, why in (
        ("*/slurm*/mpi_pmix.so", "this Slurm is built without PMIx"),
        ("*/libpmix.so.2", "not installed: libpmix2 (tools/bootstrap.sh mpi)"),
    ):
        if not any(Path("/usr/lib").glob(there)):
            return why
    return ""


def layer(name: str) -> list[oci.Entry]:
    """Return a layer with /bin/hello, linked with the MPI `name`, and all that it loads."""
    with tempfile.TemporaryDirectory(prefix="piolet-mpi-") as folder:
        source, program = Path(folder, "hello.c"), Path(folder, "hello")
        source.write_text(PROGRAM, "utf-8")
        subprocess.run([f"mpicc.{name}", *FLAGS[name], "-o", program, source], check=True)
        wanted = {path for part in PARTS[name] for top in Path("/usr").glob(part) for path in top.rglob("*")}
        wanted |= {path for top in _ETC for path in Path(top).rglob("*")}
        files = {path for path in wanted if path.is_file() and path.suffix != ".la"}
        libraries = _libraries({program, *(path for path in files if ".so" in path.name)})
        entries = {"bin/hello": oci.file("bin/hello", program.read_bytes(), 0o755)}
    for path in files | libraries:
        inside = str(path).lstrip("/")
        entries[inside] = oci.file(inside, path.read_bytes(), 0o755)
    return [entries[inside] for inside in sorted(entries)]


def _libraries(programs: set[Path]) -> set[Path]:
    """Return the libraries that programs and libraries are linked with, by the names by which they are looked for."""
    found: set[Path] = set()
    for program in programs:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
        found |= {Path(os.path.normpath(match)) for match in re.findall(r"(/\S+) \(0x", said)}
    return found
