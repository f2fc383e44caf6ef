"""A small signed Debian package archive on the loopback, with faults on request."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import http.server
import lzma
import re
import shutil
import socketserver
import subprocess
import tempfile
import threading
import urllib.parse
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from pathlib import Path
from types import TracebackType
from typing import Any

TOOLS = ("apt-get", "dpkg", "dpkg-deb", "gpg", "gpg-agent", "gpgconf")


def missing_tools() -> list[str]:
    """Return the programs that an archive and its clients need and this machine lacks."""
    return [tool for tool in TOOLS if shutil.which(tool) is None]


@functools.cache
def machine_architecture() -> str:
    """Return Debian's name of this machine's architecture."""
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Fault(enum.Enum):
    """The ways in which a server can fail to deliver one file."""

    MISSING = "the answer is 404"
    TRUNCATED = "a complete answer that holds the first half of the file"
    WRONG = "as many bytes, but other ones"
    BROKEN_OFF = "the connection is closed after half of the body"
    SILENT = "the request is read and never answered"


@dataclasses.dataclass(frozen=True)
class Package:
    """A binary package to build.

    Attributes:
        name: Its name.
        version: Its version.
        depends: What it depends on, in the syntax of the Depends field.
        architecture: Debian's name of it, or "all"; by default the machine's.
        files: Contents of what it installs, by path without a leading slash.
    """

    name: str
    version: str = "1.0"
    depends: tuple[str, ...] = ()
    architecture: str = dataclasses.field(default_factory=machine_architecture)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its place in an archive; a version's epoch is not in the name."""
        version = self.version.rpartition(":")[2]
        return f"pool/{self.name}_{version}_{self.architecture}.deb"

    @property
    def control(self) -> str:
        """Its control paragraph, without what an index adds."""
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "Nobody <nobody@example.invalid>",
            "Depends": ", ".join(self.depends),
            "Description": "part of a test",
        }
        return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)

    def build(self, file: Path) -> None:
        """Write the package file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
            root = Path(scratch, "root")
            for name, content in {**self.files, "DEBIAN/control": self.control}.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text(content)
            root.chmod(0o755)
            (root / "DEBIAN").chmod(0o755)
            command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(file)]
            subprocess.run(command, check=True, capture_output=True)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that the server has read.

    Attributes:
        path: The file's path in the archive.
        offset: The first byte that is asked for; not 0 where a download is continued.
        status: The answer's status; 0 for none.
    """

    path: str
    offset: int
    status: int


