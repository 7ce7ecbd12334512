#!/usr/bin/env python3
"""Writes the figures of docs/results/*.json into the pages that quote them.

usage: update_tables.py            rewrite README.md and docs/*.md
       update_tables.py --check    change nothing; exit 1 and show the difference if a page is stale

A page marks a place with `<!-- figures: NAME -->` and `<!-- end of figures -->`; NAME is a function of
this file. Under every table stands where it comes from: command, machine, compiler, revision.
"""
import difflib
import json
import math
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


class Results:
    """docs/results/*.json by name."""

    def __init__(self, folder):
        self.records = {path.stem: json.loads(path.read_text(encoding="utf-8"))
                        for path in sorted(folder.glob("*.json"))}

    def record(self, name):
        if name not in self.records:
            sys.exit(f"update_tables.py: docs/results/{name}.json is missing; run tools/measure.sh {name}")
        return self.records[name]

    def formats(self, name):
        """Format name -> figures, in the order of the file."""
        return {entry["name"]: entry for entry in self.record(name)["result"]["formats"]}

    def provenance(self, *names):
        lines = []
        for name in names:
            record = self.record(name)
            machine = record["machine"]
            place = machine.get("gpu") or (f"{machine['cpu']}, {machine['processors']} processors, "
                                           f"{machine['system']}")
            lines.append(f"`{short_command(record['command'])}`, revision {record['revision']}, "
                         f"{record['date']}: {place}, {machine['compiler']}.")
        return "\n".join(["", "<sub>" + "<br>".join(lines) + "</sub>"])


def short_command(command):
    """The command with its lists of formats as one `--kv ...` and one `--plan ...`."""
    for option in ("--kv", "--plan"):
        command = re.sub(rf"({option} \S+ ?)+", f"{option} ... ", command)
    return command.strip()


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def percent(value, decimals=1):
    return f"{100 * value:.{decimals}f} %"


def size(entry):
    return percent(entry["cache_bytes"] / entry["cache_bytes_16bit"], 0)


def task_names(entries):
    return list(next(iter(entries.values()))["tasks"])


def quality_cells(entry):
    return [f"{entry['effective_bits']:.2f}", size(entry), f"{math.exp(entry['nll']):.3f}",
            f"{entry['kl']:.4f}", percent(entry["top1"])] + \
        [percent(task["accuracy"]) for task in entry["tasks"].values()]


def quality_header(entries):
    return ["bits a number", "cache size", "perplexity", "KL to 16 bits", "same top token"] + \
        [f"{name} exact" for name in task_names(entries)]


def quality_table(results, name):
    entries = results.formats(name)
    rows = [[f"`{spec}`"] + quality_cells(entry) for spec, entry in entries.items()]
    return table(["format"] + quality_header(entries), rows) + "\n" + results.provenance(name)


def headline(results):
    quality, speed = results.formats("accuracy"), results.formats("generate")
    packed, plain = speed["k4v2"], speed["k16v16"]
    run = results.record("generate")["result"]
    scores = " and ".join(f"{percent(task['accuracy'])} of {name}"
                          for name, task in quality["k4v2"]["tasks"].items())
    return (f"With the included model, `k4v2` (4-bit keys, 2-bit values) holds a context of "
            f"{run['prompt_tokens'] + run['new_tokens']:,} tokens in "
            f"**{size(packed)} of the 16-bit cache**, sinks and window included, answers {scores} "
            f"correctly, and decodes **{packed['decode_tokens_per_s']:,.0f} tokens/s** against "
            f"{plain['decode_tokens_per_s']:,.0f} with a 16-bit cache "
            f"({run['threads']} threads, {results.record('generate')['machine']['cpu']}).")


