# The front door. Each goal installs the Debian packages it lacks, configures and builds.

# Compile jobs: one a processor, but at most one for each 1.5 GiB of free memory.
JOBS ?= $(shell awk -v n="$$(nproc)" '/^MemAvailable/ { m = int($$2 / 1572864) } \
                  END { print (m < 1 ? 1 : m < n ? m : n) }' /proc/meminfo)
TEST_JOBS ?= $(shell nproc)
PREFIX ?= /usr/local

.DEFAULT_GOAL := help
.PHONY: help demo build test bench lint lint-deep format asan tsan python test-vllm install packages lint-packages clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

packages:
	@tools/install_packages.sh build

lint-packages:
	@tools/install_packages.sh build lint

build/build.ninja: | packages
	cmake --preset release

demo: build/build.ninja ## generate, evaluate and measure with the model that is included
	@cmake --build --preset release -j $(JOBS) --target kvq
	@tools/demo.sh

build: build/build.ninja ## the command build/kvq, libraries, tests and benchmarks
	cmake --build --preset release -j $(JOBS)

test: build ## build and run all tests
	ctest --preset release -j $(TEST_JOBS)

bench: build/build.ninja ## speed of attention, packing and the included model on this machine
	@cmake --build --preset release -j $(JOBS) --target kvq
	build/kvq bench attention
	build/kvq bench append
	build/kvq bench generate

lint: lint-packages ## format, static analysis, include order, shell scripts
	cmake --preset release
	@tools/lint.sh

lint-deep: lint-packages ## lint with clang's analyzer, in three times the time
	cmake --preset release
	@tools/lint.sh deep

format: lint-packages ## rewrite all sources with clang-format
	git ls-files '*.h' '*.inl' '*.cc' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i

asan: packages ## unit tests under the address and undefined-behaviour sanitizers
	cmake --preset asan-ubsan
	cmake --build --preset asan-ubsan -j $(JOBS)
	ctest --preset asan-ubsan -j $(TEST_JOBS)

tsan: packages ## unit tests under the thread sanitizer
	cmake --preset tsan
	cmake --build --preset tsan -j $(JOBS)
	ctest --preset tsan -j $(TEST_JOBS)

python: packages ## build the Python package into build/python and run its tests; then those of its wheel
	python=$$(tools/python_env.sh) && cmake --preset release -DKVQ_PYTHON=ON -DPython_EXECUTABLE=$$python && \
	  cmake --build --preset release -j $(JOBS) --target kvq kvq_python_package && \
	  ctest --preset release -R '^python[.]' && tools/test_wheel.sh $$python

test-vllm: build ## install vLLM (5.9 GB) into .venv-vllm and run the tests that need it
	@tools/test_vllm.sh

install: build ## install into PREFIX (default /usr/local)
	cmake --install build --prefix $(PREFIX)

clean: ## remove the build folders
	rm -rf build build-asan build-debug build-tsan
