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
        also: further headers that the module may have names of, but need not have all of.
        newer: by the release from which on they must be there, patterns that a whole name
            (``NAME``, ``structure`` with all its fields, or ``structure.field``, which may have
            fields of its own) must match.
        conditional: patterns like those, of what the headers define on some architectures only.
        changed: by C expression, the release from which on it has our value, and its value before.
        excluded: by pattern that a name (or ``structure.field``) must match from its start, why the
            module does not have it.
        flags: for the compiler, where the header is not this machine's own.
    """

    module: ModuleType
    header: str
    also: Sequence[str] = ()
    newer: Mapping[Release, Sequence[str]] = {}
    conditional: Sequence[str] = ()
    changed: Mapping[str, tuple[Release, int]] = {}
    excluded: Mapping[str, str] = {}
    flags: tuple[str, ...] = ()

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
    """What a structure says of its fields, or of those of a member that is declared in it.

    Args:
        structure: its name.
        kind: its type, or the member's.
        path: from the structure to the fields, in C: nothing, or a member with its dot.
        base: bytes from the structure's start to the kind's.
    """
    anonymous = getattr(kind, "_anonymous_", ())
    for field, field_kind, *bits in kind._fields_:
        offset = base + getattr(kind, field).offset
        if field in anonymous:
            yield from _field_facts(structure, field_kind, path, offset)
            continue
        name = f"{structure}.{path}{field}".replace("[0]", "")
        member = f"((struct {structure} *)0)->{path}{field}"
        if bits:  # has neither an offset nor a size
            yield Fact(name, f"BITS(struct {structure}, {path}{field})", _bits(kind, field, base))
            continue
        yield Fact(name, f"offsetof(struct {structure}, {path}{field})", offset)
        if ctypes.sizeof(field_kind) == 0:  # a flexible array has no size: compare an entry's
            member = f"{member}[0]"
            field_kind = field_kind._type_
        yield Fact(name, f"sizeof({member})", ctypes.sizeof(field_kind))
        index = ""
        while issubclass(field_kind, ctypes.Array):
            index += "[0]"
            field_kind = field_kind._type_
        if issubclass(field_kind, ctypes.Structure | ctypes.Union):
            if field_kind.__name__.startswith("_"):  # declared in place: no structure by itself
                yield from _field_facts(structure, field_kind, f"{path}{field}{index}.", offset)
        elif field_kind in _INTEGERS and not index:
            signed = field_kind(-1).value < 0
            yield Fact(name, f"(__typeof__({member}))-1 < 1", int(signed))


def _bits(kind: type[ctypes.Structure], field: str, base: int) -> int:
    """Where a bit-field is, as the C program's BITS says it: its first bit, and how many."""
    structure = kind()
    setattr(structure, field, -1)
    value = int.from_bytes(bytes(structure), "little")
    first = (value & -value).bit_length() - 1
    return (base * 8 + first) << 8 | bin(value).count("1")


_INTEGERS = {
    getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class Header(NamedTuple):
    """A kernel header, as this machine's compiler sees it.

    Attributes:
        release: of the kernel that it is of.
        names: its object-like macros, enumerators, structures and each ``structure.field``, with
            ``structure.field.field`` where a field's type is declared in place; not those of
            headers that it includes.
    """

    release: Release
    names: frozenset[str]


@functools.cache
def header(include: str, flags: tuple[str, ...] = ()) -> Header:
    """What a header holds, read once."""
    code = evaluate(["linux/version.h"], ["LINUX_VERSION_CODE"])["LINUX_VERSION_CODE"]
    macros: list[str] = []
    rest: list[str] = []
    own = False
    for line in _compiler("-E", "-dD", *flags, "-", text=f"#include <{include}>\n").splitlines():
        if marker := re.match(r'# \d+ "(.*)"', line):
            own = marker[1].endswith(f"/{include}")
        elif own:
            (macros if line.startswith("#") else rest).append(line)
    return Header((code >> 16, code >> 8 & 0xFF), frozenset(_names(macros, "\n".join(rest))))


def evaluate(
    includes: Iterable[str], expressions: Iterable[str], flags: Sequence[str] = ()
) -> dict[str, int]:
    """Compile and run: the value of each C expression, as unsigned of its own width."""
    expressions = list(expressions)
    lines = [
        "#include <stddef.h>",
        "#include <stdio.h>",
        *(f"#include <{include}>" for include in includes),
        "#define UNSIGNED(x) (sizeof(x) == 8 ? (unsigned long long)(x) : (unsigned)(x))",
        _BITS,
        "int main(void) {",
        *(f'printf("%llu\\n", UNSIGNED({expression}));' for expression in expressions),
        "return 0; }",
    ]
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "program")
        _compiler("-w", *flags, "-o", str(program), "-", text="\n".join(lines))
        output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return dict(zip(expressions, map(int, output.split()), strict=True))


