"""The pages of every sequence: given, shared, grown, published, taken back.

Device process, torch-free. Decides nothing about who runs; it says whether the pages
for a sequence are there, after the prefix store has yielded what is needed (S28), and
keeps `sequence.pages` true before a forward sees it.

Invariants: a page that another sequence or the store refers to is written only behind
the tokens that they share; only tokens proven sound (what a forward computed for them
is finite) are published; whatever way a sequence ends, `release` gives everything back.
"""

from __future__ import annotations

import itertools

from ipc.status import StatusWriter
from neurond.device.backend import Backend, Resident
from neurond.device.budget import Account, Budget, Lack, kv_budget_bytes
from neurond.device.pages import Pages
from neurond.device.prefix import PrefixStore
from neurond.device.prefixtree import Match
from neurond.device.sequence import Sequence
from neurond.device.settings import DeviceSettings
from neurond.device.window import settle


class KvCache:
    """Owns the accounts of all resident models."""

    def __init__(
        self, backend: Backend, page: StatusWriter, settings: DeviceSettings
    ) -> None:
        self._backend = backend
        self._page = page
        self._settings = settings
        self._ticks = itertools.count(1)
        self.budget = Budget()
        self._models: dict[str, Resident] = {}

    # -- models

    def add_model(self, model: Resident) -> None:
        """Also fixes how long its sequences may be."""
        spec = model.cache
        by_state = spec.state_bytes > 0
        store = PrefixStore(spec.page_tokens, self._ticks, by_state=by_state)
        account = Account(spec, Pages(spec.max_pages), store)
        self.budget.accounts[model.name] = account
        self._models[model.name] = model
        self._measure()
        target_s = self._settings.first_token_target_s
        settle(model, memory_tokens=self.window(model), target_s=target_s)

    def drop_model(self, model: Resident) -> None:
        """Its sequences were released before."""
        del self.budget.accounts[model.name], self._models[model.name]
        self._measure()

    def window(self, model: Resident) -> int:
        """Tokens of one sequence that can be held at all, with nobody beside it."""
        spec = model.cache
        most = spec.max_pages
        if spec.page_bytes:
            left_bytes = self.budget.limit_bytes - spec.state_bytes
            most = min(most, left_bytes // spec.page_bytes)
        return max(0, min(model.context, most * spec.page_tokens))

    # -- one sequence

    def lookup(self, sequence: Sequence) -> int:
        """Tokens that the store would give it now."""
        return self._match(sequence).num_tokens

    def admit(self, sequence: Sequence) -> Lack | None:
        """Pages for all its ids, reused as far as possible. None: it has them.

        A page to copy from is one more than the sequence needs: where that is the one
        too many, its tokens are computed instead.
        """
        match = self._match(sequence)
        lack = self._admit(sequence, match)
        if lack is not None and match.tail is not None:
            lack = self._admit(sequence, self._without_tail(sequence, match))
        return lack

    def _admit(self, sequence: Sequence, match: Match) -> Lack | None:
        account = self._account(sequence)
        held = [node.page for node in match.nodes]
        taken_over = self._can_take_over(account, match)
        tail = [match.tail.page] if match.tail and match.num_tail else []
        account.pages.share(held + tail)
        num_new = self._num_pages(sequence) - len(held) - taken_over
        spare = self._wants_spare(sequence)
        lack = self.budget.make_room(account, num_new + spare, account.spec.state_bytes)
        if lack is not None:
            account.pages.drop(held + tail)
            return lack
        account.store.touch(match)
        sequence.pages = held
        if taken_over and match.tail is not None:
            account.pages.unkeep(account.store.remove(match.tail))
            sequence.pages = held + tail
        account.num_live_states += bool(account.spec.state_bytes)
        self._append(sequence, num_new)
        self._begin(sequence, match, copied=bool(tail) and not taken_over)
        return None

    def grow(self, sequence: Sequence, num_ids: int) -> Lack | None:
        """Pages for the next `num_ids`. None: it has them."""
        account = self._account(sequence)
        size = account.spec.page_tokens
        missing = -(-(sequence.num_computed + num_ids) // size) - len(sequence.pages)
        if missing <= 0:
            return None
        lack = self.budget.make_room(account, missing, 0)
        if lack is None:
            self._append(sequence, missing)
        return lack

    def publish(self, sequence: Sequence, *, tail: bool) -> None:
        """Give what is proven to the store; `tail` = a partly filled last page too."""
        if not self._shares(sequence) or sequence.node is None:
            return
        size = sequence.model.cache.page_tokens
        while (sequence.num_published + 1) * size <= sequence.num_proven:
            sequence.node = self._put(sequence, size)
            sequence.num_published += 1
        rest = sequence.num_proven - sequence.num_published * size
        if tail and rest > 0:
            self._put(sequence, rest)

    def save_state(self, sequence: Sequence) -> None:
        """Keep its recurrent state as it is now, to be published once proven."""
        account = self._account(sequence)
        spec = account.spec
        if not spec.state_bytes or not self._shares(sequence):
            return
        if self.budget.make_room(account, 0, spec.state_bytes) is None:
            state = self._backend.save_state(sequence)
            fresh = sequence.num_computed not in sequence.states
            sequence.states[sequence.num_computed] = state
            account.num_unproven_states += fresh

    def release(self, sequence: Sequence, *, sound: bool = True) -> None:
        """It holds nothing any more. What it has published stays, if it was sound."""
        account = self._account(sequence)
        if sequence.node is not None and not sound:
            self._withdraw(account, sequence)
        if sequence.node is not None:
            account.store.unpin(sequence.node)
            account.num_live_states -= bool(account.spec.state_bytes)
        account.num_unproven_states -= len(sequence.states)
        account.pages.unclaim(sequence)
        account.pages.drop(sequence.pages)
        sequence.reset()

    def evict_all(self) -> None:
        """The device is out of memory: the store holds what nobody needs."""
        for account in self.budget.accounts.values():
            while account.evict():
                pass
        self.show()

    @property
    def has_idle(self) -> bool:
        """The store holds pages that no sequence uses."""
        accounts = self.budget.accounts.values()
        return any(account.pages.num_idle for account in accounts)

    def show(self) -> None:
        """The gauges."""
        self._page.set("kv_budget_bytes", self.budget.limit_bytes)
        self._page.set("kv_used_bytes", self.budget.used_bytes)
        self._page.set("kv_cached_bytes", self.budget.cached_bytes)

    # -- inside

    def _account(self, sequence: Sequence) -> Account:
        return self.budget.accounts[sequence.model.name]

    def _measure(self) -> None:
        models = self._models.values()
        resident = sum(model.resident_bytes for model in models)
        kind, memory = self._backend.name, self._backend.memory()
        limit = kv_budget_bytes(self._settings, kind, memory, resident)
        promised = max((model.promised_bytes for model in models), default=0)
        self.budget.limit_bytes = max(limit, promised)
        self.show()

    def reuses(self, sequence: Sequence) -> bool:
        """Prompt tokens whose scores are asked for must be computed."""
        return self._shares(sequence) and not sequence.scores_prompt

    def _shares(self, sequence: Sequence) -> bool:
        allowed = self._settings.prefix_cache and sequence.model.cache.shares
        return allowed and not sequence.submit.embed

    def _match(self, sequence: Sequence) -> Match:
        if not self.reuses(sequence):
            return Match()
        store = self._account(sequence).store
        return store.match(sequence.submit.cache_salt, sequence.ids)

    def _without_tail(self, sequence: Sequence, match: Match) -> Match:
        spec = sequence.model.cache
        if spec.state_bytes:  # the state is the tail's
            return Match()
        num_tokens = len(match.nodes) * spec.page_tokens
        return Match(match.nodes, num_tokens=num_tokens)

    def _can_take_over(self, account: Account, match: Match) -> bool:
        """The whole of a leaf that nobody else uses: no copy, and one run of pages."""
        tail = match.tail
        if tail is None or account.spec.state_bytes:
            return False
        whole = match.num_tail == len(tail.tokens) and tail.is_leaf and not tail.pins
        return whole and account.pages.is_idle(tail.page)

    def _num_pages(self, sequence: Sequence) -> int:
        return -(-len(sequence.ids) // sequence.model.cache.page_tokens)

    def _wants_spare(self, sequence: Sequence) -> int:
        """One more page for the answer, if it can ever come to need it."""
        return min(1, self._room(sequence))

    def _room(self, sequence: Sequence) -> int:
        """Pages that its answer may come to need beyond those of its ids."""
        most = -(-sequence.most_tokens // sequence.model.cache.page_tokens)
        return max(0, most - self._num_pages(sequence))

    def _append(self, sequence: Sequence, count: int) -> None:
        if count <= 0:
            return
        after = sequence.pages[-1] if sequence.pages else -1
        pages = self._account(sequence).pages
        room = self._room(sequence)
        fresh = pages.take(count, sequence, after=after, room=room)
        sequence.pages += fresh
        if sequence.model.cache.shares:
            self._backend.clear_pages(sequence.model, fresh)

    def _begin(self, sequence: Sequence, match: Match, *, copied: bool) -> None:
        """Set it to go on behind what it reuses."""
        account = self._account(sequence)
        if copied and match.tail is not None:
            target = sequence.pages[len(match.nodes)]
            source = match.tail.page
            self._backend.copy_page(sequence.model, source, target, match.num_tail)
            account.pages.drop([source])
        sequence.num_computed = sequence.num_proven = match.num_tokens
        sequence.num_published = len(match.nodes)
        root = account.store.root(sequence.submit.cache_salt)
        sequence.node = match.nodes[-1] if match.nodes else root
        account.store.pin(sequence.node)
        if match.state is not None:
            self._backend.load_state(sequence, match.state)

    def _put(self, sequence: Sequence, count: int) -> object:
        """Publish the next page, with the states saved inside of it."""
        account = self._account(sequence)
        store, size = account.store, account.spec.page_tokens
        begin = sequence.num_published * size
        tokens = tuple(sequence.ids[begin : begin + count])
        page = sequence.pages[sequence.num_published]
        node, kept, dropped = store.extend(sequence.node, tokens, page)
        if kept:
            account.pages.keep(page)
        for gone in dropped:
            account.pages.unkeep(gone)
        for position in [p for p in sequence.states if begin < p <= begin + count]:
            store.save(node, position - begin, sequence.states.pop(position))
            account.num_unproven_states -= 1
        if count == size:
            store.pin(node)
            store.unpin(sequence.node)
        return node

    def _withdraw(self, account: Account, sequence: Sequence) -> None:
        """Its pages may hold NaN that shows only now: nobody else is to begin there."""
        last = sequence.pages[sequence.num_published :][:1]
        for page in account.store.withdraw(sequence.node, last):
            account.pages.unkeep(page)
