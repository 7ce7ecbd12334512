"""Models that cannot be run: each is refused with one line that names the place."""
import json
import struct
import unittest

from harness import DEMO_MODEL, CommandTest, Safetensors

LAYER0_KEY = "model.layers.0.self_attn.k_proj.weight"


class Files(CommandTest):
    def refused(self, directory, line):
        """By every command that loads the model, with the directory written as DIR."""
        line = line.replace("DIR", str(directory))
        self.fail_with(line, "generate", directory, "-p", "Hello")
        self.fail_with(line, "eval", directory)

    def test_missing_directory(self):
        self.refused("/no/such/model", '"/no/such/model": neither a directory nor a model id')

    def test_missing_config(self):
        self.refused(self.model({"config.json": None}),
                     "DIR/config.json: cannot open: No such file or directory")

    def test_missing_tokenizer(self):
        self.refused(self.model({"tokenizer.json": None}),
                     "DIR/tokenizer.json: cannot open: No such file or directory")

    def test_missing_weights(self):
        self.refused(self.model({"model.safetensors": None}),
                     "DIR: expected model.safetensors or model.safetensors.index.json, "
                     "found neither")

    def test_index_names_a_missing_file(self):
        index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        self.refused(self.model({"model.safetensors": None,
                                 "model.safetensors.index.json": json.dumps(index)}),
                     'DIR/model.safetensors.index.json: names '
                     '"model-00001-of-00002.safetensors", which does not exist')


class Configs(CommandTest):
    def refused(self, directory, line):
        line = line.replace("DIR", str(directory))
        self.fail_with(line, "info", directory)
        self.fail_with(line, "generate", directory, "-p", "Hello")

    def test_invalid_json(self):
        directory = self.model({"config.json": '{"model_type": '})
        self.fail_matching(f"{directory}/config.json: not valid JSON: .*", "info", directory)

    def test_unsupported_architecture(self):
        self.refused(self.model_with_config(architectures=["GPT2LMHeadModel"], model_type="gpt2"),
                     'DIR/config.json: model_type: expected "llama" or "qwen3", found "gpt2"')

    def test_unsupported_rope(self):
        self.refused(self.model_with_config(rope_scaling={"rope_type": "yarn", "factor": 4}),
                     'DIR/config.json: rope_scaling: rope_type: expected "default" or "llama3", '
                     'found "yarn"')

    def test_contradictory_shape(self):
        self.refused(self.model_with_config(num_key_value_heads=3),
                     "DIR/config.json: num_key_value_heads: expected a divisor of "
                     "num_attention_heads (8), found 3")


class Weights(CommandTest):
    def refused(self, directory, line):
        self.fail_with(line.replace("DIR", str(directory)), "generate", directory, "-p", "Hello")

    def test_truncated(self):
        content = (DEMO_MODEL / "model.safetensors").read_bytes()
        self.refused(self.model({"model.safetensors": content[:100_000]}),
                     'DIR/model.safetensors: tensor "model.embed_tokens.weight": data_offsets: expected '
                     "an end within 91904 bytes of data, found [0,6291456]")

    def test_lying_header_length(self):
        self.refused(self.model({"model.safetensors": struct.pack("<Q", 1 << 62) + b"{}"}),
                     "DIR/model.safetensors: header length: expected at most 2 (a file of 10 bytes), "
                     "found 4611686018427387904")

    def test_overlapping_tensors(self):
        file = Safetensors()
        file.header["model.norm.weight"]["data_offsets"] = [0, 768]
        self.refused(self.model({"model.safetensors": file.bytes()}),
                     'DIR/model.safetensors: tensor "model.embed_tokens.weight": expected to begin at '
                     "offset 768, found 0: it overlaps another tensor")

    def test_missing_tensor(self):
        file = Safetensors()
        file.header["other"] = file.header.pop(LAYER0_KEY)
        self.refused(self.model({"model.safetensors": file.bytes()}),
                     f'DIR: tensor "{LAYER0_KEY}" of shape [128,384]: expected in the checkpoint, '
                     "not found")

    def test_wrong_shape(self):
        file = Safetensors()
        file.header[LAYER0_KEY]["shape"] = [384, 128]
        self.refused(self.model({"model.safetensors": file.bytes()}),
                     f'DIR/model.safetensors: tensor "{LAYER0_KEY}": expected shape [128,384], found '
                     "[384,128]")

    def test_nan_weights(self):
        file = Safetensors()
        start, stop = file.header[LAYER0_KEY]["data_offsets"]
        file.data[start:stop] = b"\xc0\x7f" * ((stop - start) // 2)  # bf16 NaN
        self.refused(self.model({"model.safetensors": file.bytes()}),
                     "layer 0, kv head 0, token 0: key channel 0 is nan, expected a finite number "
                     "within +-65504")


class Tokenizers(CommandTest):
    def refused(self, directory, line):
        self.fail_with(line.replace("DIR", str(directory)), "generate", directory, "-p", "Hello")

    def test_invalid_json(self):
        directory = self.model({"tokenizer.json": "[1,"})
        self.fail_matching(f"{directory}/tokenizer.json: not valid JSON: .*", "generate", directory,
                           "-p", "Hello")

    def test_other_kind(self):
        tokenizer = json.loads((DEMO_MODEL / "tokenizer.json").read_text())
        tokenizer["model"] = {"type": "Unigram", "vocab": [["a", 0.0]]}
        self.refused(self.model({"tokenizer.json": json.dumps(tokenizer)}),
                     'DIR/tokenizer.json: model: type: expected "BPE", found "Unigram"')


if __name__ == "__main__":
    unittest.main()
