"""How tools/ prepare a machine: what is installed, and what is shown of it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.bench.package_archive import TOOLS, Fault, Package, PackageArchive, missing_tools

CHECKOUT = Path(__file__).resolve().parents[2]
BOOTSTRAP = CHECKOUT / "tools/lib/bootstrap.sh"

LINES = 200
APT_GET = f"""\
#!/bin/bash
echo "apt-get $*" >>"$STATE/calls"
for ((i = 0; i < {LINES}; i++)); do echo "apt says $i"; done
echo "debconf: delaying package configuration" >&2
case " $* " in
    *" update "*) touch "$STATE/lists"; exit "$(cat "$STATE/update" 2>/dev/null || echo 0)" ;;
esac
if [[ -e $STATE/slow ]]; then
    trap "exit 100" INT
    for ((i = 0; i < 300; i++)); do [[ -e $STATE/go ]] || sleep 0.1; done
fi
[[ -e $STATE/lists && ! -e $STATE/apt-fails ]] || {{ echo "E: apt refuses"; exit 100; }}
for word; do touch "$STATE/installed-$word"; done
"""
DPKG_QUERY = """\
#!/bin/bash
[[ -e $STATE/installed-${!#} ]] && echo installed
"""
SUDO = """\
#!/bin/bash
[[ ! -e $STATE/sudo-fails ]] || exit 1
[[ $1 != -n ]] || shift
exec "$@"
"""
# An interpreter without our modules, save in a virtual environment that pip has filled.
PYTHON3 = f"""\
#!/bin/bash
case "$*" in
    "-m venv "*)
        echo "venv $3" >>"$STATE/calls"
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python3"
        ln -s python3 "$3/bin/python"
        ;;
    "-m pip "*)
        echo "pip" >>"$STATE/calls"
        echo "WARNING: Location '/wheels' is ignored" >&2
        [[ ! -e $STATE/pip-fails ]] || exit 1
        touch "$0.filled"
        ;;
    "- module") [[ -e $0.filled ]] ;;
    *) exec {sys.executable} "$@" ;;
esac
"""


class Machine:
    """Stand-ins of apt, dpkg, sudo and Python, and the bootstrap run with them."""

    def __init__(self, place: Path) -> None:
        self.state = place / "state"
        self.cache = place / "cache"
        programs = place / "programs"
        for directory in (self.state, programs):
            directory.mkdir()
        for name, script in {
            "apt-get": APT_GET,
            "dpkg-query": DPKG_QUERY,
            "sudo": SUDO,
            "python3": PYTHON3,
        }.items():
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYVFIO_VERBOSE"},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYVFIO_CACHE": str(self.cache),
            "STATE": str(self.state),
            "TERM": "xterm",
        }

    @property
    def calls(self) -> list[str]:
        return read(self.state / "calls").splitlines()

    def mark(self, *names: str) -> None:
        """Set marks that the stand-ins look for."""
        for name in names:
            (self.state / name).touch()

    def run(
        self, script: str, *, before: Sequence[str] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return bootstrap(script, {**self.environment, **environment}, before=before)


def bootstrap(
    script: str, environment: Mapping[str, str], *, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, "bash", "-c", f". {BOOTSTRAP}; {script}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment,
    )


def on_terminal(
    script: str, environment: Mapping[str, str], when: bytes, then: Callable[[int], object]
) -> tuple[str, int]:
    """Run a script on a terminal.

    Args:
        script: What to run after the bootstrap was sourced.
        environment: Its environment.
        when: What must be shown for `then` to be called, once.
        then: Called with the terminal's descriptor.

    Returns:
        All that was shown, and the exit status.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe("bash", ["bash", "-c", f". {BOOTSTRAP}; {script}"], dict(environment))
    shown, called = b"", False
    with contextlib.suppress(OSError):  # EIO: nobody has the other side open any more
        while True:
            shown += os.read(terminal, 4096)
            if when in shown and not called:
                called = True
                then(terminal)
    os.close(terminal)
    return shown.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read(path: Path) -> str:
    """Return a file's text, or nothing where there is no file yet."""
    return path.read_text() if path.exists() else ""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# Debian packages