def gpu_headline(results):
    attention, central = results.record("gpu_attention")["result"], [8, 32, 8, 32768, 128]
    times = [case["microseconds"] for run in attention["runs"] for case in run
             if case["spec"] == "k4v2" and case["shape"] == central
             and not (case["window"] or case["deterministic"] or case.get("append"))]
    time = sum(times) / len(times)
    plain = min(next(peer for peer in attention["peers"] if peer["shape"] == central)["microseconds"].values())
    batch, run = results.formats("gpu_generate_16k"), results.record("gpu_generate_16k")["result"]
    fitting = results.formats("gpu_generate_32k")
    return (f"On an {attention['device'].split(', ')[0]} decode attention over {central[0]} sequences of "
            f"{central[3]:,} tokens takes {time:.0f} µs in `k4v2`, **{plain / time:.1f} times** as fast as the "
            f"fastest bf16 attention of torch in the same run. A randomly initialized Llama of 8B parameters "
            f"decodes {batch['k4v2']['decode_tokens_per_s']:,.0f} tokens/s for {run['batch']} sequences of "
            f"{run['prompt_tokens']:,} tokens, {batch['k16v16']['decode_tokens_per_s']:,.0f} on a 16-bit cache, "
            f"and {fitting['k4v2']['largest_batch']} instead of {fitting['k16v16']['largest_batch']} sequences "
            f"of 32,768 tokens fit into its memory ([docs/performance.md](docs/performance.md)).")


def overview(results):
    """Quality beside memory and speed, for the formats measured in both."""
    quality, speed = results.formats("accuracy"), results.formats("generate")
    names = task_names(quality)
    rows = []
    for spec, fast in speed.items():
        good = quality[spec]
        rows.append([f"`{spec}`", f"{good['effective_bits']:.2f}", size(fast), f"{good['kl']:.4f}"]
                    + [percent(good["tasks"][name]["accuracy"]) for name in names]
                    + [f"{fast['prefill_tokens_per_s']:,.0f}", f"{fast['decode_tokens_per_s']:,.0f}"])
    header = ["format", "bits a number", "cache size", "KL to 16 bits"] + \
        [f"{name} exact" for name in names] + ["prompt tokens/s", "decode tokens/s"]
    return table(header, rows) + "\n" + results.provenance("accuracy", "generate")


def accuracy_widths(results):
    return quality_table(results, "accuracy")


def accuracy_options(results):
    return quality_table(results, "options")


def accuracy_fits(results):
    return quality_table(results, "fits")


def accuracy_kivi(results):
    return quality_table(results, "kivi")


def accuracy_wiki(results):
    return quality_table(results, "wiki")


def plans(results):
    """Each budget's best uniform format beside its plans."""
    entries = {**results.formats("plans"), **results.formats("plans_norm")}
    planned = {}
    for name, entry in entries.items():
        match = re.fullmatch(r".*/([\w-]+)_([\d.]+)\.json", name)
        if match:
            planned.setdefault(float(match[2]), {})[match[1]] = entry
    uniform = {name: entry for name, entry in entries.items() if not name.endswith(".json")}
    tasks = task_names(entries)
    rows = []

    def add(label, bits, entry):
        rows.append([label, bits, f"{entry['effective_bits']:.3f}", f"{entry['kl']:.5f}"]
                    + [percent(entry["tasks"][name]["accuracy"], 2) for name in tasks])

    labels = {"norm": "norm", "sensitivity": "**sensitivity**", "own-text": "sensitivity, own text"}
    for budget, methods in sorted(planned.items()):
        fitting = {n: e for n, e in uniform.items() if e["effective_bits"] <= budget + 1e-9}
        if fitting:
            best = min(fitting, key=lambda name: fitting[name]["kl"])
            add(f"uniform `{best}`", f"{budget:g}", fitting[best])
        for method, label in labels.items():
            if method in methods:
                add(label, f"{budget:g}", methods[method])
    header = ["plan", "budget", "bits a number", "KL to 16 bits"] + [f"{name} exact" for name in tasks]
    return table(header, rows) + "\n" + results.provenance("plans", "plans_norm")


