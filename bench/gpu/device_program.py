"""What the scripts beside this file share: a benchmark program that times one case a line, and the device."""
import json
import subprocess
import sys


def run_cases(program, lines):
    """The program's results, a dictionary a line; ends the script with the program's status if it fails."""
    output = subprocess.run([program], input="".join(f"{line}\n" for line in lines), text=True,
                            stdout=subprocess.PIPE)
    if output.returncode != 0:
        sys.exit(output.returncode)
    return [json.loads(line) for line in output.stdout.splitlines()]


def device(fields="name,clocks.sm,driver_version"):
    """Properties of the device as nvidia-smi names them, with ", " between."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip()