def test_installed_packages_call_nothing(machine: Machine) -> None:
    machine.mark("installed-one", "installed-two")
    done = machine.run("need_packages one two")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert machine.calls == []


def test_package_of_two_architectures_is_installed(machine: Machine) -> None:
    (machine.state.parent / "programs/dpkg-query").write_text(
        "#!/bin/bash\nprintf 'installed\\ninstalled\\n'\n"
    )
    done = machine.run("need_packages one")
    assert (done.returncode, done.stderr, machine.calls) == (0, "", [])


def test_success_is_one_line(machine: Machine) -> None:
    machine.mark("lists", "installed-two")
    done = machine.run("need_packages one two three")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"Installing Debian packages: one three \.\.\. \d+ s\n", done.stderr)
    assert len(machine.calls) == 1
    log = (machine.cache / "logs/apt.log").read_text()
    assert f"apt says {LINES - 1}\n" in log


def test_absent_lists_are_fetched_once(machine: Machine) -> None:
    done = machine.run("need_packages one")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert [call.split().count("update") for call in machine.calls] == [0, 1, 0]


def test_failing_source_does_not_prevent_installation(machine: Machine) -> None:
    (machine.state / "update").write_text("100")
    done = machine.run("need_packages one")
    assert done.returncode == 0, done.stderr


def test_failure_shows_the_log(machine: Machine) -> None:
    machine.mark("apt-fails")
    done = machine.run("need_packages one; echo went on")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert re.fullmatch(r"Installing Debian packages: one \.\.\. failed after \d+ s", lines[0])
    assert {"apt says 0", "E: apt refuses"} <= set(lines)
    assert lines[-1].startswith("error: apt-get could not install one")


def test_verbose_shows_all(machine: Machine) -> None:
    machine.mark("lists")
    done = machine.run("need_packages one", PYVFIO_VERBOSE="1")
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert lines[0] == "Installing Debian packages: one ..."
    assert lines.count("apt says 0") == 1
    assert re.fullmatch(r"Installing Debian packages: one \.\.\. \d+ s", lines[-1])


def test_verbose_failure_is_shown_once(machine: Machine) -> None:
    machine.mark("pip-fails")
    done = machine.run("use_python module", PYVFIO_VERBOSE="1")
    assert done.returncode == 1
    assert done.stderr.count("WARNING: Location") == 1


def test_terminal_shows_progress_then_one_line(machine: Machine) -> None:
    machine.mark("lists", "slow")
    shown, status = on_terminal(
        "need_packages one",
        machine.environment,
        when=b" s  debconf: delaying",
        then=lambda terminal: machine.mark("go"),
    )
    *moving, last = shown.rstrip("\r\n").split("\r\x1b[K")
    assert status == 0
    assert any("debconf: delaying" in line for line in moving)
    assert re.fullmatch(r"Installing Debian packages: one \.\.\. \d+ s", last)
    assert "\n" not in shown[:-2]


def test_interrupt_ends_the_installation(machine: Machine) -> None:
    machine.mark("slow")
    shown, status = on_terminal(
        "need_packages one; echo went on",
        machine.environment,
        when=b"debconf: delaying",
        then=lambda terminal: os.write(terminal, b"\x03"),
    )
    assert status == 130
    assert "failed" not in shown
    assert "went on" not in shown
    assert len(machine.calls) == 1, "nothing else was tried"


