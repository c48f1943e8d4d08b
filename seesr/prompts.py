"""Prompts: composed of tags and the user's words, and encoded as CLIP text states."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger(__name__)


class PromptEncoder:
    """Composes prompts that fit the text encoder and caches the text states of the latest ones."""

    CACHED = 8

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.length: int = text_encoder.config.max_position_embeddings  # 77
        self._states: dict[str, Tensor] = {}

    def compose(self, tags: Sequence[str], user_prompt: str, positive_prompt: str) -> str:
        """Tags, user_prompt and positive_prompt as one comma-separated prompt of at most 77 tokens, no item empty.

        If they don't fit, the last tags are left out (upstream cuts the end: the user's words).
        """
        words = [text for text in (user_prompt.strip().rstrip(",").strip(), positive_prompt.strip()) if text]
        count = len(tags)
        while True:
            prompt = ", ".join([*tags[:count], *words])
            tokens = len(self.tokenizer(prompt).input_ids)
            if tokens <= self.length or count == 0:
                break
            count -= 1
        if tokens > self.length:
            log.warning("user_prompt and positive_prompt have %d tokens: the first %d are used.", tokens, self.length)
        elif count < len(tags):
            log.info("The prompt holds %d of %d tags: the text encoder reads %d tokens.", count, len(tags), self.length)
        return prompt

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """str -> (1, 77, D): the text encoder's last hidden state, after its final norm

        Padding is the tokenizer's pad token ("!", id 0, for SD-Turbo) and is attended to, as in training.
        """
        if prompt not in self._states:
            ids = self.tokenizer(prompt, padding="max_length", max_length=self.length, truncation=True).input_ids
            states = self.text_encoder(torch.tensor([ids], device=self.text_encoder.device)).last_hidden_state
            while len(self._states) >= self.CACHED:
                del self._states[next(iter(self._states))]
            self._states[prompt] = states
        return self._states[prompt]
