PYTHON ?= python3
BENCH ?= single_clip
BIN := .venv/bin
CLIENTS := tests/support/clients
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Compiled on all cores, where pip would take one. Packages hold files for other Pythons, which pip passes over, too.
INSTALL = $(PIP) install --no-compile -c constraints.txt -e '$(1)' && \
  { $(BIN)/python -m compileall -qq -j 0 .venv/lib || true; }

PYTHONS := 3.11 3.12 3.13
# Fails with one line unless the program $(1) is such a Python; $(2) is what to do then.
CHECK_PYTHON = version=$$($(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version="none"; \
  case " $(PYTHONS) " in *" $$version "*) ;; *) \
  echo "mochi-serve runs on Python $(PYTHONS); '$(1)' is $$version: $(2)" >&2; exit 1;; esac

# Only `make serve DATA=...` counts: a variable of that name in someone's shell is not meant for us.
ifeq ($(origin DATA),command line)
export MOCHI_SERVE__DATA_DIR := $(DATA)
endif
ifeq ($(origin CONFIG),command line)
export MOCHI_SERVE_CONFIG := $(CONFIG)
endif

# A file of tests goes to one process, and so does a folder that shares a server; see tests/support/groups.py.
TESTS = env -u PYTHONDONTWRITEBYTECODE OMP_WAIT_POLICY=passive $(BIN)/pytest -m "not slow" --no-loadscope-reorder
test-long: export HYPOTHESIS_PROFILE ?= long

.NOTPARALLEL:

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: serve
serve: .venv/.serve ## Install and run the server; DATA=folder and CONFIG=configs/profile.yaml are optional
	@exec $(BIN)/mochi-serve serve

# The types are checked while the first tests run, which wait for servers to start.
.PHONY: test
test: lint ## All that a change must pass
	@$(BIN)/mypy & types=$$!; $(TESTS) -n 4; tests=$$?; wait $$types && exit $$tests

.PHONY: lint
lint: .venv/.dev ## Check style, formatting, and which folder imports which
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

.PHONY: types
types: .venv/.dev ## Check the types
	@$(BIN)/mypy

.PHONY: unit
unit: .venv/.dev ## Run the tests that need no Ray, server or socket: the inner loop
	@$(TESTS) -n 2 tests/unit

.PHONY: integration
integration: .venv/.dev ## Run the tests against real databases, stores, sockets and Ray actors
	@$(TESTS) -n 3 tests/database tests/integration

.PHONY: system
system: .venv/.dev ## Run the tests against a whole server, the command line and the page in a browser
	@$(TESTS) -n 3 tests/system

.PHONY: tools
tools: .venv/.dev ## Run the tests of the benchmarks, the included model's training and the cluster's files
	@$(TESTS) -n 2 tests/tools

.PHONY: coverage
coverage: .venv/.dev ## Run what `make test` runs in its own processes, and print the lines that no test reaches
	@$(TESTS) -n 3 --cov=serve_app --cov=deployments --cov-report=term-missing:skip-covered $(ARGS)

.PHONY: test-long
test-long: .venv/.dev ## Run the slow tests too
	@$(BIN)/pytest

# For it alone: Triton is 250 MB to fetch and 900 on the disk, and nothing else here needs it on a CPU.
KERNELS := .kernels
.PHONY: kernels-test
kernels-test: .venv/.dev ## Run the tests of the GPU's kernels in Triton's interpreter, which it installs
	@test -d $(KERNELS)/triton || $(PIP) install --no-deps --target $(KERNELS) triton==3.8.0
	@PYTHONPATH=$(KERNELS) $(BIN)/pytest -n 0 tests/unit/mochi/test_norm_kernels.py tests/unit/mochi/test_fp8_attention.py

# 110 MB of schemas on the disk, and nothing else here needs them.
.PHONY: manifests-test
manifests-test: .venv/.dev ## Check the cluster's manifests against Kubernetes' own schemas, which it installs
	@test -d .manifests/kubernetes_validate || $(PIP) install --no-deps --target .manifests kubernetes-validate==1.37.0 importlib-resources==7.1.0
	@PYTHONPATH=.manifests $(BIN)/pytest -n 0 tests/tools/test_kuberay.py

# What they need is theirs alone: none of it comes into the product's environment.
.PHONY: clients
clients: .clients/.openai-oldest .clients/.litellm .clients/.node ## Install other people's clients, which tests run, into .clients (0.5 GB)

.PHONY: clients-test
clients-test: .venv/.dev clients ## Run the tests with all other people's clients: the oldest `openai`, LiteLLM, its proxy
	@$(BIN)/pytest -n 0 tests/system/server/clients

