"""python -m kvq.lm_eval run --model kvq-hf --model_args pretrained=MODEL,kvq=k4v2 --tasks recall ...

lm-eval's own command line with the model kvq-hf, and two options more:

  --kvq CONFIG       the cache: a format, the path of a plan, or a JSON object with the fields of
                     KVQConfig or KVQCacheConfig; the same as kvq= in --model_args
  --task-data DIR    where recall.jsonl, arith.jsonl and gsm8k-test.jsonl lie, for the tasks
                     kvq_recall, kvq_recall_choice, kvq_arith and kvq_gsm8k
"""
import argparse
import os
import pathlib
import sys

from lm_eval.__main__ import cli_evaluate

from .model import KvqHF

TASKS = pathlib.Path(__file__).parent / "tasks"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--kvq")
    parser.add_argument("--task-data")
    options, rest = parser.parse_known_args(sys.argv[1:])
    if options.kvq is not None:
        KvqHF.default_kvq = options.kvq
    if options.task_data is not None:
        os.environ["KVQ_TASK_DATA"] = options.task_data
    if rest[:1] == ["run"] and "--include_path" not in rest:
        rest += ["--include_path", str(TASKS)]
    sys.argv[1:] = rest
    cli_evaluate()


main()
