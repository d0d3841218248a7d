"""Text to tensors: every place by hand."""

import pytest
import torch
from tiny_world import BOS, CONTEXT, EOS, PAD, Plain, encoder, ids_of, tokenizer, tokens_of

from rlhf_lab.errors import DataError, ModelError
from rlhf_lab.lm.tokens import Encoder, in_microbatches, pad, trim


def test_padding_right_and_left():
    ids, mask = pad([[5, 6], [7]], 9)
    assert ids.tolist() == [[5, 6], [7, 9]] and mask.tolist() == [[True, True], [True, False]]
    ids, mask = pad([[5, 6], [7]], 9, left=True)
    assert ids.tolist() == [[5, 6], [9, 7]] and mask.tolist() == [[True, True], [False, True]]


def test_padding_with_a_token_that_occurs():
    """The mask comes from the length, so the padding token may stand in the text."""
    assert pad([[9, 9], [9]], 9)[1].tolist() == [[True, True], [True, False]]


def test_prompts_left_responses_right_eos_included():
    rollout = encoder().encode(["w0", "w1 w2 w3"], ["w4 w5", ""])
    assert rollout.prompt_ids_BP.tolist() == [[PAD, PAD, *ids_of("w0")], ids_of("w1 w2 w3")]
    assert rollout.prompt_mask_BP.tolist() == [[False, False, True], [True] * 3]
    assert rollout.response_ids_BT.tolist() == [[*ids_of("w4 w5"), EOS], [EOS, PAD, PAD]]
    assert rollout.mask_BT.tolist() == [[True] * 3, [True, False, False]]
    assert rollout.ended_B.tolist() == [True, True] and rollout.group_B.tolist() == [0, 1]
    assert rollout.logprobs_BT is None and rollout.responses == ("w4 w5", "")


def test_the_eos_counts_as_a_response_token_where_it_is_the_padding_too():
    rollout = encoder("<eos>").encode(["w0", "w1 w2"], ["w4 w5", ""])
    assert rollout.response_ids_BT.tolist() == [[*ids_of("w4 w5"), EOS], [EOS, EOS, EOS]]
    assert rollout.mask_BT.sum(1).tolist() == [3, 1] and rollout.prompt_mask_BP.sum(1).tolist() == [1, 2]


def test_without_a_padding_token_the_eos_pads():
    assert encoder(None).pad == EOS and encoder().pad == PAD


def test_bos_where_the_tokenizer_adds_one():
    adding = tokenizer()
    adding.add_bos_token = True
    with_bos = Encoder(adding, Plain(), CONTEXT)
    assert with_bos.prompt_ids("w0") == [BOS, *ids_of("w0")]
    assert with_bos.prompt_ids("<bos> w0") == [BOS, *ids_of("w0")]  # a template may have written it
    assert with_bos.prompt_ids("") == [BOS]
    assert with_bos.response_ids("w0") == [*ids_of("w0"), EOS]
    assert tokens_of(with_bos.texts(["w0 w1"])) == [([BOS], [*ids_of("w0 w1"), EOS])]


def test_the_template_writes_the_prompt_only():
    class Question:
        def format(self, prompt, tokenizer):
            return f"w9 {prompt} w8"

    (sequence,) = tokens_of(Encoder(tokenizer(), Question(), CONTEXT).encode(["w0"], ["w1"]))
    assert sequence == (ids_of("w9 w0 w8"), [*ids_of("w1"), EOS])


def test_a_whole_text_is_its_first_token_and_the_rest():
    assert tokens_of(encoder().texts(["w0 w1 w2", "w3"])) == [(ids_of("w0"), [*ids_of("w1 w2"), EOS]), (ids_of("w3"), [EOS])]


def test_a_text_is_cut_to_the_context():
    long = " ".join(["w1"] * (CONTEXT + 5))
    (sequence,) = tokens_of(encoder().texts([long]))
    assert len(sequence[0]) + len(sequence[1]) == CONTEXT


def test_what_cannot_be_encoded_is_said():
    with pytest.raises(DataError, match="has no tokens"):
        encoder().prompts([""], 4)
    with pytest.raises(DataError, match=f"prompt of 3 tokens and a response of {CONTEXT - 2} exceed"):
        encoder().prompts(["w0", "w0 w1 w2"], CONTEXT - 2)
    encoder().prompts(["w0 w1 w2"], CONTEXT - 3)
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        Encoder(endless, Plain(), CONTEXT)


def test_decoding_leaves_special_tokens_out():
    assert encoder().decode([*ids_of("w4 w5"), EOS]) == "w4 w5"


def test_trimming_drops_only_columns_that_are_padding_for_all():
    rollout = encoder().encode(["w0", "w1 w2 w3", "w4 w5"], ["w4", "w5 w6 w7", ""])
    part = trim(rollout.rows(torch.tensor([0, 2])))
    assert tokens_of(part) == [tokens_of(rollout)[i] for i in (0, 2)]
    assert part.prompt_ids_BP.shape == (2, 2) and part.response_ids_BT.shape == (2, 2)
    assert part.prompts == ("w0", "w4 w5") and part.responses == ("w4", "") and part.group_B.tolist() == [0, 2]


@pytest.mark.parametrize("size", [1, 2, 3, 100, None])
def test_micro_batches_come_back_in_order_and_full_width(size):
    rollout = encoder().encode(["w0", "w1 w2 w3", "w4", "w5 w6", "w7"], ["w1", "w2 w3 w4", "", "w5 w6", "w8"])
    ids, double = in_microbatches(lambda part: (part.response_ids_BT * part.mask_BT, 2 * part.mask_BT), rollout, size)
    assert torch.equal(ids, rollout.response_ids_BT * rollout.mask_BT) and torch.equal(double, 2 * rollout.mask_BT)
