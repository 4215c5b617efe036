# The front door: `make help` lists what there is.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
IMAGE := /var/lib/kata-containers/image
BASELINE ?= build/bench/baseline.json
STAMP := $(VENV)/.installed
LOCK := release/lock
PIP := $(BIN)/pip --quiet --disable-pip-version-check
# For each target, two dozen of them, as many at a time as there are processors.
FUZZ_SECONDS ?= $(if $(filter test,$(MAKECMDGOALS)),15,60)
# Unit tests wait for processes now and then: one worker more than there are processors keeps these busy.
UNIT_WORKERS ?= $(shell echo $$(($$(nproc) + 1)))
ROOMS := configuration runtime hypervisor agent
PROTOS := agent/kata_agent/protos runtime/kata_runtime/containerd_api

.DEFAULT_GOAL := help
.PHONY: help setup environment packages test-packages hooks run test lint unit integration critest kubelet like-runc test-rig rig fuzz chaos soak mutate image bench bench-check bench-rig restarts clock protos check-protos confinement-page filters lock sbom format install clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: environment ## run a container in a virtual machine through containerd, and show what confines it
	@cd examples/quickstart && ../../$(BIN)/python run.py --image $(IMAGE) $(if $(HYPERVISOR),--hypervisor $(HYPERVISOR)) $(ARGS)

test: lint unit fuzz integration ## everything: checks, unit tests, fuzzing, integration tests with the real containerd and QEMU

setup: environment ## install what is missing: system packages and the Python environment
	@$(BIN)/python .ci/commit_msg.py --offer

environment: packages $(STAMP)

packages:
	@sh examples/quickstart/install-packages.sh

test-packages:
	@sh examples/quickstart/install-packages.sh tests

hooks: ## let git check the message of each commit that you make in this checkout
	@$(PYTHON) .ci/commit_msg.py --install

$(STAMP): pyproject.toml $(LOCK)/development.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; install it (Debian: apt-get install python3)"; exit 1; }
	@echo "==> Python environment in $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --only-binary :all: --requirement $(LOCK)/development.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

lint: environment check-protos ## ruff, mypy --strict, import-linter, codespell, unused and generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/python .ci/unused_code.py

unit: test-packages environment ## fast tests, without root or KVM, in parallel
	$(BIN)/pytest -m 'not integration and not rig' --numprocesses $(UNIT_WORKERS) --dist worksteal $(ARGS)

integration: test-packages environment image ## tests with root, containerd, QEMU, virtiofsd
	$(BIN)/python .ci/second_try.py -m 'integration' $(ARGS)

critest: test-packages environment image ## the CRI's own suite, critest, which KATA_TEST_CRITEST names; ARGS: --help lists them
	$(BIN)/python tests/critest/run.py --image $(IMAGE) $(ARGS)

kubelet: test-packages environment image ## pods of a kubelet, which KATA_TEST_KUBELET names; ARGS: --help lists them
	$(BIN)/python tests/kubelet/run.py --image $(IMAGE) $(ARGS)

like-runc: test-packages environment image ## suites that others wrote, in a container here and with runc; ARGS: --help lists them
	$(BIN)/python tests/like_runc/run.py --image $(IMAGE) $(ARGS)

test-rig: test-packages environment image ## tests on a KVM that runs unmodified guests: this host's, or one in the rig, an emulated host
	$(BIN)/python tests/rig/run.py --image $(IMAGE) --deadline 2700 --prefer-host -- pytest -m rig tests/integration $(ARGS)

rig: environment image ## a shell in the rig, or one command: make rig ARGS='kata-ctl check'
	$(BIN)/python tests/rig/run.py --image $(IMAGE) -- $(ARGS)

fuzz: environment ## a minute of coverage-guided fuzzing for each parser of hostile input, 15 s in make test; FUZZ_SECONDS
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(PIP) install --require-hashes --only-binary :all: --requirement $(LOCK)/fuzz.txt || \
		{ echo "make fuzz needs atheris, which could not be installed for $$($(BIN)/python -V) on $$(uname -m)"; exit 1; }
	$(BIN)/python tests/fuzz/all.py --seconds $(FUZZ_SECONDS)

chaos: environment ## the fault matrix: each fault at each step of a pod's life; ROUNDS=1000 draws so many, SEED
	$(BIN)/python tests/chaos/run.py --rounds $(or $(ROUNDS),0) --seed $(or $(SEED),1) $(ARGS)

soak: test-packages environment image ## MINUTES (10) of operations on pods: nothing left, lost or grown; ARGS: --help lists them
	$(BIN)/python tests/soak/run.py --image $(IMAGE) --minutes $(or $(MINUTES),10) $(ARGS)

