# make run: install what a study needs and reproduce the figures. make test: install the test tools and run everything CI runs.
PYTHON ?= python3
BIN := .venv/bin

# The theorem on prefix-tuning: six claims, three minutes. `make figures` runs the whole registry, 80 minutes.
HEADLINE := prefix-independent-exact prefix-independent-over prefix-shared-linear-exact prefix-shared-linear-over \
	prefix-shared-network-exact prefix-shared-network-over

run: .venv/run
	$(BIN)/moe-sim figures $(HEADLINE)

figures: .venv/run
	$(BIN)/moe-sim figures

test: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.venv/run: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable .
	touch $@

.venv/test: .venv/bridge
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[bridge,dask,test]'
	touch $@

# The bridge to PyTorch. pip takes the small build of torch for the CPU where there is one, uv gigabytes of CUDA.
.venv/bridge: pyproject.toml constraints.txt | $(BIN)/uv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[bridge]'
	touch $@ .venv/run

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

.PHONY: run figures test
