"""Annotations of pods: what is allowed, as what type it is read, and the diagnostics of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kata_configuration import Configuration, ConfigurationError, lint, load
from kata_configuration.layer.pod_annotations import near_miss
from tables import qemu_of

Write = Callable[..., Path]
PREFIX = "io.katacontainers.config."


@pytest.fixture
def pod(write: Write, valid_text: str) -> Callable[..., Configuration]:
    """Load a file that allows the entries, with annotations whose names lack the prefix."""

    def load_pod(entries: str, annotations: Mapping[str, str], more: str = "") -> Configuration:
        path = write(f"{valid_text}enable_annotations = {entries}\n{more}")
        whole = {PREFIX + name: value for name, value in annotations.items()}
        return load(path, check_host=False, annotations=whole)

    return load_pod


Pod = Callable[..., Configuration]


def refused(pod: Pod, entries: str, annotations: Mapping[str, str], more: str = "") -> list[str]:
    """Return what is reported for a pod that must not start, without the configuration's own diagnostics."""
    with pytest.raises(ConfigurationError) as caught:
        pod(entries, annotations, more)
    return [str(found) for found in caught.value.diagnostics if found.path.startswith("annotation ")]


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("default_memory", "1024", "default_memory", 1024),
        ("default_memory", "2Gi", "default_memory", 2048),
        ("default_memory", " 512Mi ", "default_memory", 512),
        ("default_max_vcpus", "4", "default_maxvcpus", 4),
        ("default_vcpus", "0.75", "default_vcpus", 1),
        ("default_vcpus", " 2.000000001 ", "default_vcpus", 3),
        ("default_vcpus", "3.0", "default_vcpus", 3),
        ("enable_debug", "true", "enable_debug", True),
        ("overhead_vcpus", "0.5", "overhead_vcpus", 0.5),
        ("kernel_params", "quiet", "kernel_params", "quiet"),
        ("virtio_fs_extra_args", "--xattr, --posix-acl", "virtio_fs_extra_args", ("--xattr", "--posix-acl")),
        ("seccomp_sandbox", "off", "seccompsandbox", "off"),
    ],
)
def test_values_are_read_as_their_keys_type(pod: Pod, name: str, text: str, key: str, value: object) -> None:
    configuration = pod(f'["{name}"]', {f"hypervisor.{name}": text})
    assert getattr(configuration.hypervisor, key) == value
    assert configuration.annotations == (f"{PREFIX}hypervisor.{name}",)
    assert configuration.origins is not None
    origin = configuration.origins.of(("hypervisor", "qemu", key))
    assert str(origin) == f"annotation {PREFIX}hypervisor.{name}"


def test_values_are_judged_as_those_of_files(pod: Pod) -> None:
    assert refused(
        pod, '["default_.*"]', {"hypervisor.default_memory": "4", "hypervisor.default_vcpus": "x"}
    ) == [
        f"annotation {PREFIX}hypervisor.default_memory: error[KATA302] hypervisor.qemu.default_memory: 4 is "
        "below the minimum of 128 MiB (the unit is MiB: for 4 GiB write 4096)",
        f'annotation {PREFIX}hypervisor.default_vcpus: error[KATA301] hypervisor.qemu.default_vcpus: "x" is '
        "a string, must be an integer (write an integer)",
    ]


def test_a_refusal_names_the_line_that_allows_it(pod: Pod, tmp_path: Path) -> None:
    assert refused(pod, '["kernel_params"]', {"hypervisor.default_vcpus": "2"}) == [
        f"annotation {PREFIX}hypervisor.default_vcpus: error[KATA701] hypervisor.qemu.default_vcpus: is "
        "refused: enable_annotations of [hypervisor.qemu] does not list it (write enable_annotations = "
        f'["kernel_params", "default_vcpus"] in [hypervisor.qemu], {tmp_path}/configuration.toml:4)'
        " [security]"
    ]


def test_the_line_that_is_named_allows_it(pod: Pod) -> None:
    annotations = {"agent.enable_debug": "true"}
    (line,) = refused(pod, '["kernel_params"]', annotations)
    advised = line.partition("write enable_annotations = ")[2].partition(" in [hypervisor.qemu]")[0]
    assert pod(advised, annotations).agent.enable_debug


