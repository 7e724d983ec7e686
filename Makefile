# One command runs the workbook, one tests it:  make run   make test
#
#   make run                  notebook 00 on the models that come with the repository (minutes, two cores)
#   make run SETUP=digits     all notebooks but 00, training included, on bundled digits
#   make run SETUP=lfw64      the same on real faces; DRY=1 only prints the stages and the hours left
#   make publish SETUP=lfw64  copies results/runs/<setup>/ into the committed results
#   make test, make test-all  lint, unit tests, nbval; test-all adds what is marked slow
#   make bench                speed and memory of the attack beside the published way; SAVE=PATH writes a CSV
#   make lab                  JupyterLab
#   make smoke                re-executes results/smoke, the reference of nbval
#   make clean                removes the environment and tool caches, never results
#
# DEVICE=cpu|cuda|mps   default: the best there is
# TORCH_INDEX=URL       take torch and torchvision from another wheel index (CPU only, another CUDA)
# PYTHON=python3.12     the interpreter that makes .venv

SHELL := /bin/sh
PYTHON ?= python3
SETUP ?=
DRY ?=
DEVICE ?=
SAVE ?=
TORCH_INDEX ?=
# Always `python -m tool`: the scripts in .venv/bin carry absolute paths, which break on spaces and on moving.
RUN := .venv/bin/python
WORKERS := 2

export PYTHONNOUSERSITE := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
ifneq ($(strip $(DEVICE)),)
export DEVICE
endif

.DEFAULT_GOAL := help
.PHONY: help env run publish smoke bench lab lint test test-all clean

help:
	@sed -n 's/^#\( \{0,1\}\)/\1/p;/^SHELL/q' Makefile

# The environment is complete when .venv/.complete names this lock file, this project file and this folder.
# It is written last, so an interrupted installation is repeated; pip then keeps what it has.
env:
	@set -e; \
	wanted="$$(cat requirements.lock pyproject.toml | cksum) $$(pwd)"; \
	old="$$(cat .venv/.torch-index 2>/dev/null || true)"; \
	index="$(strip $(TORCH_INDEX))"; index="$${index:-$$old}"; \
	if [ "$$(cat .venv/.complete 2>/dev/null)" = "$$wanted" ] && [ "$$index" = "$$old" ] \
	  && $(RUN) -c '' 2>/dev/null; then exit 0; fi; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' 2>/dev/null || { \
	  echo "error: expected Python 3.11.5 or newer, got $$("$(PYTHON)" --version 2>/dev/null || echo "no $(PYTHON)");" \
	    "install one and name it: make ... PYTHON=python3.12" >&2; exit 2; }; \
	if [ -n "$$index" ]; then \
	  echo "Installing into .venv, torch from $$index."; \
	elif [ "$$(uname -s)-$$(uname -m)" = Linux-x86_64 ]; then \
	  echo "Installing into .venv: about 3 GB to download and 6 GB on disk, most of it CUDA libraries of torch."; \
	  echo "Without an NVIDIA GPU: make ... TORCH_INDEX=<PyTorch's index of CPU wheels> needs about 1.5 GB on disk."; \
	else \
	  echo "Installing into .venv: about 0.5 GB to download and 1.5 GB on disk."; \
	fi; \
	rm -f .venv/.complete; quiet=-q; [ -t 1 ] && quiet=; \
	$(RUN) -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear .venv || { \
	  echo "error: $(PYTHON) -m venv failed; install the venv module (Debian: python3-venv)" >&2; exit 2; }; \
	if [ -n "$$index" ]; then \
	  force=; [ "$$old" = "$$index" ] || force=--force-reinstall; \
	  $(RUN) -m pip install $$quiet --no-deps $$force --index-url "$$index" -c requirements.lock torch torchvision; \
	  printf '%s' "$$index" > .venv/.torch-index; \
	fi; \
	$(RUN) -m pip install $$quiet -c requirements.lock -e '.[test]'; \
	$(RUN) -m ipykernel install --sys-prefix >/dev/null 2>&1; \
	printf '%s' "$$wanted" > .venv/.complete; \
	echo "Environment ready: .venv"

run: env
	@$(RUN) -m lib.run $(if $(strip $(SETUP)),setup "$(SETUP)" $(if $(filter-out 0,$(DRY)),--dry),start)

publish: env
	@test -n "$(strip $(SETUP))" || { echo "error: expected a setup, got none; make publish SETUP=lfw64" >&2; exit 2; }
	@$(RUN) -m lib.run publish "$(SETUP)"

smoke: env
	@$(RUN) -m lib.run smoke

bench: env
	@$(RUN) -m tests.bench $(if $(strip $(SAVE)),--save "$(SAVE)")

lab: env
	@$(RUN) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks

STRIP := --keep-id --drop-tagged-cells=injected-parameters \
  --extra-keys "metadata.papermill cell.metadata.papermill metadata.language_info"

lint: env
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m nbstripout --verify $(STRIP) notebooks/*.ipynb

# nbval executes the committed copies for real: their tables must not land in results/. In the order of their numbers:
# by default those with the fewest cells come last, and among them are the longest.
NBVAL = scratch="$$(mktemp -d)"; trap 'rm -rf "$$scratch"' EXIT; \
  RESULTS_DIR="$$scratch" MIDRE_CACHE="$${MIDRE_TEST_CACHE:-$$scratch/cache}" OMP_NUM_THREADS=1 \
  MIDRE_TRAIN=1 MIDRE_PROGRESS=/dev/null \
  $(RUN) -m pytest --nbval-lax --nbval-current-env --nbval-sanitize-with tests/nbval.cfg \
  --nbval-cell-timeout 900 -p no:python -n $(WORKERS) --dist loadscope --no-loadscope-reorder -q results/smoke

test: lint
	@$(RUN) -m pytest -q -n $(WORKERS) -m "not slow and not cuda"
	@$(NBVAL)

test-all: lint
	@$(RUN) -m pytest -q -n $(WORKERS)
	@$(NBVAL)

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .snakemake midre_workbook.egg-info build dist