def speed_gpu_attention(results):
    """Every case beside the best bf16 attention of the same run."""
    run = results.record("gpu_attention")["result"]
    peers = {tuple(peer["shape"]): peer["microseconds"] for peer in run["peers"]}
    copy = run["copy_gigabytes_per_second"]
    rows = []
    for cases in zip(*run["runs"]):
        case = cases[0]
        if case.get("append"):
            continue
        sequences, query_heads, kv_heads, tokens, head_dim = case["shape"]
        modes = [mode for mode in ("window", "deterministic") if case[mode]]
        plain = min(peers[tuple(case["shape"])].values())
        time, bandwidth = (sum(c[key] for c in cases) / len(cases)
                           for key in ("microseconds", "gigabytes_per_second"))
        rows.append([f"`{case['spec']}`" + "".join(f", {mode}" for mode in modes),
                     f"{sequences}, {query_heads}/{kv_heads}, {tokens:,}, {head_dim}",
                     f"{plain:.1f}", f"{time:.1f}",
                     f"{min(c['p10'] for c in cases):.1f}..{max(c['p90'] for c in cases):.1f}",
                     f"{plain / time:.2f}", f"{bandwidth:,.0f}", percent(bandwidth / copy, 0)])
    header = ["format", "sequences, heads, tokens, head_dim", "bf16 µs", "µs", "p10..p90", "times bf16",
              "GB/s", "of a copy"]
    name, sm_clock, memory_clock, driver = run["device"].split(", ")
    place = (f"{name}, SM clock {sm_clock}, memory {memory_clock}, driver {driver}; a copy in the same "
             f"run moves {copy:,.0f} GB/s.")
    return table(header, rows) + "\n\n" + place + "\n" + results.provenance("gpu_attention")


def speed_gpu_prefill(results):
    """Every case beside the best bf16 attention of the same run."""
    run = results.record("gpu_prefill")["result"]
    peers = {tuple(peer["shape"]): min(peer["microseconds"].values()) for peer in run["peers"]}
    rows = []
    for case in run["runs"]:
        sequences, query_heads, kv_heads, tokens, chunk, head_dim = case["shape"]
        plain = peers[tuple(case["shape"])]
        rows.append([f"`{case['spec']}`" + (", exact" if case["exact"] else ""),
                     f"{sequences}, {query_heads}/{kv_heads}, {tokens:,}, {chunk:,}, {head_dim}",
                     f"{plain:,.0f}", f"{case['microseconds']:,.0f}", f"{plain / case['microseconds']:.2f}",
                     f"{case['teraflops']:.0f}"])
    header = ["format", "sequences, heads, tokens, newest that attend, head_dim", "bf16 µs", "µs",
              "times bf16", "TFLOP/s"]
    return table(header, rows) + "\n" + results.provenance("gpu_prefill")


def speed_gpu_pack(results):
    rows = [[f"`{case['spec']}`", f"{case['shape'][0]}", f"{case['microseconds']:.1f}",
             f"{case['microseconds'] / 64:.2f}", f"{case['gigabytes_per_second']:,.0f}"]
            for case in results.record("gpu_pack")["result"]["runs"] if case["shape"][0] >= 64]
    header = ["format", "pages of 8 kv heads", "µs", "µs a step and layer", "GB/s"]
    return table(header, rows) + "\n" + results.provenance("gpu_pack")


