"""A tokenizer.json for the tiny checkpoints: bytes, a few joined ones, two special."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

END = 511
CONTROL = 258
_JOINED = [('"', ":"), ('"', ",")]


def write(folder: Path) -> Tokenizer:
    """Ids 0 to 255 are bytes in the alphabet's order; 259 to 510 have no token."""
    letters = sorted(ByteLevel.alphabet())
    vocab = {letter: place for place, letter in enumerate(letters)}
    vocab |= {left + right: 256 + n for n, (left, right) in enumerate(_JOINED)}
    fillers = {f"<unused{n}>": n for n in range(259, END)}
    vocab |= {"<control>": CONTROL, "<end>": END} | fillers
    tokenizer = Tokenizer(BPE(vocab, merges=_JOINED))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    names = ["<control>", "<end>", *fillers]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer
