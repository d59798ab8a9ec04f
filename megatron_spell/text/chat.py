"""A prompt as one user turn of the model's chat template, as token ids."""

import numpy as np

from megatron_spell.text.tokenizer import Tokenizer, TokenizerError
from megatron_spell.types.prompts import Literal, Part, Prompt, Quoted

# stands for the user's text while the template is rendered; private-use characters no template writes or alters
_PLACE = "\ue0f0\ue0f1content\ue0f1\ue0f0"


class ChatFormat:
    """Wraps prompts in the chat template of the tokenizer.

    The template is rendered once around a placeholder, so that it never sees the prompt's text: what stands before and
    after the placeholder is tokenised with special tokens, the prompt's parts by themselves in between.
    `enable_thinking` is handed to the template, which may ignore it; None leaves it out.
    Raises TokenizerError when there is no chat template or it does not place the user's text exactly once.
    """

    def __init__(self, tokenizer: Tokenizer, enable_thinking: bool | None = None) -> None:
        self._tokenizer = tokenizer
        rendered = _render(tokenizer, enable_thinking)
        before, found, after = rendered.partition(_PLACE)
        if not found or _PLACE in after:
            raise TokenizerError("the chat template does not place the user's text exactly once")
        self._before_T = tokenizer.encode_literal(before)
        self._after_T = tokenizer.encode_literal(after)

    def encode(self, prompt: Prompt) -> np.ndarray:
        """int32 ids of the user turn that holds `prompt`, and of the opening of the assistant's turn."""
        parts = [self._encode_part(part) for part in _joined(prompt)]
        return np.concatenate([self._before_T, *parts, self._after_T]).astype(np.int32)

    def content(self, prompt_ids_T: np.ndarray) -> np.ndarray:
        """The ids of the user's own part of what `encode` gave, also after its middle was dropped."""
        return prompt_ids_T[len(self._before_T) : len(prompt_ids_T) - len(self._after_T)]

    def _encode_part(self, part: Part) -> np.ndarray:
        if isinstance(part, Literal):
            return self._tokenizer.encode_literal(part.text)
        if isinstance(part, Quoted):
            return self._tokenizer.encode_quoted(part.text)
        return np.asarray(part.token_ids_T, dtype=np.int32)


def _joined(prompt: Prompt) -> list[Part]:
    """Neighbouring literals as one: a template's text is tokenised alike however it was cut into parts."""
    parts: list[Part] = []
    for part in prompt:
        if parts and isinstance(part, Literal) and isinstance(parts[-1], Literal):
            parts[-1] = Literal(parts[-1].text + part.text)
        else:
            parts.append(part)
    return parts


def _render(tokenizer: Tokenizer, enable_thinking: bool | None) -> str:
    choices = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    try:
        return tokenizer.pretrained.apply_chat_template(
            [{"role": "user", "content": _PLACE}], tokenize=False, add_generation_prompt=True, **choices
        )
    except Exception as error:  # jinja and transformers raise many kinds for a missing or broken template
        reason = str(error).strip().split("\n")[0]
        raise TokenizerError(f"the chat template cannot be used: {reason}") from None
