"""4-bit blocks of GGUF files: what their bytes mean, exactly.

Device and conversion processes. Thirty-two weights of a row share a scale and a
minimum, and a weight is `scale * q + minimum` with q in 0..15:

    Q4_0   f16 d         │ 16 bytes    w = d * (q - 8), so minimum = -8 d
    Q4_1   f16 d │ f16 m │ 16 bytes    w = d * q + m

The low halves of the 16 bytes are the block's first sixteen weights, the high halves
the other sixteen. Layouts: the GGUF specification and ggml's `ggml-common.h`. Other
block types are known by name (`neurond.converted`) and have no kernel here.

Invariant: `dense` gives bit for bit what ggml's dequantisation gives in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

BLOCK = 32
_HALF = BLOCK // 2
_HEADER_BYTES = {"Q4_0": 2, "Q4_1": 4}
PARTS = ("q", "scale", "minimum")


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix [N, K]: `q` uint8 [N, K] of 0..15; `scale`, `minimum` f32 [N, K/32]."""

    q: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return (self.q.shape[0], self.q.shape[1])

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[N, K], computed in float32 and rounded once."""
        q = self.q.view(self.q.shape[0], -1, BLOCK).float()
        grown = q.mul_(self.scale[..., None]).add_(self.minimum[..., None])
        return grown.view(self.q.shape).to(dtype)


def read(raw: torch.Tensor, kind: str) -> Blocks:
    """From the file's bytes, uint8 [N, bytes of a row], of type Q4_0 or Q4_1."""
    header = _HEADER_BYTES[kind]
    blocks = raw.view(raw.shape[0], -1, header + _HALF)
    numbers = blocks[..., :header].contiguous().view(torch.float16).float()
    scale = numbers[..., 0].contiguous()
    minimum = scale * -8 if kind == "Q4_0" else numbers[..., 1].contiguous()
    return Blocks(_spread(blocks[..., header:]), scale, minimum)


def unpermute(blocks: Blocks, num_heads: int) -> Blocks:
    """Rows of q and k as transformers wants them.

    GGUF files of Llama's kind hold the two halves of each head's rotary pairs
    interleaved; transformers holds one half after the other.
    """
    return Blocks(*(_rows(getattr(blocks, part), num_heads) for part in PARTS))


def to_stored(name: str, blocks: Blocks) -> dict[str, torch.Tensor]:
    """As half-precision numbers and half bytes, which is what the GGUF held."""
    halves = blocks.q.view(blocks.q.shape[0], -1, 2, _HALF)
    joined = halves[:, :, 0] | (halves[:, :, 1] << 4)
    return {
        f"{name}.q": joined.reshape(joined.shape[0], -1).contiguous(),
        f"{name}.scale": blocks.scale.half(),
        f"{name}.minimum": blocks.minimum.half(),
    }


def from_stored(name: str, tensors: Mapping[str, torch.Tensor]) -> Blocks:
    """The inverse of `to_stored`."""
    joined, scale, minimum = (tensors[f"{name}.{part}"] for part in PARTS)
    q = _spread(joined.view(joined.shape[0], -1, _HALF))
    return Blocks(q, scale.float(), minimum.float())


def is_exact(blocks: Blocks) -> bool:
    """Whether `to_stored` loses nothing: -8 d may leave the range of f16."""
    numbers = (blocks.scale, blocks.minimum)
    return all(torch.equal(part.half().float(), part) for part in numbers)


def _spread(joined: torch.Tensor) -> torch.Tensor:
    """uint8 [N, blocks, 16] with two weights a byte → [N, blocks * 32]."""
    spread = torch.cat((joined & 15, joined >> 4), -1)
    return spread.view(joined.shape[0], -1)


def _rows(part: torch.Tensor, num_heads: int) -> torch.Tensor:
    paired = part.view(num_heads, part.shape[0] // num_heads // 2, 2, -1)
    return paired.transpose(1, 2).reshape(part.shape)