@pytest.mark.parametrize(
    "entries", ['["memory"]', '["default_memor"]', '["default_mem"]', '["efault_memory"]', "[]"]
)
def test_a_part_of_a_name_allows_nothing(pod: Pod, entries: str) -> None:
    (line,) = refused(pod, entries, {"hypervisor.default_memory": "1024"})
    assert "KATA701" in line


@pytest.mark.parametrize("entries", ['["enable_debug"]', '["hypervisor.*"]', "[]"])
@pytest.mark.parametrize("name", ["agent.enable_debug", "runtime.enable_debug"])
def test_other_tables_have_names_of_their_own(pod: Pod, entries: str, name: str) -> None:
    assert refused(pod, entries, {name: "true"})
    assert pod(f'["{name}"]', {name: "true"})


GUARDED_ANNOTATIONS = [
    ("hypervisor.seccompsandbox", "off"),
    ("hypervisor.seccomp_sandbox", "off"),
    ("hypervisor.virtio_fs_extra_args", "-o x"),
    ("hypervisor.machine_accelerators", "dumpdtb=/etc/passwd"),
    ("hypervisor.path", "/bin/sh"),
    ("hypervisor.kernel", "/etc/shadow"),
    ("hypervisor.virtio_fs_daemon", "/bin/sh"),
    ("runtime.disable_guest_seccomp", "true"),
    ("runtime.shim_seccomp", "off"),
    ("runtime.shim_seccomp", "log"),
    ("runtime.hypervisor_name", "qemu"),
]


@pytest.mark.parametrize(("name", "value"), GUARDED_ANNOTATIONS)
def test_no_pattern_loosens_the_confinement(pod: Pod, name: str, value: str) -> None:
    short = name.removeprefix("hypervisor.")
    for entries in ('[".*"]', f'["{short[:-1]}[{short[-1]}]"]', f'["({short})"]'):
        (line,) = refused(pod, entries, {name: value}, 'valid_kernel_paths = ["/*/*"]\n')
        assert "KATA701" in line
        assert "by its name" in line


@pytest.mark.parametrize("entry", ["seccompsandbox", "^seccompsandbox$", "hypervisor.seccompsandbox"])
def test_its_name_does(pod: Pod, entry: str) -> None:
    configuration = pod(f'["{entry}"]', {"hypervisor.seccompsandbox": "off"})
    assert not configuration.hypervisor.confined
    assert any(found.code == "KATA502" for found in configuration.warnings)


def test_the_runtimes_own_filter_is_opened_by_its_name(pod: Pod) -> None:
    configuration = pod('["runtime.shim_seccomp"]', {"runtime.shim_seccomp": "off"})
    assert configuration.runtime.shim_seccomp == "off"
    assert [found.code for found in configuration.warnings if found.security] == ["KATA715", "KATA505"]


@pytest.mark.parametrize("key", ["enable_annotations", "valid_kernel_paths"])
def test_no_annotation_sets_what_annotations_may(pod: Pod, key: str) -> None:
    (line,) = refused(pod, f'["{key}"]', {f"hypervisor.{key}": "/"})
    assert "no annotation may set this key" in line
    (line,) = refused(pod, '["runtime.refused_annotations"]', {"runtime.refused_annotations": "warn"})
    assert "no annotation may set this key" in line


@pytest.mark.parametrize(
    ("globs", "path", "allowed"),
    [
        ('["/opt/kernels/*"]', "/opt/kernels/a", True),
        ('["/opt/*/a"]', "/opt/kernels/a", True),
        ('["/opt/*"]', "/opt/kernels/a", False),
        ('["/opt/kernels/*"]', "/opt/kernels/../../etc/shadow", False),
        ('["/opt/kernels/*"]', "/opt/kernels/./a", False),
        ('["/opt/kernels/*"]', "/opt//kernels/a", False),
        ("[]", "/opt/kernels/a", False),
    ],
)
def test_paths_are_checked_against_their_globs(pod: Pod, globs: str, path: str, allowed: bool) -> None:
    more = f"valid_kernel_paths = {globs}\n"
    if allowed:
        assert qemu_of(pod('["kernel"]', {"hypervisor.kernel": path}, more)).kernel == Path(path)
    else:
        (line,) = refused(pod, '["kernel"]', {"hypervisor.kernel": path}, more)
        assert "KATA704" in line
        assert "write valid_kernel_paths = [" in line


