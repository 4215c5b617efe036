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
PLACES = ("root", "volume")
_MARK = "@@ "
_REDIS = re.compile(r"\[(ok|err|skip|ignore|exception|timeout)\]: (.*?)( \(\d+ ms\)| in tests/\S+)?$")
_POSTGRESQL = re.compile(r"(?:test)?\s+(\w+)\s+\.\.\. (ok|FAILED|failed \(ignored\))")


@dataclass(frozen=True, slots=True)
class Suite:
    """packages: of the distribution. trees: variables that name a directory of the host, by their place.

    source: a source package of the distribution, whose tree is /suites/NAME. build: a script that makes of it
    what the suite needs, run once in the image, in that tree, with `tools` beside the packages. alone:
    packages that are taken without what they depend on. given_spec: its script finds the container's
    specification in /volume/config.json, once it runs. places: where it is run.
    """

    name: str
    script: str
    read: Callable[[str], Outcomes]
    packages: tuple[str, ...] = ()
    trees: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    build: str = ""
    tools: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    given_spec: bool = False
    places: tuple[str, ...] = PLACES

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


def read_redis(text: str) -> Outcomes:
    """Of redis' lines, after lines with a mark and a unit's name; a name that comes again is counted."""
    found: Outcomes = {}
    unit = ""
    for line in text.splitlines():
        if line.startswith(_MARK):
            unit, _, outcome = line.removeprefix(_MARK).partition(" ")
            if outcome:
                found[unit] = outcome
        elif match := _REDIS.match(line):
            _count(found, f"{unit}: {match[2]}", PASSED if match[1] == "ok" else match[1])
    return found


def read_said(text: str) -> Outcomes:
    """Of lines in TAP's form in no order, by what they say, and of lines with a mark as in `read_lines`."""
    found: Outcomes = {}
    for line in text.splitlines():
        if match := re.match(r"(not )?ok \d+ (?:- |# SKIP )(.*)", line):
            _count(found, match[2], "failure" if match[1] else PASSED)
    return found | read_lines(text)


def _count(found: Outcomes, name: str, outcome: str) -> None:
    """Add a test of which there may be others of its name, which are counted."""
    again = sum(1 for one in found if one == name or one.startswith(f"{name} #"))
    found[f"{name} #{again + 1}" if again else name] = outcome


def read_postgresql(text: str) -> Outcomes:
    """Of pg_regress' lines: a test of its own, or one of a group."""
    matches = (_POSTGRESQL.match(line) for line in text.splitlines())
    return {match[1]: PASSED if match[2] == "ok" else match[2] for match in matches if match}


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

_GIT_BUILD = """
make CC=gcc NO_CURL=1 NO_EXPAT=1 NO_OPENSSL=1 NO_TCLTK=1 NO_GETTEXT=1 CFLAGS=-O1 --jobs=2 \\
    t/helper/test-tool t/helper/test-fake-ssh GIT-BUILD-OPTIONS
make -C templates
"""
"""What the tests call beside the programs of the distribution's package, which are those that are tested."""

_GIT = """
export GIT_TEST_INSTALLED=/usr/bin GIT_TEST_CHAIN_LINT=0 GIT_TEST_EXT_CHAIN_LINT=0
place=$PWD
cd /suites/git/t || exit
for file in t[01]*.sh; do
    wanted ${file%.sh} || continue
    echo "@@ ${file%.sh}"
    timeout --signal=KILL 1800 sh ./$file --root=$place 2>&1 </dev/null
done
"""

_REDIS_UNITS = """
export TERM=dumb  # no colours
mkdir -p src && cp -r /suites/redis/tests .
for program in server cli benchmark sentinel check-aof check-rdb; do
    ln -sf /usr/bin/redis-$program src/redis-$program
done
for unit in $(sed -n '/^set ::all_tests/,/^}/p' tests/test_helper.tcl | grep unit/); do
    wanted $unit || continue
    echo "@@ $unit"
    arguments="--single $unit --clients 1 --durable"
    timeout --signal=KILL 1800 tclsh tests/test_helper.tcl $arguments 2>&1 </dev/null
    echo "@@ $unit status $?"
    pkill -KILL redis-server
done
"""

# The server does not run as root.
_POSTGRESQL_BUILD = """
gcc -O1 -shared -fPIC -I/usr/include/postgresql/15/server -o src/test/regress/regress.so \\
    src/test/regress/regress.c
ln -s /usr/lib/postgresql/15/lib/autoinc.so /usr/lib/postgresql/15/lib/refint.so src/test/regress
"""
_PG_REGRESS = """
export LC_ALL=C
regress=/suites/postgresql/src/test/regress
cp -r $regress/sql $regress/expected $regress/data $regress/resultmap .
grep '^test:' $regress/parallel_schedule | while read -r _ names; do
    group=
    for name in $names; do
        if [ $name = test_setup ] || wanted $name; then group="$group $name"; fi
    done
    [ -z "$group" ] || echo "test:$group"
done >schedule
chown -R nobody .
setpriv --reuid=nobody --regid=nogroup --clear-groups \\
    /usr/lib/postgresql/15/lib/pgxs/src/test/regress/pg_regress --temp-instance=$PWD/instance \\
    --bindir=/usr/lib/postgresql/15/bin --dlpath=$regress --inputdir=$PWD --outputdir=$PWD \\
    --no-locale --encoding=UTF8 --max-connections=10 --schedule=schedule 2>&1 </dev/null
head -n 400 regression.diffs >&2
"""

_RUNTIMETEST = """
until [ -s /volume/config.json ]; do sleep 1; done
cd /
/suites/runtimetest/runtimetest --path=/volume
echo "@@ end status $?"
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
        Suite(
            "git",
            _GIT,
            read_tap,
            ("git", "perl", "diffutils"),
            source="git",
            build=_GIT_BUILD,
            tools=("gcc", "libc6-dev", "make", "zlib1g-dev"),
        ),
        Suite(
            "redis",
            _REDIS_UNITS,
            read_redis,
            ("redis-server", "redis-tools", "tcl", "procps"),
            source="redis",
        ),
        Suite(
            "postgresql",
            _PG_REGRESS,
            read_postgresql,
            ("postgresql-15", "postgresql-client-15", "diffutils", "util-linux"),
            source="postgresql-15",
            build=_POSTGRESQL_BUILD,
            tools=("gcc", "libc6-dev"),
            alone=("postgresql-server-dev-15",),
        ),
        Suite(
            "runtimetest",
            _RUNTIMETEST,
            read_said,
            trees={"/suites/runtimetest": "KATA_TEST_RUNTIMETEST"},
            given_spec=True,
            places=("root",),
        ),
        Suite("ltp", _LTP, read_lines, ("libaio1", "libcap2", "libnuma1"), {"/suites/ltp": "KATA_TEST_LTP"}),
    )
}
