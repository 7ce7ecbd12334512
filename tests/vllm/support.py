"""What the tests that run vLLM share.

Environment: KVQ_COMMAND = the built command. kvq, its plugin and vLLM are those of the interpreter.
"""
import json
import os
import pathlib
import subprocess
import tempfile

# Engines follow one another in this process: starting one takes seconds. test_serve.py covers the rest.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

SOURCE = pathlib.Path(__file__).resolve().parents[2]
MODEL = SOURCE / "models/demo-llama"
COMMAND = os.environ.get("KVQ_COMMAND", str(SOURCE / "build/kvq"))
PAGE_BYTES = 8 * 2 * 3328  # of a block of the demo model at k4v2: layers, kv heads, bytes of a page
SLOT_BYTES = 8 * 2 * 64 * 64 * 4  # of a request: layers, kv heads, tokens, head_dim, fp16 key and value
# Rows differ by rounding where matrices are multiplied by another library, and a number that falls to
# the other side of a code's border moves by a whole step. Where two tokens are as near as this (in
# log-likelihood) either may win; continuations are compared up to there.
TIE = 0.1


def golden():
    """[{"text", "ids", "greedy": [24 tokens]}] made by transformers in float32."""
    return json.loads((MODEL / "golden.json").read_text(encoding="utf-8"))


def tasks(name, count=None):
    lines = (MODEL / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def prompts():
    return [entry["text"] for entry in golden()] + \
        [item["prompt"] for name in ("recall", "arith") for item in tasks(name, 10)]


def command_tokens(prompts, tokens, *options):
    """What `kvq generate` continues them with, greedily."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        file.flush()
        # vLLM multiplies in float32; so does oneDNN where it may not use bfloat16.
        result = subprocess.run(
            [COMMAND, "generate", str(MODEL), "--prompts", file.name, "-n", str(tokens), "--json", "-", *options], check=True, capture_output=True, text=True,
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"})
    return [output["tokens"] for output in json.loads(result.stdout)["outputs"]]


def command_right(names, *options):
    """Items of the tasks of which `kvq eval` finds every token of the answer the likeliest."""
    files = [part for name in names for part in ("--tasks", str(MODEL / "tasks" / f"{name}.jsonl"))]
    result = subprocess.run([COMMAND, "eval", str(MODEL), "--windows", "0", "--json", "-", *files, *options],
                            check=True, capture_output=True, text=True)
    found = json.loads(result.stdout)["formats"][0]["tasks"].values()
    return sum(round(task["accuracy"] * task["n"]) for task in found)


def engine(kvq, **options):
    """A vLLM engine on the demo model; `kvq` is its additional configuration, None: vLLM's own cache."""
    from vllm import LLM
    options = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8, "block_size": 64,
               "kv_cache_memory_bytes": 2**27, "enable_prefix_caching": False, "disable_log_stats": False,
               "max_num_batched_tokens": 2048, **options}
    return LLM(str(MODEL), additional_config={} if kvq is None else {"kvq": kvq}, **options)


def greedy(llm, prompts, tokens):
    from vllm import SamplingParams
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, logprobs=2),
                           use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def metric(llm, name):
    return sum(found.value for found in llm.get_metrics() if found.name == name)


def first_difference(output, expected):
    """Where a continuation leaves the expected tokens before any tie; None: nowhere."""
    for position, (token, want) in enumerate(zip(output.token_ids, expected)):
        best = sorted((entry.logprob for entry in output.logprobs[position].values()), reverse=True)
        if token != want:
            return None if best[0] - best[1] < TIE else position
    return None


def compare(test, outputs, expected, name):
    """All continuations are the expected ones up to a tie; prints how many are whole."""
    same = sum(list(output.token_ids)[:len(want)] == want[:len(output.token_ids)]
               for output, want in zip(outputs, expected))
    print(f"{name}: {same} of {len(outputs)} continuations are the same to the last token, the others up to "
          "a tie", flush=True)
    for index, (output, want) in enumerate(zip(outputs, expected)):
        with test.subTest(prompt=index):
            test.assertIsNone(first_difference(output, want))
    test.assertGreaterEqual(same, 0.8 * len(outputs))
