"""What vLLM asks of kvq, played by stand-ins: no vLLM and no torch needed."""
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types
import unittest

import kvq
import numpy as np
from kvq.vllm.engine import Engine
from kvq.vllm.settings import (BLOCK_TOKENS, Settings, check_block_size, check_version, options_of,
                               settings_of)

KV_HEADS, QUERY_HEADS, HEAD_DIM, SCALE = 2, 4, 64, 0.125


def settings(spec="k4v2", window=0, slots=4):
    return Settings((spec,), window, slots, QUERY_HEADS, KV_HEADS, HEAD_DIM)


class FakeScheduler:
    """vLLM's scheduler, as far as an engine sees it: blocks, full ones shared by content, and what it says
    of a step."""

    def __init__(self, blocks, share):
        self.free = list(range(1, blocks))  # vLLM keeps block 0
        self.owners = {}   # block -> number of requests
        self.full = {}     # (tokens of a prefix) -> block
        self.share = share
        self.waiting, self.running = [], {}
        self.finished, self.preempted = set(), set()

    def add(self, name, tokens):
        self.waiting.append(types.SimpleNamespace(name=name, tokens=tokens, started=False))

    def _hit(self, tokens):
        blocks = []
        while self.share and (len(blocks) + 1) * BLOCK_TOKENS < len(tokens):
            block = self.full.get(tuple(tokens[:(len(blocks) + 1) * BLOCK_TOKENS]))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _let_go(self, request):
        for block in request.blocks:
            self.owners[block] -= 1
            if self.owners[block] == 0:
                self.free.append(block)
                self.full = {prefix: known for prefix, known in self.full.items() if known != block}

    def finish(self, name):
        self._let_go(self.running.pop(name))
        self.finished.add(name)

    def preempt(self, name):
        request = self.running.pop(name)
        self._let_go(request)
        self.preempted.add(name)
        self.waiting.insert(0, request)

    def step(self, counts):
        """`counts`: new tokens of each request, running or waiting. Returns the output and the requests with
        their begin and end."""
        new, cached, batch = [], {}, []
        waiting = {request.name: request for request in self.waiting}
        for name, tokens in counts.items():
            request = self.running.get(name) or waiting[name]
            starts = name in waiting
            if starts:
                request.blocks = self._hit(request.tokens)
                request.computed = len(request.blocks) * BLOCK_TOKENS
            before = len(request.blocks)
            end = min(request.computed + tokens, len(request.tokens))
            needed = -(-end // BLOCK_TOKENS) - before
            if needed > len(self.free):
                if starts:
                    continue
                raise RuntimeError("no blocks")
            for block in request.blocks if starts else ():
                self.owners[block] += 1
            for _ in range(needed):
                block = self.free.pop(0)
                self.owners[block] = 1
                request.blocks.append(block)
            if starts:
                self.waiting.remove(request)
                self.running[name] = request
            if starts and not request.started:
                request.started = True
                new.append(types.SimpleNamespace(req_id=name, block_ids=(list(request.blocks),),
                                                 num_computed_tokens=request.computed))
            else:
                added = request.blocks if starts else request.blocks[before:]
                cached[name] = ((list(added),) if added else None, request.computed, starts)
            batch.append((request, request.computed, end))
            request.computed = end
            for page in range(end // BLOCK_TOKENS):
                self.full.setdefault(tuple(request.tokens[:(page + 1) * BLOCK_TOKENS]), request.blocks[page])
        output = types.SimpleNamespace(
            finished_req_ids=self.finished, preempted_req_ids=self.preempted or None, scheduled_new_reqs=new,
            scheduled_cached_reqs=types.SimpleNamespace(
                req_ids=list(cached), new_block_ids=[entry[0] for entry in cached.values()],
                num_computed_tokens=[entry[1] for entry in cached.values()],
                resumed_req_ids={name for name, entry in cached.items() if entry[2]}),
            num_scheduled_tokens={request.name: end - begin for request, begin, end in batch})
        self.finished, self.preempted = set(), set()
        return output, batch


def rows_of(tokens, begin, end):
    """Keys, values [tokens, kv_heads, head_dim] and queries of positions: each depends on the tokens up to
    it, as a model's do."""
    key, value, query = [], [], []
    for position in range(begin, end):
        random = np.random.default_rng([position, sum(tokens[:position + 1]) % 2**31])
        numbers = random.standard_normal((2 * KV_HEADS + QUERY_HEADS, HEAD_DIM), dtype=np.float32)
        key.append(numbers[:KV_HEADS])
        value.append(numbers[KV_HEADS:2 * KV_HEADS])
        query.append(numbers[2 * KV_HEADS:])
    return np.array(key), np.array(value), np.array(query)


def blocks_like_vllm(count, content):
    size = count * KV_HEADS * BLOCK_TOKENS * content
    memory = np.full(size + 128, 0xff, np.uint8)
    start = -memory.ctypes.data % 128
    return memory[start:start + size].reshape(count, KV_HEADS, BLOCK_TOKENS, content)


class Harness:
    """An engine of one layer that follows a scheduler, beside one LayerCache a request."""

    def __init__(self, settings, blocks=40, share=True):
        self.engine = Engine(settings)
        self.scheduler = FakeScheduler(blocks, share)
        self.blocks = blocks_like_vllm(blocks, settings.content_bytes(0))
        self.references = {}
        self.settings = settings

    def _reference(self, request, begin, end, rows):
        cache = self.references.get(request.name)
        if cache is None or cache.lengths != [begin]:
            cache = kvq.LayerCache(self.settings.specs[0], kv_heads=KV_HEADS, head_dim=HEAD_DIM, sinks=0,
                                   window=self.settings.window)
            self.references[request.name] = cache
            if begin > 0:  # tokens that another request had cached
                key, value, _ = rows_of(request.tokens, 0, begin)
                cache.append(key[None].swapaxes(1, 2), value[None].swapaxes(1, 2))
        key, value, query = (part[None].swapaxes(1, 2) for part in rows)
        cache.append(key, value)
        return np.asarray(kvq.attend(query, cache, scale=SCALE))[0]

    def step(self, counts, padding=0):
        output, batch = self.scheduler.step(counts)
        self.engine.begin_step(output)
        if not batch:
            return
        parts = [rows_of(request.tokens, begin, end) for request, begin, end in batch]
        key, value, query = (np.concatenate(arrays) for arrays in zip(*parts))
        starts = np.cumsum([0] + [end - begin for _, begin, end in batch] + [0] * padding, dtype=np.int32)
        lengths = np.array([end for _, _, end in batch] + [0] * padding, np.int32)
        table = np.zeros((len(lengths), 24), np.int32)
        for row, (request, _, _) in zip(table, batch):
            row[:len(request.blocks)] = request.blocks
        result = np.zeros_like(query)
        self.engine.attend(0, self.blocks, key, value, query, result,
                           self.engine.step(starts, lengths, table), SCALE)
        for (request, begin, end), rows, start in zip(batch, parts, starts):
            want = self._reference(request, begin, end, rows)
            np.testing.assert_array_equal(result[start:start + end - begin], want,
                                          f"{request.name}: tokens {begin} to {end}")


class EngineTest(unittest.TestCase):
    def test_a_request_alone_in_chunks_of_any_size(self):
        for spec in ("k4v2", "k3v2", "k16v16", "k2:token,v1.58"):
            for window in (0, 64):
                with self.subTest(spec=spec, window=window):
                    harness = Harness(settings(spec, window))
                    harness.scheduler.add("a", list(range(400)))
                    for tokens in (1, 1, 60, 3, 70, 130, 1, 40, 1, 9, 64, 20):
                        harness.step({"a": tokens})

    def test_unequal_batches_with_padding(self):
        harness = Harness(settings())
        for name, length in (("a", 300), ("b", 65), ("c", 10)):
            harness.scheduler.add(name, list(range(ord(name), ord(name) + length)))
        harness.step({"a": 200, "b": 64, "c": 5}, padding=3)
        harness.step({"b": 1, "a": 90})
        harness.step({"c": 5, "a": 10}, padding=1)

    def test_requests_share_full_blocks(self):
        harness = Harness(settings())
        prefix = list(range(150))
        for name in "abcd":
            harness.scheduler.add(name, prefix + [ord(name)] * 100)
        harness.step({"a": 150})
        harness.step({"a": 1, "b": 22 + 50, "c": 22 + 7})
        self.assertEqual(harness.engine.reused_tokens, 2 * 128)
        harness.step({"a": 49, "b": 49, "c": 93, "d": 1})

    def test_a_preempted_request_is_computed_again(self):
        for share in (False, True):
            with self.subTest(share=share):
                harness = Harness(settings(), share=share)
                for name in "ab":
                    harness.scheduler.add(name, [ord(name)] * 300)
                harness.step({"a": 100, "b": 130})
                harness.scheduler.preempt("a")
                harness.step({"b": 70})
                harness.step({"a": 190, "b": 1})
                harness.step({"a": 1, "b": 1})

    def test_slots_of_finished_requests_are_taken_again(self):
        harness = Harness(settings(slots=2))
        for i in range(12):
            harness.scheduler.add(f"r{i}", [i] * 90)
        harness.step({"r0": 90, "r1": 30})
        for i in range(2, 12):
            harness.scheduler.finish(f"r{i - 2}")
            harness.step({f"r{i}": 40 + i, f"r{i - 1}": 10})
        self.assertEqual(len(harness.engine.running), 2)
        for i in (10, 11):
            harness.scheduler.finish(f"r{i}")
        harness.step({})
        self.assertEqual(sorted(harness.engine.free_slots), [0, 1])

    def test_a_long_random_life(self):
        for seed, window, share in ((1, 0, True), (2, 0, True), (3, 64, False)):
            with self.subTest(seed=seed):
                self._live(np.random.default_rng(seed), settings(window=window, slots=5), share)

    def _live(self, random, given, share):
        harness = Harness(given, blocks=30, share=share)
        scheduler = harness.scheduler
        for i in range(25):
            prefix = [int(random.integers(2))] * int(random.choice([0, 64, 128, 200]))
            scheduler.add(f"r{i}", prefix + [i] * int(random.integers(1, 150)))
        for _ in range(150):
            counts, room = {}, len(scheduler.free)
            for name, request in list(scheduler.running.items()):
                if request.computed == len(request.tokens) or random.random() < 0.03:
                    scheduler.finish(name)
                elif random.random() < 0.05:
                    scheduler.preempt(name)
                elif random.random() < 0.8:
                    tokens = int(random.choice([1, 1, 7, 33, 100]))
                    needed = -(-min(request.computed + tokens, len(request.tokens)) // BLOCK_TOKENS)
                    if needed - len(request.blocks) <= room:
                        room -= needed - len(request.blocks)
                        counts[name] = tokens
            room = given.slots - len(scheduler.running)
            for request in scheduler.waiting[:max(0, room)]:
                counts[request.name] = int(random.integers(1, 150))
            harness.step(counts, padding=int(random.integers(2)))
        self.assertLess(len(scheduler.waiting), 15)

    def test_thousands_of_steps_take_no_more_memory(self):
        engine, scheduler = Engine(settings(slots=16)), FakeScheduler(120, share=False)
        blocks = blocks_like_vllm(120, engine.settings.content_bytes(0))
        random = np.random.default_rng(1)
        numbers = random.standard_normal((4096, 2 * KV_HEADS + QUERY_HEADS, HEAD_DIM), dtype=np.float32)
        added, resident = 0, []
        for step in range(3000):
            for name, request in list(scheduler.running.items()):
                if request.computed == len(request.tokens) or random.random() < 0.01:
                    scheduler.finish(name)
            counts = {name: 1 for name in scheduler.running}
            while len(counts) < 14 and len(scheduler.free) > 40:
                added += 1
                scheduler.add(f"r{added}", [0] * int(random.integers(5, 200)))
                counts[f"r{added}"] = int(random.integers(1, 200))
                if len(counts) - len(scheduler.running) > 3:
                    break
            output, batch = scheduler.step(counts)
            engine.begin_step(output)
            starts = np.cumsum([0] + [end - begin for _, begin, end in batch], dtype=np.int32)
            table = np.zeros((len(batch), 8), np.int32)
            for row, (request, _, _) in zip(table, batch):
                row[:len(request.blocks)] = request.blocks
            rows = numbers[:starts[-1]]
            engine.attend(0, blocks, rows[:, :KV_HEADS], rows[:, KV_HEADS:2 * KV_HEADS], rows[:, 2 * KV_HEADS:],
                          np.zeros((len(rows), QUERY_HEADS, HEAD_DIM), np.float32),
                          engine.step(starts, np.array([end for *_, end in batch], np.int32), table), SCALE)
            if step in (500, 2999):
                text = pathlib.Path("/proc/self/statm").read_text(encoding="ascii")
                resident.append(int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        self.assertGreater(added, 500)
        self.assertLess(resident[1] - resident[0], 4 * 2**20)

    def test_errors_name_what_is_wrong(self):
        harness = Harness(settings(slots=1))
        for name in "ab":
            harness.scheduler.add(name, [ord(name)] * 100)
        with self.assertRaisesRegex(RuntimeError, "more than 1 requests run"):
            harness.step({"a": 10, "b": 10})
        engine = Engine(settings())
        with self.assertRaisesRegex(RuntimeError, "no request of this step writes to block 3"):
            engine.step(np.array([0, 1]), np.array([1]), np.array([[3]]))
        harness = Harness(settings())
        harness.scheduler.add("a", [1] * 10)
        harness.blocks = harness.blocks[..., 1:]
        with self.assertRaisesRegex(ValueError, "blocks: expected the shape"):
            harness.step({"a": 10})

    def test_numbers_beyond_fp16_are_refused(self):
        engine = Engine(settings())
        scheduler = FakeScheduler(8, True)
        scheduler.add("a", [1, 2])
        output, _ = scheduler.step({"a": 2})
        engine.begin_step(output)
        step = engine.step(np.array([0, 2]), np.array([2]), np.array([[1]]))
        key, value, query = rows_of([1, 2], 0, 2)
        value[1, 1, 3] = 1e6
        with self.assertRaisesRegex(ValueError, "layer 0: expected finite keys and values"):
            engine.attend(0, blocks_like_vllm(8, engine.settings.content_bytes(0)), key, value, query,
                          np.zeros_like(query), step, SCALE)


@dataclasses.dataclass
class FakeModel:
    """The part of vLLM's ModelConfig that is asked."""
    model: str = "some/model"
    runner_type: str = "generate"
    dtype: str = "torch.bfloat16"
    is_encoder_decoder: bool = False
    use_mla: bool = False
    is_hybrid: bool = False
    is_attention_free: bool = False
    head_size: int = 64
    sliding_window: int | None = None
    hf_text_config: object = dataclasses.field(default_factory=types.SimpleNamespace)

    def get_head_size(self):
        return self.head_size

    def get_sliding_window(self):
        return self.sliding_window

    def get_total_num_hidden_layers(self):
        return 2

    def get_total_num_kv_heads(self):
        return 4

    def get_num_kv_heads(self, parallel):
        return 4 // parallel.tensor_parallel_size

    def get_num_attention_heads(self, parallel):
        return 8 // parallel.tensor_parallel_size


def fake_config(kvq_options={"kv": "k4v2"}, model=None, **changes):
    config = types.SimpleNamespace(
        additional_config={} if kvq_options is None else {"kvq": kvq_options},
        model_config=model or FakeModel(),
        cache_config=types.SimpleNamespace(cache_dtype="auto", block_size=128, user_specified_block_size=False),
        parallel_config=types.SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        scheduler_config=types.SimpleNamespace(max_num_seqs=16), speculative_config=None,
        kv_transfer_config=None)
    vars(config).update(changes)
    return config


class ThreadsTest(unittest.TestCase):
    @unittest.skipIf(len(os.sched_getaffinity(0)) < 2, "needs two processors")
    def test_threads_start_on_all_processors_beside_pinned_ones(self):
        program = """
import os, threading
from kvq import _core, threads
first, *others = sorted(os.sched_getaffinity(0))
waits = threading.Event()
held = threading.Thread(target=waits.wait)
held.start()
os.sched_setaffinity(0, {first})
known = set(os.listdir("/proc/self/task"))
_core.set_thread_count(3)
threads.start_beside_pinned()
started = set(os.listdir("/proc/self/task")) - known
print(len(started), os.sched_getaffinity(0) == {first},
      all(os.sched_getaffinity(int(thread)) == {first, *others} for thread in started))
waits.set()
"""
        done = subprocess.run([sys.executable, "-B", "-c", program], check=True, capture_output=True, text=True)
        self.assertEqual(done.stdout.split(), ["2", "True", "True"])


class SettingsTest(unittest.TestCase):
    def refuses(self, message, *args, **kwargs):
        with self.assertRaisesRegex(ValueError, message):
            settings_of(fake_config(*args, **kwargs))

    def test_nothing_is_asked_for(self):
        self.assertIsNone(settings_of(fake_config(None)))
        self.assertIsNone(settings_of(types.SimpleNamespace(additional_config=None)))

    def test_a_format(self):
        found = settings_of(fake_config())
        self.assertEqual(found, Settings(("k4v2", "k4v2"), 0, 16, 8, 4, 64))
        self.assertEqual(found.content_bytes(0), kvq.page_bytes("k4v2", 64) // 64)
        self.assertEqual(found.slot_bytes, 16 * 64 * 2 * 4 * 64 * 2 * 2)
        engine = Engine(found)
        self.assertEqual(engine.cache.slot_bytes, found.slot_bytes)
        wide = settings_of(fake_config({"kv": "k4v2", "window": 64}))
        self.assertEqual(Engine(wide).cache.slot_bytes, 2 * found.slot_bytes)

    def test_a_rank_of_several(self):
        parallel = types.SimpleNamespace(tensor_parallel_size=2, pipeline_parallel_size=1)
        found = settings_of(fake_config(parallel_config=parallel))
        self.assertEqual((found.query_heads, found.kv_heads), (4, 2))

    def test_a_plan(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "plan.json"
            kvq.Plan.of_specs(["k4v2", "k2v2"], 4, 64).save(path)
            with self.assertLogs("vllm.kvq", "INFO") as log:
                found = settings_of(fake_config({"plan": str(path)}))
            self.assertEqual(found.specs, tuple(kvq.Plan.load(path).specs))
            self.assertIn("its 4 sinks and window of 64 tokens do not apply", log.output[0])
            self.assertGreater(found.content_bytes(0), found.content_bytes(1))
            kvq.Plan.of_specs(["k4v2"] * 3, 4, 64).save(path)
            self.refuses("model: layers: expected 2 as the model has, found 3", {"plan": str(path)})
        self.refuses("plan: expected a file, found none at /none", {"plan": "/none"})

    def test_options(self):
        self.refuses("expected an object", "k4v2")
        self.refuses('expected "kv"', {})
        self.refuses('expected "kv"', {"kv": "k4v2", "plan": "plan.json"})
        self.refuses("bits: unknown; expected kv, plan, window", {"kv": "k4v2", "bits": 3})
        self.refuses("window: expected 0 or 64, found 32", {"kv": "k4v2", "window": 32})
        self.refuses("k9v2", {"kv": "k9v2"})

    def test_models(self):
        for message, change in {
                "runner: expected generate, found pooling": {"runner_type": "pooling"},
                "expected a decoder": {"is_encoder_decoder": True},
                "found multi-head latent attention": {"use_mla": True},
                "expected attention in every layer": {"is_hybrid": True},
                "no sliding window, found 4096": {"sliding_window": 4096},
                "expected full attention in every layer, found sliding_attention": {
                    "hf_text_config": types.SimpleNamespace(layer_types=["full_attention", "sliding_attention"])},
                "without a soft cap, found 50": {
                    "hf_text_config": types.SimpleNamespace(attn_logit_softcapping=50)},
                "dtype: expected float32 or bfloat16 or float16, found float64": {"dtype": "torch.float64"},
                "head size: expected a multiple of 16 from 16 to 256, found 72": {"head_size": 72}}.items():
            self.refuses(message, model=FakeModel(**change))

    def test_engines(self):
        cache = types.SimpleNamespace(cache_dtype="fp8")
        self.refuses("--kv-cache-dtype: expected auto, found fp8", cache_config=cache)
        parallel = types.SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=2)
        self.refuses("pipeline parallel size: expected 1, found 2", parallel_config=parallel)
        self.refuses("speculative decoding: expected none, found ngram",
                     speculative_config=types.SimpleNamespace(method="ngram"))
        self.refuses("KV transfer: expected none, found Offloading",
                     kv_transfer_config=types.SimpleNamespace(kv_connector="Offloading"))

    def test_block_size(self):
        cache = fake_config().cache_config
        check_block_size(cache)
        self.assertEqual((cache.block_size, cache.user_specified_block_size), (64, True))
        cache.block_size = 16
        with self.assertRaisesRegex(ValueError, "--block-size: expected 64, found 16"):
            check_block_size(cache)

    def test_versions(self):
        check_version("0.32.0")
        check_version("0.32.1+cpu")
        with self.assertRaisesRegex(ValueError, "vLLM: expected version 0.32.x, found 0.33.0"):
            check_version("0.33.0")

    def test_options_are_json(self):
        options = json.loads('{"kvq": {"kv": "k4v2", "window": 64}}')
        self.assertEqual(options_of(types.SimpleNamespace(additional_config=options)), options["kvq"])


if __name__ == "__main__":
    unittest.main()
