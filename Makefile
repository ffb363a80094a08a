# Long Range Arena. `make` lists the targets. Words of the form key=value go to the Python command unchanged.
# Needs GNU make 3.81 or newer and Python 3.11 to 3.13; everything else is set up in .venv on first use.

.DEFAULT_GOAL := help
.SUFFIXES:
MAKEFLAGS += --no-print-directory

##@ Experiments
lra: .venv/.ready ## train and test one run:  make lra task=listops attn=mra2 train.lr=3e-4
	@exec $(PY) -m lra.train $(WORDS) $(ARGS)

sweep: .venv/.ready ## many runs:  make sweep sweep=attention task=listops seed=0,1,2
	@exec $(PY) -m lra.sweep $(WORDS) $(ARGS)

watch: .venv/.ready ## the runs under way, in the terminal
	@exec $(PY) -m lra.watch $(WORDS) $(ARGS)

compare: .venv/.ready ## all runs beside the published numbers
	@exec $(PY) -m lra.results $(WORDS) $(ARGS)

collect: .venv/.ready ## runs of the recipes into runs/published/ours.csv:  make collect from=home/runs
	@exec $(PY) -m lra.collect $(WORDS) $(ARGS)

results: .venv/.ready ## our own results beside the published ones: docs/results.md, its picture, the README's table
	@exec $(PY) -m lra.verdict_page $(WORDS) $(ARGS)

dashboard: $(if $(filter trackio,$(view)),.venv/.dashboard,.venv/.ready) ## runs in W&B's terminal view:  make dashboard view=trackio
	@exec $(PY) -m lra.dashboard $(WORDS) $(ARGS)

variants: .venv/.ready ## every attention: paper, cost, exact limit, parameters
	@exec $(PY) -m lra.variants $(WORDS) $(ARGS)

bench: .venv/.ready ## speed and memory:  make bench name=speed; the papers' studies:  make bench study=approximation size=small
	@exec $(PY) -m benchmarks.$(BENCH) $(WORDS) $(ARGS)

qkv: .venv/.ready ## q, k, v of a trained model, or generated ones, as a file for the studies
	@exec $(PY) -m benchmarks.studies.qkv $(WORDS) $(ARGS)

figures: .venv/.ready ## the figures of the studies, drawn from their CSV files
	@exec $(PY) -m benchmarks.studies.figures $(WORDS) $(ARGS)

kernels: .venv/.ready ## compile the kernels ahead of their first use: for CPUs, and for GPUs where nvcc is
	@exec $(PY) -m csrc.zoo

##@ Data
data: .venv/.ready ## prepare a task's data:  make data task=listops
	@exec $(PY) -m lra.prepare $(WORDS) $(ARGS)

data-doctor: .venv/.ready ## what a sceptic asks of the data first
	@exec $(PY) -m lra.prepare --doctor $(WORDS) $(ARGS)

##@ Development
setup: .venv/.ready ## create .venv from requirements.lock (the other targets do it by themselves)
	@$(PY) -c 'import sys; print("ready: Python %d.%d.%d in .venv" % sys.version_info[:3])'

test: .venv/.ready ## run the tests:  make test ARGS='-k listops'
	@exec $(PY) -m pytest -q -n logical --maxprocesses 8 --dist worksteal $(ARGS)

test-parity: .venv/.peers ## compare with the public implementations (installs them)
	@exec $(PY) -m pytest -q -n logical --maxprocesses 8 -o addopts=--strict-markers tests/parity $(ARGS)

test-gpu: .venv/.ready ## the tests that need a GPU
	@exec $(PY) -m tests.gpu $(ARGS)

test-browser: .venv/.dashboard ## the report and the dashboard in headless Chromium
	@exec $(PY) -m tests.browser $(ARGS)

test-faults: .venv/.ready ## every attack on runs, data and files in full, up to an hour:  make test-faults seed=7
	@exec $(PY) -m tests.faults $(WORDS) $(ARGS)

test-cluster: .venv/.ready ## a sweep on a real Slurm, set up on this machine and taken down again
	@exec $(PY) -m tests.cluster $(ARGS)

# torch's own store of memory would hide what is read or written beyond an array.
test-gpu-sanitizer: .venv/.ready ## every GPU kernel under compute-sanitizer
	@command -v compute-sanitizer >/dev/null || { echo "error: no compute-sanitizer on the PATH; it comes with CUDA" >&2; exit 2; }
	@for tool in memcheck racecheck; do echo "$$tool:"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 $(PY) -m tests.gpu.all_kernels || exit; \
	done

