"""What a sealed broker may have, and that a kernel's report of more is seen."""

from __future__ import annotations

import pytest

from kata_hypervisor.seccomp.policy import BASE, load_policy
from kata_runtime.broker.operations.lifecycle import FEATURES
from kata_runtime.broker.self_confinement import CAPABILITIES, find_excess, kept

STATUS = {
    "CapInh": "0000000000000000",
    "CapPrm": "0000000000240022",
    "CapEff": "0000000000240022",
    "CapBnd": "0000000000240022",
    "CapAmb": "0000000000000000",
    "NoNewPrivs": "1",
}


def test_each_capability_has_a_reason_and_its_own_number() -> None:
    assert len({found.number for found in CAPABILITIES}) == len(CAPABILITIES)
    assert all(found.reason and found.name.startswith("CAP_") for found in CAPABILITIES)
    assert {feature for found in CAPABILITIES for feature in found.features} <= {*FEATURES}


def test_features_are_those_of_the_filter() -> None:
    capabilities = {feature for found in CAPABILITIES for feature in found.features}
    assert load_policy("x86_64", program="broker").features | capabilities == {BASE, *FEATURES}


def test_what_the_features_need_is_kept() -> None:
    assert kept([]) == 0x8024003B
    assert kept(["network"]) == 0x8024003B | 1 << 12
    assert kept(["kvm"]) == kept([])
    assert kept(["images", "nodes"]) == kept(["nodes"]) == kept([]) | 1 << 27


def test_enough_is_no_excess() -> None:
    assert find_excess(STATUS, []) is None
    assert find_excess({**STATUS, "CapEff": "0000000000200000"}, []) is None


@pytest.mark.parametrize("name", ["CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"])
def test_one_capability_too_many_is_seen_in_each_set(name: str) -> None:
    more = f"{int(STATUS[name], 16) | 1 << 16:016x}"
    assert find_excess({**STATUS, name: more}, FEATURES) == (
        f"the kernel reports {name} {more}, and the features need no more than "
        f"{0 if name in ('CapInh', 'CapAmb') else kept(FEATURES):016x}"
    )


def test_new_privileges_must_be_given_up() -> None:
    found = find_excess({**STATUS, "NoNewPrivs": "0"}, [])
    assert found == "the kernel reports NoNewPrivs 0, and it must be 1"
