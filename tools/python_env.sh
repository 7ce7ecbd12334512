#!/bin/sh
# python_env.sh: prints the interpreter that builds and tests the Python package. That is $KVQ_PYTHON_EXE
# where it is set; else one of the virtual environment .venv-python, made with what the build needs from
# PyPI. Packages of the system, such as torch and transformers, are seen there too; tests that lack
# them say that they were skipped.
set -eu
cd "$(dirname "$0")/.."
if [ -n "${KVQ_PYTHON_EXE:-}" ]; then
  echo "$KVQ_PYTHON_EXE"
  exit 0
fi
tools/install_packages.sh python >&2
environment=.venv-python
if [ ! -x "$environment/bin/nanobind_ready" ]; then
  python3 -m venv --system-site-packages "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check \
    nanobind==3.1.0 scikit-build-core==1.1.2 build==1.6.1 "cmake>=3.26" "numpy>=1.23" >&2
  ln -s python3 "$environment/bin/nanobind_ready"
fi
echo "$PWD/$environment/bin/python3"
