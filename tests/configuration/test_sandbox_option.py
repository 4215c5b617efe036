"""The value of QEMU's -sandbox."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_configuration.sandbox_option import DENY_ALL, GROUPS, find_faults, is_on, open_groups


def settings() -> st.SearchStrategy[list[str]]:
    """Any groups once each, in any order, with values that QEMU takes."""
    one = st.sampled_from(sorted(GROUPS)).flatmap(
        lambda group: st.sampled_from(GROUPS[group]).map(lambda value: f"{group}={value}")
    )
    return st.lists(one, unique_by=lambda item: item.split("=")[0])


@given(settings())
def test_what_qemu_takes_is_without_fault(items: list[str]) -> None:
    value = ",".join(["on", *items])
    assert find_faults(value) == []
    assert is_on(value)
    denied = {item.split("=")[0] for item in items if item.endswith("=deny")}
    opened = set(GROUPS) - denied - ({"obsolete"} if "obsolete=allow" not in items else set())
    assert set(open_groups(value)) == opened


def test_deny_all_leaves_nothing_open() -> None:
    assert find_faults(DENY_ALL) == []
    assert open_groups(DENY_ALL) == {}


@pytest.mark.parametrize("value", ["", "off"])
def test_off(value: str) -> None:
    assert find_faults(value) == []
    assert not is_on(value)


@pytest.mark.parametrize(
    ("value", "offset", "message", "hint"),
    [
        ("On", 0, 'begins with "On", must begin with "on"', None),
        ("enable=on", 0, 'begins with "enable=on", must begin with "on"', None),
        ("spawn=deny", 0, 'begins with "spawn=deny", must begin with "on"', None),
        ("off,spawn=deny", 3, 'nothing may follow "off"', None),
        ("on,", 3, "an empty item", "remove the extra comma"),
        ("on,,spawn=deny", 3, "an empty item", "remove the extra comma"),
        ("on,obselete=deny", 3, 'unknown group "obselete"', 'did you mean "obsolete"?'),
        ("on, spawn=deny", 3, 'unknown group " spawn"', 'did you mean "spawn"?'),
        (
            "on,zzz=deny",
            3,
            'unknown group "zzz"',
            "use one of obsolete, elevateprivileges, spawn, resourcecontrol",
        ),
        ("on,spawn=dney", 9, 'unknown value "dney" for spawn', 'did you mean "deny"?'),
        ("on,spawn=children", 9, 'unknown value "children" for spawn', "use one of deny, allow"),
        ("on,spawn=", 9, 'unknown value "" for spawn', "use one of deny, allow"),
        ("on,spawn", 3, 'group "spawn" has no value', 'write "spawn=deny"'),
        ("on,spawn=deny,spawn=allow", 14, 'group "spawn" is given twice', "keep one"),
    ],
)
def test_faults_point_at_the_word(value: str, offset: int, message: str, hint: str | None) -> None:
    (fault,) = find_faults(value)
    assert (fault.offset, fault.message) == (offset, message)
    assert hint is None or fault.hint == hint


def test_every_fault_is_found() -> None:
    faults = find_faults("on,obselete=deny,spawn=dney,spawn=deny,")
    assert [fault.offset for fault in faults] == [3, 23, 28, 39]
