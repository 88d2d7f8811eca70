"""Answers that must come again, and when another one may."""

from __future__ import annotations

from dataclasses import replace

from neurond.config import Model
from neurond.discovery import DeviceSpec
from neurond.golden import GoldenBook
from neurond.modelrecord import ModelRecord
from tests.neurond.slotkit import loaded_message

CPU = DeviceSpec("cpu-0", "cpu", "CPU", "", 0, 0)


def record(source: str = "/srv/tiny") -> ModelRecord:
    return ModelRecord(Model("tiny", source))


def test_s19_a_device_that_answers_otherwise_is_found_out() -> None:
    book = GoldenBook()
    assert book.agrees(record(), CPU, loaded_message(golden="a"))
    assert book.agrees(record(), CPU, loaded_message(golden="a"))
    assert not book.agrees(record(), CPU, loaded_message(golden="b"))
    assert book.agrees(record(), CPU, loaded_message(golden="a"))


def test_after_another_answer_the_next_life_tries_everything_out() -> None:
    book, model = GoldenBook(), record()
    model.known = {"stamp": "s"}
    assert book.agrees(model, CPU, loaded_message(golden="a"))
    assert model.load_on(2, again=True).known == {"stamp": "s"}
    assert not book.agrees(model, CPU, loaded_message(golden="b"))
    assert model.load_on(3, again=True).known == {}


def test_without_a_golden_answer_there_is_nothing_to_compare() -> None:
    book = GoldenBook()
    assert book.agrees(record(), CPU, loaded_message())
    assert book.agrees(record(), CPU, loaded_message(golden="a"))
    assert book.agrees(record(), CPU, loaded_message())


def test_another_source_form_or_kind_of_device_may_answer_otherwise() -> None:
    book = GoldenBook()
    book.agrees(record(), CPU, loaded_message(golden="a", quant="none"))
    assert book.agrees(record("/b"), CPU, loaded_message(golden="b", quant="none"))
    assert book.agrees(record(), CPU, loaded_message(golden="c", quant="int8"))
    told = loaded_message(golden="d", quant="none", numerics="invariant")
    assert book.agrees(record(), CPU, told)
    gpu = replace(CPU, kind="cuda", name="H100")
    assert book.agrees(record(), gpu, loaded_message(golden="e", quant="none"))
    other = replace(CPU, device="cpu-1", index=1)
    assert not book.agrees(record(), other, loaded_message(golden="f", quant="none"))


def test_an_unload_forgets() -> None:
    book = GoldenBook()
    book.agrees(record(), CPU, loaded_message(golden="a"))
    book.forget("other")
    assert not book.agrees(record(), CPU, loaded_message(golden="b"))
    book.forget("tiny")
    assert book.agrees(record(), CPU, loaded_message(golden="b"))