_BITS = r"""
#define BITS(kind, field) ({ kind x = {0}; x.field = -1; bits((void *)&x, sizeof(x)); })
static unsigned bits(const unsigned char *from, unsigned size)
{
    unsigned first = 0, count = 0;
    for (unsigned at = 0; at < size * 8; at++)
        if (from[at / 8] >> at % 8 & 1 && !count++)
            first = at;
    return first << 8 | count;
}
"""


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
    while body.strip():
        inside: list[str] = []  # members of what is declared inside
        declared, mark, rest = re.split(r"([{;])", body, maxsplit=1)[:3]
        if mark == "{":
            inner = _until_closed(rest)
            inside = list(_fields(inner))
            declared, _, rest = rest[len(inner) + 1 :].partition(";")
            if not declared.strip():
                yield from inside
        for declarator in declared.split(","):
            if field := re.search(r"(\w+)\s*(\[[^]]*\]\s*)*(:\s*\d+\s*)?$", declarator):
                if field[1].startswith("__empty_"):  # the kernel's macro for a flexible array
                    continue
                yield field[1]
                yield from (f"{field[1]}.{member}" for member in inside)
        body = rest


def names(subject: Subject) -> frozenset[str]:
    """All that the subject's headers hold."""
    return frozenset().union(
        *(header(one, subject.flags).names for one in (subject.header, *subject.also))
    )


def wrong_values(
    subject: Subject, encoding: ioctl.Encoding = ioctl.HOST, flags: Sequence[str] = ()
) -> list[str]:
    """What the compiler and the module disagree on: one line each.

    Args:
        subject: what to compare.
        encoding: of the ioctl numbers that the compiler is made to compute by `flags`.
        flags: for the compiler.
    """
    release = header(subject.header, subject.flags).release
    theirs = names(subject)
    ours = [fact for fact in facts(subject.module, encoding) if fact.name in theirs]
    includes = (subject.header, *subject.also)
    compiled = evaluate(includes, (fact.expression for fact in ours), (*subject.flags, *flags))
    wrong = []
    for fact in ours:
        since, before = subject.changed.get(fact.expression, ((0, 0), fact.value))
        allowed = {fact.value, before} if release < since else {fact.value}
        value = compiled[fact.expression]
        if value not in allowed:
            wrong.append(f"{fact.expression} is {value:#x} in the header, {fact.value:#x} here")
    return wrong


def unknown_names(subject: Subject) -> list[str]:
    """Names of the module that the headers should have and have not."""
    release = header(subject.header, subject.flags).release
    theirs = names(subject)
    patterns = list(subject.conditional)
    for since, added in subject.newer.items():
        if release < since:
            patterns += added
    absent = re.compile(rf"({'|'.join(patterns)})(\.\w+)*") if patterns else re.compile("(?!)")
    ours = dict.fromkeys(fact.name for fact in facts(subject.module))
    return [name for name in ours if name not in theirs and not absent.fullmatch(name)]


def missing_names(subject: Subject) -> list[str]:
    """Names of the header that the module has not, and that nothing excludes."""
    here = {fact.name for fact in facts(subject.module)}
    return sorted(
        name
        for name in header(subject.header, subject.flags).names - here
        if not exclusions(subject, name)
    )


def exclusions(subject: Subject, name: str) -> list[str]:
    """The patterns of a subject that exclude a name."""
    return [pattern for pattern in subject.excluded if re.match(pattern, name)]
