from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurond.faults import (
    FATAL,
    FaultClass,
    charges,
    class_of_code,
    classify,
    judge,
)

CLIENT, CAPACITY, HOST = FaultClass.CLIENT, FaultClass.CAPACITY, FaultClass.HOST
DEVICE, GROUP, PEER = FaultClass.DEVICE, FaultClass.GROUP, FaultClass.PEER

CUDA_ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so "
    "the stacktrace below might be incorrect.\nFor debugging consider passing "
    "CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side "
    "assertions.\n"
)
RUNTIME = ("RuntimeError", "Exception")
ACCELERATOR = ("AcceleratorError", *RUNTIME)


def line_of(types: Sequence[str], text: str) -> str:
    return f"{types[0]}: {text}"


MISTAKES = [
    (RUNTIME, "The size of tensor a (5) must match the size of tensor b (7) at "
     "non-singleton dimension 1"),
    (RUNTIME, "mat1 and mat2 shapes cannot be multiplied (4x576 and 1536x576)"),
    (RUNTIME, "shape '[1, 9, 64]' is invalid for input of size 512"),
    (RUNTIME, "Tensors must have same number of dimensions: got 3 and 4"),
    (RUNTIME, "Sizes of tensors must match except in dimension 2. Expected size 4"),
    (RUNTIME, "expected mat1 and mat2 to have the same dtype, but got: float != "
     "c10::BFloat16"),
    (RUNTIME, "expected scalar type Half but found Float"),
    (RUNTIME, "Expected all tensors to be on the same device, but found at least two"),
    (RUNTIME, "Tensor on device meta is not on the expected device cpu!"),
    (RUNTIME, "probability tensor contains either `inf`, `nan` or element < 0"),
    (RUNTIME, "invalid multinomial distribution (sum of probabilities <= 0)"),
    (RUNTIME, "index 49152 is out of bounds for dimension 0 with size 49152"),
    (RUNTIME, "logits contain NaN"),
    (RUNTIME, "patch count 3960 exceeds pos_embed budget 2304"),
    (("IndexError", "LookupError", "Exception"), "index out of range in self"),
    (("Exception",), "Unigram tokenizer: no unknown token"),
    (("TypeError", "Exception"), "TextEncodeInput must be Union[TextInputSequence, "
     "Tuple[InputSequence, InputSequence]]"),
    (("ValueError", "Exception"), "operands could not be broadcast together"),
    (("KeyError", "LookupError", "Exception"), "'past_key_values'"),
    (("FileNotFoundError", "OSError", "Exception"), "no such file"),
    (("NotImplementedError", *RUNTIME), "no kernel for this on the meta backend"),
]  # fmt: skip

