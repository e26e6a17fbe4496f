# Two commands do everything on a fresh machine: make demo, make test.
# What they need first (a virtual environment, torch, the native build) is made when it is missing or out of date.

PYTHON ?= python3
VENV   ?= .venv
# The torch that the library is developed and tested with; any from 2.10 on will do.
TORCH  ?= torch==2.13.0
# One that torchvision has a CPU build for, for the networks of others.
MODELS_TORCH ?= torch==2.14.1 torchvision==0.29.1

# A file of tests stays with one process, which builds what they share once; tests/conftest.py says which files come first.
# Tests wait for what they start, and for the disk: half as many processes again as there are cores keep these busy.
# A process that crashes, or a test that hangs, ends the run: a process that takes the place of another can wait for ever.
WORKERS  := $(shell n=$$(( $$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2) * 3 / 2 )); echo $$(( n < 8 ? n : 8 )))
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --timeout 900

BIN    := $(VENV)/bin
NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml

# What the tests build against beside the torch above: the headers of the oldest one that is supported and of one between,
# and the oldest setuptools.
HEADERS    := $(VENV)/headers/torch-2.10 $(VENV)/headers/torch-2.11
SETUPTOOLS := $(VENV)/setuptools-oldest

.PHONY: demo test test-fast test-abi test-models test-hostile test-nodes build-time check types types-of-package types-of-tests format hooks bench site info clean

demo: $(VENV)/.built
	$(BIN)/hrrl demo --out runs/demo

test: check $(HEADERS) $(SETUPTOOLS)
	HRRL_OTHER_HEADERS=$(subst $() ,:,$(abspath $(HEADERS))) HRRL_OLDEST_SETUPTOOLS=$(abspath $(SETUPTOOLS)) \
	  $(BIN)/python -m pytest $(PARALLEL) -m "not gpu"

test-fast: $(VENV)/.built
	$(BIN)/python -m pytest $(PARALLEL) -m "not gpu and not slow"

# Damaged inputs by the thousand, a slice of which is among the tests.
test-hostile: $(VENV)/.built
	$(BIN)/python tests/hostile --trials 10000

# Two machines, as two network namespaces: needs iproute2, and root or a system that lets users have namespaces.
test-nodes: $(VENV)/.built
	unshare --map-root-user --net --mount sh -c \
	  'mount -t tmpfs tmpfs /run && exec $(BIN)/python tests/two_nodes.py'

# The library built here, under the oldest torch that is supported and the newest one. They take several GB.
test-abi: $(VENV)/.built $(VENV)-torch-oldest/.tools $(VENV)-torch-newest/.tools
	HRRL_OTHER_PYTHONS=$(abspath $(VENV)-torch-oldest/bin/python):$(abspath $(VENV)-torch-newest/bin/python) \
	  $(BIN)/python -m pytest tests/test_abi.py -rP

$(VENV)-torch-oldest/.tools: OTHER_TORCH = torch==2.10.*
$(VENV)-torch-newest/.tools: OTHER_TORCH = torch
$(VENV)-torch-oldest/.tools $(VENV)-torch-newest/.tools: | $(VENV)/.tools
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/pip install --quiet "$(OTHER_TORCH)" numpy pytest hypothesis
	touch $@

# Networks of torchvision, timm and transformers, in an environment where these fit a torch. It takes several GB.
test-models: $(VENV)/.built $(VENV)-models/.tools
	HRRL_REAL_MODELS=yes PYTHONPATH=$(CURDIR) $(VENV)-models/bin/python -m pytest tests/test_real_models.py -rP

$(VENV)-models/.tools: pyproject.toml | $(VENV)/.tools
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
	  > $(@D)/needs.txt
	$(@D)/bin/pip install --quiet $(MODELS_TORCH) timm transformers pytest -r $(@D)/needs.txt
	touch $@

$(VENV)/headers/torch-%: | $(VENV)/.tools
	$(BIN)/python tools/torch_headers.py $* $@

$(SETUPTOOLS): | $(VENV)/.tools
	rm -rf $@.part
	$(BIN)/pip install --quiet --no-warn-conflicts --target $@.part "setuptools==65.5.*" wheel
	mv $@.part $@

build-time: $(VENV)/.tools
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/build_time.py

check: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory -j2 types
	$(BIN)/clang-format --dry-run --Werror $(filter csrc/%,$(NATIVE)) $(wildcard tests/*.cpp tests/cuda/emulation/*.h tests/cuda/emulation/*.cpp)

# A hook runs it too, so it sets nothing up. mypy knows a file conftest.py by its name alone, and takes one at a time.
types: types-of-package types-of-tests

types-of-package:
	$(BIN)/mypy

types-of-tests:
	$(BIN)/mypy --config-file tests/mypy.ini
	$(BIN)/mypy --config-file tests/mypy.ini tests/cuda/conftest.py
	$(BIN)/mypy --config-file tests/mypy.ini tests/ops/conftest.py

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter csrc/%,$(NATIVE)) $(wildcard tests/*.cpp tests/cuda/emulation/*.h tests/cuda/emulation/*.cpp)

hooks: $(VENV)/.tools
	$(BIN)/pre-commit install

bench: $(VENV)/.built
	$(BIN)/pip install --quiet --group bench
	mkdir -p runs
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json=runs/bench.json
	$(BIN)/python bench/table.py runs/bench.json

# The pages, and every public docstring, with search: runs/site/docs/index.html.
site: $(VENV)/.site
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --jobs auto -c docs . runs/site

$(VENV)/.site: pyproject.toml | $(VENV)/.built
	$(BIN)/pip install --quiet --group site
	touch $@

info: $(VENV)/.built
	$(BIN)/hrrl info

clean:
	rm -rf $(VENV) $(VENV)-torch-oldest $(VENV)-torch-newest $(VENV)-models build runs *.egg-info hrrl_ext/*.so

# --group reads the lists of tools in pyproject.toml. The extension is built in the environment itself, so that torch is
# fetched once; `pip install -e .` on its own builds in isolation just as well.
$(VENV)/.tools: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet "$(TORCH)" setuptools cmake ninja pybind11 numpy --group test --group lint
	touch $@

$(VENV)/.built: $(VENV)/.tools $(NATIVE)
	HRRL_WERROR=ON $(BIN)/pip install --quiet --no-build-isolation --editable ".[images,plots]"
	touch $@
