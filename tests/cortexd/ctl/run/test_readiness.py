"""When a pair of daemons is ready to chat."""

from __future__ import annotations

from cortexd.ctl.run.readiness import Ready, Waiting, judge
from ipc.errors import error_for
from tests.cortexd.ctl.facts import gateway, model, node


def test_nothing_is_ready_before_both_have_answered() -> None:
    assert judge(None, None) == Waiting()
    assert judge(node(), None) == Waiting()
    assert judge(None, gateway()) == Waiting()


def test_a_node_that_starts_is_waited_for() -> None:
    assert judge(node(state="starting", models=[]), gateway()) == Waiting()


def test_the_model_that_is_furthest_behind_is_shown() -> None:
    ahead = model("a", status="loading", percent=80)
    behind = model("b", status="converting", percent=10)

    assert judge(node(models=[ahead, behind]), None) == Waiting(behind)


def test_a_loaded_model_is_ready_once_the_gateway_sees_it() -> None:
    blind = gateway(models=[])

    assert judge(node(), blind) == Waiting()
    assert judge(node(), gateway()) == Ready("smollm2-135m-instruct")


def test_a_failed_model_does_not_hold_up_the_rest() -> None:
    error = error_for("load_failed", "no tensor lm_head.weight")
    broken = model("b", status="failed", error=error.to_wire())

    verdict = judge(node(models=[model(), broken]), gateway())

    assert isinstance(verdict, Ready)
    assert verdict.model == "smollm2-135m-instruct"
    assert verdict.failures == (
        "b failed: CX-LOAD-FAILED: no tensor lm_head.weight; next: cortexctl models",
    )


def test_a_failure_without_an_error_gives_its_reason() -> None:
    broken = model("b", status="poisoned", reason="killed its device")

    verdict = judge(node(models=[broken]), gateway())

    assert verdict == Ready(
        "", ("b poisoned: killed its device; next: cortexctl models",)
    )


def test_a_node_without_models_is_ready_without_one() -> None:
    assert judge(node(models=[]), gateway(models=[])) == Ready("")