def speed_gpu_step(results):
    """What a step appends and packs, beside its attention."""
    packing = {tuple(case["shape"]): case["microseconds"] / 64
               for case in results.record("gpu_pack")["result"]["runs"] if case["spec"] == "k4v2"}
    times = {}
    for case in (case for run in results.record("gpu_attention")["result"]["runs"] for case in run):
        if case["window"] and case["spec"] == "k4v2":
            times.setdefault(tuple(case["shape"]), {}).setdefault(case["append"], []).append(case["microseconds"])
    rows = []
    for (sequences, query_heads, kv_heads, tokens, head_dim), time in times.items():
        plain, longer = (sum(time[append]) / len(time[append]) for append in (False, True))
        pack = packing[sequences, kv_heads, head_dim]
        rows.append([f"{sequences}, {query_heads}/{kv_heads}, {tokens:,}, {head_dim}", f"{plain:.1f}",
                     f"{longer - plain:.2f}", f"{pack:.2f}", percent((longer - plain + pack) / plain)])
    header = ["sequences, heads, tokens, head_dim", "attention, µs", "append, µs", "packing, µs", "share"]
    return table(header, rows) + "\n" + results.provenance("gpu_attention", "gpu_pack")


def speed_gpu_generate(results):
    """Several batches and contexts, each format beside 16 bits."""
    names = [name for name in results.records if name.startswith("gpu_generate_")]
    rows = []
    for name in names:
        run, entries = results.record(name)["result"], results.formats(name)
        plain = entries["k16v16"]["decode_tokens_per_s"]
        for spec, entry in entries.items():
            speed = entry["decode_tokens_per_s"]
            largest = entry.get("largest_batch")
            rows.append([f"`{spec}`", f"{run['batch']}", f"{run['prompt_tokens']:,}", f"{speed:,.0f}",
                         f"{speed / plain:.2f}", f"{entry['cache_bytes'] / 2**30:.2f} GiB",
                         f"{largest}" if largest else "-"])
    header = ["format", "sequences", "tokens of each", "decode tokens/s", "times k16v16", "cache",
              "sequences that fit"]
    return table(header, rows) + "\n" + results.provenance(*names)


def speed_gpu_prompt(results):
    rows = [[f"`{spec}`", f"{e['prefill_tokens_per_s']:,.0f}", f"{e['prefill_tokens_per_s_best']:,.0f}"]
            for spec, e in results.formats("gpu_prompt").items()]
    return table(["format", "prompt tokens/s", "best"], rows) + "\n" + results.provenance("gpu_prompt")


def speed_attention(results):
    run = results.record("attention")["result"]
    plain = results.formats("attention")["k16v16"]["seconds"]
    rows = [[f"`{spec}`", f"`{e['kernel']}`", f"{1e6 * e['seconds']:,.0f}", f"{plain / e['seconds']:.2f}",
             f"{e['packed_bytes'] / 2**20:.1f}", f"{e['gb_per_s']:.1f}",
             percent(e["fraction_of_bandwidth"], 0),
             f"{max(kind['relative_error'] for kind in e['accuracy'].values()):.1e}"]
            for spec, e in results.formats("attention").items()]
    header = ["format", "kernel", "µs", "times k16v16", "MiB read", "GB/s", "of the read bandwidth",
              "kernel's own error"]
    shape = (f"\nOne layer, {run['tokens']:,} tokens, {run['kv_heads']} kv heads, "
             f"{run['query_heads']} query heads, head_dim {run['head_dim']}, {run['threads']} threads; "
             f"a plain read reaches {run['formats'][0]['read_gb_per_s']:.1f} GB/s.\n")
    return table(header, rows) + "\n" + shape + results.provenance("attention")


def speed_append(results):
    entries = results.formats("append")
    rows = [[f"`{spec}`", f"{e['gb_per_s']:.2f}", f"{1e6 * e['append_seconds_per_token']:.2f}",
             f"{1e6 * e['attention_seconds_per_token']:.1f}", percent(e["share_of_decode_step"])]
            for spec, e in entries.items()]
    header = ["format", "prompt append, GB/s of fp16", "append, µs a token",
              "attention, µs a token", "append's share"]
    return table(header, rows) + "\n" + results.provenance("append")


