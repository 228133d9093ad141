# `make demo` runs the main job, `make test` passes the tests. Both bring everything they need, Java included.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What `pip install .` gives people with a C compiler; the environment above runs the sources as they are.
COMPILED := build/compiled
COMPILED_READY := $(COMPILED)/.ready
# What only a release needs.
RELEASING := build/releasing

.PHONY: demo test test-long test-compiled test-backends backends lint check format docs bench accuracy gpu gpu-bundle policies overhead paper soak fuzz compiled release clean

demo: $(READY)
	$(BIN)/ts-parity demo --out demo-out --force $(ARGS)

# Three at once on two cores, because most tests wait; the longest go first. ARGS="-n 0" for one after the other.
AT_ONCE := -n 3 --dist loadfile --no-loadscope-reorder

test: lint
	$(BIN)/python -m pytest $(AT_ONCE) -m "not backends and not long" $(ARGS)

# Files and tests that take long, half as long again as the rest together: examples typed, the demo, real fleets.
test-long: $(READY)
	$(BIN)/python -m pytest $(AT_ONCE) -m "long and not backends" $(ARGS)

# Real servers other than TorchServe, each installed in build/backends/NAME: 1.1 GB in all. Where no package registry
# can be reached, their tests are skipped.
BACKENDS ?= triton litserve kserve
test-backends: $(READY)
	$(BIN)/python benchmarks/backend_servers.py $(BACKENDS)
	$(BIN)/python -m pytest -n 0 -m backends tests/backends $(ARGS)

# The policies before these servers, on emulated machines: half an hour. ARGS=--quick: ten minutes, and no table.
backends: $(READY)
	$(BIN)/python benchmarks/backend_servers.py $(BACKENDS)
	$(BIN)/python benchmarks/backends.py --servers $(BACKENDS) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest tests/test_layers.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, in build/site: open build/site/index.html. Needs no network; a warning is an error.
docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site $(ARGS)

bench: $(READY)
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/simulator.py

# Beside nginx and HAProxy: apt-get install nginx-light haproxy wrk. Half an hour; ARGS=--quick for a trial.
# It fails if a target is missed; the tables are renewed all the same.
overhead: $(COMPILED_READY)
	PYTHONPATH=$(COMPILED) $(BIN)/python benchmarks/overhead.py $(ARGS); code=$$?; \
	$(BIN)/python benchmarks/overhead.py --tables; exit $$code

# A million requests between clients and instances that misbehave: minutes on two cores.
soak: $(COMPILED_READY)
	PYTHONPATH=$(COMPILED) $(BIN)/python benchmarks/soak.py $(ARGS)
	$(BIN)/python benchmarks/soak.py --tables

# A hundred thousand hostile connections, and the property tests with new seeds: minutes on one core.
fuzz: $(READY)
	$(BIN)/python -m pytest -m "hypothesis and not torchserve" --hypothesis-profile dice
	$(BIN)/python -m tests.proxy.http.fuzzing --cases 100000 --seed 0 $(ARGS)

# DATA: a folder with mnist.npz, fashion_mnist.npz and cifar10_jpeg.zip. Hours on two cores; an interrupted run goes on.
accuracy: $(READY)
	$(BIN)/python benchmarks/accuracy.py --data "$(DATA)" $(ARGS)
	$(BIN)/python benchmarks/end_to_end.py

# The paper's figures 9 to 13 on real TorchServe. Most of a day on two cores and 16 GB; an interrupted run goes on.
# ARGS=--quick: figure 9 at one load, in minutes. With apt-get install nginx-light; pip install hedge-python.
paper: $(READY)
	$(BIN)/python benchmarks/paper.py $(ARGS)

# On a machine with an NVIDIA GPU: seven minutes. ARGS="--tiny --device cpu" anywhere, to see that it runs.
gpu: $(READY)
	$(BIN)/python benchmarks/gpu.py $(ARGS)
	$(BIN)/python benchmarks/gpu.py --tables

# What a bare machine with a GPU and torch needs, in folders of at most 60 MB, and one command that runs it there.
# ARGS="--data DIR" for CIFAR-10 as well.
gpu-bundle: $(READY)
	$(BIN)/python benchmarks/gpu_bundle.py build/gpu-bundle $(ARGS)

# Every policy in every kind of trouble, simulated. Hours on one core; an interrupted run goes on.
policies: $(READY)
	$(BIN)/python benchmarks/policies.py $(ARGS)
	$(BIN)/python benchmarks/policies.py --tables
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/ablation.py --tables
	$(BIN)/python benchmarks/outages.py
	$(BIN)/python benchmarks/proxies.py
	$(BIN)/python benchmarks/frontier.py
	$(BIN)/python benchmarks/frontier.py --tables
	$(BIN)/python benchmarks/target.py
	$(BIN)/python benchmarks/target.py --tables

# One stamp for the whole environment: remade when what it is made from changes.
$(READY): setup.py constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else f'ts_parity needs Python 3.10 to 3.12, this is {v[0]}.{v[1]}; try make PYTHON=python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	-$(BIN)/python -m tests.class_data
	touch $(READY)

compiled: $(COMPILED_READY)

# The tests go along, or the sources beside them would be imported instead.
$(COMPILED_READY): $(READY) setup.py $(shell find ts_parity -name '*.py')
	rm -rf $(COMPILED)
	TS_PARITY_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(COMPILED)/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target $(COMPILED) $(COMPILED)/wheel/*.whl
	touch $(COMPILED_READY)

test-compiled: $(COMPILED_READY)
	rm -rf $(COMPILED)/tests
	cp -r tests benchmarks tools pyproject.toml $(COMPILED)
	cd $(COMPILED) && PYTHONPATH=. ../../$(BIN)/python -m pytest $(AT_ONCE) tests/engine tests/proxy tests/tools/test_bare.py -m "not torchserve" $(ARGS)

# Everything that is published, in dist/: a quarter of an hour. docs/releasing.md.
release: $(RELEASING)/.ready
	$(RELEASING)/bin/python tools/release.py $(ARGS)

$(RELEASING)/.ready: tools/requirements.txt
	$(PYTHON) -m venv --clear $(RELEASING)
	$(RELEASING)/bin/python -m pip install --quiet --requirement tools/requirements.txt
	touch $(RELEASING)/.ready

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out
