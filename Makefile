# `make` alone says what there is. Everything that is made lands in build/.

NODES ?= 4
GPUS ?= 2
ROUNDS ?= 20
# Of `make test`: three run the tests that need clusters, which mostly wait, and one the others (tests/conftest.py).
WORKERS ?= 4
# Of `make test`: 0 leaves out the boot of Debian 12's kernel in QEMU, and what it downloads once.
BOOT ?= 1
export PIOLET_TEST_BOOT = $(BOOT)
# build/ may be a link out of a checkout that users cannot enter (tools/bootstrap.sh), and pip writes the
# interpreter's path into the commands that it installs: so the real one, looked up after bootstrap.
PYTHON = $(shell readlink -f build)/venv/bin/python
# What ends a cluster must work even where the virtual environment does not.
TOOL = $(if $(wildcard $(PYTHON)),$(PYTHON),/usr/bin/python3) -m tools.cluster

SOURCES := $(shell find daemons spank pyslurm_ext -name '*.py' -o -name '*.js' -o -name '*.css' -o -name '*.toml' -o -name '*.json' -o -name 'slurm_ext.c' -o -name 'wire.h' 2>/dev/null | grep -v -e '/_wire.py$$' -e '/_munge.py$$') \
	setup.py pyproject.toml
PLUGIN_SOURCES := $(wildcard spank/*.c spank/*.h spank/*.lds spank/build_*.py /usr/include/slurm/slurm_version.h)

.PHONY: help man demo demo-central demo-observe lint check ahead machine test scale test-attacks bench cluster cluster-down cluster-purge status plugins rpm test-slurm-versions test-kernels test-arm64 venv bootstrap clean
.NOTPARALLEL:

help:
	@echo 'make demo                 train a small model in containers on a private cluster, and tidy up'
	@echo 'make demo-central         a GPU is lost, and a central service says which node it was; and tidy up'
	@echo 'make demo-observe         four nodes train, one is slow, and so is the file system: what a job'"'"'s screen and page say; and tidy up'
	@echo 'make check                linters, types, and the tests that need no cluster: about a minute'
	@echo 'make test                 linters, types, and all tests (four at a time where that is safe; WORKERS=1: one;'
	@echo '                          BOOT=0: without the boot of another kernel)'
	@echo 'make scale                what vettings and scores of up to 10,000 synthetic nodes cost, and whom they name'
	@echo 'make test-attacks         attacks by a user, and the same on a build from which the checks were removed'
	@echo 'make bench                what a containerised step costs'
	@echo 'make cluster              start a private Slurm cluster to play with (NODES=4 GPUS=2, simulated ones;'
	@echo '                          CGROUPS=1: steps are confined by control groups;'
	@echo '                          ACCOUNTING=1: with a slurmdbd; OUTCOMES=1: how steps end is recorded;'
	@echo '                          CENTRAL=1: with a central service, which is told of it)'
	@echo 'make status               what of it runs'
	@echo 'make cluster-down         end it'
	@echo 'make cluster-purge        end it, and remove its directory and the accounts that it made'
	@echo 'make plugins              build and install everything into build/'
	@echo 'make rpm                  build the RPMs into build/rpm'
	@echo 'make test-slurm-versions  the cluster tests with Slurm 22.05, 24.11 and 26.05 (some twenty minutes)'
	@echo 'make test-kernels         tests on other kernels, emulated: Linux 6.1, 6.12 and 5.10 (some thirty minutes)'
	@echo 'make test-arm64           build and test for aarch64, emulated (some forty minutes)'
	@echo 'make man                  write the manual pages and the shell completion anew'
	@echo 'make venv                 only the Python that it needs, in build/venv'
	@echo 'make clean                end every cluster and remove build/'

bootstrap:
	@tools/bootstrap.sh

venv:
	@tools/bootstrap.sh directory
	@tools/bootstrap.sh venv

# The stamps are below build/, which `bootstrap` may move: it comes first, and is never a reason to build.
build/.installed: $(SOURCES) requirements.txt requirements-central.txt requirements-dev.txt | bootstrap
	@echo 'Installing piolet into build/venv'
	@# setuptools builds in build/ and would install again what was deleted from the sources since.
	@rm -rf build/lib build/lib.* build/bdist.* build/temp.*
	@umask 022 && $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-input \
		--no-deps --no-build-isolation --force-reinstall .
	@# -I keeps users' PYTHON* variables out, as in the packages.
	@sed -i -E '1s|^(#!.*/python[0-9.]*)$$|\1 -I|' "$$(readlink -f build)"/venv/bin/piolet "$$(readlink -f build)"/venv/bin/piolet*d
	@rm -rf build/lib build/lib.* build/bdist.* build/temp.*
	@touch $@

