"""docs/architecture.md: its three pictures are true."""

from __future__ import annotations

import ast
import re

import pytest

import import_graph
import mermaid
from kata_agent.protos import agent_pb2
from kata_hypervisor import registry
from kata_hypervisor.contract import Hypervisor
from kata_hypervisor.seccomp import seal
from kata_hypervisor.seccomp.score import surface_of
from kata_hypervisor.seccomp.survey import survey
from kata_runtime.broker.operations import OPERATIONS
from kata_runtime.broker.self_confinement import kept
from kata_runtime.pod.boot import STAGES

PAGE = import_graph.ROOT / "docs" / "architecture.md"

# Generated, and imported by whoever speaks a protocol.
GENERATED = {"kata_runtime.containerd_api", "kata_agent.protos"}

Pair = tuple[str, str]


@pytest.fixture(scope="module")
def pictures() -> list[str]:
    """The sources of the three pictures."""
    found = mermaid.blocks(PAGE)
    assert len(found) == 3
    return found


@pytest.fixture(scope="module")
def rooms(pictures: list[str]) -> mermaid.Flowchart:
    """The picture of rooms and folders."""
    return mermaid.parse_flowchart(pictures[0])


@pytest.fixture(scope="module")
def processes(pictures: list[str]) -> mermaid.Flowchart:
    """The picture of processes."""
    return mermaid.parse_flowchart(pictures[1])


@pytest.fixture(scope="module")
def create(pictures: list[str]) -> list[mermaid.Message]:
    """The sequence of a Create."""
    return mermaid.parse_sequence(pictures[2])


# -- rooms -------------------------------------------------------------------------------------------------


def parts_of(chart: mermaid.Flowchart) -> dict[str, str]:
    """The dotted name of each module or package that is drawn -> the id of its box."""
    parts = {}
    for name, node in chart.nodes.items():
        room = package_of(chart.groups[node.group])
        for one in node.lines[0].split():
            parts[f"{room}.{one.removesuffix('/').removesuffix('.py')}"] = name
    return parts


def package_of(folder: str) -> str:
    """The package of a room, which is drawn as folder/package."""
    path = import_graph.ROOT / folder
    assert path == import_graph.ROOMS[path.name] / path.name
    return path.name


def part_of(module: str, parts: dict[str, str]) -> str | None:
    """The box that a module is in."""
    names = module.split(".")
    return next((box for end in (3, 2) if (box := parts.get(".".join(names[:end])))), None)


def edges(pairs: frozenset[Pair], parts: dict[str, str]) -> set[Pair]:
    """Pairs of modules as pairs of different boxes of one room."""
    found = set()
    for source, target in pairs:
        ends = part_of(source, parts), part_of(target, parts)
        if source.split(".")[0] == target.split(".")[0] and ends[0] and ends[1] and ends[0] != ends[1]:
            found.add((ends[0], ends[1]))
    return found


def drawn(chart: mermaid.Flowchart, kind: str) -> set[Pair]:
    """The arrows of a kind."""
    return {(arrow.source, arrow.target) for arrow in chart.arrows if arrow.kind == kind}


def test_each_folder_is_drawn_once_and_is_there(rooms: mermaid.Flowchart) -> None:
    parts = parts_of(rooms)
    assert parts.keys() <= import_graph.modules().keys()
    folders = {
        f"{package}.{path.parent.name}"
        for package, folder in import_graph.ROOMS.items()
        for path in (folder / package).glob("*/__init__.py")
    }
    assert {part for part in parts if part in folders} == folders - GENERATED
    assert {package_of(label) for label in rooms.groups.values()} == import_graph.ROOMS.keys()


def test_arrows_in_a_room_are_its_imports(rooms: mermaid.Flowchart) -> None:
    inside = {pair for pair in drawn(rooms, "-->") if pair[0] in rooms.nodes}
    assert inside == edges(import_graph.imports(), parts_of(rooms))


def test_dotted_arrows_are_names_that_are_loaded_when_chosen(rooms: mermaid.Flowchart) -> None:
    named = edges(import_graph.names(), parts_of(rooms))
    assert drawn(rooms, "-.->") == named - drawn(rooms, "-->")