check-cuda: .venv/.ready ## compile the GPU kernels; registers and spills of each
	@exec $(PY) -m csrc.registers

peers: .venv/.peers ## install the public implementations:  make bench peers=all
	@echo "ready: the public implementations are in .venv"

lint: .venv/.ready ## check style and types
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)
	@$(PY) -m mypy

format: .venv/.ready ## put the code in its standard form
	@$(PY) -m ruff check --fix-only --quiet $(CODE)
	@$(PY) -m ruff format $(CODE)

# For the maintainer, with uv on the PATH. What the locks have stays as long as pyproject.toml allows it.
lock: ## the locks again, from pyproject.toml, with uv:  make lock ARGS=--upgrade
	@command -v uv >/dev/null || { echo "error: no uv on the PATH; pip install uv, in an environment of its own" >&2; exit 2; }
	@sh -euc "$$LOCK" sh $(ARGS)

audit: .venv/.audit ## known vulnerabilities of what the locks name, by pip-audit (asks a service on the internet)
	@exec $(PY) -m tests.audit $(WORDS) $(ARGS)

licences: .venv/.peers .venv/.dashboard .venv/.audit ## docs/licences.md again, from what is installed
	@exec $(PY) -m tests.faults.licences

clean: ## remove caches and build products; runs and data stay
	@rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\n%s\n\n' "Options that are not key=value go in ARGS:  make lra ARGS='--cfg job'"

TARGETS := lra sweep watch compare collect results dashboard variants bench qkv figures kernels data data-doctor setup test test-parity test-browser test-faults test-cluster test-gpu test-gpu-sanitizer \
  check-cuda peers lint format lock audit licences clean help
.PHONY: $(TARGETS) FORCE
PY := .venv/bin/python
CODE := lra attention_zoo csrc benchmarks tests

# Words. Each VAR=VALUE of make's command line becomes one quoted word, whatever it contains. They are kept out of the
# environment, where make would expand the `$` in them.
GIVEN = $(foreach v,$(sort $(.VARIABLES)),$(if $(findstring command line,$(origin $v)),$v))
QUOTE = '$(subst ','\'',$1)'
NAMES := $(filter-out PYTHON ARGS MAKEFLAGS $(if $(filter bench,$(MAKECMDGOALS)),name study),$(GIVEN))
WORDS = $(foreach v,$(NAMES),$(call QUOTE,$v=$(value $v)))
$(foreach v,$(NAMES),$(eval unexport $v))
MAKEOVERRIDES :=

UNKNOWN := $(firstword $(filter-out $(TARGETS) .venv/.ready .venv/.peers .venv/.dashboard .venv/.audit,$(MAKECMDGOALS)))
$(if $(UNKNOWN),$(error no target '$(UNKNOWN)'; targets: $(TARGETS); other words have the form key=value))

BENCHMARKS := $(filter-out __init__ peers rows contenders counted meter taken parts soaked plain_loop baseline_losses timed,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py)))
BENCH := $(if $(filter name,$(GIVEN)),$(value name),speed)
STUDIES := approximation entropy efficiency
ifneq (,$(filter bench,$(MAKECMDGOALS)))
ifneq (,$(filter study,$(GIVEN)))
$(if $(filter $(value study),$(STUDIES)),,$(error study=$(value study) is not a study; there are $(STUDIES)))
$(if $(filter name,$(GIVEN)),$(error name=$(BENCH) and study=$(value study): one of the two))
BENCH := studies.$(value study)
endif
$(if $(filter $(BENCH),$(BENCHMARKS) $(STUDIES:%=studies.%)),,$(error name=$(BENCH) is not a benchmark; there are $(BENCHMARKS)))
endif

.venv/.peers: requirements-peers.lock .venv/.ready
	@echo "installing the public implementations (about 20 seconds) ..."
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes --no-build-isolation --compile --requirement $<
	@touch $@

.venv/.dashboard: requirements-dashboard.lock .venv/.ready
	@echo "installing trackio and selenium (about 10 seconds) ..."
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes --no-build-isolation --compile --requirement $<
	@touch $@

.venv/.audit: requirements-audit.lock .venv/.ready
	@echo "installing pip-audit (about 5 seconds) ..."
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes --no-build-isolation --compile --requirement $<
	@touch $@

