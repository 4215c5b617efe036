"""What the linter says of broken files, to the column."""

# ruff: noqa: E501 (what is expected stands as it is printed)

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from kata_configuration import ConfigurationError, Severity, lint, load, suggestions
from kata_configuration.diagnostics import Code
from kata_configuration.models import TABLES

Write = Callable[..., Path]

QEMU = '[hypervisor.qemu]\nkernel = "/boot/vmlinuz"\nimage = "/srv/image"\n'

# Each text is put after QEMU (three lines) unless it begins a file of its own.
CASES: list[tuple[str, str, list[str]]] = [
    (
        "a misspelled security key",
        QEMU + 'secompsandbox = "on"\n',
        ['4:1: error[KATA201] hypervisor.qemu.secompsandbox: unknown key (did you mean "seccompsandbox"?)'],
    ),
    (
        "a misspelling of the alias leads to the key",
        QEMU + '  secomp_sandbox = "on"\n',
        ['4:3: error[KATA201] hypervisor.qemu.secomp_sandbox: unknown key (did you mean "seccompsandbox"?)'],
    ),
    (
        "a key in the wrong table",
        QEMU + '[runtime]\nkernel_params = "quiet"\n',
        [
            "5:1: error[KATA204] runtime.kernel_params: is not a key of this table "
            "(it belongs in [hypervisor.qemu])"
        ],
    ),
    (
        "a misspelled table",
        QEMU.replace("qemu", "qmeu"),
        ['1:13: error[KATA202] hypervisor.qmeu: unknown table (did you mean "qemu"?)'],
    ),
    (
        "a misspelled top-level table",
        QEMU.replace("hypervisor", "hypervisors"),
        [
            '1:2: error[KATA202] hypervisors: unknown table (did you mean "hypervisor"?)',
            "1:1: error[KATA206] hypervisor.qemu: the selected table is missing "
            "(add [hypervisor.qemu] with at least a kernel, and an image or initrd)",
        ],
    ),
    (
        "a hypervisor without its table",
        "[runtime]\n",
        [
            "1:1: error[KATA206] hypervisor.qemu: the selected table is missing "
            "(add [hypervisor.qemu] with at least a kernel, and an image or initrd)"
        ],
    ),
    (
        "a hypervisor that is named, without its table",
        '[runtime]\nhypervisor_name = "qemu"\n',
        [
            "2:19: error[KATA206] runtime.hypervisor_name: selects [hypervisor.qemu], which is missing "
            "(add [hypervisor.qemu] with at least a kernel, and an image or initrd)"
        ],
    ),
    (
        "a hypervisor that is not there",
        QEMU + '[runtime]\nhypervisor_name = "qmu"\nlog_level = "inf"\n',
        [
            '5:19: error[KATA303] runtime.hypervisor_name: "qmu" is not supported (did you mean "qemu"?)',
            '6:13: error[KATA303] runtime.log_level: "inf" is none of the allowed values (did you mean "info"?)',
        ],
    ),
    (
        "a driver of Kata's",
        QEMU + "[hypervisor.remote]\n",
        [
            "4:13: error[KATA203] hypervisor.remote: is known to Kata and not offered by this runtime "
            "(remove the table)"
        ],
    ),
    (
        "a key of Kata's",
        QEMU + 'cold_plug_vfio = "root-port"\n',
        [
            "4:1: error[KATA203] hypervisor.qemu.cold_plug_vfio: is known to Kata and not supported by this "
            "version: a guest gets the block devices of the host that its containers name, as disks, and no "
            "other device (remove it, and run pods that need another device with another runtime)"
        ],
    ),
    (
        "another driver's seccomp key",
        QEMU + "disable_seccomp = true\n",
        [
            "4:1: error[KATA209] hypervisor.qemu.disable_seccomp: is not a key of this table "
            '(use seccompsandbox; "off" disables the filter) [security]'
        ],
    ),
    (
        "neither image nor initrd",
        '[hypervisor.qemu]\nkernel = "/k"\n',
        ["1:13: error[KATA205] hypervisor.qemu.image: image or initrd is required (add one of them)"],
    ),
    (
        "a required key that is missing, beside other faults",
        '[hypervisor.qemu]\ndefault_vcpus = 4\ndefault_maxvcpus = 2\nimage = "image"\n',
        [
            "1:13: error[KATA205] hypervisor.qemu.kernel: is required "
            '(add it, such as kernel = "/var/lib/kata-containers/image/vmlinuz")',
            "2:17: error[KATA401] hypervisor.qemu.default_vcpus: default_vcpus = 4 is more than "
            "default_maxvcpus = 2 (change it or default_maxvcpus)",
            '4:9: error[KATA304] hypervisor.qemu.image: "image" is not an absolute path (begin it with "/")',
        ],
    ),
    (
        "GiB where MiB are meant",
        QEMU + "default_memory = 4\n",
        [
            "4:18: error[KATA302] hypervisor.qemu.default_memory: 4 is below the minimum of 128 MiB "
            "(the unit is MiB: for 4 GiB write 4096)"
        ],
    ),
    (
        "too large an integer",
        QEMU + f"default_vcpus = 0x{'F' * 5000}\ndefault_maxvcpus = {'9' * 5000}\n",
        [
            "4:17: error[KATA302] hypervisor.qemu.default_vcpus: 0xfffffffffffffffffff... is above the "
            "maximum of 255 (write 255 or less)",
            "5:20: error[KATA101] an integer of too many digits (write fewer)",
        ],
    ),
    (
        "wrong types",
        QEMU + 'enable_debug = "true"\ndefault_vcpus = "2"\ndefault_memory = 512.0\noverhead_vcpus = true\n'
        'kernel_params = 3\npath = 1979-05-27\nvirtio_fs_extra_args = "-d"\nmachine_type = []\n',
        [
            "4:16: error[KATA301] hypervisor.qemu.enable_debug: is a string, must be true or false "
            "(write true without quotes)",
            "5:17: error[KATA301] hypervisor.qemu.default_vcpus: is a string, must be an integer "
            "(write 2 without quotes)",
            "6:18: error[KATA301] hypervisor.qemu.default_memory: is a float, must be an integer "
            "(write an integer)",
            "7:18: error[KATA301] hypervisor.qemu.overhead_vcpus: is a boolean, must be a number (write a number)",
            "8:17: error[KATA301] hypervisor.qemu.kernel_params: is an integer, must be a string (write a string)",
            "9:8: error[KATA301] hypervisor.qemu.path: is a date or time, must be a string with an absolute path "
            "(write a string with an absolute path)",
            "10:24: error[KATA301] hypervisor.qemu.virtio_fs_extra_args: is a string, must be an array of strings "
            '(write ["-d"])',
            '11:16: error[KATA301] hypervisor.qemu.machine_type: is an array, must be a string (use one of "q35", "pc")',
        ],
    ),
    (
        "an element of an array",
        QEMU + 'virtio_fs_extra_args = ["é",  1]\n',
        [
            "4:31: error[KATA301] hypervisor.qemu.virtio_fs_extra_args[1]: is an integer, must be a string "
            "(write a string)"
        ],
    ),
    (
        "numbers that are none",
        QEMU + "overhead_vcpus = nan\n",
        ["4:18: error[KATA302] hypervisor.qemu.overhead_vcpus: nan is not a finite number (write a number)"],
    ),
    (
        "malformed strings",
        QEMU + 'kernel_params = "a \\"b"\ncpu_features = "a,,b"\nmachine_accelerators = "a b"\n'
        'path = "/bin/\\u0007"\n',
        [
            '4:17: error[KATA304] hypervisor.qemu.kernel_params: "a "b" has a double quote without its pair (close it)',
            '5:16: error[KATA304] hypervisor.qemu.cpu_features: "a,,b" is not a comma-separated list '
            "(separate the entries by single commas)",
            '6:24: error[KATA304] hypervisor.qemu.machine_accelerators: "a b" is not a comma-separated list '
            "(separate the entries by single commas)",
            '7:8: error[KATA304] hypervisor.qemu.path: "/bin/\\x07" contains a control character '
            "(use printable characters only)",
        ],
    ),
    (
        "a sandbox value that QEMU refuses",
        QEMU + 'seccompsandbox = "on,obselete=deny,spawn=dney"\n',
        [
            '4:22: error[KATA501] hypervisor.qemu.seccompsandbox: unknown group "obselete" '
            '(did you mean "obsolete"?) [security]',
            '4:42: error[KATA501] hypervisor.qemu.seccompsandbox: unknown value "dney" for spawn '
            '(did you mean "deny"?) [security]',
        ],
    ),
    (
        "a sandbox that is off, by the alias",
        QEMU + 'seccomp_sandbox = ""\n',
        [
            "4:19: warning[KATA502] hypervisor.qemu.seccomp_sandbox: QEMU runs unconfined "
            '(write "on,..." with the groups to deny, or remove the key for all of them) [security]'
        ],
    ),
    (
        "a sandbox with open groups",
        QEMU + 'seccompsandbox = "on,obsolete=deny,elevateprivileges=children,spawn=deny"\n',
        [
            "4:18: note[KATA503] hypervisor.qemu.seccompsandbox: QEMU's seccomp filter allows the calls of the group "
            "elevateprivileges (children) (write elevateprivileges=deny) [security]",
            "4:18: note[KATA503] hypervisor.qemu.seccompsandbox: QEMU's seccomp filter allows the calls of the group "
            "resourcecontrol (allow) (write resourcecontrol=deny) [security]",
        ],
    ),
    (
        "key and alias differ",
        QEMU + 'seccomp_sandbox = ""\nseccompsandbox = "off"\n',
        [
            "4:1: error[KATA207] hypervisor.qemu.seccomp_sandbox: is another name of seccompsandbox; its "
            'value is "off" (keep one of them)',
            "5:18: warning[KATA502] hypervisor.qemu.seccompsandbox: QEMU runs unconfined "
            '(write "on,..." with the groups to deny, or remove the key for all of them) [security]',
        ],
    ),
    (
        "key and alias agree",
        QEMU
        + "seccompsandbox = 'on,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'\n"
        + "seccomp_sandbox = 'on,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'\n",
        [
            "5:1: note[KATA208] hypervisor.qemu.seccomp_sandbox: repeats seccompsandbox, of which it is another "
            "name (remove it)"
        ],
    ),
    (
        "timeouts against each other",
        QEMU + "[agent.kata]\ndial_timeout_ms = 145000\n",
        [
            "5:19: error[KATA401] agent.kata.dial_timeout_ms: reconnect_timeout_ms = 120000 is less than "
            "dial_timeout_ms = 145000 (change it or reconnect_timeout_ms)"
        ],
    ),
    (
        "the guest's seccomp",
        QEMU + "[runtime]\ndisable_guest_seccomp = true\n",
        [
            "5:25: warning[KATA504] runtime.disable_guest_seccomp: containers run without their seccomp profiles "
            "in the guest (set it to false) [security]"
        ],
    ),
    (
        "values where tables belong",
        'hypervisor = 1\nagent.kata = 2\nkernel = "/k"\n[[runtime]]\n',
        [
            "1:1: error[KATA301] hypervisor: is a value, must be a table (write [hypervisor.NAME])",
            "2:7: error[KATA301] agent.kata: is a value, must be a table (write [agent.kata])",
            "3:1: error[KATA201] kernel: is a key outside of any table (move it to the table of the hypervisor that is selected)",
            "4:3: error[KATA301] runtime: is a value, must be a table (write [runtime])",
        ],
    ),
    (
        "dotted keys, quoted keys and inline tables",
        'hypervisor.qemu = {kernel = "/k", image = "/i", "default_vcpus" = 0}\nruntime."log\\u005Flevel" = "loud"\n',
        [
            "1:67: error[KATA302] hypervisor.qemu.default_vcpus: 0 is below the minimum of 1 (write 1 or more)",
            '2:28: error[KATA303] runtime.log_level: "loud" is none of the allowed values '
            '(use one of "trace", "debug", "info", "warn", "error", "critical")',
        ],
    ),
    (
        "a key that would forge a line of a log",
        QEMU + '"a\\nb" = 1\n',
        ['4:1: error[KATA201] hypervisor.qemu."a\\nb": unknown key (remove it)'],
    ),
    (
        "syntax errors do not hide the rest, and blame nothing on what they hide",
        '[hypervisor.qemu]\nkernel = /boot/vmlinuz\nimage = "/i"\ndefault_vcpu = 3\n[agent.kata]\nfoo\n',
        [
            "2:10: error[KATA101] invalid value (strings need quotes; others are true, false or a number, such as "
            '512, not "0512")',
            '4:1: error[KATA201] hypervisor.qemu.default_vcpu: unknown key (did you mean "default_vcpus"?)',
            "6:4: error[KATA101] expected '=' after a key in a key/value pair (write key = value)",
        ],
    ),
    (
        "a table twice",
        QEMU + "[agent.kata]\n[runtime]\n[agent.kata]\n",
        ["6:8: error[KATA102] agent.kata: is defined twice, first on line 4 (keep one of them)"],
    ),
    (
        "TOML 1.1",
        QEMU + 'kernel_params = "\\x41"\n',
        [
            "4:18: error[KATA103] the escape \\x41 is TOML 1.1, which other parsers of this file refuse "
            "(write it as \\u and four digits)"
        ],
    ),
    (
        "Windows line ends",
        QEMU.replace("\n", "\r\n") + "foo = 1\r\n",
        ["4:1: error[KATA201] hypervisor.qemu.foo: unknown key (remove it)"],
    ),
]


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_every_fault_with_its_place(write: Write, text: str, expected: list[str]) -> None:
    path = write(text)
    findings = [str(diagnostic) for diagnostic in lint(path, check_host=False)]
    assert sorted(findings) == sorted(f"{path}:{line}" for line in expected)