def test_second_run_waits_for_the_first(machine: Machine) -> None:
    machine.mark("lists")
    script = f". {BOOTSTRAP}; hold_lock apt first; echo held; read -r"
    with subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=machine.environment,
    ) as first:
        assert first.stdout is not None
        assert first.stdin is not None
        assert first.stdout.readline() == "held\n"
        with subprocess.Popen(
            ["bash", "-c", f". {BOOTSTRAP}; need_packages one"],
            stderr=subprocess.PIPE,
            text=True,
            env=machine.environment,
        ) as second:
            assert second.stderr is not None
            waiting = second.stderr.readline()
            assert waiting == "Another run is installing Debian packages; waiting for it\n"
            machine.mark("installed-one")
            first.stdin.close()
            assert second.stderr.read() == ""
            assert second.wait() == 0
    assert machine.calls == []


def as_user() -> list[str]:
    """Return what stands before a command for it not to be root's."""
    if os.geteuid() != 0:
        return []
    # Without a mapping the files of root stay its own, and every identity reads as nobody's.
    command = ["unshare", "--user"]
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs user namespaces")
    return command


def test_user_installs_through_sudo(machine: Machine) -> None:
    machine.mark("lists")
    done = machine.run("need_packages one", before=as_user())
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert len(machine.calls) == 1


def test_user_without_sudo_is_told_the_command(machine: Machine) -> None:
    machine.mark("sudo-fails")
    done = machine.run("need_packages one", before=as_user())
    assert done.returncode == 1
    assert done.stderr.startswith("error: needs Debian packages that only root can install")
    assert "apt-get install --no-install-recommends one\n" in done.stderr
    assert machine.calls == []


# Python


def test_environment_is_made_once(machine: Machine) -> None:
    script = 'use_python module; echo "$PYTHON"'
    first = machine.run(script)
    assert first.returncode == 0, first.stderr
    venv = f"{machine.cache}/venv-[0-9a-f]+"
    assert re.fullmatch(f"{venv}/bin/python\n", first.stdout)
    assert re.fullmatch(r"Making a Python environment \.\.\. \d+ s\n", first.stderr)
    assert "WARNING" in (machine.cache / "logs/pip.log").read_text()
    again = machine.run(script)
    assert (again.stdout, again.stderr) == (first.stdout, "")
    assert [call.split()[0] for call in machine.calls] == ["venv", "pip"]


def test_failure_of_pip_shows_its_log(machine: Machine) -> None:
    machine.mark("pip-fails")
    done = machine.run("use_python module")
    assert done.returncode == 1
    assert "WARNING: Location '/wheels' is ignored\n" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: pip could not install")
    (machine.state / "pip-fails").unlink()
    assert machine.run("use_python module").returncode == 0


# apt itself, with a package archive of our own and a scratch root


real_apt = pytest.mark.skipif(
    bool(missing_tools()) or os.geteuid() != 0,
    reason=f"needs root and the programs {', '.join(TOOLS)}",
)

APT_CONF = """\
Dir "{root}";
Dir::Etc::parts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::State::status "{root}/var/lib/dpkg/status";
Dir::Bin::methods "/usr/lib/apt/methods";
Dir::Bin::dpkg "/usr/bin/dpkg";
DPkg::Options {{ "--root={root}"; "--force-script-chrootless"; }};
APT::Sandbox::User "";
Acquire::http::Proxy "DIRECT";
Acquire::Retries "0";
Acquire::Languages "none";
"""


