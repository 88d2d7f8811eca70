"""The tokenizer of one model folder: text to ids, and the bytes behind an id.

Front end and gateway; no torch: only the fast-tokenizer class is imported, never
AutoTokenizer. Nothing of a model repository is executed.

Invariant: `encode` never makes a special token out of text that was marked literal
(S76), and releases the interpreter while it works (the batch entry point does, `encode`
of the library does not).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerFast

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_ANCHOR = "a"
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
)
"""All that makes a tokenizer what it is."""


class Segment(NamedTuple):
    """A stretch of a prompt. In a literal one special tokens are plain text."""

    text: str
    literal: bool


class Tokenizer:
    """What serving needs of a tokenizer; implements `detokenize.Pieces`."""

    def __init__(self, fast: Any) -> None:
        self._backend: Any = fast.backend_tokenizer
        # what some folders ask for would cut and fill up texts in silence
        self._backend.no_truncation()
        self._backend.no_padding()
        self._literal: Any = None
        self.special_tokens: dict[str, str] = dict(fast.special_tokens_map)
        self.chat_template: str | None = _template(fast.chat_template)
        self.eos_id: int | None = fast.eos_token_id
        self.bos_id: int | None = fast.bos_token_id
        vocab = fast.get_vocab()
        self.vocab_size = 1 + max(vocab.values())
        self.max_piece_chars = max(map(len, vocab))
        added = fast.added_tokens_decoder
        self._added: dict[int, bytes] = {
            i: token.content.encode() for i, token in added.items()
        }
        self._special = {i for i, token in added.items() if token.special}
        self.control_texts = tuple(sorted(added[i].content for i in self._special))
        self._byte_level = _is_byte_level(self._backend.decoder)
        self._anchor = self._backend.encode(_ANCHOR, add_special_tokens=False).ids
        self._pieces: dict[tuple[int, bool], bytes] = {}

    def encode(self, segments: Iterable[Segment]) -> list[int]:
        texts: list[str] = []
        for text, literal in segments:
            # no special token is a single character, so nothing can match
            texts.extend(text if literal else [text])
        batch = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [token for encoding in batch for token in encoding.ids]

    def encode_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """A raw text, in which special tokens are what they say."""
        batch = self._backend.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        return list(batch[0].ids)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text with what the model wants around it; special tokens in it are text.

        The first call makes a second encoder, which takes as long as reading one.
        """
        if self._literal is None:
            literal = type(self._backend).from_str(self._backend.to_str())
            literal.encode_special_tokens = True
            self._literal = literal
        return [list(e.ids) for e in self._literal.encode_batch_fast(texts)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids below `vocab_size`, special tokens included."""
        return str(self._backend.decode_batch([ids], skip_special_tokens=False)[0])

    def name(self, token: int) -> str:
        """The token as its vocabulary writes it."""
        return self._backend.id_to_token(token) or ""

    def piece(self, token: int, *, first: bool) -> bytes | None:
        """The bytes of a token, None for a special one."""
        if token in self._special:
            return None
        known = self._pieces.get((token, first))
        if known is not None:
            return known
        fresh = self._compute(token, first=first)
        self._pieces[token, first] = fresh
        return fresh

    def spelt(self, token: int, *, first: bool) -> bytes:
        """The bytes of any token, of a special one as it is written."""
        piece = self.piece(token, first=first)
        return self._added[token] if piece is None else piece

    def _compute(self, token: int, *, first: bool) -> bytes:
        if token in self._added:
            return self._added[token]
        text = self._backend.id_to_token(token)
        if text is None:
            return b""  # a row of the embedding without a token
        if self._byte_level and _BYTES.keys() >= set(text):
            return bytes([_BYTES[char] for char in text])
        byte = _BYTE_PIECE.fullmatch(text)
        if byte:
            return bytes([int(byte[1], 16)])
        return self._in_context(token, first=first)

    def _in_context(self, token: int, *, first: bool) -> bytes:
        """Decoders that join words drop the space of a first token only."""
        if first:
            return str(self._backend.decode([token])).encode()
        before: str = self._backend.decode(self._anchor)
        both: str = self._backend.decode([*self._anchor, token])
        return both[len(before) :].encode()


class Tokenizers:
    """Tokenizers by what their files hold; models whose files are the same share one.

    Reading one holds the interpreter for a tenth of a second and more, in which no
    stream of the process moves; copies and variants of a model needn't cost that.
    """

    def __init__(self) -> None:
        self._known: WeakValueDictionary[bytes, Tokenizer] = WeakValueDictionary()

    def load(self, folder: Path) -> Tokenizer:
        """As `load`. From several threads at once, at worst one is read twice."""
        digest = _digest(folder)
        tokenizer = self._known.get(digest)
        if tokenizer is None:
            tokenizer = self._known[digest] = load(folder)
        return tokenizer


def load(folder: Path) -> Tokenizer:
    """Blocking, up to seconds. Raises OSError or ValueError for a bad folder."""
    fast = PreTrainedTokenizerFast.from_pretrained(
        str(folder), local_files_only=True, clean_up_tokenization_spaces=False
    )
    return Tokenizer(fast)


def _digest(folder: Path) -> bytes:
    """Of the files, an absent one unlike an empty one. Raises OSError."""
    parts = []
    for name in _FILES:
        try:
            content = (folder / name).read_bytes()
        except FileNotFoundError:
            parts.append(b"-")
        else:
            parts.append(hashlib.sha256(content).digest())
    return b"".join(parts)


def _template(value: str | dict[str, str] | None) -> str | None:
    return value.get("default") if isinstance(value, dict) else value


def _is_byte_level(decoder: Any) -> bool:
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    kinds = [state["type"], *[part["type"] for part in state.get("decoders", [])]]
    return "ByteLevel" in kinds


def _byte_table() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stand for themselves."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(b if b in printable else next(others)): b for b in range(256)}


_BYTES = _byte_table()