# $1, which adds the extras $2 of pyproject.toml to the locks $3, made again. uv reads the old one for what may stay. torch goes into a lock
# of its own, without hashes; its packages for CUDA are left to it, pip is what .venv has, and Linux and macOS are all there is.
define LOCK
DROPPED="/^[^ ]/ { kept = !/^(torch|triton|pip|nvidia-.*|cuda-.*)==|_(platform|name) == '(win32|emscripten|nt)'/ } kept"
new=`mktemp -d`
trap 'rm -rf "$$new"' EXIT
relock() {
  lock=$$1 extras=$$2 base=$$3
  shift 3
  cat $$lock requirements-torch.lock > "$$new/made"
  uv pip compile pyproject.toml `printf -- '--extra %s ' $$extras` --universal --generate-hashes --no-annotate --no-header --quiet \
    `for file in $$base; do echo --constraint $$file; sed -n 's/^\([^#= ][^= ]*\)==.*/--no-emit-package \1/p' $$file; done` "$$@" --output-file "$$new/made"
  { grep '^#' $$lock; awk "$$DROPPED" "$$new/made"; } > "$$new/lock"
  if [ $$lock = requirements.lock ]; then
    { grep '^#' requirements-torch.lock; sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$$new/made"; } > "$$new/torch"
    cat "$$new/torch" > requirements-torch.lock
  fi
  cat "$$new/lock" > $$lock
}
relock requirements.lock dev "" "$$@"
base="requirements.lock requirements-torch.lock"
relock requirements-peers.lock peers "$$base" "$$@"
relock requirements-dashboard.lock "dashboard browser" "$$base" "$$@"
relock requirements-audit.lock audit "$$base" "$$@"
endef
lock: export LOCK := $(LOCK)

# Set-up. The stamp is written last and holds the path of the repository: a .venv that is half made, moved or broken is made
# again. The lock dies with the process that holds it, and keeps two makes apart.
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
VERSION := import sys; print(*sys.version_info[:2])
CANDIDATES := $(or $(PYTHON),python3 python3.11 python3.12 python3.13)
USABLE := .venv/bin/python -c '' 2>/dev/null \
  $(if $(PYTHON),&& [ "`$(PYTHON) -c '$(VERSION)'`" = "`.venv/bin/python -c '$(VERSION)'`" ])
READY := [ "`cat .venv/.ready 2>/dev/null`" = "`pwd -P`" ] && $(USABLE)

define LOCKED
import fcntl, os, sys
lock = open("requirements.lock", "r+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("another make is setting up .venv; waiting for it", flush=True)
    fcntl.flock(lock, fcntl.LOCK_EX)
os.set_inheritable(lock.fileno(), True)
os.execvp("sh", ["sh", "-euc", *sys.argv[1:]])
endef

define SET_UP
if [ .venv/.ready -nt requirements.lock ] && [ .venv/.ready -nt requirements-torch.lock ] && [ .venv/.ready -nt pyproject.toml ] && $(READY); then exit; fi
echo "setting up .venv (about 2 minutes) ..."
trap 'echo "set-up failed: put right what is named above, then run make again" >&2' EXIT
if [ -e .venv/.unfinished ] || ! { $(USABLE); }; then rm -rf .venv; "$$0" -m venv .venv; fi
rm -f .venv/.ready
: > .venv/.unfinished
pip() { .venv/bin/python -m pip --quiet --quiet --disable-pip-version-check "$$@"; }
sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/setuptools.lock
pip install --require-hashes --requirement .venv/setuptools.lock
pip install --require-hashes --compile --no-build-isolation --requirement requirements.lock
pip install --compile --no-build-isolation --requirement requirements-torch.lock
pip install --no-build-isolation --no-deps --config-settings editable_mode=compat --editable .
.venv/bin/python -m compileall -q lra attention_zoo
rm .venv/.unfinished
pwd -P > .venv/.ready
trap - EXIT
endef

.venv/.ready: export LOCKED := $(LOCKED)
.venv/.ready: export SET_UP := $(SET_UP)
.venv/.ready: requirements.lock requirements-torch.lock pyproject.toml $(shell $(READY) || echo FORCE)
	@for python in $(CANDIDATES); do \
	  if $$python -c '$(SUITABLE)' 2>/dev/null; then exec $$python -c "$$LOCKED" "$$SET_UP" $$python; fi; \
	done; echo 'error: $(or $(PYTHON),python3) is not Python 3.11 to 3.13 with venv; name one: make PYTHON=/path/to/python3.12' >&2; exit 2
