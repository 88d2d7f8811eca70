"""A tiny random checkpoint that a node can serve: weights, tokenizer, template."""

from __future__ import annotations

import json
from pathlib import Path

from tests.neurond.device import tiny, tinytokenizer

_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def write(folder: Path, family: str = "llama") -> Path:
    folder.mkdir(parents=True)
    tiny.build(family, folder)
    tinytokenizer.write(folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _TEMPLATE,
        "eos_token": "<end>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
