"""A conversion job: one GGUF file becomes a model folder, once.

A process of its own, forked like a device; it answers on its link and ends.
transformers reads the blocks (public interface only) and writes bf16 safetensors,
tokenizer and template; 4-bit blocks are kept beside them, for kernels that compute from
blocks. The folder appears under its name whole or not at all: it is built beside it as
`<target>.tmp` and renamed. Jobs that share a cache, of one node or of several, take
turns: each may need a good part of the host's memory.

Progress is in bytes of the source, by the time each part takes: the tokenizer and the
header are a long list of strings, slow to parse, and say nothing meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from ipc.child import EXIT_OK, EXIT_TEMPORARY, set_title
from ipc.errors import ServiceError, cause_chain, error_for
from ipc.link import Link, LinkClosed
from ipc.messages import Convert, Converted, LoadFailed, LoadProgress
from ipc.process import be_first_to_go
from neurond import converted
from neurond.device.preload import ENVIRONMENT

STAGE = "converting"
_TOKENIZER_UP_TO = 0.55
_HEADER_UP_TO = 0.70
_TENSORS_UP_TO = 0.95
_ORDER_TIMEOUT_S = 30.0

Tell = Callable[[float], None]
"""Takes the fraction done."""


def main(link_fd: int) -> NoReturn:
    """Serve one Convert order and end the process."""
    set_title("neurond: convert")
    be_first_to_go()
    link = Link.from_fd(link_fd)
    try:
        code = _serve(link)
    except LinkClosed:
        code = EXIT_OK  # nobody wants the result any more
    sys.stderr.flush()
    os._exit(code)


def _serve(link: Link) -> int:
    order = _order(link)
    size_bytes = os.path.getsize(order.source) if os.path.exists(order.source) else 0

    def tell(fraction: float) -> None:
        done = int(size_bytes * fraction)
        link.send(LoadProgress(order.target, STAGE, done, size_bytes))

    try:
        target = Path(order.target)
        convert(Path(order.source), target, tell, may_dequantise=order.may_dequantise)
    except LinkClosed:
        raise
    except Exception as error:  # the step border: whatever a file can provoke
        link.send(LoadFailed(order.target, _as_error(error).to_wire()))
        return EXIT_TEMPORARY
    link.send(Converted(order.target, _folder_bytes(Path(order.target))))
    return EXIT_OK


def _order(link: Link) -> Convert:
    select.select([link.fileno()], [], [], _ORDER_TIMEOUT_S)
    received = link.receive()
    if received is None or not isinstance(received[0], Convert):
        raise LinkClosed("no order to convert came")
    return received[0]


def convert(
    source: Path, target: Path, tell: Tell, *, may_dequantise: bool = True
) -> None:
    """Raises ServiceError or whatever transformers thinks of the file."""
    if not source.is_file():
        raise error_for("load_failed", "the GGUF file does not exist")
    before = converted.read(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _turn_in(target.parent):
        if converted.read(target) == before:  # else another job made it meanwhile
            _replace(source, target, tell, may_dequantise=may_dequantise)
    tell(1.0)


@contextmanager
def _turn_in(folder: Path) -> Iterator[None]:
    """Nobody else converts into it. A job that is killed leaves no lock."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(source: Path, target: Path, tell: Tell, *, may_dequantise: bool) -> None:
    building = target.with_name(target.name + ".tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        _build(source, building, tell, may_dequantise=may_dequantise)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _build(source: Path, folder: Path, tell: Tell, *, may_dequantise: bool) -> None:
    os.environ.update(ENVIRONMENT)  # the zygote did; it must stand before the import
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from neurond.device import blockfile
    from neurond.device.loader import quiet_transformers

    quiet_transformers()
    tell(0.0)
    where: dict[str, Any] = {"gguf_file": source.name}
    with _quick_readings(tell):
        reader = gguf.GGUFReader(str(source))
        marker = blockfile.survey(reader, source)
        converted.check(marker, may_dequantise=may_dequantise)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        tokenizer.save_pretrained(folder)
        tell(_TOKENIZER_UP_TO)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, dtype=torch.bfloat16, **where
        )
        tell(_TENSORS_UP_TO)
        kept = blockfile.keep(reader, model, folder)
    _detach_quantizer(model)
    model.save_pretrained(folder, max_shard_size="2GB")
    converted.write(folder, replace(marker, has_blocks=kept))


def _detach_quantizer(model: Any) -> None:
    """The blocks are unpacked; what still says otherwise would forbid to save."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


@contextmanager
def _quick_readings(tell: Tell) -> Iterator[None]:
    """Save transformers from parsing the file thrice, and see how far it is.

    It also builds a name map per module. Both cost seconds and give the same again. Its
    progress bar over the tensors is replaced by ours; where that bar has moved,
    progress jumps and the result is the same.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    def watched(tensors: Any, **_bar: Any) -> Iterator[Any]:
        for index, tensor in enumerate(tensors):
            if index % 16 == 0:
                span = _TENSORS_UP_TO - _HEADER_UP_TO
                tell(_HEADER_UP_TO + span * index / len(tensors))
            yield tensor

    instead = (
        (gguf, "GGUFReader", cache(gguf.GGUFReader)),
        (gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        (reader, "tqdm", watched),
    )
    before = [getattr(module, name, None) for module, name, _ in instead]
    for module, name, replacement in instead:
        setattr(module, name, replacement)
    try:
        yield
    finally:
        for (module, name, _), own in zip(instead, before, strict=True):
            setattr(module, name, own)


def _as_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    text = "the GGUF file could not be converted"
    return error_for("load_failed", text, chain=cause_chain(error))


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
