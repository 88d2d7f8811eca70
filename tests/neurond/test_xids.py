from __future__ import annotations

import pytest

from neurond import xids
from neurond.xids import Cure, Measure, Sighting, XidClass, bus_of, kernel_line, told

C, M = XidClass, Measure
RESET, REBOOT, NOTHING = Cure.RESET, Cure.REBOOT, Cure.NONE

CATALOGUE = [
    ((13, 31), C.APP, M.RESPAWN, NOTHING),
    ((8, 11, 25, 32, 69), C.APP, M.RESPAWN, NOTHING),
    ((39, 40, 41, 77, 68), C.HW_SOFT, M.RESPAWN, NOTHING),
    ((43,), C.APP_ECHO, M.RESPAWN, NOTHING),
    ((45,), C.ECHO, M.WATCH, NOTHING),
    ((37, 38, 44, 66, 67), C.ECHO, M.WATCH, NOTHING),
    ((46, 62, 109, 110, 119, 120, 143, 158), C.HW_HARD, M.OUT, RESET),
    ((48,), C.ECC, M.OUT, RESET),
    ((63,), C.ECC_INFO, M.WATCH, RESET),
    ((64,), C.ECC, M.DRAIN_OUT, RESET),
    ((157,), C.ECC_INFO, M.WATCH, NOTHING),
    ((92, 93), C.ECC_INFO, M.WATCH, NOTHING),
    ((94,), C.ECC_CONTAINED, M.RESPAWN, NOTHING),
    ((95, 140), C.ECC, M.OUT, RESET),
    ((156,), C.ECC_INFO, M.DRAIN_OUT, RESET),
    ((171, 172), C.ECHO, M.WATCH, NOTHING),
    ((74,), C.LINK, M.GROUP, NOTHING),
    ((137,), C.APP_ECHO, M.GROUP, NOTHING),
    ((136, *range(144, 151), 155), C.LINK, M.GROUP, RESET),
    ((79,), C.LOST, M.OUT, REBOOT),
    ((154,), C.RECOVERY, M.WATCH, NOTHING),
    ((151,), C.LOST, M.OUT, REBOOT),
    ((121, *range(159, 171), 1, 999, 0), C.UNKNOWN, M.WATCH, NOTHING),
]
EVERY = [
    (xid, kind, measure, cure)
    for numbers, kind, measure, cure in CATALOGUE
    for xid in numbers
]


@pytest.mark.parametrize(("xid", "kind", "measure", "cure"), EVERY)
def test_each_row_of_the_catalogue(
    xid: int, kind: XidClass, measure: Measure, cure: Cure
) -> None:
    row = xids.row(xid)
    assert (row.kind, row.measure, row.cure) == (kind, measure, cure)
    assert row.charges == (kind is C.APP)


def test_the_catalogue_here_is_the_whole_table() -> None:
    assert set(xids.XIDS) <= {xid for xid, *_ in EVERY}


def test_only_what_concerns_the_whole_gpu_is_not_its_processes_own_business() -> None:
    own = {xid for xid, row in xids.XIDS.items() if not row.whole_gpu}
    measured = {xid for xid in own if xids.row(xid).measure >= M.DRAIN_OUT}
    assert not measured
    assert {13, 31, 43, 45, 94, 137} <= own
    assert not own & {48, 64, 79, 95, 140, 151, 154, 156}


@pytest.mark.parametrize("xid", [48, 64, 94, 95, 140, 39, 79, 74, 119])
def test_hardware_charges_nobody(xid: int) -> None:
    assert xids.row(xid).spares
    assert not xids.row(xid).charges


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (0, (M.WATCH, NOTHING)),
        (1, (M.OUT, RESET)),
        (2, (M.OUT, REBOOT)),
        (3, (M.GROUP, NOTHING)),
        (4, (M.DRAIN_OUT, RESET)),
        (5, (M.OUT, Cure.IMEX)),
        (6, (M.OUT, RESET)),
        (7, (M.OUT, REBOOT)),
        (8, (M.OUT, REBOOT)),
        (-1, (M.OUT, REBOOT)),
    ],
)
def test_each_recovery_action_and_an_unknown_one(
    action: int, expected: tuple[Measure, Cure]
) -> None:
    assert xids.recovery(action) == expected


def test_every_cure_but_none_names_a_command() -> None:
    assert [bool(cure.command) for cure in Cure] == [False, True, True, True]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "NVRM: Xid (PCI:0000:03:00): 79, pid='<unknown>', name=<unknown>, GPU has "
            "fallen off the bus.",
            ("0000:03:00", Sighting(79)),
        ),
        (
            "4,1,2,-;NVRM: Xid (PCI:0000:03:00): 13, pid='4242', name=python, Graphics",
            ("0000:03:00", Sighting(13, 4242)),
        ),
        (
            "NVRM: Xid (PCI:0000:82:00): 31, pid=77, Ch 00000010",
            ("0000:82:00", Sighting(31, 77)),
        ),
        (
            "NVRM: Xid (PCI:0000:03:00): 154, GPU recovery",
            ("0000:03:00", Sighting(154)),
        ),
        (
            "NVRM: GPU 0000:03:00.0: GPU has fallen off the bus.",
            ("0000:03:00", Sighting(79)),
        ),
        ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module", None),
        ("usb 1-1: new device", None),
    ],
)
def test_s36_the_kernels_log_also_when_it_has_the_text_alone(
    line: str, expected: tuple[str, Sighting] | None
) -> None:
    assert kernel_line(line) == expected


def test_a_gpu_has_one_address_however_it_is_spelt() -> None:
    spelt = ["00000000:03:00.0", "0000:03:00.0", "0000:03:00", "0000:03:00"]
    assert {bus_of(pci) for pci in spelt} == {"0000:03:00"}


def test_a_simulated_sighting_is_told_by_words() -> None:
    assert told("xid:79") == Sighting(79)
    assert told("xid:48,recovery=1") == Sighting(48, recovery=1)
    assert told("xid:13,pid=7,others") == Sighting(13, pid=7, others=True)


@pytest.mark.parametrize("kind", ["xid:", "xid:x", "79", "xid:13,when=1", "xid:1,pid="])
def test_other_words_are_refused(kind: str) -> None:
    with pytest.raises(ValueError):
        told(kind)
