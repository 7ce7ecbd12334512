#!/usr/bin/env bash
# test_wheel.sh PYTHON: builds the source distribution and from it the wheel, installs the wheel (and mypy)
# into an empty virtual environment, and runs the package's tests there, outside the tree. PYTHON has the
# package `build` and what pyproject.toml requires.
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
python=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m build --no-isolation --outdir "$folder/dist" "$source" >"$folder/log" 2>&1 ||
  { tail -50 "$folder/log"; exit 1; }
ls -l "$folder/dist"
"$python" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet --disable-pip-version-check "$folder"/dist/*.whl \
  mypy==2.4.1
cp -r "$source/tests/python" "$folder/tests"
cd "$folder/tests"
export KVQ_SOURCE=$source PYTHONPATH=
"$folder/environment/bin/python" -B - <<'END'
import kvq, pathlib, sys
assert pathlib.Path(kvq.__file__).is_relative_to(sys.prefix), kvq.__file__
package = pathlib.Path(kvq.__file__).parent
assert (package / "py.typed").exists()
for module in ("_core", "_model"):
    name = next(package.glob(f"{module}*.so")).name
    assert ("abi3" in name) == (sys.version_info >= (3, 12)), name
    assert (package / f"{module}.pyi").exists(), module
END
for test in arrays configs measure plans types vllm; do
  "$folder/environment/bin/python" -B -m unittest -q "test_$test"
done