def python_decode(results):
    """transformers' caches beside kvq's: a small model, and a long cache."""
    run = results.record("python_decode")["result"]
    long = {entry["name"]: entry for entry in run["long"]}
    fused = next(entry for entry in run["demo"] if entry["name"] == "kvq k4v2")
    far = long["kvq k4v2"]
    rows = [[entry["name"], f"{entry['prompt_tokens_per_s']:,.0f}", f"{entry['decode_tokens_per_s']:.0f}",
             f"{fused['decode_tokens_per_s'] / entry['decode_tokens_per_s']:.2f}",
             f"{entry['cache_bytes'] / 2**20:.2f}",
             f"{long[entry['name']]['decode_tokens_per_s']:.1f}",
             f"{far['decode_tokens_per_s'] / long[entry['name']]['decode_tokens_per_s']:.1f}",
             f"{long[entry['name']]['cache_bytes'] / 2**20:.0f}"] for entry in run["demo"]]
    header = ["cache", "prompt tokens/s", "decode tokens/s", "k4v2 is times", "MiB",
              "decode tokens/s, 16k", "k4v2 is times", "MiB"]
    return table(header, rows) + (f"\n\ntorch {run['torch']}, transformers {run['transformers']}, "
                                  f"{run['threads']} threads.\n") + results.provenance("python_decode")


def python_decode_cuda(results):
    """The same on a GPU, for several numbers of sequences."""
    run = results.record("python_decode_cuda")["result"]
    batches = run["gpu"]["batches"]
    header, columns = ["cache"], []
    for number, batch in enumerate(batches):
        entries = {entry["name"]: entry for entry in batch["caches"]}
        best = entries["kvq k4v2, CUDA graphs"]["decode_tokens_per_s"]
        header += [f"tokens/s, batch {batch['batch']}" if number == 0 else f"batch {batch['batch']}",
                   "recorded k4v2 is times"]
        columns.append({name: [f"{entry['decode_tokens_per_s']:,.0f}",
                               f"{best / entry['decode_tokens_per_s']:.1f}"]
                        for name, entry in entries.items()})
    header += ["MiB a sequence", "kernel"]
    rows = [[entry["name"]] + sum((column[entry["name"]] for column in columns), []) +
            [f"{entry['cache_bytes'] / 2**20:,.0f}", f"`{entry['kernel']}`" if entry["kernel"] else ""]
            for entry in batches[0]["caches"]]
    note = f" {run['note']}" if "note" in run else ""
    return table(header, rows) + (f"\n\ntorch {run['torch']}, transformers {run['transformers']}.{note}\n"
                                  ) + results.provenance("python_decode_cuda")


def python_tasks(results):
    """lm-eval's scores."""
    entries = results.formats("python_tasks")
    names = task_names(entries)
    rows = [[f"`{spec}`"] + [f"{percent(task['accuracy'], 2)} of {task['n']}" for task in entry["tasks"].values()]
            for spec, entry in entries.items()]
    return table(["format"] + names, rows) + "\n" + results.provenance("python_tasks")


def vllm_capacity(results):
    """Tokens in a GiB of vLLM's cache."""
    run = results.record("vllm_capacity")["result"]
    base = run["rows"][0]["tokens_per_gib"]
    rows = [[row["name"], f"{row['tokens_per_gib']:,}", f"{row['tokens_per_gib'] / base:.2f}"] for row in run["rows"]]
    header = ["cache", "tokens in a GiB", "times vLLM's own"]
    note = (f"The included model; of the GiB, kvq needs some for the 16-bit rows of {run['max_num_seqs']} requests. "
            "The plan is one of `kvq plan --budget 3`.\n")
    return table(header, rows) + "\n\n" + note + results.provenance("vllm_capacity")


