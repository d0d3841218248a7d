"""Text that came from outside, before it is printed."""

import json

import pytest

from rlhf_lab.terminal import json_text, one_line, printable

C0 = [chr(c) for c in range(32) if chr(c) not in "\t\n"]
C1 = [chr(c) for c in range(0x7F, 0xA0) if c != 0x9B]  # which begins a sequence, below
BIDI = [chr(c) for c in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))]
HALF = ["\ud800", "\udfff"]


@pytest.mark.parametrize("character", C0 + C1 + BIDI + HALF + ["\u2028"], ids=lambda c: f"{ord(c):04x}")
def test_no_control_character_is_left(character):
    assert printable(f"a{character}b") == "ab" and one_line(f"a{character}\nb") == "a b"
    assert character not in json_text({character: [character]})
    assert json.loads(json_text({character: [character]})) == {character: [character]}, "as data nothing is lost"


def test_sequences_go_as_a_whole():
    assert printable("\x1b[31;1mred\x1b[0m \x9b2Jx") == "red x"
    assert printable("\x1b]0;title\x07x") == "]0;titlex", "without what makes it a command it is text"


def test_letters_of_all_languages_stay():
    text = "β ≥ 0.1 → größer, 日本語, עברית, 😀\tok\nnext"
    assert printable(text) == text and json.loads(json_text(text)) == text and "日本語" in json_text(text)
    assert one_line("  a \n\t b ") == "a b"
