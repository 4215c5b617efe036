"""The table of states: what follows what, and what every refusal says."""

from __future__ import annotations

import itertools

import pytest

from kata_runtime.container.states import TRANSITIONS, Event, State, after
from kata_runtime.errors import NotFoundError, StateError


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_every_pair_follows_the_table_or_is_refused(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert after(state, event, "container x") is TRANSITIONS[state, event]
    elif state is State.DELETED:
        with pytest.raises(NotFoundError, match="container x: it is deleted"):
            after(state, event, "container x")
    else:
        with pytest.raises(
            StateError, match=f"cannot {event.value} container x: it is {state.value}, and must be"
        ):
            after(state, event, "container x")


def test_a_process_ends_once_and_is_deleted_once() -> None:
    ends = [state for (state, event) in TRANSITIONS if event is Event.EXIT]
    assert State.STOPPED not in ends
    assert TRANSITIONS[State.STOPPED, Event.DELETE] is State.DELETED
    assert not any(state is State.DELETED for state, _ in TRANSITIONS)


@pytest.mark.parametrize("event", Event)
def test_a_refusal_says_in_which_states_it_would_be_done(event: Event) -> None:
    refused = next(state for state in State if (state, event) not in TRANSITIONS)
    wanted = {state.value for state in State if (state, event) in TRANSITIONS}
    with pytest.raises(StateError, match="and must be ") as caught:
        after(refused, event, "container x")
    assert set(str(caught.value).partition("and must be ")[2].split(" or ")) == wanted
