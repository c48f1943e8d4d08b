"""Prompts that fit, and text states equal to the reference's."""

import pytest
import torch

from seesr.pipeline import SeeSR
from seesr.prompts import PromptEncoder
from tests.golden import PROMPTS, recorded

RECORDED = recorded("text")


@pytest.fixture(scope="module")
def prompts(golden: SeeSR) -> PromptEncoder:
    return golden.prompts


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_text_states_equal_the_reference(prompts: PromptEncoder, index: int) -> None:
    states = prompts.encode(PROMPTS[index])
    torch.testing.assert_close(states, RECORDED["last_hidden_state"][index, None], atol=1e-4, rtol=0)


def test_states_are_kept_but_not_for_ever(prompts: PromptEncoder) -> None:
    first = prompts.encode("a castle")
    assert prompts.encode("a castle") is first
    for number in range(PromptEncoder.CACHED):
        prompts.encode(f"castle {number}")
    assert prompts.encode("a castle") is not first


def test_composed_prompt_has_no_empty_items(prompts: PromptEncoder) -> None:
    assert prompts.compose(["sky", "tree"], "", "clean") == "sky, tree, clean"
    assert prompts.compose(["sky"], " a photo, ", "clean") == "sky, a photo, clean"
    assert prompts.compose([], "", "clean") == "clean"
    assert prompts.compose([], "", "") == ""


def test_a_long_tag_list_gives_way_to_the_words(prompts: PromptEncoder) -> None:
    prompt = prompts.compose([f"tag {number}" for number in range(60)], "my own words", "clean, 8k")
    assert prompt.startswith("tag 0, tag 1, ")
    assert prompt.endswith(", my own words, clean, 8k")
    assert len(prompts.tokenizer(prompt).input_ids) <= 77
    longer = prompts.compose(
        [f"tag {number}" for number in range(prompt.count("tag") + 1)], "my own words", "clean, 8k"
    )
    assert longer == prompt  # one tag more would not fit


def test_too_many_words_are_said(prompts: PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
    prompts.compose(["sky"], "word " * 100, "clean")
    assert "the first 77 are used" in caplog.text
