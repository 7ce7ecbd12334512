#!/usr/bin/env python3
"""Runs a measurement and keeps its result together with where it comes from.

usage: record.py NAME COMMAND...      for example: record.py generate build/kvq bench generate

COMMAND must take `--json FILE`. Writes docs/results/NAME.json: {"command", "machine", "date",
"revision", "result"}. A path under $KVQ_SHARED is kept as "$KVQ_SHARED/...", so that the file names
no folder of this machine.
"""
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def output_of(*command):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def gpu():
    """{"gpu": name and driver}, or nothing where there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        name, driver = subprocess.run(query, capture_output=True, text=True,
                                      check=True).stdout.splitlines()[0].split(", ")
    except (OSError, IndexError, subprocess.CalledProcessError):
        return {}
    return {"gpu": f"{name}, driver {driver}"}


def machine():
    """What a reader needs to judge a speed: processor, caches, memory, compiler, GPU."""
    cpuinfo = {}
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file.read().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            cpuinfo[name.strip()] = value.strip()
    cpu = cpuinfo.get("model name", platform.machine())
    if "cpu family" in cpuinfo:
        cpu += f" (family {cpuinfo['cpu family']}, model {cpuinfo['model']})"
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with open("/etc/os-release", encoding="utf-8") as file:
        system = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    return {
        "cpu": cpu,
        "processors": len(os.sched_getaffinity(0)),
        "memory_gib": round(pages / 2**30),
        "system": system["PRETTY_NAME"].strip('"'),
        "compiler": output_of("c++", "--version").splitlines()[0],
        **gpu(),
    }


def without_machine_paths(text):
    shared = os.environ.get("KVQ_SHARED")
    for folder, name in ((shared, "$KVQ_SHARED"), (str(ROOT), ".")):
        if folder:
            text = text.replace(folder.rstrip("/"), name)
    return text


def main(arguments):
    if len(arguments) < 2 or arguments[0].startswith("-"):
        sys.exit(__doc__)
    name, command = arguments[0], arguments[1:]
    with tempfile.TemporaryDirectory() as folder:
        result_file = pathlib.Path(folder, "result.json")
        print(f"== {name}: {without_machine_paths(shlex.join(command))}", flush=True)
        subprocess.run(command + ["--json", str(result_file)], cwd=ROOT, check=True)
        result = result_file.read_text(encoding="utf-8")
    dirty = output_of("git", "status", "--porcelain", "--", "kvq", "apps", "CMakeLists.txt")
    record = {
        "command": without_machine_paths(shlex.join(command)),
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "revision": output_of("git", "describe", "--always").strip() + (" + changes" if dirty else ""),
        "result": json.loads(without_machine_paths(result)),
    }
    path = ROOT / "docs" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
