"""Suites that others wrote, as they are run in a container, and what each of their tests came to.

A suite's script works in its current directory. What it prints is read by `read`: the outcome of each test by
name, in words that are the same wherever it was run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

Outcomes = dict[str, str]

BASE = ("base-passwd", "bash", "coreutils", "dash", "findutils", "grep", "mawk", "sed", "procps")
PASSED, NOT_FINISHED = "passed", "did not come to its end"
_MARK = "@@ "


@dataclass(frozen=True, slots=True)
class Suite:
    """packages: of the distribution. trees: variables that name a directory of the host, by their place."""

    name: str
    script: str
    read: Callable[[str], Outcomes]
    packages: tuple[str, ...] = ()
    trees: Mapping[str, str] = field(default_factory=dict)

    def missing(self) -> list[str]:
        """Variables that name no directory here."""
        return [name for name in self.trees.values() if not Path(os.environ.get(name) or "/none").is_dir()]


def read_lines(text: str) -> Outcomes:
    """Of lines that are a mark, a test's name, and what it came to."""
    lines = (
        line.removeprefix(_MARK).split(maxsplit=1) for line in text.splitlines() if line.startswith(_MARK)
    )
    return {words[0]: " ".join(words[1].split()) for words in lines if len(words) == 2}


def read_unittest(text: str) -> Outcomes:
    """Of reports in JUnit's form, each after a line with a mark, a module's name and its exit status."""
    found: Outcomes = {}
    for part in re.split(rf"(?m)^{_MARK}", text)[1:]:
        head, _, report = part.partition("\n")
        module, status = head.split()
        try:
            tree = ElementTree.fromstring(report.strip())  # ours, of a suite that we run
        except ElementTree.ParseError:
            found[module] = f"{NOT_FINISHED}: status {status}"
            continue
        for case in tree.iter("testcase"):
            name = case.get("name", "").split(" ")[0]
            kinds = {child.tag for child in case} & {"error", "failure", "skipped"}
            found[name] = " ".join(sorted(kinds)) or PASSED
    return found


def read_tap(text: str) -> Outcomes:
    """Of lines in TAP's form, after lines with a mark and a file's name."""
    found: Outcomes = {}
    name = ""
    for line in text.splitlines():
        if line.startswith(_MARK):
            name = line.removeprefix(_MARK).strip()
        elif match := re.match(r"(not )?ok (\d+)(.*)", line):
            known = re.search(r"# ?(TODO|SKIP)", match[3], re.IGNORECASE)
            outcome = "failure" if match[1] else PASSED
            found[f"{name}:{match[2]}"] = f"{outcome}, {known[1].lower()}" if known else outcome
    return found


PRELUDE = """
shopt -s extglob
wanted() { case $1 in $ONLY) return 0 ;; *) return 1 ;; esac }
"""
"""What each script may call: whether a test of this name is asked for."""

_STRESSORS = """
access aio alarm af-alg brk cap chattr chdir chmod chown clock clone close copy-file daemon dentry dev dir
dirdeep dirmany dup enosys env epoll eventfd exec exit-group fallocate fanotify fcntl fiemap fifo file-ioctl
flock fork fp-error fstat futex get getdent getrandom handle hdd inode-flags inotify io iomix itimer kcmp
key kill klog landlock lease link locka lockf lockofd madvise membarrier memfd mincore mknod mlock mmap
mmapaddr mmapfixed mmapfork mmapmany mprotect mq mremap msg msync munlock nanosleep netdev nice null open
opcode personality pidfd pipe poll prctl procfs pthread ptrace pty randlist readahead reboot remap rename
resched resources revio rlimit schedpolicy seal seccomp secretmem seek sem sem-sysv sendfile session set
shm shm-sysv sigabrt sigchld sigfd sigfpe sigio signal sigpending sigpipe sigq sigrt sigsegv sigsuspend
sleep sock sockabuse sockfd sockmany sockpair splice stack switch symlink sync-file syncload sysinfo sysfs
tee timer timerfd tlb-shootdown tmpfs touch tun udp unshare userfaultfd utime vfork vm vm-rw vm-splice wait
xattr yield zero zombie
""".split()  # noqa: SIM905

