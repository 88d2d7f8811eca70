"""The routing decision, by literals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortexd import snapshot
from cortexd.router import Reject, Serve, Wait, decide, resolve
from cortexd.snapshot import EMPTY, ModelView, NodeView, Place, Snapshot


def node(name: str, standing: str = "up", **more: object) -> NodeView:
    known = {"endpoint": f"http://{name}:1", "seen": True, **more}
    return NodeView(name, standing=standing, **known)  # type: ignore[arg-type]


def place(name: str, status: str = "loaded", **more: object) -> Place:
    return Place(name, status, **more)  # type: ignore[arg-type]


def fleet(
    *places: Place,
    nodes: list[NodeView] | None = None,
    aliases: tuple[str, ...] = (),
) -> Snapshot:
    names = dict.fromkeys([p.node for p in places])
    return snapshot.of(
        number=1,
        complete=True,
        created_s=0,
        nodes=nodes if nodes is not None else [node(name) for name in names],
        models=[ModelView("m", places, aliases)],
    )


def test_a_loaded_model_is_served_where_it_is() -> None:
    assert decide(fleet(place("a")), "m") == Serve("a", "http://a:1", "m")


def test_an_alias_is_served_under_the_id_of_its_model() -> None:
    decision = decide(fleet(place("a"), aliases=("gpt-4o",)), "gpt-4o")

    assert decision == Serve("a", "http://a:1", "m")


def test_an_id_wins_over_an_alias_of_the_same_name() -> None:
    known = snapshot.of(
        number=1,
        complete=True,
        created_s=0,
        nodes=[],
        models=[ModelView("m"), ModelView("n", aliases=("m",))],
    )

    assert resolve(known, "m") == "m"


def test_the_least_loaded_node_serves() -> None:
    known = fleet(place("a", load=3), place("b", load=1), place("c", load=2))

    decision = decide(known, "m")

    assert isinstance(decision, Serve)
    assert decision.node == "b"


def test_our_own_requests_count_since_the_last_poll() -> None:
    known = fleet(place("a", load=0), place("b", load=1))

    decision = decide(known, "m", in_flight={"a": 2})

    assert isinstance(decision, Serve)
    assert decision.node == "b"


def test_what_needs_no_device_is_served_wherever_the_model_is_known() -> None:
    known = fleet(place("a", "unloaded", servable=False), place("b", "loading"))

    assert not isinstance(decide(known, "m"), Serve)
    decision = decide(known, "m", on_device=False)
    assert isinstance(decision, Serve)
    assert decision.node == "a"
    decision = decide(known, "m", on_device=False, without=["a"])
    assert isinstance(decision, Serve)
    assert decision.node == "b"
    assert isinstance(decide(known, "m", on_device=False, without=["a", "b"]), Wait)


def test_what_needs_no_device_goes_where_the_model_is_loaded_all_the_same() -> None:
    known = fleet(place("a", "unloaded"), place("b", load=9))

    decision = decide(known, "m", on_device=False)

    assert isinstance(decision, Serve)
    assert decision.node == "b"


def test_a_node_that_was_tried_is_passed_by() -> None:
    decision = decide(fleet(place("a"), place("b", load=9)), "m", without=["a"])

    assert isinstance(decision, Serve)
    assert decision.node == "b"


@pytest.mark.parametrize(
    ("places", "nodes", "kind", "code", "words"),
    [
        pytest.param(
            [place("a", "loading", percent=40.0, eta_s=6.0)],
            [node("a")],
            Wait,
            "model_loading",
            "40 %",
            id="loading",
        ),
        pytest.param(
            [place("a", "converting")],
            [node("a")],
            Wait,
            "model_loading",
            "0 %",
            id="converting",
        ),
        pytest.param(
            [place("a", "recovering")],
            [node("a")],
            Wait,
            "model_recovering",
            "coming back",
            id="recovering",
        ),
        pytest.param(
            [place("a")],
            [node("a", "down")],
            Reject,
            "no_healthy_node",
            "no node that has model m is reachable",
            id="its only node is down (S25)",
        ),
        pytest.param(
            [place("a")],
            [node("a", accepting=False)],
            Reject,
            "shutting_down",
            "stopping",
            id="its only node is stopping",
        ),
        pytest.param(
            [place("a", servable=False, reason="no memory")],
            [node("a")],
            Reject,
            "no_healthy_node",
            "no memory",
            id="not servable (S30)",
        ),
        pytest.param(
            [place("a", servable=False)],
            [node("a")],
            Reject,
            "no_healthy_node",
            "not servable now",
            id="not servable, without a reason",
        ),
        pytest.param(
            [place("a", "unloaded")],
            [node("a")],
            Reject,
            "no_healthy_node",
            "it is unloaded",
            id="known and not loaded",
        ),
        pytest.param(
            [place("a", "melting")],
            [node("a")],
            Reject,
            "no_healthy_node",
            "it is melting",
            id="a state of a newer node",
        ),
        pytest.param(
            [],
            [node("a")],
            Reject,
            "no_healthy_node",
            "in the catalogue",
            id="in the catalogue only",
        ),
    ],
)
def test_what_cannot_be_served_now_says_why_and_when(
    places: list[Place], nodes: list[NodeView], kind: type, code: str, words: str
) -> None:
    decision = decide(fleet(*places, nodes=nodes), "m")

    assert type(decision) is kind
    assert isinstance(decision, Wait | Reject)
    assert decision.error.code == code
    assert words in decision.error.message
    assert decision.error.status == 503
    assert decision.error.retry_after_s


def test_a_loading_model_tells_percent_and_time_left() -> None:
    slow = place("a", "loading", percent=5.0, eta_s=500.0)
    fast = place("b", "loading", percent=40.0, eta_s=6.0)

    decision = decide(fleet(slow, fast), "m")

    assert isinstance(decision, Wait)
    assert decision.error.fields == {"percent": 40.0, "eta_s": 6.0}
    assert decision.error.retry_after_s == 6.0


def test_a_long_wait_is_asked_about_again_before_its_end() -> None:
    decision = decide(fleet(place("a", "loading", percent=1.0, eta_s=900.0)), "m")

    assert isinstance(decision, Wait)
    assert decision.error.retry_after_s == 30.0


def test_one_that_serves_is_taken_before_one_that_loads() -> None:
    known = fleet(place("a", "loading"), place("b"), place("c", "recovering"))

    assert isinstance(decide(known, "m"), Serve)


def test_when_all_were_tried_the_answer_is_no_404() -> None:
    decision = decide(fleet(place("a")), "m", without=["a"])

    assert isinstance(decision, Reject)
    assert decision.error.code == "no_healthy_node"
    assert "does not answer" in decision.error.message


def test_an_unknown_model_is_404_once_every_node_has_been_seen() -> None:
    nodes = [node("a"), node("b", "down")]

    decision = decide(fleet(place("a"), nodes=nodes), "x")

    assert isinstance(decision, Reject)
    assert decision.error.code == "model_not_found"
    assert decision.error.param == "model"


@pytest.mark.parametrize("standing", ["unknown", "down", "up"])
def test_s25_an_unknown_model_is_503_while_a_node_has_yet_to_be_seen(
    standing: str,
) -> None:
    nodes = [node("a"), node("b", standing, seen=False)]

    decision = decide(fleet(place("a"), nodes=nodes), "x")

    assert isinstance(decision, Reject)
    assert decision.error.code == "no_healthy_node"


def test_before_the_first_snapshot_nothing_is_denied() -> None:
    decision = decide(EMPTY, "m")

    assert isinstance(decision, Reject)
    assert decision.error.status == 503


STANDINGS = st.sampled_from(["up", "down", "unknown"])
STATES = st.sampled_from(["loaded", "loading", "recovering", "unloaded", "failed", "?"])


@given(
    st.dictionaries(
        st.sampled_from("abcd"),
        st.tuples(STANDINGS, STATES, st.booleans(), st.booleans(), st.integers(0, 3)),
    ),
    st.sets(st.sampled_from("abcd")),
)
def test_a_known_model_is_served_where_possible_and_never_denied(
    places: dict[str, tuple[str, str, bool, bool, int]], tried: set[str]
) -> None:
    known = fleet(
        *[
            place(name, status, servable=servable, load=load)
            for name, (_, status, servable, _, load) in places.items()
        ],
        nodes=[
            node(name, standing, accepting=accepting)
            for name, (standing, _, _, accepting, _) in places.items()
        ],
    )
    fit = {
        name: load
        for name, (standing, status, servable, accepting, load) in places.items()
        if (standing, status) == ("up", "loaded") and servable and accepting
    }
    open_ = fit.keys() - tried

    decision = decide(known, "m", without=tried)

    assert isinstance(decision, Serve) == bool(open_)
    if isinstance(decision, Serve):
        assert fit[decision.node] == min(fit[name] for name in open_)
    else:
        assert decision.error.status == 503