def vllm_throughput(results):
    """vLLM's own cache beside kvq's, with plenty of memory and with little."""
    rows = []
    for name, memory in (("vllm_throughput", "plenty"), ("vllm_throughput_tight", "{hold} requests at 16 bits")):
        run = results.record(name)["result"]
        rows += [[engine["name"], memory.format(**run), f"{engine['requests_per_s']:.2f}",
                  f"{engine['prompt_tokens_per_s']:,.0f}", f"{engine['decode_tokens_per_s']:,.0f}",
                  f"{engine['preemptions']:.0f}"] for engine in run["engines"]]
    header = ["cache", "memory", "requests/s", "prompt tokens/s", "decode tokens/s", "preemptions"]
    note = (f"{run['requests']} requests at once of {run['prompt']:,} + {run['tokens']} tokens, the included model in "
            f"bfloat16, vLLM {run['vllm']}, torch {run['torch']}, {run['threads']} threads.\n")
    return table(header, rows) + "\n\n" + note + results.provenance("vllm_throughput", "vllm_throughput_tight")


def speed_generate(results):
    entries = results.formats("generate")
    rows = [[f"`{spec}`", f"`{e['kernel']}`", size(e), f"{e['prefill_tokens_per_s']:,.0f}",
             f"{e['prefill_tokens_per_s_best']:,.0f}", f"{e['decode_tokens_per_s']:,.0f}",
             f"{e['decode_tokens_per_s_best']:,.0f}"] for spec, e in entries.items()]
    header = ["format", "decode kernel", "cache size", "prompt tokens/s", "best", "decode tokens/s",
              "best"]
    return table(header, rows) + "\n" + results.provenance("generate")


def speed_peers(results):
    rows = [[e["name"], f"{e['prompt_tokens_per_s']:,.0f}", f"{e['prompt_tokens_per_s_best']:,.0f}",
             f"{e['decode_tokens_per_s']:,.0f}", f"{e['decode_tokens_per_s_best']:,.0f}"]
            for e in results.record("peers")["result"]["programs"]]
    header = ["program, cache", "prompt tokens/s", "best", "decode tokens/s", "best"]
    return table(header, rows) + "\n" + results.provenance("peers")


def support(results):
    """Which family of kernels decodes a format on each instruction set."""
    sets = {"portable": "portable", "avx2": "AVX2", "avx512": "AVX-512"}
    columns = [results.formats(f"support_{isa}") for isa in sets]
    rows = [[f"`{spec}`"] + [column[spec]["kernel"].split("/")[1].split()[0] for column in columns]
            for spec in columns[0]]
    return table(["decode"] + list(sets.values()), rows)


FIGURES = {function.__name__: function for function in (
    headline, gpu_headline, overview, accuracy_widths, accuracy_options, accuracy_fits, accuracy_kivi, accuracy_wiki,
    plans, python_decode, python_decode_cuda, python_tasks, speed_attention, speed_gpu_attention, speed_gpu_step,
    speed_gpu_prefill, speed_gpu_pack, speed_gpu_generate, speed_gpu_prompt, speed_append, speed_generate,
    speed_peers, support, vllm_capacity, vllm_throughput)}


def rewrite(text, results, page):
    def fill(match):
        if match.group(2) not in FIGURES:
            sys.exit(f"{page}: no figures are called {match.group(2)}; there are {', '.join(FIGURES)}")
        return match.group(1) + FIGURES[match.group(2)](results) + "\n" + match.group(3)
    return PLACE.sub(fill, text)


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    results = Results(ROOT / "docs" / "results")
    stale = False
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        page = path.relative_to(ROOT).as_posix()
        old = path.read_text(encoding="utf-8")
        new = rewrite(old, results, page)
        if new == old:
            continue
        if not arguments:
            path.write_text(new, encoding="utf-8")
            print(f"{page}: rewritten")
            continue
        stale = True
        sys.stdout.writelines(difflib.unified_diff(
            old.splitlines(True), new.splitlines(True), page, page + " from docs/results"))
    if stale:
        sys.exit("the pages differ from docs/results; run tools/update_tables.py")


if __name__ == "__main__":
    main(sys.argv[1:])