def test_arrays_and_words_are_added_to_those_of_the_file(pod: Pod) -> None:
    more = 'kernel_params = "a=1 b"\n[agent.kata]\nkernel_modules = ["one x=1"]\n'
    names = {"hypervisor.kernel_params": "a=2 c", "agent.kernel_modules": "two y=2,3; three"}
    configuration = pod('["kernel_params", "agent.kernel_modules"]', names, more)
    assert qemu_of(configuration).kernel_params == "b a=2 c"
    assert configuration.agent.kernel_modules == ("one x=1", "two y=2,3", "three")


def test_unknown_annotations_are_refused(pod: Pod) -> None:
    assert refused(
        pod, '[".*"]', {"hypervisor.default_memroy": "1", "kernel": "x", "agnt.enable_debug": "x"}
    ) == [
        f"annotation {PREFIX}agnt.enable_debug: error[KATA702] names no key "
        f'(did you mean "{PREFIX}agent.enable_debug"?)',
        f"annotation {PREFIX}hypervisor.default_memroy: error[KATA702] names no key "
        f'(did you mean "{PREFIX}hypervisor.default_memory"?)',
        f"annotation {PREFIX}kernel: error[KATA702] names no key "
        "(the next word is hypervisor, agent or runtime)",
    ]


def test_an_annotation_of_a_key_that_is_not_honoured_says_what_happens_instead(pod: Pod) -> None:
    names = {
        "runtime.vfio_mode": "vfio",
        "hypervisor.ctlpath": "/x",
        "hypervisor.jailer_path": "/x",
    }
    not_here = "error[KATA702] names a key that is not honoured here"
    assert refused(pod, '[".*"]', names) == [
        f"annotation {PREFIX}hypervisor.ctlpath: {not_here}: the runtime controls the hypervisor by its own "
        "interface (remove it)",
        f"annotation {PREFIX}hypervisor.jailer_path: {not_here} (remove it)",  # Firecracker's, with QEMU
        f"annotation {PREFIX}runtime.vfio_mode: {not_here}: a guest gets the block devices of the host that "
        "its containers name, as disks, and no other device (remove it, and run pods that need another "
        "device with another runtime)",
    ]


def test_refusals_become_warnings_where_configured(pod: Pod) -> None:
    more = '[runtime]\nrefused_annotations = "warn"\n'
    names = {"hypervisor.default_vcpus": "2", "hypervisor.kernel": "/x", "hypervisor.none": ""}
    configuration = pod('["kernel"]', names, more)
    assert qemu_of(configuration).default_vcpus == 1
    codes = [found.code for found in configuration.warnings if found.path.startswith("annotation")]
    assert sorted(codes) == ["KATA701", "KATA702", "KATA704"]


def test_two_annotations_of_one_key_must_agree(pod: Pod) -> None:
    names = {"hypervisor.default_max_vcpus": "4", "hypervisor.default_maxvcpus": "5"}
    (line,) = refused(pod, '["default_max_vcpus"]', names)
    assert "KATA705" in line
    assert qemu_of(pod('["default_max_vcpus"]', dict.fromkeys(names, "4"))).default_maxvcpus == 4


def test_an_annotation_covers_no_fault_of_the_file(pod: Pod) -> None:
    for more in ("[agent]\nkata = 3\n", "[[agent.kata]]\n"):
        with pytest.raises(ConfigurationError, match="must be a table"):
            pod('["agent.enable_debug"]', {"agent.enable_debug": "true"}, more)


def test_foreign_annotations_are_ignored(write: Write, valid_text: str) -> None:
    names = [
        "io.kubernetes.cri.container-type",
        "io.katacontainers.pkg.oci.bundle_path",
        "kata",
        "",
        "x.io/kata",
    ]
    configuration = load(write(valid_text), check_host=False, annotations=dict.fromkeys(names, "x"))
    assert configuration.warnings == ()
    assert configuration.annotations == ()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("io.katacontainers.hypervisor.default_memory", "hypervisor.default_memory"),
        ("katacontainers.io/config/agent.enable_debug", "agent.enable_debug"),
        ("io.katacontainer.config.runtime.enable_debug", "runtime.enable_debug"),
        ("io.katacontainers.pkg.oci.hypervisor.x", None),
        ("io.other.hypervisor.x", None),
    ],
)
def test_almost_right_prefixes_get_a_suggestion(name: str, meant: str | None) -> None:
    assert near_miss(name) == (meant and PREFIX + meant)


