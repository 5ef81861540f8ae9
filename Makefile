# All commands of the project. `make` without a target lists them.

PYTHON ?= python3
# PyTorch's index of CPU wheels; the wheels on PyPI are CUDA builds of several GB. If empty, only PyPI is used.
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu
# Switches off the telemetry that ONNX Runtime's official builds send to Microsoft.
export ORT_DISABLE_TELEMETRY := 1
# Tests run in this number of processes; each of them computes with one thread.
PROCESSES ?= 2
# Additional arguments, for example: make train ARGS="--epochs 1"
ARGS ?=

DEV := .venv-dev/bin
# Installs the packages for developers.
INSTALL ?= $(DEV)/pip install
SOURCES := app training tests
GRPC := app/api/open_inference/rpc
NODE_MODULES := tests/page/node_modules
TCMALLOC := $(firstword $(wildcard $(addsuffix /libtcmalloc_minimal.so.4,/usr/lib/*-linux-gnu /usr/lib64 /usr/lib /usr/local/lib)))

.PHONY: help serve test tests slow-test lint train wheel docker-test docker-scale-test monitoring-test kserve-test audit lock messages clean node
.DELETE_ON_ERROR:

help:  ## list these commands
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

serve: .venv/.installed  ## run the service with the shipped bundle on http://127.0.0.1:8000 (PORT=... for another port)
	.venv/bin/python -m app serve

test: lint tests  ## run all checks: lint, types, tests, coverage (in PROCESSES=... at once)

tests: export OMP_NUM_THREADS = 1
tests: .venv-dev/.dev
	$(DEV)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder --cov --cov-report= $(ARGS)
	$(DEV)/coverage report --precision=1 --include='app/*' --fail-under=95
	$(DEV)/coverage report --precision=1 --include='training/*' --fail-under=85

slow-test: .venv-dev/.dev  ## run the tests that `make test` leaves out for their time (Ray and torchrun after kills; minutes)
	$(DEV)/python -m pytest -m slow $(ARGS)

lint: $(NODE_MODULES)/.installed .venv-dev/.dev  ## run ruff (lint and format) and mypy --strict, and Biome for the page
	npm --prefix tests/page run --silent lint
	$(DEV)/ruff check $(SOURCES)
	$(DEV)/ruff format --check $(SOURCES)
	$(DEV)/mypy

train: .venv-dev/.train  ## train, evaluate, export to runs/mobilenet_v2_cifar10/bundle (ARGS="--epochs 1"; python -m training --help)
	@echo "$(if $(TCMALLOC),tcmalloc: $(TCMALLOC),tcmalloc is not installed: training takes up to twice as long (Debian: libtcmalloc-minimal4))"
	$(if $(TCMALLOC),LD_PRELOAD=$(TCMALLOC)) $(DEV)/python -m training all $(ARGS)

wheel: .venv/bin/python  ## build the package in dist/, with the default model, for `pip install`
	rm -rf build/lib dist/cifar10_classifier-*.whl
	.venv/bin/pip wheel --no-deps --wheel-dir dist .

docker-test:  ## build the image, run it, classify an image, stop it (DOCKER_BUILD_FLAGS for `docker build`)
	$(PYTHON) tests/deploy/check_container.py

docker-scale-test:  ## kill and scale containers behind the balancer under load (needs the image nginx:1.30)
	$(PYTHON) tests/deploy/check_scale.py

monitoring-test: .venv-dev/.dev  ## check every panel and alert with two instances and Prometheus (needs Debian's prometheus)
	$(DEV)/python -m tests.deploy.check_monitoring

kserve-test:  ## check deploy/kubernetes/kserve.yaml by the models of PyPI's kserve
	$(PYTHON) -m venv build/kserve
	build/kserve/bin/pip install --quiet kserve==0.21.0
	build/kserve/bin/python tests/deploy/check_kserve.py

audit:  ## compare the locked packages with known advisories (needs PyPI's own service)
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit -r deploy/requirements.lock --require-hashes --disable-pip

lock:  ## update deploy/requirements.lock from pyproject.toml (ARGS=--upgrade for the newest versions)
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" $(ARGS) --output-file deploy/requirements.lock pyproject.toml

# The messages get a pool of their own: other packages, such as tritonclient, define the same names in the common one.
messages:  ## generate the messages of gRPC from the protocol's definition
	$(PYTHON) -m venv build/messages
	build/messages/bin/pip install --quiet grpcio-tools==1.85.1
	build/messages/bin/python -m grpc_tools.protoc --proto_path=$(GRPC) --python_out=$(GRPC) --pyi_out=$(GRPC) grpc_predict_v2.proto
	sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' $(GRPC)/grpc_predict_v2_pb2.py

clean:  ## remove generated files, except data and training runs
	rm -rf .venv .venv-dev build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache $(NODE_MODULES)

# A stamp file is written after its whole recipe has passed, so that a second `make serve` starts at once.

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, for example: make PYTHON=python3.13")'
	$(PYTHON) -m venv $*

.venv/.installed: deploy/requirements.lock | .venv/bin/python
	.venv/bin/pip install --require-hashes -r deploy/requirements.lock
	@touch $@

# The lock is installed first, so that the tests run with the versions that are deployed.
.venv-dev/.torch: deploy/requirements.lock deploy/requirements-torch.txt | .venv-dev/bin/python
	$(INSTALL) --require-hashes -r deploy/requirements.lock
	$(INSTALL) $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -r deploy/requirements-torch.txt
	@touch $@

.venv-dev/.train .venv-dev/.dev: .venv-dev/.%: pyproject.toml .venv-dev/.torch
	$(INSTALL) --editable '.[$*]'
	@touch $@

$(NODE_MODULES)/.installed: tests/page/package.json tests/page/package-lock.json tests/page/.npmrc | node
	npm --prefix tests/page ci
	@touch $@

# Checked each time before anything else, so that nothing is installed in vain if Node is missing.
node:
	@$(if $(shell command -v node >/dev/null && command -v npm),:,$(error The linter of the page needs Node and npm (Debian: apt-get install nodejs npm)))