mutate: environment ## whether the unit tests notice a mistake in a module: MODULE names some; ARGS='--sample 20'
	$(BIN)/python tests/mutate/run.py $(MODULE) $(ARGS)

image: environment ## build the guest image, or see that it is up to date
	@$(BIN)/kata-ctl image build --output $(IMAGE)

bench: export KATA_BENCH_RESULTS = $(CURDIR)/build/bench/results.jsonl
bench: export KATA_TEST_IMAGE = $(IMAGE)
bench: environment image ## benchmarks: ratios measured side by side in one run, and one table of all of them
	@mkdir -p build/bench && rm -f $(KATA_BENCH_RESULTS)
	$(BIN)/python tests/benchmarks/sandbox.py $(ARGS)
	$(BIN)/python tests/benchmarks/configuration.py
	$(BIN)/python tests/benchmarks/seccomp.py
	$(BIN)/python tests/benchmarks/network.py
	$(BIN)/python tests/benchmarks/boundary.py
	$(BIN)/python tests/benchmarks/pod_network.py
	$(BIN)/python tests/benchmarks/cri_pods.py
	$(BIN)/python tests/benchmarks/drivers.py
	$(BIN)/python tests/benchmarks/zygote.py
	@$(BIN)/python tests/benchmarks/results.py show --json $(KATA_BENCH_RESULTS) > build/bench/results.json
	@$(BIN)/python tests/benchmarks/results.py show $(KATA_BENCH_RESULTS)

bench-check: environment ## compare the last make bench with a kept one: BASELINE=results.json of the same host
	@$(BIN)/python tests/benchmarks/results.py check build/bench/results.json $(BASELINE)

restarts: environment image ## descriptors and disk space that a pod holds, over 100 restarts of a container
	KATA_TEST_IMAGE=$(IMAGE) $(BIN)/python tests/benchmarks/restarts.py $(ARGS)

clock: environment image ## how far a guest's clock goes from a busy host's in MINUTES (30)
	KATA_TEST_IMAGE=$(IMAGE) $(BIN)/python tests/benchmarks/clock.py --minutes $(or $(MINUTES),30) $(ARGS)

bench-rig: environment image ## the in-process machine beside QEMU's, and networks of pods in both, on KVM: tables of ratios
	$(BIN)/python tests/rig/run.py --image $(IMAGE) --deadline 2700 --prefer-host -- python tests/benchmarks/beside_qemu.py $(ARGS)
	$(BIN)/python tests/rig/run.py --image $(IMAGE) --deadline 2700 --prefer-host -- python tests/benchmarks/pod_network.py --machines $(ARGS)

protos: environment ## generate the protobuf modules from their .proto files
	@for folder in $(PROTOS); do \
		root=$${folder%%/*}; \
		$(BIN)/python -m grpc_tools.protoc -I$$root --python_out=$$root --pyi_out=$$root $$folder/*.proto || exit 1; \
	done

check-protos: protos ## fail when the generated modules differ from what is checked in
	@git diff --exit-code --stat -- '*_pb2.py' '*_pb2.pyi' || { echo "generated code is out of date: run make protos and commit"; exit 1; }

lock: ## lock the dependencies, with hashes, in release/lock; make lock ARGS=--upgrade takes newer ones
	@test -x build/lock/bin/uv || { $(PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet uv; }
	$(call compile,development,--extra dev)
	$(call compile,runtime,--constraint $(LOCK)/development.txt)
	$(call compile,fuzz,--extra fuzz --constraint $(LOCK)/development.txt)

# Writes one file of the lock, for every Python and machine at once.
compile = @build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' $(2) $(ARGS) pyproject.toml --output-file $(LOCK)/$(1).txt

sbom: environment ## build the wheel, and its bill of materials (CycloneDX), in dist
	@$(BIN)/python release/project_wheel.py --output dist

confinement-page: environment ## write the tables of docs/threat-model.md; ARGS: a file with kata-ctl confinement --json SANDBOX
	$(BIN)/python -m kata_runtime.ctl.confinement_page docs/threat-model.md $(ARGS)

filters: environment ## compile the seccomp policies, after one was changed; the programs are checked in
	$(BIN)/python -m kata_hypervisor.compiled_policies

format: environment ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: environment ## install the shim's two names and kata-zygote into /usr/local/bin, and its units, for this checkout's environment
	$(BIN)/kata-ctl shim install /usr/local/bin
	$(BIN)/kata-ctl zygote install /usr/local/bin

clean: ## remove the Python environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
