# Each target works on a fresh clone of a bare Debian 12: it needs python3 (3.11 or newer), pip and
# the package index. Everything goes into .venv (and .venv-oldest, .venv-checkov); what the rig builds
# lies in ~/.cache/dask-tide/rig. Nothing else is installed, but where we are root Debian's packages that are missing: its own
# python3-venv, and what nodes and the image need (rig/packages.py).

PYTHON ?= python3
PYTEST_ARGS ?=

BIN := .venv/bin
UV := $(BIN)/uv
INSTALL := pip install --quiet --require-hashes
# What runs against the oldest distributed that we support: all that touches it. The rest
# (model and policy, platforms) does not, or not in another way.
OLDEST_TESTS = tests/scheduler tests/local tests/unit/test_config.py tests/unit/test_demo_job.py
PYTEST := -m pytest $(PYTEST_ARGS)
# Tests mostly wait, for processes or pods: two at once, also beside a simulated AWS on two cores.
TWO := --dist loadgroup -n 2
# One that takes too long says where it is, and the next ones run.
NODES := -m nodes --timeout-method=signal
KUBERNETES := tests/kubernetes tests/rig --ignore=tests/rig/test_cloud.py
# Tests at once may have more nodes than the kernel's 128 inotify instances are for (rig/README.md). A machine that
# is for CI gets more of them, until it ends; others are left as they are.
INOTIFY := /proc/sys/fs/inotify/max_user_instances
MORE_NODES := [ "$$CI" != true ] || [ ! -w $(INOTIFY) ] || [ "$$(cat $(INOTIFY))" -ge 1024 ] || echo 1024 > $(INOTIFY)
# Where PYTEST_ARGS select, they may select none of one run.
MAYBE := $(if $(PYTEST_ARGS),|| [ $$? = 5 ])
LOCK := --universal --python-version 3.11 --generate-hashes --upgrade --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock"
COMPILE := pip compile --quiet pyproject.toml --group dev --all-extras $(LOCK)
# The index that pip is told of; uv reads neither pip.conf nor PIP_INDEX_URL.
PIP_CONF := $(BIN)/python -m pip config list 2>/dev/null | sed -nE "s/^(global|install)\.index-url='(.*)'/\2/p"
INDEX = $(shell echo "$${UV_INDEX_URL:-$${PIP_INDEX_URL:-$$($(PIP_CONF) | tail -n 1)}}")
# The image has what the tests have tested.
COMPILE_IMAGE := pip compile --quiet $(LOCK) -c requirements/dev.txt

# kOps's schemas, which are not ours to commit: where that folder is absent, check-deploy says what it left out.
AWS_SCHEMAS ?= ../shared/aws

# Where it is set, every interpreter that a test starts compiles distributed again: 0.8 s of a CPU.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-kubernetes demo-aws test test-tools test-nodes test-others test-others-and-oldest test-kubernetes test-on-nodes test-on-planes test-oldest check check-deploy format bench bench-kubernetes bench-aws image lock clean
.PHONY: cluster cluster-plane cluster-down cloud cloud-down rig-binaries
.DEFAULT_GOAL := help

help:
	@echo "make demo    the story in a minute: workers come with the work and go with it"
	@echo "make demo-kubernetes"
	@echo "             the same on a real Kubernetes: cluster, image, chart and demo, from nothing to nothing (needs root)"
	@echo "make demo-aws"
	@echo "             and on a simulated AWS with Karpenter: machines come with the workers, and go with them (needs root)"
	@echo "make test    all tests, and those that touch distributed also with the oldest one we support"
	@echo "make check   format, lint, types, layers, and check-deploy"
	@echo "make check-deploy  what one deploys on AWS, without AWS: schemas, security, labels and taints that agree"
	@echo "make bench   figures against stock Dask, side by side"
	@echo "make bench-kubernetes  the same on Kubernetes, against kubectl scale and dask-kubernetes (needs root)"
	@echo "make bench-aws  what machines cost on a simulated AWS, against dask-kubernetes (needs root, takes more than an hour)"
	@echo "make format  what 'make check' would have changed"
	@echo "make image   the container image, as a tar, without Docker (needs root, buildah and mmdebstrap)"
	@echo "make cluster a Kubernetes on this machine to try things on: real nodes for root, fake ones for others"
	@echo "             (make cluster-plane: always fake ones; make cluster-down: end it; rig/README.md)"
	@echo "make cloud   the same on a simulated AWS with Karpenter: machines come with the pods and go with them"
	@echo "             (needs root; make cloud-down: end it)"
	@echo "make lock    new versions into requirements/"
	@echo "make clean   remove the environments and caches in this folder (the rig's is ~/.cache/dask-tide/rig)"

demo: .venv/stamp
	$(BIN)/dask tide demo

demo-kubernetes: .venv/stamp
	@$(BIN)/python -m rig.demo $(DEMO_ARGS)

demo-aws: .venv/stamp
	@$(BIN)/python -m rig.demo_aws $(DEMO_ARGS)

# Tests on real nodes wait for minutes: the others run meanwhile, and give way to the nodes.
test: test-tools
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-nodes test-others-and-oldest

test-tools: .venv/stamp .venv-oldest/stamp .venv-checkov/stamp rig-binaries
	@$(MORE_NODES)

test-nodes: test-tools
	$(BIN)/python $(PYTEST) $(NODES) $(TWO) $(MAYBE)

