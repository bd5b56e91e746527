# `make run` and `make test` need Python >= 3.11, its venv module, and the network. `make help` lists the rest.
PYTHON ?= python3
PIPELINE ?= full
ARGS ?=
DATA ?= data
STORE ?=
MLFLOW_PORT ?= 5000
VIZ_PORT ?= 4141
WORK ?= data/gpu_experiment

# Labels of the images: the version, the commit, and where it comes from, without credentials. A folder of this machine
# as the origin is no source for others.
IMAGE_VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/pu_kd_pipeline/__init__.py)
IMAGE_REVISION = $(shell git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null)
IMAGE_SOURCE ?= $(shell git config --get remote.origin.url | sed -nE 's|//[^/@]*@|//|; \,^(https://|ssh://|git@),p')

# Not every shell expands `~` in DATA=~/runs.
DATA_FOLDER = $(abspath $(patsubst ~/%,$(HOME)/%,$(DATA)))
# Data folders inside this project share the store of `data` (shared_folder in conf/base/mlflow.yml).
OWN_STORE = $(DATA_FOLDER)/mlflow
DEFAULT_STORE = $(if $(filter $(CURDIR)/%,$(DATA_FOLDER) $(realpath $(DATA_FOLDER))),$(CURDIR)/data/mlflow,$(OWN_STORE))
STORE_FOLDER = $(or $(abspath $(patsubst ~/%,$(HOME)/%,$(STORE))),$(DEFAULT_STORE))

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKS_READY := $(VENV)/.ready_for_checks

