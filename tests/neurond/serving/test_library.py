"""Model folders at hand: read off the loop, once, dropped when not wanted."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ipc.errors import ServiceError
from neurond.device import fakemodel
from neurond.serving.library import Library, ServedModel, read_model

HELLO = [{"role": "user", "content": "hello"}]


def run(play: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(play(), 20))


def test_a_folder_gives_tokenizer_template_defaults_and_stop_ids(
    tmp_path: Path,
) -> None:
    folder = fakemodel.build(tmp_path / "m")
    generation = {"eos_token_id": [7, 257], "temperature": 0.2, "top_k": "many"}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text('{"eos_token_id": 9, "theta": Infinity}')
    model = read_model(folder)
    assert model.stop_ids == (7, 9, 257)
    assert model.defaults == {"temperature": 0.2}
    ids = model.prompt_ids(HELLO, window=8192, limit_s=1)
    assert bytes(i for i in ids if i < 256) == b"user\nhello\nassistant\n"


def test_a_folder_is_read_once_and_off_the_loop(tmp_path: Path) -> None:
    folder = fakemodel.build(tmp_path / "m")
    threads: list[int] = []

    def read(path: Path) -> ServedModel:
        threads.append(threading.get_ident())
        return read_model(path)

    async def play() -> None:
        library = Library(read)
        for _ in range(3):
            library.keep({"a": str(folder)})
        await asyncio.gather(*[library.get("a", timeout_s=5) for _ in range(5)])
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()
        library.close()

    run(play)


def test_a_model_that_is_still_being_read_is_loading(tmp_path: Path) -> None:
    go = threading.Event()

    def read(path: Path) -> ServedModel:
        go.wait(10)
        return read_model(path)

    async def play() -> None:
        library = Library(read)
        library.keep({"a": str(fakemodel.build(tmp_path / "m"))})
        with pytest.raises(ServiceError) as caught:
            await library.get("a", timeout_s=0.01)
        assert caught.value.code == "model_loading"
        go.set()
        assert (await library.get("a", timeout_s=5)).tokenizer.eos_id == 257
        library.close()

    run(play)


def test_a_folder_that_cannot_be_read_is_the_models_failure(tmp_path: Path) -> None:
    async def play() -> None:
        library = Library()
        library.keep({"a": str(tmp_path / "nowhere")})
        with pytest.raises(ServiceError) as caught:
            await library.get("a", timeout_s=5)
        assert caught.value.code == "load_failed"
        assert str(tmp_path) not in caught.value.message
        assert caught.value.chain
        library.close()

    run(play)


def test_a_model_is_dropped_when_unwanted_and_read_again_from_a_new_folder(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        library = Library()
        first = fakemodel.build(tmp_path / "one")
        second = fakemodel.build(tmp_path / "two")
        (second / "generation_config.json").write_text('{"eos_token_id": 5}')
        library.keep({"a": str(first)})
        await library.get("a", timeout_s=5)
        library.keep({})
        with pytest.raises(ServiceError, match="being loaded"):
            await library.get("a", timeout_s=5)
        library.keep({"a": str(second)})
        assert (await library.get("a", timeout_s=5)).stop_ids == (5, 257)
        library.close()

    run(play)


@pytest.mark.parametrize("size", [10, 100_000])
def test_short_and_long_prompts_give_the_same_kind_of_ids(
    tmp_path: Path, size: int
) -> None:
    async def play() -> None:
        library = Library()
        library.keep({"a": str(fakemodel.build(tmp_path / "m"))})
        model = await library.get("a", timeout_s=5)
        messages = [{"role": "user", "content": "é" * size}]
        ids = await library.prompt_ids(model, messages, window=1 << 20)
        assert len(ids) == 2 * size + len(b"user\n\nassistant\n") + 3
        library.close()

    run(play)


def test_a_text_that_no_tokens_could_fit_into_the_window_is_not_encoded(
    tmp_path: Path,
) -> None:
    """30 MB of it once took 4.8 GB of a worker's memory, to be refused."""
    model = read_model(fakemodel.build(tmp_path / "m"))
    longest = model.tokenizer.max_piece_chars
    assert longest == len("<|im_start|>")
    messages = [{"role": "user", "content": "a" * 100 * longest}]
    with pytest.raises(ServiceError) as caught:
        model.prompt_ids(messages, window=100, limit_s=1)
    assert caught.value.code == "context_length_exceeded"
    least = caught.value.fields["prompt_len"]
    assert 100 < least < 100 * longest
    assert f"have at least {least} tokens" in caught.value.message
    assert len(model.prompt_ids(messages, window=110, limit_s=1)) > 100 * longest


def test_a_model_without_a_template_cannot_chat(tmp_path: Path) -> None:
    folder = fakemodel.build(tmp_path / "m")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ServiceError) as caught:
        read_model(folder).prompt_ids(HELLO, window=8192, limit_s=1)
    assert caught.value.status == 422


def test_a_borrowed_model_is_read_once_and_the_last_few_stay(tmp_path: Path) -> None:
    reads: list[str] = []

    def read(path: Path) -> ServedModel:
        reads.append(path.name)
        return read_model(path)

    async def play() -> None:
        library = Library(read)
        for name in ("a", "b", "a", "c", "a", "b"):
            folder = fakemodel.build(tmp_path / name)
            await library.borrow(name, str(folder), timeout_s=5)
        assert reads == ["a", "b", "c", "b"]
        assert not library.has("a")
        library.close()

    run(play)


def test_a_borrowed_model_that_is_not_read_in_time_is_loading_and_then_there(
    tmp_path: Path,
) -> None:
    go = threading.Event()

    def read(path: Path) -> ServedModel:
        go.wait(10)
        return read_model(path)

    async def play() -> None:
        library = Library(read)
        folder = str(fakemodel.build(tmp_path / "m"))
        with pytest.raises(ServiceError) as caught:
            await library.borrow("m", folder, timeout_s=0.01)
        assert caught.value.code == "model_loading"
        assert caught.value.retry_after_s
        go.set()
        assert (await library.borrow("m", folder, timeout_s=5)).context == 8192
        library.close()

    run(play)


def test_a_borrowed_folder_that_could_not_be_read_is_tried_again(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        library = Library()
        with pytest.raises(ServiceError):
            await library.borrow("m", str(tmp_path / "m"), timeout_s=5)
        fakemodel.build(tmp_path / "m")
        await library.borrow("m", str(tmp_path / "m"), timeout_s=5)
        library.close()

    run(play)


def test_long_work_goes_off_the_loop_and_is_refused_beyond_a_bound() -> None:
    go = threading.Event()

    async def play() -> None:
        library = Library()
        here = await library.work(threading.get_ident, size=10)
        assert here == threading.get_ident()
        assert await library.work(threading.get_ident, size=1 << 20) != here
        waiting = [
            asyncio.ensure_future(library.work(go.wait, size=1 << 20))
            for _ in range(16)
        ]
        await asyncio.sleep(0)
        with pytest.raises(ServiceError) as caught:
            await library.work(go.wait, size=1 << 20)
        assert caught.value.code == "queue_full"
        go.set()
        assert all(await asyncio.gather(*waiting))
        library.close()

    run(play)