class Root:
    """A scratch root into which apt installs packages of an archive of our own."""

    def __init__(self, place: Path, archive: PackageArchive) -> None:
        self.root = place / "root"
        self.cache = place / "cache"
        for directory in (
            *(
                "etc/apt/preferences.d",
                "var/lib/dpkg/info",
                "var/lib/dpkg/updates",
                "var/lib/apt/lists/partial",
            ),
            *("var/cache/apt/archives/partial", "var/log/apt"),
        ):
            (self.root / directory).mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        (place / "apt.conf").write_text(APT_CONF.format(root=self.root))
        self.environment = {
            **os.environ,
            "APT_CONFIG": str(place / "apt.conf"),
            "DPKG_ROOT": str(self.root),
            "PYVFIO_CACHE": str(self.cache),
        }
        self._archive = archive

    def use(self, *suites: str) -> None:
        """Name the suites in sources.list."""
        (self.root / "etc/apt/sources.list").write_text(
            "".join(
                f"deb [signed-by={self._archive.keyring}] {self._archive.url} {suite} main\n"
                for suite in suites
            )
        )

    def need(self, *packages: str) -> subprocess.CompletedProcess[str]:
        return bootstrap(f"need_packages {' '.join(packages)}", self.environment)

    @property
    def installed(self) -> dict[str, str]:
        """Versions by name."""
        command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\\n"]
        listed = subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True
        ).stdout
        return dict(line.split(" ") for line in listed.splitlines())


OLD, NEW = "1:1.0+b1", "1:2.0+b1"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[PackageArchive]:
    with PackageArchive(tmp_path / "archive") as archive:
        archive.add_suite("first", [Package("tool", depends=("library",)), Package("library", OLD)])
        archive.add_suite("updates", [Package("library", NEW)])
        yield archive


@pytest.fixture
def root(tmp_path: Path, archive: PackageArchive) -> Root:
    root = Root(tmp_path, archive)
    root.use("first", "updates")
    return root


@real_apt
def test_packages_are_installed_without_lists(root: Root, archive: PackageArchive) -> None:
    done = root.need("tool")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert root.installed == {"tool": "1.0", "library": NEW}
    archive.requests.clear()
    done = root.need("tool")
    assert (done.returncode, done.stderr, archive.requests) == (0, "", [])


@real_apt
def test_old_lists_are_renewed(root: Root, archive: PackageArchive) -> None:
    archive.add_suite("updates", [Package("library", NEW), Package("other", "1.0")])
    assert root.need("library").returncode == 0
    old = Package("other", "1.0").path
    archive.fault(old, Fault.MISSING)
    archive.add_suite("updates", [Package("library", NEW), Package("other", "1.1")])
    done = root.need("other")
    assert done.returncode == 0, done.stderr
    assert root.installed["other"] == "1.1"


@real_apt
def test_lock_of_the_lists_is_waited_for(root: Root) -> None:
    log = root.cache / "logs/apt.log"
    with (root.root / "var/lib/apt/lists/lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        with subprocess.Popen(
            ["bash", "-c", f". {BOOTSTRAP}; need_packages tool"],
            stderr=subprocess.PIPE,
            text=True,
            env=root.environment,
        ) as running:
            while running.poll() is None and "Could not get lock" not in read(log):
                time.sleep(0.05)
            fcntl.lockf(lock, fcntl.LOCK_UN)
            _, shown = running.communicate()
    assert running.returncode == 0, shown
    assert root.installed["tool"] == "1.0"


@real_apt
@pytest.mark.parametrize("fault", [Fault.MISSING, Fault.TRUNCATED, Fault.WRONG])
def test_older_version_is_taken_where_newer_is_lacking(
    root: Root, archive: PackageArchive, fault: Fault
) -> None:
    archive.fault(Package("library", NEW).path, fault)
    done = root.need("tool")
    assert done.returncode == 0, done.stderr
    assert root.installed == {"tool": "1.0", "library": OLD}


@real_apt
def test_lacking_package_is_named(root: Root, archive: PackageArchive) -> None:
    archive.fault(Package("library", NEW).path, Fault.MISSING)
    archive.fault(Package("library", OLD).path, Fault.MISSING)
    done = root.need("tool")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "(library 2.0+b1, library 1.0+b1)" in last
    assert "try again" in last
    assert root.installed == {}


@real_apt
def test_unreachable_mirror_is_not_taken_for_a_changing_one(
    root: Root, archive: PackageArchive
) -> None:
    archive.close()
    done = root.need("tool")
    assert done.returncode == 1
    assert "apt-get could not install tool" in done.stderr.splitlines()[-1]