build/plugins/piolet_environment.so: $(PLUGIN_SOURCES) | bootstrap
	@echo 'Building the plugins into build/plugins'
	@umask 022 && $(PYTHON) spank/build_shims.py --output build/plugins
	@touch $@

plugins: build/.installed build/plugins/piolet_environment.so

# Where apt is not the package manager, the spec names what it needs, and any Python from 3.11 on will do.
rpm: $(if $(shell command -v dpkg-query),bootstrap)
	@$(if $(shell command -v dpkg-query),$(PYTHON),$(firstword $(notdir $(shell command -v python3.11 || \
		command -v python3.12 || command -v python3.13)) python3)) -m tools.rpm

cluster: plugins
	@$(PYTHON) -m tools.cluster up --nodes $(NODES) --gpus $(GPUS) $(if $(filter 1,$(CGROUPS)),--cgroups) \
		$(if $(filter 1,$(ACCOUNTING)),--accounting) $(if $(filter 1,$(CENTRAL)),--central) --dir build/cluster
	@$(if $(filter 1,$(OUTCOMES)),cd build/cluster/etc/plugstack.conf.d && { test -e outcomes.conf || mv outcomes.conf.off outcomes.conf; },:)

status:
	@$(TOOL) status --dir build/cluster

cluster-down:
	@$(TOOL) down --dir build/cluster

cluster-purge:
	@$(TOOL) purge --dir build/cluster

man: plugins
	@$(PYTHON) -m tools.manpages
	@$(PYTHON) -m tools.kinds
	@$(PYTHON) -m tools.jobschema

demo: plugins
	@$(PYTHON) -m tools.demo

demo-central: plugins
	@$(PYTHON) -m tools.demo_central

demo-observe: plugins
	@$(PYTHON) -m tools.demo_observe

lint: plugins
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

check: lint
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup -m "not alone" --deselect tests/wire/test_fuzz.py \
		tests/structure tests/unit tests/wire

# tests/conftest.py says which tests may run beside each other; WORKERS=1 runs all one after the other.
test: ahead
ifeq ($(WORKERS),1)
	$(PYTHON) -m pytest --durations=10
else
	@rm -f .pytest_cache/v/cache/lastfailed
	$(PYTHON) -m pytest --durations=10 --dist loadgroup --no-loadscope-reorder -m "not alone" \
		--tx '$(WORKERS)*popen//python=tests/worker $(PYTHON)' \
		|| { test $$? -eq 1 && $(PYTHON) -m tests.support.again; }
	$(PYTHON) -m pytest --durations=10 -m alone
endif

# What is compiled of tests and tools is kept, wherever they are run: all workers want it.
test ahead: export PYTHONDONTWRITEBYTECODE =
# What tests need is made in two lanes of a core each: by the system's Python what needs no other, and beside it the
# virtual environment, the plugins, the linters, and what is behind them.
ahead: | machine
	@{ tools/bootstrap.sh buildah || echo 'Going on without buildah: its tests are skipped'; \
		tools/bootstrap.sh mpi || echo 'Going on without MPI libraries: their tests are skipped'; \
		/usr/bin/python3 -m tools.kernels.ready; /usr/bin/python3 -m tests.support.ahead roots; } & ahead=$$!; \
		"$${MAKE:-make}" --no-print-directory lint && { $(PYTHON) -m tests.support.ahead wheels; \
		$(PYTHON) -m pytest --collect-only -q >/dev/null 2>&1 || :; }; linted=$$?; \
		wait $$ahead; exit $$linted

machine:
	@tools/bootstrap.sh directory
	@tools/bootstrap.sh packages

scale: plugins
	PIOLET_TEST_SCALE=full $(PYTHON) -m pytest --durations=10 tests/scale

# The attacks on Piolet as it is, and on a build from which the checks were removed, where each has to succeed.
test-attacks: plugins
	$(PYTHON) -m pytest tests/attacks
	@$(PYTHON) -m tests.attacks.weaken build/weakened
	build/weakened/usr/lib/piolet/bin/python3 -m pytest tests/attacks

test-slurm-versions: bootstrap
	@$(PYTHON) -m tools.slurm_versions

test-kernels: plugins
	@tools/bootstrap.sh kernels
	@$(PYTHON) -m tools.kernels

test-arm64: bootstrap
	@tools/bootstrap.sh arm64
	@$(PYTHON) -m tools.arm64

bench: plugins
	@$(PYTHON) -m tests.benchmarks --rounds $(ROUNDS)

clean:
	@for state in build/*/cluster.json; do \
		[ ! -e "$$state" ] || $(TOOL) down --dir "$$(dirname "$$state")" || exit 1; done
	@if [ -L build ]; then rm -rf "$$(readlink build)"; fi
	@rm -rf build