class PackageArchive:
    """A Debian archive with one component, main, and a signing key of its own.

    The server runs until close(); the class is a context manager.

    Attributes:
        url: What stands in a sources.list.
        keyring: The file with the public key.
        requests: What clients have asked for, oldest first; clear() it as you like.
    """

    def __init__(self, directory: Path) -> None:
        """Make an empty archive and serve it.

        Args:
            directory: Where its files are kept; it must be empty or absent.
        """
        self._root = directory / "root"
        self._root.mkdir(parents=True)
        self.keyring = directory / "keyring.gpg"
        self.requests: list[Request] = []
        self._faults: dict[str, Fault] = {}
        self._closing = threading.Event()
        # The agent's socket stands in this directory, and its path has an upper limit of some
        # 100 bytes, which pytest's directories may exceed.
        self._gnupg = tempfile.TemporaryDirectory(prefix="gpg-")
        self._gpg("--passphrase", "", "--quick-generate-key", "test", "ed25519", "sign", "never")
        self._gpg("--export", "--output", str(self.keyring))
        handler = functools.partial(_Handler, self)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05])
        self._thread.start()

    def __enter__(self) -> PackageArchive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server and the key's agent."""
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        command = ["gpgconf", "--homedir", self._gnupg.name, "--kill", "gpg-agent"]
        subprocess.run(command, check=False, capture_output=True)
        self._gnupg.cleanup()

    def add_suite(
        self, codename: str, packages: Iterable[Package], *, name: str | None = None
    ) -> None:
        """Publish packages as a suite, or replace one that is there.

        Args:
            codename: The suite's code name, and its directory below dists/.
            packages: All of its packages; files that are in the pool stay as they are.
            name: The Suite field and a second directory, as "stable" is of Debian's.
        """
        # apt wants the checksum of the index as it is when unpacked, too. As in Debian's archive,
        # only the compressed one is there.
        listed: dict[str, bytes] = {}
        architectures = {machine_architecture()}
        packages = list(packages)
        architectures.update(it.architecture for it in packages if it.architecture != "all")
        for architecture in sorted(architectures):
            index = "\n".join(
                self._paragraph(package)
                for package in packages
                if package.architecture in (architecture, "all")
            ).encode()
            path = f"main/binary-{architecture}/Packages"
            listed |= {path: index, f"{path}.xz": lzma.compress(index)}
        release = (
            f"Origin: test\nLabel: test\nSuite: {name or codename}\nCodename: {codename}\n"
            f"Date: {formatdate(usegmt=True)}\n"
            f"Architectures: {' '.join(sorted(architectures))}\nComponents: main\nSHA256:\n"
            + "".join(f" {_sha256(body)} {len(body)} {path}\n" for path, body in listed.items())
        )
        files = {path: body for path, body in listed.items() if path.endswith(".xz")}
        for directory in dict.fromkeys((codename, name or codename)):
            dists = self._root / "dists" / directory
            shutil.rmtree(dists, ignore_errors=True)
            for path, body in {**files, "Release": release.encode()}.items():
                (dists / path).parent.mkdir(parents=True, exist_ok=True)
                (dists / path).write_bytes(body)
            self._gpg("--output", str(dists / "InRelease"), "--clearsign", str(dists / "Release"))

    def fault(self, path: str, fault: Fault) -> None:
        """Let every request of a file fail.

        Args:
            path: The file's path in the archive, without a leading slash.
            fault: How.

        Raises:
            ValueError: The archive does not hold the file.
        """
        if self._read(path) is None:
            raise ValueError(f"{path} is not in the archive: name one of {self._paths()}")
        self._faults[path] = fault

    def repair(self, path: str) -> None:
        """Deliver a file as it is again."""
        del self._faults[path]

    def _paragraph(self, package: Package) -> str:
        file = self._root / package.path
        if not file.exists():
            package.build(file)
        body = file.read_bytes()
        return (
            f"{package.control}Filename: {package.path}\n"
            f"Size: {len(body)}\nSHA256: {_sha256(body)}\n"
        )

    def _paths(self) -> list[str]:
        files = (path for path in self._root.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self._root)) for path in files)

    def _read(self, path: str) -> bytes | None:
        return (self._root / path).read_bytes() if path in self._paths() else None

    def _gpg(self, *arguments: str) -> None:
        command = ["gpg", "--homedir", self._gnupg.name, "--batch", "--pinentry-mode", "loopback"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    """The server's side of one connection."""

    # apt sends several requests at once over one connection, which HTTP/1.0 would close.
    protocol_version = "HTTP/1.1"

    def __init__(
        self, archive: PackageArchive, request: Any, address: Any, server: socketserver.BaseServer
    ) -> None:
        self._archive = archive
        super().__init__(request, address, server)

    def do_GET(self) -> None:
        archive = self._archive
        path = urllib.parse.unquote(self.path).lstrip("/")
        fault = archive._faults.get(path)
        body = archive._read(path)
        if body is None or fault is Fault.MISSING:
            archive.requests.append(Request(path, 0, 404))
            self._answer(404, {}, b"")
            return
        if fault is Fault.TRUNCATED:
            body = body[: len(body) // 2]
        elif fault is Fault.WRONG:
            body = bytes(byte ^ 0xFF for byte in body)
        changed = formatdate((archive._root / path).stat().st_mtime, usegmt=True)
        offset = self._offset(changed, len(body))
        headers = {"Last-Modified": changed}
        if offset:
            headers["Content-Range"] = f"bytes {offset}-{len(body) - 1}/{len(body)}"
        status = 206 if offset else 200
        archive.requests.append(Request(path, offset, 0 if fault is Fault.SILENT else status))
        if fault is Fault.SILENT:
            archive._closing.wait()
            self.close_connection = True
        else:
            self._answer(status, headers, body[offset:], whole=fault is not Fault.BROKEN_OFF)

    def _offset(self, changed: str, size: int) -> int:
        """Return the first byte to send: not 0 where a client continues the same file."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None or self.headers.get("If-Range", changed) != changed:
            return 0
        return int(asked[1]) if int(asked[1]) < size else 0

    def _answer(
        self, status: int, headers: Mapping[str, str], body: bytes, whole: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not whole:
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Print nothing; requests are in the archive's log."""


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