_STRESS_NG = f"""
for one in {" ".join(_STRESSORS)}; do
    wanted $one || continue
    timeout --signal=KILL 120 stress-ng --verify --$one 1 --$one-ops 10 --timeout 10 >log 2>&1
    status=$?
    case $status in
        0) if grep -q 'skip' log; then echo "@@ $one skipped"; else echo "@@ $one passed"; fi ;;
        *) echo "@@ $one status $status"; sed 's/^/    /' log ;;
    esac
done
"""

_MODULES = """
test_builtin test_dbm test_eintr test_epoll test_fcntl test_file test_fileio test_fork1 test_genericpath
test_glob test_grp test_io test_ioctl test_largefile test_mailbox test_mmap test_os test_pathlib test_poll
test_posix test_posixpath test_pty test_pwd test_resource test_select test_selectors test_shelve test_shutil
test_signal test_socket test_stat test_subprocess test_tempfile test_threading test_threadsignals test_time
test_wait3 test_wait4
""".split()  # noqa: SIM905
_FEW_MODULES = ("test_posix", "test_stat", "test_glob")

_PYTHON = """
export HOME=$PWD
for module in {modules}; do
    wanted $module || continue
    rm -f report.xml
    timeout --signal=KILL 1800 python3 -m test --junit-xml=$PWD/report.xml $module >log 2>&1 </dev/null
    echo "@@ $module $?"
    cat report.xml || tail -n 5 log >&2
done
"""

_PJDFSTEST = """
for file in $(cd /suites/pjdfstest/tests && find . -name '*.t' | sort); do
    wanted ${file#./} || continue
    echo "@@ ${file#./}"
    timeout --signal=KILL 900 bash /suites/pjdfstest/tests/$file 2>&1
done
"""

# A test that needs more than a minute is not for a container: it is the same command for both.
_LTP = """
export LTPROOT=/suites/ltp PATH=/suites/ltp/testcases/bin:$PATH TMPDIR=$PWD LTP_TIMEOUT_MUL=5
export LTP_COLORIZE_OUTPUT=n
while read -r tag program arguments; do
    case $tag in ''|'#'*) continue ;; esac
    [ -x /suites/ltp/testcases/bin/$program ] && wanted $tag || continue
    timeout --signal=KILL 300 $program $(eval echo $arguments) >log 2>&1 </dev/null
    status=$?
    echo "@@ $tag status $status $(grep -E '^(passed|failed|broken|skipped) ' log | tr -s ' \\n' ' ')"
    [ $status = 0 ] || [ $status = 32 ] || grep -E 'TFAIL|TBROK' log | sed 's/^/    /' | head -n 5
done </suites/ltp/runtest/syscalls
for seed in 1 2 3; do
    wanted fsx || continue
    fsx-linux -N 2000 -S $seed fsx.file >log 2>&1 </dev/null
    echo "@@ fsx-$seed status $?"
    mkdir -p stressed
    fsstress -d $PWD/stressed -n 300 -p 2 -s $seed >log 2>&1 </dev/null
    echo "@@ fsstress-$seed status $?"
    rm -rf stressed fsx.file*
done
"""

SUITES = {
    suite.name: suite
    for suite in (
        Suite("stress-ng", _STRESS_NG, read_lines, ("stress-ng",)),
        Suite(
            "python",
            _PYTHON.format(modules=" ".join(_MODULES)),
            read_unittest,
            ("python3.11", "libpython3.11-testsuite"),
        ),
        Suite(
            "python-small",
            _PYTHON.format(modules=" ".join(_FEW_MODULES)),
            read_unittest,
            ("python3.11", "libpython3.11-testsuite"),
        ),
        Suite(
            "pjdfstest",
            _PJDFSTEST,
            read_tap,
            ("perl-base", "openssl"),
            {"/suites/pjdfstest": "KATA_TEST_PJDFSTEST"},
        ),
        Suite("ltp", _LTP, read_lines, ("libaio1", "libcap2", "libnuma1"), {"/suites/ltp": "KATA_TEST_LTP"}),
    )
}