def test_an_almost_right_prefix_is_a_warning(write: Write, valid_text: str) -> None:
    name = "io.katacontainers.hypervisor.default_memory"
    (found,) = load(write(valid_text), check_host=False, annotations={name: "1"}).warnings
    assert str(found) == (
        f"annotation {name}: warning[KATA703] sets nothing "
        f'(did you mean "{PREFIX}hypervisor.default_memory"?)'
    )


ENTRIES = [
    ('"*"', '23: error[KATA711] "*" is no pattern: nothing to repeat at position 0'),
    ('"default_memory", "("', "41: error[KATA711]"),
    (f'"{PREFIX}hypervisor.default_memory"', '23: warning[KATA712] "io.katacontainers.config.hypervisor.'),
    ('".*"', '23: warning[KATA713] ".*" allows almost every key that is not guarded: default_vcpus, '),
    ('"default_memroy"', '23: warning[KATA712] "default_memroy" is the name of no annotation'),
    ('"kern.l"', '23: warning[KATA712] "kern.l" allows nothing: kernel must be listed by name'),
    ('"kernel_params"', ""),
    ('"enable_debu"', '23: warning[KATA712] "enable_debu" is the name of no annotation'),
    ('"^kernel$"', '23: warning[KATA712] "^kernel$" allows nothing: valid_kernel_paths is empty'),
    ('"seccompsandbox"', '23: warning[KATA715] "seccompsandbox" lets pods run their machine without'),
    ('"virtio_fs_extra_args"', '23: warning[KATA715] "virtio_fs_extra_args" lets pods choose arguments'),
    ('"runtime.shim_seccomp"', '23: warning[KATA715] "runtime.shim_seccomp" lets pods run the runtime'),
    ('"runtime.hypervisor_name"', '23: warning[KATA715] "runtime.hypervisor_name" lets pods choose the'),
    ('"default_memory", "agent.enable_debug", "default_v.*"', ""),
]


@pytest.mark.parametrize(("entries", "expected"), ENTRIES)
def test_entries_are_checked(write: Write, valid_text: str, entries: str, expected: str) -> None:
    text = valid_text.replace("[hypervisor.qemu]\n", "")
    path = write(f"[hypervisor.qemu]\nenable_annotations = [{entries}]\n{text}")
    found = [str(item) for item in lint(path, check_host=False) if item.code.startswith("KATA7")]
    key = "hypervisor.qemu.enable_annotations"
    shown = [
        line.removeprefix(f"{path}:2:").replace(f"{key}[0]: ", "").replace(f"{key}[1]: ", "")
        for line in found
    ]
    assert len(shown) == bool(expected)
    assert all(line.startswith(expected) for line in shown)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["hypervisor.", "agent.", "runtime.", ""]).flatmap(
            lambda family: st.sampled_from(
                ["default_memory", "seccompsandbox", "kernel_params", "enable_debug", "path", "name", "x", ""]
            ).map(lambda key: family + key)
        ),
        st.text(max_size=8) | st.sampled_from(["true", "1024", "off", "9" * 30]),
        max_size=4,
    ),
    st.lists(st.sampled_from([".*", "default_memory", "seccompsandbox", "(", "path", "agent.*"]), max_size=3),
)
def test_any_annotations_load_or_say_why(pod: Pod, annotations: dict[str, str], entries: list[str]) -> None:
    listed = "[" + ", ".join(f'"{entry}"' for entry in entries) + "]"
    try:
        configuration = pod(listed, annotations)
    except ConfigurationError as error:
        assert str(error)
        return
    assert configuration.hypervisor.confined or "seccompsandbox" in entries


def test_a_name_that_others_search_for_is_noted(write: Write, valid_text: str) -> None:
    entries = 'enable_annotations = ["kernel"]\nvalid_kernel_paths = ["/boot/*"]\n'
    (found,) = lint(write(valid_text + entries), check_host=False)
    assert (found.code, found.message) == (
        "KATA714",
        '"kernel" allows this name only; runtimes that search also allow kernel_verity_params, kernel_params',
    )
