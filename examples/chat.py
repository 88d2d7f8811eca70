"""Chat at a terminal with the openai package: the answer appears as it is made.

    python examples/chat.py                    line by line, until an empty one
    python examples/chat.py Why is the sky blue?

CORTEX_URL is the gateway (default http://127.0.0.1:31313), CORTEX_MODEL the model
(default: the first that is loaded). Needs `pip install openai`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import openai

URL = os.environ.get("CORTEX_URL", "http://127.0.0.1:31313")


def main() -> int:
    # no key is asked for yet; the client wants one. It retries 429 and 503 by itself.
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="unused", max_retries=5)
    messages: list[Any] = []
    try:
        model = os.environ.get("CORTEX_MODEL") or first_loaded(client)
        for question in questions():
            messages.append({"role": "user", "content": question})
            answer = say(client, model, messages)
            messages.append({"role": "assistant", "content": answer})
    except openai.APIStatusError as error:
        print(f"\n{error.status_code}: {error.message}", file=sys.stderr)
        return 1
    except openai.APIError as error:  # no connection, or an error within a stream
        print(f"\n{error.message}", file=sys.stderr)
        return 1
    return 0


def first_loaded(client: openai.OpenAI) -> str:
    """The gateway says more of a model than the package knows: `loaded` is ours."""
    models = client.models.list().data
    loaded = [model.id for model in models if getattr(model, "loaded", False)]
    return (loaded or [model.id for model in models] or [""])[0]


def questions() -> Any:
    if len(sys.argv) > 1:
        yield " ".join(sys.argv[1:])
        return
    while question := input("> "):
        yield question


def say(client: openai.OpenAI, model: str, messages: list[Any]) -> str:
    """Print the answer while it comes; the whole of it."""
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    answer = ""
    for chunk in stream:
        for choice in chunk.choices:
            answer += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
    print()
    return answer


if __name__ == "__main__":
    sys.exit(main())