.PHONY: monitoring
monitoring: .venv/.dev ## Write the dashboards and alert rules of monitoring/ anew
	@$(BIN)/python -m monitoring

.PHONY: chaos
chaos: .venv/.dev ## Break each part of a running server under 200 jobs; ARGS="--seed 7 --faults sampler,ray"
	@$(BIN)/python -m tests.chaos $(ARGS)

# Root on Linux with CAP_NET_ADMIN and CAP_SYS_ADMIN, and redis-server: the pods are namespaces.
.PHONY: cluster-test
cluster-test: .venv/.dev ## Ray nodes as pods on this machine: placement, kills under jobs, a second cluster; ARGS="--parts placement"
	@$(BIN)/python -m tests.cluster $(ARGS)

.PHONY: upgrade-test
upgrade-test: .venv/.dev ## A second cluster takes over from one that has jobs, on this machine
	@$(BIN)/python -m tests.cluster --parts takeover $(ARGS)

.PHONY: bench
bench: .venv/.dev ## Run one benchmark; BENCH=name of a file in benchmarks/
	@$(BIN)/python benchmarks/$(BENCH).py

.PHONY: train-shapes
train-shapes: .venv/.serve ## Train the included model from nothing, under 2 hours on 2 cores; a stopped run goes on
	@OMP_WAIT_POLICY=passive $(BIN)/python -m models.shapes.train $(ARGS)

.PHONY: evaluate-shapes
evaluate-shapes: .venv/.dev ## Measure the included model: 400 held-out prompts, steps, guidance, sizes, figures; 20 minutes
	@OMP_WAIT_POLICY=passive $(BIN)/python -m models.shapes.evaluate $(ARGS)

.PHONY: format
format: .venv/.dev ## Mend style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: constraints
constraints: ## Pin the newest allowed packages in constraints.txt
	@rm -rf .venv && $(MAKE) --no-print-directory $(BIN)/python
	@$(PIP) install -e '.[dev]'
	@{ head -1 constraints.txt; $(PIP) freeze --all --exclude-editable --exclude pip \
	  | sed -E '/^(nvidia|cuda|triton)/d; s/\+[a-z0-9.]+$$//' | sed -E 's/^[^=]*/\L&/; :a; s/^([^=]*)[_.]/\1-/; ta' | LC_ALL=C sort; } > .venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt && touch .venv/.serve .venv/.dev

.PHONY: clean
clean: ## Remove the environment and the caches; data/ stays
	@rm -rf .venv .clients .manifests .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The stamps are written after an install that succeeded, so that a broken one is done again.
.venv/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@$(call CHECK_PYTHON,$(BIN)/python,remove .venv and call make again)
	@echo "Installing mochi-serve into .venv (a minute or two)..."
	@$(call INSTALL,.)
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@$(call CHECK_PYTHON,$(BIN)/python,remove .venv and call make again)
	@echo "Installing mochi-serve and its development tools into .venv (a minute or two)..."
	@$(call INSTALL,.[dev])
	@touch .venv/.serve $@

.clients/.openai-oldest: $(CLIENTS)/openai-oldest.txt | .venv/.dev
	@rm -rf .clients/openai-oldest
	@$(PIP) install --no-compile --no-deps --target .clients/openai-oldest -r $<
	@touch $@

.clients/.litellm: $(CLIENTS)/litellm.txt | .venv/.dev
	@echo "Installing LiteLLM into .clients (a minute or two)..."
	@$(BIN)/python -m venv --clear --without-pip .clients/litellm
	@$(PIP) --python .clients/litellm/bin/python install --no-compile --no-deps -r $<
	@touch $@

# npm is no part of what the product needs; without it the tests of Node's package are skipped.
.clients/.node: $(CLIENTS)/package.json $(CLIENTS)/package-lock.json
	@mkdir -p .clients/node && cp $^ .clients/node
	@if command -v npm >/dev/null; then \
	  npm ci --prefix .clients/node --no-audit --no-fund --loglevel=error >/dev/null && touch $@; \
	else \
	  echo "npm is not there: the tests of Node's package are skipped" >&2; \
	fi

$(BIN)/python:
	@$(call CHECK_PYTHON,$(PYTHON),name another one: make PYTHON=python3.12 $(MAKECMDGOALS))
	@$(PYTHON) -m venv .venv >/dev/null || { \
	  rm -rf .venv; \
	  echo "'$(PYTHON)' cannot make environments with pip: install the package python3-venv of your system and try again" >&2; \
	  exit 1; }
