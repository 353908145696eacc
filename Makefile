# `make demo` and `make test` do all their own set-up in a virtual environment, .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*/*)
CPP := $(wildcard csrc/*.cpp csrc/*/*)
FALLBACK_TESTS := tests/ops tests/engine/test_adjoints.py tests/engine/test_unroll.py tests/engine/students/test_students.py
ISA_TESTS := tests/ops tests/engine/test_adjoints.py tests/engine/test_unroll.py tests/engine/students \
	tests/evaluation/test_evaluate.py tests/experts/test_experts.py tests/methods/test_methods.py tests/methods/test_recorded_values.py
# a test process per core, each of one thread
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-fast test-isa lint docs format pytest fallback ctest bench wheels clean

demo: $(READY)
	$(BIN)/ddfast distill

test: lint docs pytest fallback test-isa ctest

test-fast: lint # without whole jobs, faults and processes, and without the kernels alone
	$(PYTEST) --ignore tests/slow

# the tests whose numbers depend on instructions, as older machines have them
test-isa: $(READY)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) $(ISA_TESTS)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(ISA_TESTS)

$(READY): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11" torchvision "setuptools>=77" ninja
	rm -f ddfast/_C.cpython-*.so # of version 0.1, which Python would load in the place of _C.abi3.so
	$(BIN)/python -m pip install --no-build-isolation --verbose --editable ".[dev]" > $(VENV)/build.log 2>&1 \
		|| { tail -40 $(VENV)/build.log; exit 1; }
	@grep --only-matching "ddfast: building.*" $(VENV)/build.log | tail -1
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

docs: $(READY) # the site, into site/; a broken link or a name that is not there fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

pytest: $(READY)
	$(PYTEST)

fallback: $(READY) # the same ops and adjoints without the extension
	DDFAST_EXTENSION=0 $(PYTEST) $(FALLBACK_TESTS)

ctest: $(READY) # the kernels alone, under sanitizers
	$(BIN)/cmake -S . -B build/kernels > /dev/null
	$(BIN)/cmake --build build/kernels --parallel > /dev/null
	$(BIN)/ctest --test-dir build/kernels --output-on-failure --parallel 2

bench: $(READY)
	$(BIN)/python -m pytest -q benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name \
		$(if $(TABLES),--tables=$(TABLES))

# into dist/: make wheels TORCH="2.14 2.11" PYTHONS="python3.10 python3.13" KERNELS=cuda
wheels:
	$(PYTHON) -m tools.wheels $(if $(TORCH),--torch $(TORCH)) $(if $(PYTHONS),--python $(PYTHONS)) \
		$(if $(KERNELS),--kernels $(KERNELS))

clean:
	rm -rf build dist *.egg-info ddfast/_C*.so