test-others-and-oldest: test-tools
	@failed=0; \
	$(MAKE) --no-print-directory test-others || failed=1; \
	$(MAKE) --no-print-directory test-oldest || failed=1; \
	exit $$failed

test-others: test-tools
	nice -n 5 $(BIN)/python $(PYTEST) $(TWO) -m "not nodes" $(MAYBE)

# The part that needs a Kubernetes: without the rest, and without a simulated AWS.
test-kubernetes: .venv/stamp .venv-oldest/stamp rig-binaries
	@$(MAKE) --no-print-directory --keep-going --jobs=2 test-on-nodes test-on-planes

test-on-nodes: .venv/stamp
	$(BIN)/python $(PYTEST) $(NODES) $(TWO) $(KUBERNETES) $(MAYBE)

test-on-planes: .venv/stamp
	$(BIN)/python $(PYTEST) -m "not nodes" $(KUBERNETES) $(MAYBE)

test-oldest: .venv-oldest/stamp
	.venv-oldest/bin/python -c "import distributed; print('With the oldest: distributed', distributed.__version__)"
	nice -n 5 .venv-oldest/bin/python $(PYTEST) $(TWO) $(OLDEST_TESTS) $(MAYBE)

check: .venv/stamp check-deploy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src tests benchmarks rig deploy
	$(BIN)/lint-imports --no-logo

check-deploy: .venv/stamp .venv-checkov/stamp
	@$(BIN)/python -m rig prepare helm
	@$(BIN)/python -m deploy.aws.check --schemas $(AWS_SCHEMAS) --checkov .venv-checkov/bin/checkov $(CHECK_DEPLOY_ARGS)

format: .venv/stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/stamp
	$(BIN)/python -m benchmarks

bench-kubernetes: .venv/stamp rig-binaries
	$(BIN)/python -m benchmarks.kubernetes $(BENCH_ARGS)

bench-aws: .venv/stamp rig-binaries
	$(BIN)/python -m benchmarks.aws $(BENCH_ARGS)

image: .venv/stamp
	@$(BIN)/python -m rig.image_build $(IMAGE_ARGS)

cluster: .venv/stamp
	@$(BIN)/python -m rig up $(CLUSTER_ARGS)

cluster-plane: .venv/stamp
	@$(BIN)/python -m rig up --level plane $(CLUSTER_ARGS)

cluster-down: .venv/stamp
	@$(BIN)/python -m rig down

cloud: .venv/stamp
	@$(BIN)/python -m rig up --level cloud $(CLOUD_ARGS)

cloud-down: .venv/stamp
	@$(BIN)/python -m rig down

# Kubernetes' servers from source: some ten minutes the first time, and before pytest counts the seconds of a test.
rig-binaries: .venv/stamp
	@$(BIN)/python -m rig prepare

lock: $(UV)
	$(UV) $(COMPILE) --group cloud -o requirements/dev.txt
	$(UV) $(COMPILE) -c requirements/oldest-constraints.txt -o requirements/oldest.txt
	echo checkov | $(UV) pip compile --quiet - $(LOCK) --no-annotate -o requirements/checkov.txt
	echo uv | $(UV) pip compile --quiet - $(LOCK) --no-annotate -o requirements/uv.txt
	echo hatchling | $(UV) $(COMPILE_IMAGE) - --no-annotate -o requirements/image-build.txt
	$(UV) $(COMPILE_IMAGE) pyproject.toml --extra kubernetes requirements/image.in -o requirements/image.txt
	$(UV) $(COMPILE_IMAGE) pyproject.toml --extra kubernetes --extra notebook \
		requirements/image.in requirements/image-notebook.in -o requirements/image-notebook.txt
	$(UV) pip compile --quiet requirements/bench-kubernetes.in $(LOCK) --no-annotate -o requirements/bench-kubernetes.txt

clean:
	rm -rf .venv .venv-oldest .venv-checkov .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian's python3 has `venv` but not `ensurepip` until python3-venv is installed; it says so only in the middle
# of making a venv, so ask before.
$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "dask-tide needs Python 3.11 or newer; '$(PYTHON)' is not. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -qq -y python3-venv; \
		else \
			echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: sudo apt-get install python3-venv"; \
			exit 1; \
		fi; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m $(INSTALL) --disable-pip-version-check -r requirements/uv.txt
	@touch $@

.venv/stamp .venv-oldest/stamp .venv-checkov/stamp lock: export UV_DEFAULT_INDEX ?= $(INDEX)

.venv/stamp: $(UV) requirements/dev.txt pyproject.toml
	$(UV) $(INSTALL) --python $(BIN)/python -r requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.venv-oldest/stamp: $(UV) requirements/oldest.txt pyproject.toml
	test -x .venv-oldest/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-oldest
	$(UV) $(INSTALL) --python .venv-oldest/bin/python -r requirements/oldest.txt
	$(UV) pip install --quiet --python .venv-oldest/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

# Not in .venv: a hundred packages, with versions of their own of what we use.
.venv-checkov/stamp: $(UV) requirements/checkov.txt
	test -x .venv-checkov/bin/python || $(UV) venv --quiet --python $(BIN)/python .venv-checkov
	$(UV) $(INSTALL) --python .venv-checkov/bin/python -r requirements/checkov.txt
	@touch $@
