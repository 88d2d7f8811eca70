"""The way through a model whose layers are fused: embedding, layers, norm.

Device process. transformers' own does the same after looking for masks, hooks and
defaults, for 0.6 ms a step. `LeanForward` takes its place on the module and hands it
every call that needs more than ids, positions and a cache: the attention function must
be one without masks, as `paged`'s is.

Invariant: what it computes itself equals what the other would have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import BaseModelOutputWithPast


class LeanForward:
    """Stands for `forward` of a transformers decoder (`LlamaModel` and its like)."""

    def __init__(self, body: Any) -> None:
        self._config = body.config
        self._whole = body.forward
        self._embedding = body.embed_tokens
        self._rotary = body.rotary_emb
        self._norm = body.norm.forward
        self._layers = [layer.forward for layer in body.layers]

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **more: Any,
    ) -> BaseModelOutputWithPast:
        asked = (attention_mask, inputs_embeds, *more.values())
        more_asked = any(value is not None and value is not False for value in asked)
        lean = position_ids is not None and self._is_maskless(past_key_values)
        if more_asked or not lean:
            return self._whole(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                inputs_embeds=inputs_embeds,
                use_cache=use_cache,
                **more,
            )
        assert input_ids is not None
        assert position_ids is not None
        stages = self.stages(input_ids, position_ids, past_key_values)
        hidden = deque(stages, maxlen=1).pop()
        return BaseModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=past_key_values
        )

    @property
    def num_stages(self) -> int:
        return len(self._layers)

    def stages(
        self, input_ids: Tensor, position_ids: Tensor, past_key_values: Any
    ) -> Iterator[Tensor]:
        """The hidden states [.., K] behind each layer, the last ones normalised."""
        hidden = self._embedding(input_ids)
        tables = self._rotary(hidden, position_ids=position_ids)
        for number, layer in enumerate(self._layers, 1):
            hidden = layer(
                hidden,
                past_key_values=past_key_values,
                position_embeddings=tables,
            )
            yield hidden if number < len(self._layers) else self._norm(hidden)

    def _is_maskless(self, cache: Any) -> bool:
        name = self._config._attn_implementation
        return cache is not None and name not in ALL_MASK_ATTENTION_FUNCTIONS
