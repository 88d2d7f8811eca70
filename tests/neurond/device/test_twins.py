"""Two sequences with the same prompt that each computed it for itself."""

from __future__ import annotations

from tests.neurond.device.simulated import Simulation


def test_the_pages_that_a_twin_left_do_not_end_an_answer_early() -> None:
    """The one that goes on pins them, and so nobody can evict them."""
    simulation = Simulation(pages=15, page_tokens=8)
    for request in (1, 2):
        trial = {"trial_group": request, "trial_until": 2}
        simulation.ask(request, range(1, 57), max_tokens=30, **trial)
    simulation.drain()
    assert simulation.counter("preempted_total") > 1
    assert simulation.ids(1) == simulation.ids(2)
    assert len(simulation.ids(1)) == 30
    simulation.check_nothing_is_held()