POISONS = [
    "CUDA error: device-side assert triggered",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: misaligned address",
    "CUDA error: context is destroyed",
    "CUDA error: no text that anyone has seen before",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle)`",
    "CUDA driver error: unknown error",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "cusolver error: CUSOLVER_STATUS_EXECUTION_FAILED",
    "cuFFT error: CUFFT_EXEC_FAILED",
    "Triton Error [CUDA]: an illegal memory access was encountered",
]

GROUP_TEXTS = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer "
    "[127.0.0.1]:40112",
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:446] writev: Connection reset by "
    "peer",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting "
    "1800000ms for recv operation to complete",
    "NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled cuda "
    "error, NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function failed.",
    "TCPStore: recvValue failed",
]

NO_ROOM = [
    (("OutOfMemoryError", *RUNTIME), None, "CUDA out of memory. Tried to allocate 9 G."
     " GPU 0 has a total capacity of 79.1 GiB of which 1.1 GiB is free."),
    (ACCELERATOR, 2, "CUDA error: out of memory" + CUDA_ADVICE),
    (ACCELERATOR, None, "CUDA error: out of memory" + CUDA_ADVICE),
    (RUNTIME, None, "CUDA driver error: out of memory"),
    (RUNTIME, None, "Triton Error [CUDA]: out of memory"),
    (RUNTIME, None, "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
     "`cublasCreate(handle)`"),
    (RUNTIME, None, "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator:"
     " can't allocate memory: you tried to allocate 4000000000000 bytes."),
    (RUNTIME, None, "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not "
     "enough memory: you tried to allocate 4000000000000 bytes."),
    (("OSError", "Exception"), None, "[Errno 12] Cannot allocate memory"),
    (("MemoryError", "Exception"), None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("types", "text"), MISTAKES)
def test_a_mistake_of_a_request_or_of_ours_spares_the_device_s02(
    types: tuple[str, ...], text: str
) -> None:
    assert classify(types, None, [line_of(types, text)]) is HOST


@pytest.mark.parametrize("text", POISONS)
@pytest.mark.parametrize("types", [RUNTIME, ACCELERATOR])
def test_a_poisoned_context_is_known_by_type_and_by_text(
    types: tuple[str, ...], text: str
) -> None:
    assert classify(types, None, [line_of(types, text + CUDA_ADVICE)]) is DEVICE


@pytest.mark.parametrize("text", GROUP_TEXTS)
def test_a_lost_rank_is_the_groups_fault(text: str) -> None:
    assert classify(RUNTIME, None, [line_of(RUNTIME, text)]) is GROUP


@pytest.mark.parametrize(
    "name", ["DistError", "DistBackendError", "DistStoreError", "DistNetworkError"]
)
def test_a_distributed_error_is_the_groups_by_its_type(name: str) -> None:
    found = judge((name, *RUNTIME), None, [f"{name}: whatever"])
    assert (found.fault_class, found.evidence) == (GROUP, "type")


@pytest.mark.parametrize(("types", "code", "text"), NO_ROOM)
def test_too_little_memory_is_no_fault(
    types: tuple[str, ...], code: int | None, text: str
) -> None:
    assert classify(types, code, [line_of(types, text)]) is CAPACITY


@pytest.mark.parametrize("wrap", range(1, 5))
@pytest.mark.parametrize("text", POISONS)
def test_wrapping_never_hides_a_poisoned_context_s05(text: str, wrap: int) -> None:
    outer = ["ValueError: while computing attention"] * wrap
    chain = [*outer, line_of(ACCELERATOR, text)]
    assert classify(("ValueError", "Exception"), None, chain) is DEVICE
    assert classify(("ValueError", *ACCELERATOR), None, chain) is DEVICE


@pytest.mark.parametrize(("types", "text"), MISTAKES)
def test_wrapping_never_makes_a_mistake_a_fault_s05(
    types: tuple[str, ...], text: str
) -> None:
    chain = ["RuntimeError: step failed", "Exception: row 3", line_of(types, text)]
    assert classify((*RUNTIME, *types), None, chain) is HOST


def test_the_worst_line_of_the_chain_counts() -> None:
    out = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
    bad = "RuntimeError: CUDA error: device-side assert triggered"
    lost = "RuntimeError: gloo: Connection closed by peer"
    assert classify(("OutOfMemoryError",), None, [out]) is CAPACITY
    assert classify(("OutOfMemoryError",), None, [out, bad]) is DEVICE
    assert classify(("OutOfMemoryError",), None, [bad, out]) is DEVICE
    assert classify(("OutOfMemoryError",), None, [out, bad, lost]) is GROUP


def test_the_advice_that_torch_appends_is_no_device_side_assert() -> None:
    text = "CUDA error: invalid argument" + CUDA_ADVICE
    assert classify(ACCELERATOR, 1, [line_of(ACCELERATOR, text)]) is HOST
    assert not charges(HOST, 1, [text])


def test_a_harmless_code_does_not_hide_a_poisoned_line() -> None:
    chain = [
        "AcceleratorError: CUDA error: out of memory",
        "AcceleratorError: CUDA error: an illegal memory access was encountered",
    ]
    assert classify(ACCELERATOR, 2, chain) is DEVICE


def test_an_accelerator_error_that_says_nothing_is_the_devices() -> None:
    assert classify(ACCELERATOR, None, ["AcceleratorError: "]) is DEVICE
    assert classify(("ValueError", *ACCELERATOR), -1, ["ValueError: odd"]) is DEVICE


def test_what_nobody_knows_is_the_devices_unless_its_probe_passes() -> None:
    found = judge(RUNTIME, None, ["RuntimeError: never seen"])
    assert (found.fault_class, found.evidence) == (DEVICE, "default")
    assert classify((), None, ()) is DEVICE


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ClientError", CLIENT),
        ("CapacityError", CAPACITY),
        ("HostError", HOST),
        ("DeviceFault", DEVICE),
        ("PeerLost", PEER),
    ],
)
def test_what_was_typed_where_it_was_raised_is_believed(
    name: str, expected: FaultClass
) -> None:
    types = (name, "ServiceError", "Exception")
    quoted = f"{name}: the user wrote 'CUDA error: device-side assert triggered'"
    assert classify(types, None, [quoted]) is expected


def test_our_own_type_around_a_cuda_error_is_the_cuda_error() -> None:
    chain = ["HostError: no", "AcceleratorError: CUDA error: misaligned address"]
    assert classify(("HostError", "ServiceError", *ACCELERATOR), None, chain) is DEVICE
    assert classify(("HostError", "ServiceError"), 719, chain) is DEVICE


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("ConnectionResetError", "ConnectionError", "OSError"), PEER),
        (("ControlClosed", "PeerLost", "ServiceError"), PEER),
        (("LinkClosed", "Exception"), PEER),
        (("TemplateSyntaxError", "TemplateError", "Exception"), CLIENT),
        (("UnidentifiedImageError", "OSError"), CLIENT),
    ],
)
def test_types_of_others_that_speak_for_themselves(
    types: tuple[str, ...], expected: FaultClass
) -> None:
    assert classify(types, None, [f"{types[0]}: bad"]) is expected


HARMLESS = {2: CAPACITY} | dict.fromkeys(
    (701, 1, 9, 98, 101, 400, *range(900, 909)), HOST
)
POISONOUS = [
    *(214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721, 810, 911, 999),
    *(3, 35, 46, 100, 127, 802, 803, 804, 805),
    *(0, 209, 703, 899, 909, 12345),
]


@pytest.mark.parametrize("code", [*HARMLESS, *POISONOUS])
def test_each_cuda_code_has_its_class(code: int) -> None:
    expected = HARMLESS.get(code, DEVICE)
    found = judge(ACCELERATOR, code, ["AcceleratorError: CUDA error: some text"])
    assert (found.fault_class, found.evidence) == (expected, "code")
    assert class_of_code(code) is expected


@pytest.mark.parametrize(
    ("code", "chain", "expected"),
    [
        (700, (), True),
        (719, (), True),
        (999, (), True),
        (12345, (), True),
        (None, (), True),
        (-1, ("RuntimeError: CUDA error: an illegal memory access",), True),
        (214, (), False),
        (220, (), False),
        (226, (), False),
        (802, (), False),
        (None, ("RuntimeError: CUDA error: uncorrectable ECC error",), False),
        (-1, ("RuntimeError: uncorrectable NVLink error detected",), False),
        (719, ("AcceleratorError: CUDA error: Uncorrectable ECC error",), False),
        (-1, ("RuntimeError: Error 803: system has unsupported driver",), False),
    ],
)
def test_only_faults_of_the_application_make_suspects(
    code: int | None, chain: tuple[str, ...], expected: bool
) -> None:
    assert charges("device", code, chain) is expected


@pytest.mark.parametrize("other", [c for c in FaultClass if c is not DEVICE])
def test_no_other_class_charges_anyone(other: FaultClass) -> None:
    assert not charges(other, 700)


@given(
    st.lists(st.sampled_from([t for t, _ in MISTAKES]), max_size=3),
    st.lists(st.text(max_size=40), max_size=4),
    st.sampled_from(POISONS),
    st.randoms(use_true_random=False),
)
def test_no_company_makes_a_poisoned_context_look_healthy(
    others: list[tuple[str, ...]], lines: list[str], poison: str, random: object
) -> None:
    names = [name for types in others for name in types]
    chain = [*lines, f"RuntimeError: {poison}"]
    random.shuffle(chain)  # type: ignore[attr-defined]
    assert classify([*names, *RUNTIME], None, chain) in FATAL


@given(
    st.lists(st.text(max_size=20)),
    st.none() | st.integers(),
    st.lists(st.text(max_size=60)),
)
def test_anything_has_a_class(
    names: list[str], code: int | None, chain: list[str]
) -> None:
    assert isinstance(classify(names, code, chain), FaultClass)