def test_arrows_between_rooms_are_their_imports(rooms: mermaid.Flowchart) -> None:
    packages = {group: package_of(label) for group, label in rooms.groups.items()}
    between = {
        (packages[source], packages[target]) for source, target in drawn(rooms, "-->") if source in packages
    }
    tops = {(source.split(".")[0], target.split(".")[0]) for source, target in import_graph.imports()}
    assert between == {pair for pair in tops if pair[0] != pair[1]}


# -- processes ---------------------------------------------------------------------------------------------


def module_of(node: mermaid.Node) -> str | None:
    """The module in which a process begins."""
    path = next((line for line in node.lines if line.endswith(".py")), None)
    return path.removesuffix(".py").replace("/", ".") if path else None


def test_processes_begin_in_modules_that_are_there(processes: mermaid.Flowchart) -> None:
    begin = {name: module for name, node in processes.nodes.items() if (module := module_of(node))}
    assert begin.keys() == {"launcher", "zygote", "shim", "broker", "agent"}
    assert set(begin.values()) <= import_graph.modules().keys()


def test_a_process_imports_where_the_one_that_it_forks_begins(processes: mermaid.Flowchart) -> None:
    begin = {name: module_of(node) for name, node in processes.nodes.items()}
    forks = [arrow for arrow in processes.arrows if arrow.label.startswith("forks")]
    ours = {(a.source, a.target) for a in forks if begin[a.source] and begin[a.target]}
    assert ours == {("launcher", "shim"), ("shim", "broker")}
    assert {(begin[source], begin[target]) for source, target in ours} <= import_graph.imports()


def test_the_broker_starts_what_is_drawn_and_nothing_else(processes: mermaid.Flowchart) -> None:
    started = {arrow.target for arrow in processes.arrows if arrow.source == "broker" and arrow.kind == "-->"}
    assert started == {"virtiofsd", "vmm"}
    names = re.findall(r"[a-z0-9-]+", " ".join(processes.nodes["vmm"].lines))
    vmms = registry.child_roles() - {"virtiofsd"}
    assert {word for word in names if word in vmms or "solo5" in word} == vmms


def test_the_number_of_the_shims_calls(processes: mermaid.Flowchart) -> None:
    program = seal.build(seal.SHIM_FEATURES | {"serial"}, "enforce").process
    assert program is not None
    allowed = surface_of(survey([program.code])).allowed
    assert f"sealed: {allowed} system calls on QEMU" in processes.nodes["shim"].lines


def test_what_the_sealed_broker_has(processes: mermaid.Flowchart) -> None:
    allowed = surface_of(survey([seal.build_broker(set(), "enforce", 1).code])).allowed
    text = " ".join(processes.nodes["broker"].lines)
    assert f"sealed: {allowed} system calls" in text
    assert f"with {kept(set()).bit_count()} capabilities" in text


def test_the_shim_has_no_way_to_its_vmm_but_the_broker(processes: mermaid.Flowchart) -> None:
    ways = {(arrow.source, arrow.target) for arrow in processes.arrows}
    assert ("broker", "vmm") in ways
    assert not {("shim", "vmm"), ("vmm", "shim")} & ways


# -- a Create ----------------------------------------------------------------------------------------------


def test_stages_are_those_that_are_run() -> None:
    run = {
        node.args[0].value
        for name, tree in import_graph.modules().items()
        if name.startswith("kata_runtime.pod.")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("run_stage")
        and isinstance(node.args[0], ast.Constant)
    }
    assert run == set(STAGES)


def test_stages_are_those_of_the_code(create: list[mermaid.Message]) -> None:
    notes = [message.text for message in create if not message.source]
    assert [note.removeprefix("stage ").partition(":")[0] for note in notes] == [*STAGES]


def test_stages_on_the_page_of_processes() -> None:
    page = PAGE.with_name("processes.md").read_text(encoding="utf-8")
    table = page.partition("| stage | what happens |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert rows == [*STAGES]


@pytest.mark.parametrize(
    ("receiver", "known"),
    [
        ("broker", {operation.name for operation in OPERATIONS}),
        ("driver", {name for name in dir(Hypervisor) if not name.startswith("_")}),
        ("agent", set(agent_pb2.DESCRIPTOR.services_by_name["AgentService"].methods_by_name)),
    ],
)
def test_messages_have_the_names_of_the_code(
    create: list[mermaid.Message], receiver: str, known: set[str]
) -> None:
    sent = {message.text for message in create if message.target == receiver}
    assert sent
    assert sent <= known
