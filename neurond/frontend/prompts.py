"""What is done to prompts and seen of them on their way to a device (S75).

Front-end worker. Before a prompt is rendered, rules take noise out of its messages;
afterwards it is compared with earlier ones of its conversation. Both are counted and
told in the journal, so that an operator sees what breaks reuse and what was changed.

Invariant: nothing here fails or delays a request by more than hygiene's time.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ipc.journal import Journal
from ipc.messages import Submit
from neurond.frontend import metrics
from neurond.serving.divergence import Divergence, Recent, prompt_of
from neurond.serving.hygiene import Cleaned, Hygiene, Rule

_TOLD_AGAIN_S = 600.0
_LINES_S = 10.0
_MAX_LINES = 10
_MAX_SUBJECTS = 1024

Messages = tuple[dict[str, Any], ...]


class Prompts:
    """One per worker."""

    def __init__(
        self,
        rules: Iterable[Rule],
        journal: Journal,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hygiene = Hygiene(rules)
        self._recent = Recent()
        self._journal = journal
        self._told = Told(clock)

    def cleaned(self, model: str, messages: Messages) -> Messages:
        """The messages to render."""
        cleaned = self._hygiene.clean(messages)
        for applied in cleaned.applied:
            metrics.cleaned(model, applied.rule, applied.action)
        if not cleaned.complete:
            metrics.cleaned(model, "", "none")
        self._tell_cleaned(model, cleaned)
        return cleaned.messages

    def rendered(
        self, submit: Submit, messages: Messages, tools: Sequence[Any] = ()
    ) -> None:
        """`messages` as they were rendered to what will be submitted."""
        prompt = prompt_of(submit.ids, messages, tools)
        found = self._recent.add((submit.model, submit.principal), prompt)
        if found is not None:
            metrics.diverged(submit.model, found.role)
            self._tell_diverged(submit.model, found)

    def _tell_cleaned(self, model: str, cleaned: Cleaned) -> None:
        for applied in cleaned.applied:
            if self._told.is_due(("cleaned", model, applied.rule, applied.message)):
                self._journal.info(
                    "a rule changed a prompt",
                    event="prompt.cleaned",
                    model=model,
                    rule=applied.rule,
                    action=applied.action,
                    at_message=applied.message,
                    chars=applied.num_chars,
                )

    def _tell_diverged(self, model: str, found: Divergence) -> None:
        if not self._told.is_due(("diverged", model, found.conversation)):
            return
        self._journal.info(
            "a prompt left the course of its conversation",
            event="prompt.diverged",
            model=model,
            token=found.shared,
            at_message=found.message,
            role=found.role,
            shared=f"{found.shared}/{found.total}",
            lost=found.lost,
        )


class Told:
    """Whether a line is due: once per subject in ten minutes, ten in ten seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._subjects: OrderedDict[object, float] = OrderedDict()
        self._lines: deque[float] = deque(maxlen=_MAX_LINES)

    def is_due(self, subject: object) -> bool:
        """If so, it counts as told."""
        now_s = self._clock()
        told_s = self._subjects.get(subject)
        if told_s is not None and now_s < told_s + _TOLD_AGAIN_S:
            return False
        if len(self._lines) == _MAX_LINES and now_s < self._lines[0] + _LINES_S:
            return False
        self._lines.append(now_s)
        self._subjects[subject] = now_s
        self._subjects.move_to_end(subject)
        while len(self._subjects) > _MAX_SUBJECTS:
            self._subjects.popitem(last=False)
        return True
