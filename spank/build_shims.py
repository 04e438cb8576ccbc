"""Builds the C side from one list of sources: the plugins, the entry program, and the module for tests.

    python spank/build_shims.py --output build/plugins [--sanitize]

The plugins are plain C with no Python in them. The cffi module (`piolet_shims`, made by `--module DIR`)
holds the same C so that pytest can drive it; it is never loaded into Slurm.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = ["message.c", "channel.c", "join.c", "command.c", "submit.c"]
PLUGINS = {
    "piolet_environment": ["environment.c", "launcher.c", "plugin.c", *SHARED],
    "piolet_vet": ["vet.c", "plugin.c", *SHARED],
    "piolet_score": ["score.c", "plugin.c", *SHARED],
    "piolet_outcomes": ["outcomes.c", "plugin.c", *SHARED],
}
STAYS = {"piolet_outcomes": ["-Wl,-z,nodelete"]}
"""What has a function that is called when srun ends, after it has closed its plugins."""
PROGRAMS = {"piolet-entry": ["entry.c"], "piolet-vet-task": ["vet_task.c", "message.c", "channel.c"]}
WARNINGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wformat=2", "-Wstrict-prototypes"]
# What a hook is called with is Slurm's affair; it need not use all of it.
WARNINGS += ["-Wno-unused-parameter"]
HARDENED = ["-O2", "-g", "-fvisibility=hidden", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong"]
HARDENED += [f"-ffile-prefix-map={HERE.parent}=."]  # the same bytes from every checkout
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

TEST_DECLARATIONS = """
struct failure { bool set; char message[1024]; char hint[1024]; };
struct reply {
    const struct piolet_ready *ready;
    int user_ns, mount_ns, environment;
    ...;
};
struct submission { char *record; size_t length; const char *definition; size_t definition_length; };
size_t start_encode(struct piolet_start *, const uint32_t *, const char *, char *, size_t, struct failure *);
int environment_check(const char *, size_t, struct failure *);
int record_check(const char *, size_t, const char *, const char *, const char **, size_t *, struct failure *);
uint64_t record_key(const char *, const char *, const char *, uint32_t);
int64_t now_ms(void);
int channel_open(const char *, struct failure *);
int channel_send(int, const char *, size_t, struct failure *);
int channel_peek(int, int64_t, struct reply *, struct failure *);
void reply_close(struct reply *);
int submission_get(const char *, const char *, const char *, const char *, bool, struct submission *, struct failure *);
bool submission_note(uint32_t, uint32_t, const char *);
void submission_free(struct submission *);
void launcher_replace(const char *);
int decode(const char *, size_t, const int *, size_t, struct failure *);
"""

TEST_SOURCE = """
#include <string.h>
#include "shim.h"

/* reply_decode as the tests call it: bytes in, verdict out; nothing is closed. */
static int decode(const char *bytes, size_t length, const int *descriptors, size_t count, struct failure *f)
{
	static struct reply reply;

	memcpy(reply.bytes, bytes, length < sizeof(reply.bytes) ? length : sizeof(reply.bytes));
	return reply_decode(&reply, length, descriptors, count, f);
}
"""


def build_plugins(output: Path, sanitize: bool = False) -> list[Path]:
    """Compile every plugin and program into `output`; return their paths."""
    output.mkdir(parents=True, exist_ok=True)
    flags = [*WARNINGS, *(SANITIZED if sanitize else HARDENED), "-fPIC"]
    script = f"-Wl,--version-script={HERE / 'shim.lds'}"
    made = []
    with tempfile.TemporaryDirectory(dir=output, prefix=".objects-") as objects:
        # One after the other: builds run beside others. Most plugins share most files.
        for source in sorted({source for sources in PLUGINS.values() for source in sources}):
            _run([*flags, "-c", str(HERE / source)], Path(objects, source).with_suffix(".o"))
        for name, sources in PLUGINS.items():
            made.append(output / f"{name}.so")
            # Slurm's own symbols come from the process that loads the plugin: no -z defs here.
            linked = [str(Path(objects, source).with_suffix(".o")) for source in sources]
            _run([*flags, "-shared", "-Wl,-z,relro,-z,now", *STAYS.get(name, ()), script, *linked], made[-1])
    for name, sources in PROGRAMS.items():
        made.append(output / name)
        # Static: they also run where there is no libc of ours, or none at all.
        _run([*WARNINGS, "-Os", "-static", "-s", *[str(HERE / source) for source in sources]], made[-1])
    return made


def _run(words: list[str], output: Path) -> None:
    """Call the compiler; what it makes appears at once."""
    temporary = output.with_suffix(".tmp")
    subprocess.run(["cc", *words, "-o", str(temporary)], check=True)
    temporary.replace(output)


def build_module(directory: Path, sanitize: bool = False) -> Path:
    """Compile the cffi module `piolet_shims` into `directory`; return its path."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef((HERE / "wire.h").read_text("ascii"))
    ffi.cdef(TEST_DECLARATIONS)
    ffi.set_source(
        "piolet_shims",
        TEST_SOURCE,
        sources=[str(HERE / s) for s in [*SHARED, "launcher.c"]],
        include_dirs=[str(HERE)],
        extra_compile_args=SANITIZED if sanitize else ["-O1", "-g"],
        extra_link_args=["-fsanitize=address,undefined"] if sanitize else [],
    )
    return Path(ffi.compile(tmpdir=str(directory)))


def main(arguments: list[str]) -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="Build Piolet's C plugins.")
    parser.add_argument("--output", type=Path, help="directory for the plugins")
    parser.add_argument("--module", type=Path, help="directory for the cffi module of the tests")
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    chosen = parser.parse_args(arguments)
    if chosen.output:
        build_plugins(chosen.output, chosen.sanitize)
    if chosen.module:
        chosen.module.mkdir(parents=True, exist_ok=True)
        build_module(chosen.module, chosen.sanitize)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