@pytest.mark.parametrize("text", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_loading_agrees(write: Write, text: str) -> None:
    path = write(text)
    diagnostics = lint(path, check_host=False)
    if any(diagnostic.severity is Severity.ERROR for diagnostic in diagnostics):
        with pytest.raises(ConfigurationError) as caught:
            load(path, check_host=False)
        assert caught.value.diagnostics == diagnostics
    else:
        assert load(path, check_host=False).warnings == diagnostics


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"\xef\xbb\xbf[runtime]\n",
            ":1:1: error[KATA005] begins with a byte order mark (save it as UTF-8 without one)",
        ),
        (
            '# é\na = "é'.encode() + b'\xff"\n',
            ":2:7: error[KATA005] byte 0xff is not UTF-8 (save the file as UTF-8)",
        ),
        (
            b"#" * (256 * 1024 + 1),
            ": error[KATA004] is larger than 262144 bytes (name a configuration file)",
        ),
    ],
)
def test_files_that_are_no_text(write: Write, content: bytes, expected: str) -> None:
    path = write(content)
    assert [str(diagnostic) for diagnostic in lint(path)] == [f"{path}{expected}"]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    findings = {
        path: str(lint(path)[0]) for path in (tmp_path, pipe, loop, tmp_path / "absent", Path("/a\0b"))
    }
    assert list(findings.values()) == [
        f"{tmp_path}: error[KATA001] is a directory (name a TOML file)",
        f"{pipe}: error[KATA001] is no regular file (name a TOML file)",
        f"{loop}: error[KATA001] cannot be read: too many levels of symbolic links (check the path and its permissions)",
        f"{tmp_path}/absent: error[KATA002] does not exist (create it or name another file)",
        "/a\\x00b: error[KATA001] cannot be read: the path contains a NUL byte (check the path)",
    ]


