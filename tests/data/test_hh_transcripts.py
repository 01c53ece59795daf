"""Transcripts of hh-rlhf as turns and back, and the prompt of a pair of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odonata.data.dialogues import Turn
from odonata.data.hh_transcripts import split_pair, transcript_of, turns_of_transcript

WORDS = (
    st.text(min_size=1).map(str.strip).filter(lambda text: text and "Human:" not in text and "Assistant:" not in text)
)


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_a_transcript_gives_back_its_turns(contents: list[str]):
    turns = tuple(Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(contents))
    assert turns_of_transcript(transcript_of(turns), "chosen") == turns


def test_a_transcript_that_asks_ends_with_the_assistants_name():
    turns = turns_of_transcript("Human:  hi \n\nAssistant: Human: is a word\n\n\nHuman: so?", "chosen")
    assert [turn.content for turn in turns] == ["hi", "Human: is a word", "so?"]
    assert transcript_of(turns[:1], ask=True) == "\n\nHuman: hi\n\nAssistant:"
    with pytest.raises(ValueError, match="a transcript has no system turns"):
        transcript_of([Turn("system", "x")])


def test_the_prompt_of_a_pair_is_what_both_have_in_common():
    a, b, c, d = (Turn(role, text) for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True))
    other = Turn("assistant", "e")
    assert split_pair((a, b, c, d), (a, b, c, other)) == ((a, b, c), "d", "e")
    with pytest.raises(ValueError, match="differ in turn 2 already, of 4 and 4"):
        split_pair((a, b, c, d), (a, other, c, d))
    with pytest.raises(ValueError, match="differ in turn 2 already, of 4 and 2"):
        split_pair((a, b, c, d), (a, other))
