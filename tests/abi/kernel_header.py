"""Compares a module of pyvfio.abi with the kernel header that it speaks for.

The header is read by this machine's C compiler, never by us: names come from the preprocessor's
output, values, sizes and offsets from a C program that is made of everything found in the module.
So no list of what to compare exists, and a name added to the module or to the header is compared
from then on.

The compiler's own switches choose the headers: ``C_INCLUDE_PATH`` for those of another kernel.
They differ by release. What may be absent from an older one, or differ in it, is said name by
name in a :class:`Subject`, with the release from which on it must be as here.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeGuard

import pytest

from pyvfio.abi import ioctl

Release = tuple[int, int]

COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C compiler: apt install gcc libc6-dev linux-libc-dev"
)


class Subject(NamedTuple):
    """A module, the header it speaks for, and how older and newer headers may differ from it.

    Attributes:
        module: of pyvfio.abi.
        header: as in ``#include <...>``.
        newer: by the release from which on they must be there, patterns that a whole name
            (``NAME``, ``structure`` with all its fields, or ``structure.field``) must match.
        changed: by C expression, the release from which on it has our value, and its value before.
        excluded: by pattern that a name (or ``structure.field``) must match from its start, why the
            module does not have it.
    """

    module: ModuleType
    header: str
    newer: Mapping[Release, Sequence[str]] = {}
    changed: Mapping[str, tuple[Release, int]] = {}
    excluded: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return self.header


class Fact(NamedTuple):
    """What the module says of one name: a C expression and its value."""

    name: str
    expression: str
    value: int


def facts(module: ModuleType, encoding: ioctl.Encoding = ioctl.HOST) -> Iterator[Fact]:
    """Everything that a module says, ioctl numbers as in an encoding."""
    for name, value in vars(module).items():
        if isinstance(value, ioctl.Request):
            yield Fact(name, name, value.encode(encoding))
        elif isinstance(value, int):
            yield Fact(name, name, value)
        elif _is_structure_of(module, value) and not name.startswith("_"):
            yield Fact(name, f"sizeof(struct {name})", ctypes.sizeof(value))
            yield from _field_facts(name, value)
        elif not name.startswith("_") and not _is_imported(module, value):
            raise TypeError(f"{module.__name__}.{name} is of a kind that is not compared yet")


def _is_structure_of(module: ModuleType, value: object) -> TypeGuard[type[ctypes.Structure]]:
    return (
        isinstance(value, type)
        and issubclass(value, ctypes.Structure)
        and value.__module__ == module.__name__
    )


def _is_imported(module: ModuleType, value: object) -> bool:
    return isinstance(value, ModuleType) or getattr(value, "__module__", None) not in (
        None,
        module.__name__,
    )


def _field_facts(structure: str, kind: Any, path: str = "", base: int = 0) -> Iterator[Fact]:
    anonymous = getattr(kind, "_anonymous_", ())
    for field, field_kind, *_ in kind._fields_:
        offset = base + getattr(kind, field).offset
        if field in anonymous:
            yield from _field_facts(structure, field_kind, path, offset)
            continue
        name = f"{structure}.{field}"
        member = f"((struct {structure} *)0)->{path}{field}"
        yield Fact(name, f"offsetof(struct {structure}, {path}{field})", offset)
        if ctypes.sizeof(field_kind) == 0:  # a flexible array has no size: compare an entry's
            member = f"{member}[0]"
            field_kind = field_kind._type_
        yield Fact(name, f"sizeof({member})", ctypes.sizeof(field_kind))
        if issubclass(field_kind, ctypes.Structure | ctypes.Union):
            if field_kind.__name__.startswith("_"):  # declared in place: no structure by itself
                yield from _field_facts(structure, field_kind, f"{path}{field}.", offset)
        elif field_kind in _INTEGERS:
            signed = field_kind(-1).value < 0
            yield Fact(name, f"(__typeof__({member}))-1 < 1", int(signed))


_INTEGERS = {
    getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class Header(NamedTuple):
    """A kernel header, as this machine's compiler sees it.

    Attributes:
        release: of the kernel that it is of.
        names: its object-like macros, enumerators, structures and each ``structure.field``; not
            those of headers that it includes.
    """

    release: Release
    names: frozenset[str]


@functools.cache
def header(include: str) -> Header:
    """What a header holds, read once."""
    code = evaluate("linux/version.h", ["LINUX_VERSION_CODE"])["LINUX_VERSION_CODE"]
    macros: list[str] = []
    rest: list[str] = []
    own = False
    for line in _compiler("-E", "-dD", "-", text=f"#include <{include}>\n").splitlines():
        if marker := re.match(r'# \d+ "(.*)"', line):
            own = marker[1].endswith(f"/{include}")
        elif own:
            (macros if line.startswith("#") else rest).append(line)
    return Header((code >> 16, code >> 8 & 0xFF), frozenset(_names(macros, "\n".join(rest))))


def evaluate(include: str, expressions: Iterable[str], flags: Sequence[str] = ()) -> dict[str, int]:
    """Compile and run: the value of each C expression, as unsigned of its own width."""
    expressions = list(expressions)
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        f"#include <{include}>",
        "#define UNSIGNED(x) (sizeof(x) == 8 ? (unsigned long long)(x) : (unsigned)(x))",
        "int main(void) {",
        *(f'printf("%llu\\n", UNSIGNED({expression}));' for expression in expressions),
        "return 0; }",
    ]
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "program")
        _compiler("-w", *flags, "-o", str(program), "-", text="\n".join(lines))
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, output.split()), strict=True))


def _compiler(*arguments: str, text: str) -> str:
    assert COMPILER
    run = subprocess.run(
        [COMPILER, "-x", "c", *arguments], input=text, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def _names(macros: Iterable[str], code: str) -> Iterator[str]:
    for line in macros:
        # A macro with parameters has no blank before its bracket, an include guard has no value.
        if macro := re.match(r"#define (\w+) .*\S", line):
            yield macro[1]
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", code):
        yield from re.findall(r"(?:^|,)\s*(\w+)", body)
    for structure in re.finditer(r"^struct (\w+) \{", code, re.MULTILINE):
        yield structure[1]
        for field in _fields(_until_closed(code[structure.end() :])):
            yield f"{structure[1]}.{field}"


def _until_closed(code: str) -> str:
    depth = 1
    for at, character in enumerate(code):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return code[:at]
    raise AssertionError("a structure without end")


def _fields(body: str) -> Iterator[str]:
    body = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", body)
    body = re.sub(
        r"\b(struct|union)\b\s*\w*\s*\{|\}", "", body
    )  # members of what is declared inside
    for declaration in body.split(";"):
        for declarator in declaration.split(","):
            if field := re.search(r"(\w+)\s*(\[[^]]*\]\s*)*(:\s*\d+\s*)?$", declarator):
                yield field[1]


def wrong_values(
    subject: Subject, encoding: ioctl.Encoding = ioctl.HOST, flags: Sequence[str] = ()
) -> list[str]:
    """What the compiler and the module disagree on: one line each.

    Args:
        subject: what to compare.
        encoding: of the ioctl numbers that the compiler is made to compute by `flags`.
        flags: for the compiler.
    """
    theirs = header(subject.header)
    ours = [fact for fact in facts(subject.module, encoding) if fact.name in theirs.names]
    compiled = evaluate(subject.header, (fact.expression for fact in ours), flags)
    wrong = []
    for fact in ours:
        since, before = subject.changed.get(fact.expression, ((0, 0), fact.value))
        allowed = {fact.value, before} if theirs.release < since else {fact.value}
        value = compiled[fact.expression]
        if value not in allowed:
            wrong.append(f"{fact.expression} is {value:#x} in the header, {fact.value:#x} here")
    return wrong


def unknown_names(subject: Subject) -> list[str]:
    """Names of the module that the header should have and has not."""
    theirs = header(subject.header)
    patterns = [
        pattern
        for since, added in subject.newer.items()
        if theirs.release < since
        for pattern in added
    ]
    newer = re.compile(rf"({'|'.join(patterns)})(\.\w+)?") if patterns else re.compile("(?!)")
    names = dict.fromkeys(fact.name for fact in facts(subject.module))
    return [name for name in names if name not in theirs.names and not newer.fullmatch(name)]


def missing_names(subject: Subject) -> list[str]:
    """Names of the header that the module has not, and that nothing excludes."""
    here = {fact.name for fact in facts(subject.module)}
    return sorted(
        name for name in header(subject.header).names - here if not exclusions(subject, name)
    )


def exclusions(subject: Subject, name: str) -> list[str]:
    """The patterns of a subject that exclude a name."""
    return [pattern for pattern in subject.excluded if re.match(pattern, name)]