def test_codes_are_unique() -> None:
    numbers = [code.number for code in Code]
    assert sorted(set(numbers)) == numbers


@pytest.mark.parametrize(
    "text",
    [
        QEMU + "".join(f"secompsandbo{number} = 1\n" for number in range(8000)),
        QEMU + "".join(f"[hypervisor.firecrackr{number}]\n" for number in range(8000)),
        QEMU
        + "enable_annotations = ["
        + ", ".join(f'"default_memroy{number}"' for number in range(8000))
        + "]\n",
        QEMU + 'seccompsandbox = "on' + "".join(f",spwan{number}=deny" for number in range(8000)) + '"\n',
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]\n'
        + "".join(f"snapshoter{number} = {number}\n" for number in range(8000)),
    ],
    ids=["keys", "tables", "entries", "groups", "keys of containerd's"],
)
def test_however_much_is_misspelled_so_much_is_compared(
    write: Write, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    real = difflib.get_close_matches

    def count(word: str, known: Iterable[str], n: int, cutoff: float) -> list[str]:
        compared.append(word)
        return real(word, known, n, cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    found = lint(write(text), check_host=False)
    assert len(found) >= 8000
    assert 1 <= len(compared) <= suggestions.MOST
    assert any("did you mean" in item.hint for item in found)


WRONG = (
    "false",
    "3",
    "1.5",
    '"x"',
    "[]",
    '["x"]',
    "[false]",
    "[[1]]",
    "{ a = 1 }",
    "[{ a = 1 }]",
    "1979-05-27",
)


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("path", TABLES, ids=".".join)
def test_no_value_of_a_key_is_too_wrong_to_be_reported(
    write: Write, path: tuple[str, ...], value: str
) -> None:
    for key in TABLES[path].model_fields:
        text = f"[{'.'.join(path)}]\n{key} = {value}\n"
        for found in lint(write(text), check_host=False):
            assert found.message
            assert found.hint
