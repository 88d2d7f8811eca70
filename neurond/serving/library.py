"""The models a worker can speak for: tokenizer, template, defaults, stop ids.

Front-end worker (and the gateway's, for a local node). Folders are read in a small
thread pool as soon as a model begins to load, so that the first request finds it ready;
long texts are rendered and encoded there too, where the tokenizer releases the
interpreter.

Invariant: the event loop reads no file and renders no long text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ipc.errors import HostError, ServiceError, cause_chain, error_for
from neurond.serving.grammarcheck import GrammarCheck
from neurond.serving.messages import Message
from neurond.serving.prompt import ChatTemplate
from neurond.serving.sampling import ModelLimits, context_error, generation_defaults
from neurond.serving.tokenizer import Tokenizer, Tokenizers, load
from neurond.serving.tools import Tool

INLINE_CHARS = 8 << 10
_MESSAGE_CHARS = 64
_INLINE_LIMIT_S = 0.1
_LIMIT_S = 5.0
_THREADS = 2
_MAX_BORROWED = 2
_MAX_WORKING = 16
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What serving knows of one model folder. `context` 0: it doesn't say."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: Mapping[str, Any]
    stop_ids: tuple[int, ...]
    context: int = 0

    def limits(self, window: int) -> ModelLimits:
        vocab_size = self.tokenizer.vocab_size
        return ModelLimits(window, vocab_size, self.defaults, self.stop_ids)

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        window: int,
        limit_s: float,
        add_generation_prompt: bool = True,
    ) -> tuple[int, ...]:
        """Raises ClientError: no template, a refusal of it, far over the window.

        A text is not encoded when no token is long enough for it to fit: the encoder
        takes 150 bytes of memory for every token, also of one that is refused later.
        """
        if self.template is None:
            raise error_for("template_render_failed", "this model has no chat template")
        segments = self.template.render(
            messages,
            tools,
            limit_s=limit_s,
            add_generation_prompt=add_generation_prompt,
        )
        num_chars = sum(len(segment.text) for segment in segments)
        num_least = -(-num_chars // self.tokenizer.max_piece_chars)
        if num_least > window:
            raise context_error(num_least, window, is_least=True)
        return tuple(self.tokenizer.encode(segments))


def read_model(folder: Path, load: Callable[[Path], Tokenizer] = load) -> ServedModel:
    """Blocking, up to seconds. Raises OSError, ValueError."""
    tokenizer = load(folder)
    generation = _read_json(folder / "generation_config.json")
    config = _read_json(folder / "config.json")
    source = tokenizer.chat_template
    controls = (tokenizer.special_tokens, tokenizer.control_texts)
    ends = (generation.get("eos_token_id"), config.get("eos_token_id"))
    return ServedModel(
        tokenizer=tokenizer,
        template=ChatTemplate(source, *controls) if source else None,
        defaults=generation_defaults(generation),
        stop_ids=_stop_ids(*ends, tokenizer.eos_id),
        context=_context(config),
    )


class Library:
    def __init__(self, read: Callable[[Path], ServedModel] | None = None) -> None:
        self._read = read or partial(read_model, load=Tokenizers().load)
        self.grammars = GrammarCheck()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        # one thread: what no device waits for must not take those from what one does
        self._slow_pool = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._borrowed: dict[tuple[str, str], asyncio.Future[ServedModel]] = {}
        self._num_working = 0
        self._folders: dict[str, str] = {}
        self._models: dict[str, asyncio.Future[ServedModel]] = {}

    def keep(self, folders: Mapping[str, str]) -> None:
        """Have exactly these models at hand: {id: folder}."""
        loop = asyncio.get_running_loop()
        for model in self._folders.keys() - folders.keys():
            del self._models[model]
        for model, folder in folders.items():
            if self._folders.get(model) != folder:
                future = loop.run_in_executor(self._pool, self._read, Path(folder))
                future.add_done_callback(_retrieve)
                self._models[model] = future
        self._folders = dict(folders)

    async def get(self, model: str, *, timeout_s: float) -> ServedModel:
        """Raises ServiceError when its folder can't be read, or not in time."""
        future = self._models.get(model)
        if future is None:
            raise error_for("model_loading", f"model {model} is being loaded")
        return await _read(model, future, timeout_s)

    def has(self, model: str) -> bool:
        """Whether it is kept at hand, or will be in a moment."""
        return model in self._models

    async def borrow(self, model: str, folder: str, *, timeout_s: float) -> ServedModel:
        """One that is not kept; the last few stay. Raises ServiceError as `get`."""
        known = self._borrowed.pop((model, folder), None)
        if known is None or (known.done() and known.exception() is not None):
            loop = asyncio.get_running_loop()
            known = loop.run_in_executor(self._slow_pool, self._read, Path(folder))
            known.add_done_callback(_retrieve)
        self._borrowed[model, folder] = known  # the last one used is the last to go
        for name in list(self._borrowed)[:-_MAX_BORROWED]:
            del self._borrowed[name]
        return await _read(model, known, timeout_s)

    async def work(self, call: Callable[[], T], *, size: int) -> T:
        """What `call` returns; off the loop unless what it works on is small.

        Raises CapacityError queue_full when too many wait already.
        """
        if size <= INLINE_CHARS:
            return call()
        if self._num_working >= _MAX_WORKING:
            raise error_for("queue_full", "too many long texts are being tokenized")
        loop = asyncio.get_running_loop()
        self._num_working += 1
        try:
            return await loop.run_in_executor(self._slow_pool, call)
        finally:
            self._num_working -= 1

    async def prompt_work(self, call: Callable[[], T], *, size: int) -> T:
        """As `work`, for what a device waits for."""
        if size <= INLINE_CHARS:
            return call()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, call)

    async def prompt_ids(
        self,
        model: ServedModel,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        window: int,
    ) -> tuple[int, ...]:
        """Raises ClientError template_render_failed, context_length_exceeded."""
        if not tools and sum(map(_weight, messages)) <= INLINE_CHARS:
            return model.prompt_ids(messages, window=window, limit_s=_INLINE_LIMIT_S)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool,
            lambda: model.prompt_ids(messages, tools, window=window, limit_s=_LIMIT_S),
        )

    def close(self) -> None:
        for pool in (self._pool, self._slow_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        self.grammars.close()


def _weight(message: Message) -> int:
    """Characters, and what a message costs a template besides; tool calls: much."""
    fields = message.values()
    texts = [len(v) if type(v) is str else INLINE_CHARS for v in fields]
    return _MESSAGE_CHARS + sum(texts)


async def _read(
    model: str, future: asyncio.Future[ServedModel], timeout_s: float
) -> ServedModel:
    try:
        return await asyncio.wait_for(asyncio.shield(future), timeout_s)
    except TimeoutError as error:
        words = f"the tokenizer of {model} is being loaded"
        raise error_for("model_loading", words) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _unreadable(model, error) from error


def _retrieve(future: asyncio.Future[ServedModel]) -> None:
    """A folder that can't be read is reported to whoever asks for the model."""
    if not future.cancelled():
        future.exception()


def _unreadable(model: str, error: BaseException) -> ServiceError:
    return HostError(
        f"the tokenizer of {model} can't be loaded",
        code="load_failed",
        chain=cause_chain(error),
    )


def _stop_ids(*values: Any) -> tuple[int, ...]:
    """Ids from the forms that configurations use: absent, one, several."""
    ids: set[int] = set()
    for value in values:
        several = value if type(value) is list else [value]
        ids.update(item for item in several if type(item) is int and item >= 0)
    return tuple(sorted(ids))


def _context(config: Mapping[str, Any]) -> int:
    """The window that a config.json names, 0 for none."""
    text = config.get("text_config")
    places = (config, text if type(text) is dict else {})
    named = [place.get(key) for place in places for key in _CONTEXT_KEYS]
    return next((n for n in named if type(n) is int and n > 0), 0)


def _read_json(path: Path) -> dict[str, Any]:
    """An absent file is an empty one. Raises ValueError for nonsense."""
    try:
        document = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError:
        document = json.loads(path.read_text())  # NaN and Infinity occur in configs
    if type(document) is not dict:
        raise ValueError(f"{path.name} holds no object")
    return document
