# The one place where a command is defined. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
CHECKPOINT ?= runs/debian
REPOSITORY ?= model_repository
GOLDEN ?= $(CHECKPOINT)/golden.jsonl
SHAPE ?= constant
USERS ?= 8
RATE ?= 10
TEXTS ?= 1
PROTOCOL ?= http
MODEL ?= gpt2_classifier
LOCUST ?= --headless
DATA ?= data/public
SETS ?=
SEEDS ?= 3
PEERS ?=
MINUTES ?= 60
DEVICE ?= cpu
HOST ?= http://127.0.0.1:$(if $(filter grpc,$(PROTOCOL)),8001,8000)
METRICS ?= $(if $(filter http://127.0.0.1:800%,$(HOST)),http://127.0.0.1:8002/metrics)
BUILDAH ?=
BUNDLE ?=
ADVISORIES ?= https://github.com/pypa/advisory-database.git
PARALLEL ?= -n auto --dist worksteal

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Do the whole job on this machine: get data, train, export, serve, classify, load-test
	@$(MAKE) --no-print-directory setup
	@$(MAKE) --no-print-directory $(REPOSITORY)/gpt2_classifier/1/checkpoint/config.json
	$(PY) -m demo.demo

.PHONY: test
test: ## Run all tests; tests/e2e starts a real tritonserver
	@$(MAKE) --no-print-directory setup
	@$(MAKE) --no-print-directory .nginx/.ready .operations/.ready .browser/.ready
	$(PY) -m pytest $(PARALLEL) -m 'not alone and not chaos'
	$(PY) -m pytest -m 'alone and not chaos'

.PHONY: test-fast
test-fast: .venv/.ready ## Run the tests that start no server and do no training: 3 minutes on 2 cores
	$(PY) -m pytest $(PARALLEL) -m 'not slow and not chaos'

.PHONY: lint
lint: .venv/.ready ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy model_repository/gpt2_classifier/1/model.py
	$(PY) -m mypy setup/audit.py

.PHONY: format
format: .venv/.ready ## Format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: reference
reference: .venv/.ready ## Write docs/config.md, the reference of all config keys
	$(PY) -m polyhead_training.reference_page docs/config.md

.PHONY: gpu-check
gpu-check: ## Check correctness and speed on a CUDA device in two parts of at most 5 and 3 minutes, with any Python that has torch: BUNDLE= PART= OUT= DEVICE=
	$(if $(wildcard $(PY)),$(PY),python3) -m benchmarks.gpu_check $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(PART),--part $(PART)) \
	  $(if $(OUT),--out $(OUT)) $(if $(filter command line,$(origin DEVICE)),--device $(DEVICE))

.PHONY: gpu-bundle
gpu-bundle: .venv/.ready ## Collect what gpu-check needs on a machine without network, for Python 3.12: BUNDLE=
	setup/gpu_bundle.sh $(BUNDLE)

.PHONY: setup
setup: ## Make both environments, .venv and .venv-triton
	@$(MAKE) --no-print-directory -j2 .venv/.ready .venv-triton/.ready

.PHONY: data
data: data/debian/train.jsonl ## Make the Debian data set

.PHONY: train
train: $(CHECKPOINT)/config.json ## Train the demo's model

.PHONY: serve
serve: .venv-triton/.ready ## Serve the model repository on loopback until Ctrl-C
	.venv-triton/bin/polyhead-serve --repository $(REPOSITORY)

.PHONY: loadtest
loadtest: .venv/.ready ## Load-test a running server and verify every answer: SHAPE= USERS= RATE= DURATION= TEXTS= OBJECTIVES= HOST= MODEL= METRICS= PROTOCOL= GOLDEN= CHECKPOINT= LOCUST=
	$(PY) -m locust -f loadtest/locustfile.py --host $(HOST) --protocol $(PROTOCOL) --model $(MODEL) --golden $(GOLDEN) --checkpoint $(CHECKPOINT) \
	  --shape $(SHAPE) -u $(USERS) --rate $(RATE) --texts-per-request $(TEXTS) $(if $(DURATION),-t $(DURATION)) \
	  $(if $(OBJECTIVES),--objectives $(OBJECTIVES)) $(if $(METRICS),--metrics-url $(METRICS)) $(LOCUST)

.PHONY: capacity
capacity: $(CHECKPOINT)/config.json data/debian/train.jsonl .venv-triton/.ready ## Start a server and find the highest rate that meets loadtest/objectives.toml: 6 minutes on 2 cores
	$(PY) -m loadtest.capacity --checkpoint $(CHECKPOINT) --model $(MODEL)

.PHONY: image-check
image-check: ## Build the CPU image without a registry, and test it with REPOSITORY=: 5 minutes; needs root, buildah, debootstrap
	deploy/containers/check.sh $(REPOSITORY) $(BUILDAH)

.PHONY: audit
audit: setup ## List known vulnerabilities and licences of all packages; docs/audit.json is the result. ADVISORIES= is where to clone the advisories from
	rm -rf .operations/advisories
	git clone --quiet --depth 1 $(ADVISORIES) .operations/advisories
	$(PY) setup/audit.py .operations/advisories docs/audit.json

.PHONY: chaos
chaos: setup .nginx/.ready ## Inject every fault under a verified load; exit code 0 only if no answer was lost or wrong: 15 minutes
	$(PY) -m tests.chaos

.PHONY: soak
soak: setup .nginx/.ready ## Send a verified load for 20 minutes, and fail if the memory of a process grows: SOAK_MINUTES=
	$(PY) -m tests.chaos.soak

.PHONY: bench-training
bench-training: data/debian/train.jsonl ## Compare training speed with transformers' Trainer: 15 minutes on 2 cores
	$(PY) -m benchmarks.training

.PHONY: bench-quality
bench-quality: .venv-peers/.ready data/debian/train.jsonl ## Compare answer quality with linear models, fastText and spaCy on five data sets: hours on 2 cores; DATA= SETS= SEEDS= PEERS= MINUTES=
	.venv-peers/bin/python -m benchmarks.quality --data $(DATA) --seeds $(SEEDS) --minutes $(MINUTES) \
	  $(if $(SETS),--sets $(SETS)) $(if $(PEERS),--peers $(PEERS))

.PHONY: bench-engine
bench-engine: .venv-peers/.ready data/debian/train.jsonl ## Compare the engine's speed with other engines: 25 minutes on 2 cores; DEVICE=
	.venv-peers/bin/python -m benchmarks.engine --device $(DEVICE)

.PHONY: bench-scaling
bench-scaling: data/debian/train.jsonl ## Measure the engine's speed and memory for growing batches and models: 8 minutes on 2 cores; DEVICE=
	$(PY) -m benchmarks.scaling --device $(DEVICE)

.PHONY: bench-serving
bench-serving: data/debian/train.jsonl .venv-triton/.ready .venv-peers/.ready .venv-peers/perf_analyzer/perf_analyzer .venv-infinity/.ready ## Compare tritonserver with the engine alone, FastAPI and infinity_emb: 15 minutes on 2 cores; DEVICE=
	$(PY) -m benchmarks.serving --device $(DEVICE)

.PHONY: bench-tail
bench-tail: $(CHECKPOINT)/config.json data/debian/train.jsonl .venv-triton/.ready .nginx/.ready ## Measure the slowest answers of the real server and its refusals: 12 minutes on 2 cores
	$(PY) -m benchmarks.tail --checkpoint $(CHECKPOINT)

.PHONY: bench-counting
bench-counting: data/debian/train.jsonl ## Measure what counting the answers costs: 5 minutes on 2 cores
	$(PY) -m benchmarks.counting

.PHONY: bench-client
bench-client: $(CHECKPOINT)/config.json .venv-triton/.ready .venv-peers/perf_analyzer/perf_analyzer ## Compare the client with perf_analyzer, tritonclient and requests, and bulk scoring with the engine: 12 minutes on 2 cores
	$(PY) -m benchmarks.scoring
	$(PY) -m benchmarks.client --checkpoint $(CHECKPOINT) --scoring benchmarks/results/scoring.json

.PHONY: clean
clean: ## Remove environments, data, checkpoints and caches
	rm -rf .nginx .browser .venv .venv-triton .venv-peers .venv-infinity .operations data runs $(REPOSITORY)/*/*/checkpoint $(REPOSITORY)/*/*/labels.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

KERNELS := classifier/hatch_build.py $(wildcard classifier/polyhead/engine/cpu/kernels/*.[ch])

.venv/.ready: constraints.txt setup/requirements.txt setup/venv.sh */pyproject.toml $(KERNELS)
	setup/venv.sh .venv setup/requirements.txt
	@touch $@

.venv-triton/.ready: constraints.txt setup/requirements-triton.txt setup/venv.sh setup/libpython.sh classifier/pyproject.toml serving/pyproject.toml $(KERNELS)
	setup/venv.sh .venv-triton setup/requirements-triton.txt
	setup/libpython.sh .venv-triton
	@touch $@

.nginx/.ready: setup/nginx.sh setup/apt.sh
	setup/nginx.sh .nginx
	@touch $@

.browser/.ready: setup/browser.sh setup/apt.sh
	setup/browser.sh .browser
	@touch $@

.venv-peers/.ready: constraints.txt setup/requirements-peers.txt setup/requirements.txt setup/venv.sh */pyproject.toml
	setup/venv.sh .venv-peers setup/requirements-peers.txt
	@touch $@

.venv-peers/perf_analyzer/perf_analyzer: setup/perf_analyzer.sh | .venv-peers/.ready .venv-triton/.ready
	setup/perf_analyzer.sh .venv-peers/perf_analyzer .venv-triton
	@touch $@

.venv-infinity/.ready: setup/requirements-infinity.txt setup/venv.sh
	CONSTRAINTS=/dev/null setup/venv.sh .venv-infinity setup/requirements-infinity.txt
	@touch $@

.operations/.ready: setup/operations.sh setup/apt.sh | .venv/.ready
	setup/operations.sh .operations .venv
	@touch $@

data/debian/train.jsonl: | .venv/.ready
	.venv/bin/polyhead-dataset debian data/debian

runs/debian/config.json: demo/debian.toml data/debian/train.jsonl | .venv/.ready
	.venv/bin/polyhead-train demo/debian.toml

$(REPOSITORY)/gpt2_classifier/1/checkpoint/config.json: $(CHECKPOINT)/config.json | .venv/.ready
	.venv/bin/polyhead-export $(CHECKPOINT) --repository $(REPOSITORY) --replace --allow-schema-change
	@touch $@
