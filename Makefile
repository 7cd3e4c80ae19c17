# Every command of Weightless; `make help` lists them from the comments behind `##`. Thin on purpose: what is done stands in
# local/ (which engine, install, start and stop), commands/ (the store and the agent), minio-init/ (seeding) and loadtest/.
# Variables reach the programs through the environment, so that any text is safe in them: make predict INPUT="it's \"here\"".

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.SUFFIXES:

PYTHON ?= $(firstword $(wildcard .venv/bin/python) $(shell command -v python3.11) python3)
LOCAL = @$(PYTHON) -m local
RUN = $(LOCAL) run
export PYTHONPATH := .:handler:minio-init

# ---- variables: a word that nobody knows would be silently ignored, and PROMTE=no would promote

KNOWN := ENGINE MODEL RELEASE PERCENT HF TASK FROM PROMOTE KEEP INPUT PARAMETERS STREAM TO SHOW SERVICE FOLLOW YES JSON WAIT TIMEOUT \
  PROFILE SECONDS USERS OUT ONLY ARGS TESTS UPGRADE PYTHON
SETTINGS := $(shell sed -nE 's/^\#? ?([A-Z][A-Z0-9_]+)=.*/\1/p' .env.example 2>/dev/null) RUN_DIR
GIVEN := $(foreach name,$(.VARIABLES),$(if $(findstring command line,$(origin $(name))),$(name)))
# Texts for a model reach their command as they were typed: make would expand $(…) in them, and run $(shell …).
TEXTS := INPUT PARAMETERS
export $(TEXTS)
$(foreach name,$(filter $(TEXTS),$(GIVEN)),$(eval override $(name) := $$(value $(name))))
UNKNOWN := $(filter-out $(KNOWN) $(SETTINGS) MAKEFLAGS,$(GIVEN))
ifneq ($(UNKNOWN),)
$(error unknown variable $(firstword $(UNKNOWN)): make help lists what each command takes, .env.example the settings)
endif

# needs NAME: the variable must be given; the target's own comment shows how.
needs = $(foreach name,$(1),$(if $($(name)),,$(error make $@ needs $(name)=…: $(shell sed -nE 's/^$@:.*## *//p' $(firstword $(MAKEFILE_LIST))))))
# yes NAME: not empty if the variable is set to anything that means yes; no NAME: if it is set to a no.
yes = $(filter-out no 0 false off,$($(1)))
no = $(filter no 0 false off,$($(1)))
json = $(if $(call yes,JSON),--json)

# ---- the stack

.PHONY: up down logs clean doctor install help
up: ## Start the stack, wait until the models answer, and print a curl line [ENGINE=docker|local]
	$(LOCAL) up
down: ## Stop all of it, also after a crash
	$(LOCAL) down
logs: ## What the programs say, as they say it [SERVICE=agent] [FOLLOW=no]
	$(LOCAL) logs $(if $(call no,FOLLOW),--no-follow) "$$SERVICE"
clean: ## Remove all data of the stack: buckets, cache, secrets (asks; YES=yes does not)
	$(LOCAL) clean $(if $(call yes,YES),--yes)
doctor: ## Check this machine: what is here, what is missing, how to get it [JSON=1]
	$(LOCAL) doctor $(json)
install: ## Install what the stack as processes and the tests need into .venv and .tools
	$(LOCAL) install --tests

# ---- models and releases

.PHONY: seed models status promote rollback canary history predict mar retry prune credentials
seed: ## Publish a release: MODEL=falcon-7b [HF=org/repo[@revision]] [FROM=folder|bucket|sample:NAME] [TASK=…] [PROMOTE=no] [KEEP=yes]
	$(call needs,MODEL)
	$(RUN) $(if $(filter-out bucket sample:%,$(FROM)),--folder "$$FROM") -- -m seeding seed "$$MODEL" $(if $(HF),--hf "$$HF") \
	  $(if $(TASK),--task "$$TASK") $(if $(FROM),--from $(or $(filter bucket sample:%,$(FROM)),{folder})) \
	  $(if $(call no,PROMOTE),--no-promote) $(if $(call yes,KEEP),--keep) $(json)
models: ## Models and releases in the bucket, and which one is served [MODEL=…] [JSON=1]
	$(RUN) -- -m commands models $(if $(MODEL),"$$MODEL") $(json)
status: ## What is served, what is being fetched, device, phases, errors [JSON=1]
	$(RUN) -- -m commands status $(json)
promote: ## Serve another release: MODEL=falcon-tiny RELEASE=v2 [WAIT=no] [JSON=1]
	$(call needs,MODEL RELEASE)
	$(RUN) -- -m commands promote "$$MODEL" "$$RELEASE" $(if $(call no,WAIT),--no-wait) $(if $(TIMEOUT),--timeout "$$TIMEOUT") $(json)
rollback: ## End the canary, or serve what was served before: MODEL=falcon-tiny [WAIT=no] [JSON=1]
	$(call needs,MODEL)
	$(RUN) -- -m commands rollback "$$MODEL" $(if $(call no,WAIT),--no-wait) $(if $(TIMEOUT),--timeout "$$TIMEOUT") $(json)
canary: ## Let a release answer a share of the requests: MODEL=falcon-tiny RELEASE=v2 PERCENT=10 (0 ends it) [WAIT=no] [JSON=1]
	$(call needs,MODEL PERCENT)
	$(RUN) -- -m commands canary "$$MODEL" $(if $(RELEASE),"$$RELEASE") --percent "$$PERCENT" $(if $(call no,WAIT),--no-wait) \
	  $(if $(TIMEOUT),--timeout "$$TIMEOUT") $(json)
history: ## Where the alias pointed, when, by whom: MODEL=falcon-tiny [JSON=1]
	$(call needs,MODEL)
	$(RUN) -- -m commands history "$$MODEL" $(json)