export DO_NOT_TRACK := 1
# Where it is set, as in many containers, every process would compile this project and what it imports again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run pilot explain test lint types contracts format pytest docs diagrams mlflow viz bench gpu-experiment containers cluster manifests reference constraints constraints-ends versions clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The environment is created once, and updated when one of these files changes: for runs, and with all that the checks
# need. Modules are compiled when they are first imported, because most of the 25,000 never are.
$(READY): EXTRAS := viz,export,caltech
$(CHECKS_READY): EXTRAS := dev,viz
$(READY) $(CHECKS_READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' was not found: install Python 3.11 or later, or select one with 'make PYTHON=/path/to/python3.12 run'."; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "$(PYTHON) is Python %d.%d, and 3.11 to 3.13 is needed: select another one, such as make PYTHON=python3.12 run." % v)'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $(READY) $@

run: $(READY) ## run the pipeline: make run, or make run PIPELINE=pool_scoring ARGS='--params=seed=1'
	$(BIN)/kedro run --pipeline=$(PIPELINE) $(ARGS)

pilot: $(READY) ## before a long run: what can be gained, with which parameters, and what it takes
	$(BIN)/kedro run --pipeline=pilot $(ARGS)

test: lint types contracts pytest ## all checks: lint, types, contracts, pytest

lint: $(CHECKS_READY) ## ruff, hadolint and shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint docker/Dockerfile .ci/*.Dockerfile
	$(BIN)/shellcheck docker/once .ci/run .ci/versions .ci/containers .ci/postgres-entrypoint

types: $(CHECKS_READY) ## mypy
	$(BIN)/mypy

contracts: $(CHECKS_READY) ## import contracts
	$(BIN)/lint-imports

pytest: $(CHECKS_READY) ## only the tests: make pytest ARGS='-k tracking'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

format: $(CHECKS_READY) ## format the code and apply ruff's automatic fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(CHECKS_READY) ## build the site into site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

diagrams: $(CHECKS_READY) ## draw new Mermaid diagrams of docs/; needs Node.js and the network
	$(BIN)/python mkdocs_hooks.py

explain: $(READY) ## print which nodes would run, and why: make explain, or make explain ARGS='--params=seed=1'
	$(BIN)/kedro explain --pipeline=$(PIPELINE) $(ARGS)

mlflow: $(READY) ## open MLflow on http://127.0.0.1:5000
	@mkdir -p "$(STORE_FOLDER)"
	@if test "$(STORE_FOLDER)" != "$(OWN_STORE)" && test -f "$(OWN_STORE)/mlflow.db"; then echo "Earlier runs of $(DATA) are in a store of their own: make mlflow STORE=$(OWN_STORE)"; fi
	@echo "Training runs: http://127.0.0.1:$(MLFLOW_PORT)/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=pu_kd_pipeline"
	MLFLOW_DISABLE_TELEMETRY=true $(BIN)/mlflow ui --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 --backend-store-uri "sqlite:///$(STORE_FOLDER)/mlflow.db"

viz: $(READY) ## open the pipeline graph on http://127.0.0.1:4141
	$(BIN)/kedro viz run --port $(VIZ_PORT)

containers: docker/secrets/postgres_password ## build the images and run every stage in its own container
	@docker compose version >/dev/null 2>&1 || { echo "This target needs Docker with Compose and buildx: https://docs.docker.com/engine/install"; exit 1; }
	cd docker && IMAGE_VERSION="$(IMAGE_VERSION)" IMAGE_REVISION="$(IMAGE_REVISION)" IMAGE_SOURCE="$(IMAGE_SOURCE)" docker compose build
	@docker image inspect --format 'Image: {{index .RepoTags 0}} {{.Id}}' $$(cd docker && docker compose config --images | grep '^pu-kd-pipeline' | sort -u)
	cd docker && docker compose up --detach --force-recreate
	@cd docker && docker compose logs --follow --no-log-prefix evaluation reporting
	@cd docker && test "$$(docker compose ps --all --format '{{.ExitCode}}' reporting)" = 0
	@echo "MLflow: http://$$(cd docker && docker compose port mlflow 5000)    Pipeline: http://$$(cd docker && docker compose port kedro_viz 4141)"

# Added to whatever COMPOSE_FILE names, such as the settings of a package mirror.
WITH_CLUSTER = COMPOSE_FILE="$${COMPOSE_FILE:-compose.yaml}:compose.cluster.yaml" COMPOSE_PROFILES=cluster
cluster: docker/secrets/postgres_password docker/secrets/ray_token ## start a Ray cluster of three containers (docs/scale.md)
	@docker compose version >/dev/null 2>&1 || { echo "This target needs Docker with Compose and buildx: https://docs.docker.com/engine/install"; exit 1; }
	cd docker && $(WITH_CLUSTER) IMAGE_VERSION="$(IMAGE_VERSION)" IMAGE_REVISION="$(IMAGE_REVISION)" IMAGE_SOURCE="$(IMAGE_SOURCE)" docker compose build ray_head
	cd docker && $(WITH_CLUSTER) docker compose up --detach --wait ray_head ray_worker

docker/secrets/postgres_password docker/secrets/ray_token:
	@mkdir -p docker/secrets && chmod 700 docker/secrets
	@od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > $@ && chmod 444 $@

bench: $(CHECKS_READY) ## measure every speed target: make bench, or make bench ARGS='--only loading --json bench.json'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $(ARGS)

gpu-experiment: $(READY) ## compare students on a GPU in pieces that resume, with images in PU_KD_DATA: make gpu-experiment WORK=data/gpu
	@until $(BIN)/python -m experiments.gpu_experiment --work $(WORK) $(ARGS); do test $$? = 75 || exit 1; done

manifests: $(READY) ## generate docker/compose*.yaml and Argo's WorkflowTemplate from the pipeline
	$(BIN)/kedro containers compose --out docker/compose.yaml
	$(BIN)/kedro containers compose --gpu --out docker/compose.gpu.yaml
	$(BIN)/kedro containers argo --out docker/kustomize/base/workflow-template.yaml

reference: $(READY) ## write docs/stages.md and docs/parameters.md from the pipelines, the catalog and the parameter models
	$(BIN)/kedro reference stages --out docs/stages.md
	$(BIN)/kedro reference parameters --out docs/parameters.md

constraints: $(CHECKS_READY) ## pin the installed versions
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed -E '/ @ /d; s/\+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

constraints-ends: ## pin the oldest and the newest versions that pyproject.toml allows
	.ci/versions oldest pin
	.ci/versions newest pin

versions: ## test the oldest and the newest versions that pyproject.toml allows, each in an environment of 6 GB
	.ci/versions oldest
	.ci/versions newest

clean: ## remove outputs (data/02_* to data/08_*) and caches; keep raw data, MLflow and the environment
	@find $(DATA_FOLDER)/0[2-8]_* -mindepth 1 ! -name .gitkeep -delete 2>/dev/null || true
	@rm -rf $(DATA_FOLDER)/node_records $(DATA_FOLDER)/checkpoints
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov build dist site
	@find src tests -name __pycache__ -prune -exec rm -rf {} +
