"""OCI JSON to the protocol's messages and back: what ctr and CRI write survives, else it is reported."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kata_agent.constants import UMASK_ANNOTATION, UNIFIED_ANNOTATION
from kata_agent.oci import (
    SpecError,
    lost_fields,
    process_from_proto,
    process_to_proto,
    resources_from_proto,
    resources_to_proto,
    spec_from_proto,
    spec_to_proto,
)
from kata_agent.oci_shapes import SHAPES
from kata_agent.protos import oci_pb2

Json = dict[str, Any]
SPECS = Path(__file__).parent / "specs"


def load(name: str) -> Json:
    spec: Json = json.loads((SPECS / f"{name}.json").read_text())
    return spec


def there_and_back(spec: Json) -> Json:
    """Through bytes, as the guest gets it."""
    return spec_from_proto(oci_pb2.Spec.FromString(spec_to_proto(spec).SerializeToString()))


@pytest.mark.parametrize("name", ["ctr", "cri"])
def test_fixture_is_unchanged_and_loses_nothing(name: str) -> None:
    spec = load(name)
    assert there_and_back(spec) == spec
    assert lost_fields(spec) == []


def test_every_member_of_every_message_is_in_the_fixture_or_left_out_on_purpose() -> None:
    """The table covers the wire: each field of a message that it describes has a JSON name."""
    for name, shape in SHAPES.items():
        fields = set(oci_pb2.DESCRIPTOR.message_types_by_name[name].fields_by_name)
        assert set(shape.names.values()) == fields - {"Solaris", "Windows"}, name
        assert shape.required | shape.zero_matters | shape.absent.keys() <= shape.names.keys(), name


def test_names_on_the_wire() -> None:
    message = spec_to_proto(load("cri"))
    assert message.Version == "1.0.2-dev"
    assert message.Process.User.AdditionalGids == [10, 3000]
    assert message.Process.OOMScoreAdj == -997
    assert message.Process.Rlimits[0].Hard == (1 << 64) - 1
    assert message.Linux.Resources.Memory.Swap == -1
    assert message.Linux.Resources.CPU.Cpus == "0-1"
    assert message.Linux.Resources.HasField("Pids")
    assert message.Linux.Seccomp.Syscalls[3].errnoret == 38
    assert not message.Linux.Seccomp.Syscalls[0].HasField("errnoret")
    assert message.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] == "0"


# A realistic spec, member by member: an optional one is absent, or has a value that is not its absence.
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
texts = st.lists(text, min_size=1, max_size=3)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
true = st.just(True)


def nonzero(strategy: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return strategy.filter(bool)


def some(required: dict[str, Any], optional: dict[str, Any] | None = None) -> st.SearchStrategy[Json]:
    return st.fixed_dictionaries(required, optional=optional or {})


def many(strategy: st.SearchStrategy[Json]) -> st.SearchStrategy[list[Json]]:
    return st.lists(strategy, min_size=1, max_size=2)


hook = some({"path": text}, {"args": texts, "env": texts, "timeout": nonzero(i64)})
capability = st.sampled_from(["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN"])
capabilities = st.lists(capability, min_size=1, max_size=3)
process = some(
    {"cwd": text},
    {
        "terminal": true,
        "consoleSize": some({"height": u32, "width": u32}),
        "user": some(
            {"uid": u32, "gid": u32},
            {"additionalGids": st.lists(u32, min_size=1), "username": text, "umask": st.integers(0, 0o777)},
        ),
        "args": texts,
        "env": texts,
        "capabilities": some(
            {},
            {
                "bounding": capabilities,
                "effective": capabilities,
                "inheritable": capabilities,
                "permitted": capabilities,
                "ambient": capabilities,
            },
        ),
        "rlimits": many(some({"type": text, "hard": u64, "soft": u64})),
        "noNewPrivileges": true,
        "apparmorProfile": text,
        "oomScoreAdj": nonzero(st.integers(-1000, 1000)),
        "selinuxLabel": text,
    },
)
device_number = {"major": st.integers(0, 4095), "minor": st.integers(0, 4095)}
throttles = many(some({**device_number, "rate": u64}))
weight = st.integers(10, 1000)
resources = some(
    {},
    {
        "devices": many(some({"allow": st.booleans()}, {"type": text, "access": text, **device_number})),
        "memory": some(
            {},
            {
                "limit": nonzero(i64),
                "reservation": nonzero(i64),
                "swap": nonzero(i64),
                "kernel": nonzero(i64),
                "kernelTCP": nonzero(i64),
                "swappiness": st.integers(1, 100),
                "disableOOMKiller": true,
            },
        ),
        "cpu": some(
            {},
            {
                "shares": nonzero(u64),
                "quota": nonzero(i64),
                "period": nonzero(u64),
                "realtimeRuntime": nonzero(i64),
                "realtimePeriod": nonzero(u64),
                "cpus": text,
                "mems": text,
            },
        ),
        "pids": some({"limit": i64}),
        "blockIO": some(
            {},
            {
                "weight": weight,
                "leafWeight": weight,
                "weightDevice": many(some(device_number, {"weight": weight, "leafWeight": weight})),
                "throttleReadBpsDevice": throttles,
                "throttleWriteBpsDevice": throttles,
                "throttleReadIOPSDevice": throttles,
                "throttleWriteIOPSDevice": throttles,
            },
        ),
        "hugepageLimits": many(some({"pageSize": text, "limit": u64})),
        "network": some(
            {}, {"classID": nonzero(u32), "priorities": many(some({"name": text, "priority": u32}))}
        ),
    },
)
id_mappings = many(some({"hostID": u32, "containerID": u32, "size": u32}))
seccomp = some(
    {"defaultAction": text},
    {
        "architectures": texts,
        "flags": texts,
        "syscalls": many(
            some(
                {"names": texts, "action": text},
                {
                    "errnoRet": st.integers(1, 4095),
                    "args": many(
                        some(
                            {"index": st.integers(0, 5), "value": u64, "op": text}, {"valueTwo": nonzero(u64)}
                        )
                    ),
                },
            )
        ),
    },
)
linux = some(
    {},
    {
        "uidMappings": id_mappings,
        "gidMappings": id_mappings,
        "sysctl": st.dictionaries(text, text, min_size=1, max_size=3),
        "resources": resources,
        "cgroupsPath": text,
        "namespaces": many(some({"type": text}, {"path": text})),
        "devices": many(
            some(
                {"path": text, "type": text, **device_number},
                {"fileMode": st.integers(1, 0o7777), "uid": nonzero(u32), "gid": nonzero(u32)},
            )
        ),
        "seccomp": seccomp,
        "rootfsPropagation": text,
        "maskedPaths": texts,
        "readonlyPaths": texts,
        "mountLabel": text,
        "intelRdt": some({}, {"l3CacheSchema": text}),
    },
)
specs = some(
    {"ociVersion": text},
    {
        "process": process,
        "root": some({"path": text}, {"readonly": true}),
        "hostname": text,
        "mounts": many(some({"destination": text}, {"source": text, "type": text, "options": texts})),
        "hooks": some(
            {},
            dict.fromkeys(
                ("prestart", "poststart", "poststop", "createRuntime", "createContainer", "startContainer"),
                many(hook),
            ),
        ),
        "annotations": st.dictionaries(text, text, min_size=1, max_size=3),
        "linux": linux,
    },
)


@given(specs)
def test_specs_come_back_as_they_were(spec: Json) -> None:
    before = copy.deepcopy(spec)
    assert there_and_back(spec) == spec
    assert lost_fields(spec) == []
    assert spec == before


@given(process, resources)
def test_processes_and_resources_come_back_as_they_were(process: Json, resources: Json) -> None:
    process.get("user", {}).pop("umask", None)
    assert process_from_proto(process_to_proto(process)) == process
    assert resources_from_proto(resources_to_proto(resources)) == resources


def test_zero_and_empty_are_absence_where_the_specification_reads_them_so() -> None:
    spec = load("ctr")
    before = copy.deepcopy(spec)
    spec["process"] |= {"terminal": False, "apparmorProfile": "", "oomScoreAdj": None}
    spec["root"]["readonly"] = False
    spec["linux"]["resources"]["devices"][0] |= {"type": "", "major": -1, "minor": -1}
    spec["linux"] |= {"sysctl": {}, "devices": [], "seccomp": None, "uidMappings": None}
    assert there_and_back(spec) == before
    assert lost_fields(spec) == []
    spec["linux"]["resources"]["memory"] = {"limit": 0, "swap": 0, "disableOOMKiller": False}
    assert there_and_back(spec)["linux"]["resources"]["memory"] == {}


def test_device_rule_for_minor_zero_is_not_widened() -> None:
    rules = [
        {"allow": True, "type": "c", "major": 5, "minor": 0, "access": "rwm"},
        {"allow": True, "type": "c"},
    ]
    message = resources_to_proto({"devices": rules})
    assert [(rule.Major, rule.Minor) for rule in message.Devices] == [(5, 0), (-1, -1)]
    assert resources_from_proto(message)["devices"] == rules


def test_zeros_that_mean_something_are_reported() -> None:
    spec = load("ctr")
    spec["linux"]["resources"]["memory"] = {"swappiness": 0}
    spec["linux"]["devices"] = [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 0}]
    spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "syscalls": [{"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}],
    }
    assert lost_fields(spec) == [
        "linux.resources.memory.swappiness",
        "linux.devices[0].fileMode",
        "linux.seccomp.syscalls[0].errnoRet",
    ]


def test_errno_zero_from_katas_own_runtime_is_read_as_absent() -> None:
    syscall = oci_pb2.LinuxSyscall(Names=["x"], Action="SCMP_ACT_ERRNO", errnoret=0)
    message = oci_pb2.Spec(Linux=oci_pb2.Linux(Seccomp=oci_pb2.LinuxSeccomp(Syscalls=[syscall])))
    [decoded] = spec_from_proto(message)["linux"]["seccomp"]["syscalls"]
    assert decoded == {"names": ["x"], "action": "SCMP_ACT_ERRNO"}


def test_members_that_the_wire_lacks_are_reported() -> None:
    spec = load("ctr")
    spec["domainname"] = "d"
    spec["mispelt"] = {}
    spec["process"] |= {"ioPriority": {"class": "IOPRIO_CLASS_IDLE"}, "scheduler": None}
    spec["mounts"][1]["uidMappings"] = []
    spec["linux"]["seccomp"] = {"defaultAction": "A", "defaultErrnoRet": 38, "listenerPath": "/s"}
    lost = lost_fields(spec)
    assert sorted(lost) == [
        "domainname",
        "linux.seccomp.defaultErrnoRet",
        "linux.seccomp.listenerPath",
        "mispelt",
        "mounts[1].uidMappings",
        "process.ioPriority",
    ]
    assert there_and_back(spec)["mounts"] == load("ctr")["mounts"]


def test_umask_travels_in_an_annotation() -> None:
    spec = load("ctr")
    spec["process"]["user"]["umask"] = 0o27
    message = spec_to_proto(spec)
    assert message.Annotations[UMASK_ANNOTATION] == "27"
    assert spec_from_proto(message) == spec
    assert lost_fields(spec) == []


def test_umask_annotation_of_a_user_is_not_taken() -> None:
    spec = load("ctr")
    spec["annotations"][UMASK_ANNOTATION] = "0"
    assert UMASK_ANNOTATION not in spec_to_proto(spec).Annotations
    assert lost_fields(spec) == [f"annotations['{UMASK_ANNOTATION}']"]


@pytest.mark.parametrize("value", ["x", "8", "1000", "-1", ""])
def test_umask_annotation_that_is_none(value: str) -> None:
    message = spec_to_proto(load("ctr"))
    message.Annotations[UMASK_ANNOTATION] = value
    with pytest.raises(SpecError, match=r"annotations\['io\.katacontainers\.process\.umask'\]"):
        spec_from_proto(message)


def test_capabilities_as_katas_runtimes_send_them() -> None:
    message = oci_pb2.Process(
        Capabilities=oci_pb2.LinuxCapabilities(Bounding=["CAP_KILL", '"CAP_MKNOD"', "CHOWN"])
    )
    assert process_from_proto(message)["capabilities"] == {"bounding": ["CAP_KILL", "CAP_MKNOD", "CAP_CHOWN"]}


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("process", [], "process: must be an object, not an array"),
        ("process.args", "sh", "process.args: must be an array, not a string"),
        ("process.args", ["sh", 1], "process.args[1]: must be a string, not a number"),
        ("process.cwd", "\ud800", "process.cwd: must be valid Unicode, not '\\ud800'"),
        ("process.terminal", 1, "process.terminal: must be true or false, not a number"),
        ("process.user.uid", True, "process.user.uid: must be an integer, not a boolean"),
        ("process.user.uid", -1, "process.user.uid: -1 is out of range, 0 to 4294967295"),
        ("process.user.uid", 1.0, "process.user.uid: must be an integer, not a number"),
        ("process.user.umask", 512,
         "process.user.umask: must be an integer of 0 to 511 (octal 777), not 512"),
        ("process.rlimits", [{"hard": -1}],
         "process.rlimits[0].hard: -1 is out of range, 0 to 18446744073709551615"),
        ("mounts", {"a": 1}, "mounts: must be an array, not an object"),
        ("mounts", [1], "mounts[0]: must be an object, not a number"),
        ("annotations", {"a": 1}, "annotations['a']: must be a string, not a number"),
        ("annotations", ["a"], "annotations: must be an object of strings, not an array"),
        ("linux.resources.memory", {"limit": "1G"},
         "linux.resources.memory.limit: must be an integer, not a string"),
    ],
)  # fmt: skip
def test_malformed_members_are_named(path: str, value: object, complaint: str) -> None:
    spec = load("ctr")
    *parents, last = path.split(".")
    target = spec
    for parent in parents:
        target = target[parent]
    target[last] = value
    with pytest.raises(SpecError) as caught:
        spec_to_proto(spec)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("spec", [[], "x", 1, None])
def test_spec_that_is_no_object(spec: Any) -> None:
    with pytest.raises(SpecError, match="spec: must be an object"):
        spec_to_proto(spec)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({name for shape in SHAPES.values() for name in shape.names})), inner
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(sorted(SHAPES["Spec"].names)), json_values))
def test_no_json_raises_anything_else(spec: Json) -> None:
    try:
        message = spec_to_proto(spec)
    except SpecError:
        return
    spec_from_proto(message)


def test_unified_keys_travel() -> None:
    spec = load("ctr")
    spec["linux"]["resources"]["unified"] = {"memory.high": "1", "pids.max": "ä"}
    spec["annotations"] = {UNIFIED_ANNOTATION: '{"memory.high": "2"}', "kept": "x"}
    assert lost_fields(spec) == [f"annotations['{UNIFIED_ANNOTATION}']"]
    arrived = spec_from_proto(spec_to_proto(spec))
    assert arrived["linux"]["resources"]["unified"] == {"memory.high": "1", "pids.max": "ä"}
    assert arrived["annotations"] == {"kept": "x"}
    spec["linux"]["resources"]["unified"] = {"memory.high": 1}
    with pytest.raises(SpecError, match=r"linux.resources.unified\['memory.high'\]: must be a string"):
        spec_to_proto(spec)


@pytest.mark.parametrize("text", ["", "[]", '{"memory.high": 1}', "{"])
def test_unified_keys_that_are_none_are_refused(text: str) -> None:
    message = oci_pb2.Spec(Annotations={UNIFIED_ANNOTATION: text})
    with pytest.raises(SpecError, match="unified"):
        spec_from_proto(message)