predict: ## One prediction: MODEL=falcon-tiny INPUT="Once upon" [PARAMETERS='{"max_new_tokens": 20}'] [RELEASE=v1] [STREAM=yes] [JSON=1]
	$(call needs,MODEL INPUT)
	$(RUN) -- -m commands predict $(if $(PARAMETERS),--parameters "$$PARAMETERS") $(if $(RELEASE),--release "$$RELEASE") \
	  $(if $(call yes,STREAM),--stream) $(json) -- "$$MODEL" "$$INPUT"
mar: ## A self-contained slim MAR to take away: MODEL=falcon-tiny [RELEASE=v1|serving] [TO=build/falcon-tiny.mar]
	$(call needs,MODEL)
	$(RUN) --save "$${TO:-build/$$MODEL.mar}" -- -m commands mar "$$MODEL" $(if $(RELEASE),--release "$$RELEASE")
retry: ## Try again what the node refused to serve: MODEL=falcon-7b
	$(call needs,MODEL)
	$(RUN) -- -m commands retry "$$MODEL"
prune: ## Delete old releases and what only they hold (shows what, and asks): MODEL=falcon-tiny KEEP=3 [YES=yes] [JSON=1]
	$(call needs,MODEL KEEP)
	$(if $(or $(call yes,YES),$(call yes,JSON)),,$(RUN) -- -m seeding prune "$$MODEL" --keep "$$KEEP" --dry-run $(json))
	$(RUN) $(if $(call yes,YES),,--ask "This deletes all but the newest $$KEEP releases of $$MODEL for good.") -- -m seeding prune "$$MODEL" --keep "$$KEEP" $(json)
credentials: ## The login of MinIO's console, and the API key if one is set [SHOW=user|password|api-key] [JSON=1]
	$(RUN) -- -m commands credentials $(if $(SHOW),--show "$$SHOW") $(json)

# ---- the node's cache, and the buckets as a folder

.PHONY: cache cache-verify cache-prune backup restore
cache: ## What the node keeps on disk, and for which releases [JSON=1]
	$(RUN) --cache -- -m commands cache $(json)
cache-verify: ## Hash every file of the node's cache again; what is wrong is fetched anew [JSON=1]
	$(RUN) --cache -- -m commands cache-verify $(json)
cache-prune: ## Remove from the node's cache what no release in use needs [JSON=1]
	$(RUN) --cache -- -m commands cache-prune $(json)
backup: ## Releases, files and history of all models into a folder: TO=backups/today
	$(call needs,TO)
	$(RUN) --writable "$$TO" -- -m commands backup {folder} $(json)
restore: ## Bring back what backup saved, same releases and digests: FROM=backups/today
	$(call needs,FROM)
	$(RUN) --folder "$$FROM" -- -m commands restore {folder} $(json)

# ---- measuring

.PHONY: loadtest bench baseline baseline-stop
loadtest: ## Load test and its report [PROFILE=quick|coldstart|network|compare|saturation|soak] [MODEL=…] [USERS=8] [SECONDS=60] [OUT=build/loadtest] [ARGS=…]
	$(if $(and $(filter coldstart network,$(PROFILE)),$(if $(MODEL),,yes)),$(LOCAL) measured)
	$(if $(filter coldstart compare,$(PROFILE)),$(LOCAL) baseline)
	$(RUN) --service locust --writable "$${OUT:-build/loadtest}" -- -m loadtest --out {folder} \
	  $(if $(PROFILE),--profile "$$PROFILE") $(if $(MODEL),--model "$$MODEL" --cold-start-model "$$MODEL") \
	  $(if $(USERS),--users "$$USERS") $(if $(SECONDS),--seconds '$(SECONDS)') $(ARGS)
bench: ## All performance ratios, as processes on this machine [ONLY=fetch,coldstart,serving,turnaround,growth] [OUT=build/bench] [ARGS=…]
	$(LOCAL) install --tests --quiet
	@.venv/bin/python -m loadtest.bench --out "$${OUT:-build/bench}" --only "$$ONLY" $(ARGS)
baseline: ## Start the stock TorchServe that embedded archives are compared on
	$(LOCAL) baseline
baseline-stop: ## Stop it again
	$(LOCAL) baseline-stop

# ---- this checkout

.PHONY: test test-compose test-faults lint pins
TESTS ?= tests/unit tests/stack tests/faults
PYTEST = PATH="$$PWD/.tools/bin:$$PATH" .venv/bin/python -m pytest
test: ## All tests that need no Docker engine; installs what they need [TESTS=tests/unit] [ARGS=-x]
	$(LOCAL) install --tests --quiet
	@$(PYTEST) --numprocesses 2 --dist loadfile -m "not long" $(TESTS) $(ARGS)
test-faults: ## The faults with their many repetitions: kills, cuts, flipped bytes [ARGS=…]
	$(LOCAL) install --tests --quiet
	@$(PYTEST) tests/faults $(ARGS)
test-compose: ## The compose file as shipped, on a real engine [ARGS=…]
	$(LOCAL) install --tests --quiet
	@$(PYTEST) --timeout 3600 tests/compose $(ARGS)
lint: ## Format, lint and types of Python; shell scripts; the Dockerfile
	$(LOCAL) install --tests --quiet
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy weightless handler minio-init serve commands local loadtest tests
	@git ls-files -z '*.sh' .ci/run images | xargs -0 .venv/bin/shellcheck
	@.venv/bin/hadolint Dockerfile
pins: ## Compile the locked requirements anew [UPGRADE=yes]
	$(LOCAL) install --quiet
	@PATH="$$PWD/.tools/uv/bin:$$PATH" requirements/compile.sh

help: ## This list
	@$(PYTHON) -m local help
