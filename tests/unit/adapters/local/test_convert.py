"""The conversions, on models of a few kilobytes."""

import json

import pytest

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

from batch_infer.adapters.local.convert import bert_to_gguf, requantise  # noqa: E402

Q = gguf.GGMLQuantizationType
WIDTH, INNER, VOCABULARY = 32, 64, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "##ing", "!"]


def read(path):
    reader = gguf.GGUFReader(path)
    tensors = {
        tensor.name: (tensor.tensor_type, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.fixture
def bert(tmp_path):
    rng = np.random.default_rng(7)

    def matrix(*shape):
        return rng.normal(size=shape).astype(np.float32)

    block = "encoder.layer.0."
    weights = {
        "embeddings.word_embeddings.weight": matrix(len(VOCABULARY), WIDTH),
        "embeddings.position_embeddings.weight": matrix(16, WIDTH),
        "embeddings.token_type_embeddings.weight": matrix(2, WIDTH),
        "embeddings.position_ids": np.arange(16)[None],
        "embeddings.LayerNorm.weight": matrix(WIDTH),
        "embeddings.LayerNorm.bias": matrix(WIDTH),
        f"{block}intermediate.dense.weight": matrix(INNER, WIDTH),
        f"{block}intermediate.dense.bias": matrix(INNER),
        "pooler.dense.weight": matrix(WIDTH, WIDTH),
    }
    config = {
        "num_hidden_layers": 1,
        "max_position_embeddings": 16,
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_attention_heads": 2,
        "layer_norm_eps": 1e-12,
        "type_vocab_size": 2,
    }
    safetensors_numpy.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    target = tmp_path / "bert.gguf"
    bert_to_gguf(tmp_path / "model.safetensors", tmp_path / "vocab.txt", tmp_path / "config.json", target)
    return weights, *read(target)


def test_matrices_become_eight_bit_and_the_rest_stays_exact(bert):
    weights, _, tensors = bert
    kind, words = tensors["token_embd.weight"]
    assert kind == Q.Q8_0
    assert np.abs(words - weights["embeddings.word_embeddings.weight"]).max() < 0.02
    assert tensors["blk.0.ffn_up.weight"][0] == Q.Q8_0
    for name, source in {
        "position_embd.weight": "embeddings.position_embeddings.weight",
        "token_types.weight": "embeddings.token_type_embeddings.weight",
        "token_embd_norm.bias": "embeddings.LayerNorm.bias",
        "blk.0.ffn_up.bias": "encoder.layer.0.intermediate.dense.bias",
    }.items():
        kind, data = tensors[name]
        assert kind == Q.F32
        np.testing.assert_array_equal(data, weights[source])


def test_the_pooler_and_the_position_ids_are_left_out(bert):
    _, _, tensors = bert
    assert len(tensors) == 7


def test_the_vocabulary_is_in_the_servers_format(bert):
    _, fields, _ = bert
    assert fields["tokenizer.ggml.tokens"] == [*VOCABULARY[:5], "\u2581hello", "ing", "\u2581!"]
    assert fields["tokenizer.ggml.bos_token_id"] == VOCABULARY.index("[CLS]")
    assert fields["tokenizer.ggml.seperator_token_id"] == VOCABULARY.index("[SEP]")


def test_the_shape_and_the_mean_pooling_are_declared(bert):
    _, fields, _ = bert
    assert fields["bert.context_length"] == 16
    assert fields["bert.attention.head_count"] == 2
    assert fields["bert.pooling_type"] == gguf.PoolingType.MEAN
    assert fields["bert.attention.causal"] is False


def test_requantising_keeps_what_the_four_bits_said(tmp_path):
    rng = np.random.default_rng(7)
    small = gguf.quants.quantize(rng.normal(size=(8, 64)).astype(np.float32), Q.Q4_1)
    norm = rng.normal(size=64).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_1)
    writer.add_token_list(["a", "b"])
    writer.add_context_length(8192)
    writer.add_tensor("matrix", small, raw_dtype=Q.Q4_1)
    writer.add_tensor("norm", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    requantise(tmp_path / "small.gguf", tmp_path / "wide.gguf")

    before, _ = read(tmp_path / "small.gguf")
    after, tensors = read(tmp_path / "wide.gguf")
    assert after["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    for name in ("general.architecture", "tokenizer.ggml.tokens", "llama.context_length"):
        assert after[name] == before[name]
    kind, data = tensors["matrix"]
    assert kind == Q.Q8_0
    said = gguf.quants.dequantize(small, Q.Q4_1)
    # Half of one of 127 steps: the rounding of eight bits, nothing more.
    assert np.abs(data - said).max() <= np.abs(said).max() / 127 * 0.51
    np.testing.assert_array_equal(tensors["norm"][1], norm)
