"""`pyvfio irqroute replay`: a device's MSI-X under each of QEMU's policies for the dummy vector."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyvfio import errors
from pyvfio.cli import common

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pyvfio.replay import (
        ApicMachine,
        DevicePart,
        Life,
        ModelledDirectMachine,
        XicsMachine,
    )

    _MachineKind = type[ApicMachine] | type[ModelledDirectMachine] | type[XicsMachine]

_VARIANTS = ("before", "d1f6af6", "d1f6af6-rebind", "patched", "today")
_ORDERS = ("table-first", "enable-first")

_EPILOG = """\
policies, by what becomes of the dummy vector with which QEMU told VFIO that MSI-X is enabled:
  before          (d1f6af6^)   its message is NULL, and adding a NULL message does nothing
  d1f6af6         (d1f6af6a17) it is routed and bound by the message that stands in the table
  d1f6af6-rebind               the same, with an update that really rebinds: no QEMU had it
  patched         (6d17a018d0) the caller adds nothing for a NULL message. Each update commits the
                  table of routes, also an unchanged one, since 3f1fea0fb5: QEMU 2.7.0 has that
                  commit and d1f6af6a17
  today           (5ebffa4e87) there is no dummy: MSI-X is enabled with vector 0 and no eventfd; the
                  rest of the order is pyvfio's own. A pseries guest's table is not emulated since
                  QEMU 2.12, which no policy replays

mappings:
  routed          x86: GSIs are looked up in a table of routes; on this host's /dev/kvm
  direct          POWER8: the GSI is computed from the message; on a POWER host's /dev/kvm. On x86
                  no kernel is behind it, so it is modelled, and says so

The device is modelled unless --device names one: then VFIO is real too, the interrupts are fired by
its loopback, and the device is reset. It is bound to vfio-pci for the while and then given back to
the driver it had; one that the host is using is refused. Every verdict is read from what arrived;
the controls say whether that can be believed.

exit codes: 0 replayed, whatever the verdicts; 1 a control failed; the others as of pyvfio.

examples:
  pyvfio irqroute replay
  pyvfio irqroute replay --policy d1f6af6 --policy patched --mapping routed --vectors 64
  pyvfio irqroute replay --device 0000:02:00.0 --svg replay.svg
  pyvfio irqroute replay --json
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    group = commands.add_parser(
        "irqroute",
        help="interrupts forwarded to KVM: replay what QEMU did",
        description="A device's interrupts, forwarded to KVM.",
        epilog="example:\n  pyvfio irqroute replay",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = group.add_subparsers(required=True, metavar="replay")
    parser = verbs.add_parser(
        "replay",
        help="the life of a device's MSI-X under each policy for the dummy vector",
        description="Replay, ioctl by ioctl, the life of a device's MSI-X (enable, unmask, mask, "
        "move, disable, a reset that wipes the table, enable again) under each policy, and tell "
        "which interrupts arrive.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--policy",
        action="append",
        choices=_VARIANTS,
        help="one of those below; may be repeated (default: all)",
    )
    parser.add_argument(
        "--mapping",
        choices=("routed", "direct", "both"),
        default="both",
        help="from message to GSI (default: both)",
    )
    parser.add_argument(
        "--vectors", type=int, default=2, metavar="N", help="how many are used (default: 2)"
    )
    parser.add_argument(
        "--order",
        choices=_ORDERS,
        default=_ORDERS[0],
        help="what the guest does first: fill the table, as Linux did in 2016, or set MSI-X "
        "enable, as it does since about 5.14 (default: table-first)",
    )
    parser.add_argument(
        "--base",
        type=lambda text: int(text, 0),
        default=0x1300,
        metavar="N",
        help="the first interrupt source of a direct mapping (default: 0x1300)",
    )
    parser.add_argument(
        "--keep-table", action="store_true", help="let the table survive the reset: a counterproof"
    )
    device = parser.add_argument(
        "--device",
        metavar="BDF",
        help="a device with MSI-X; it is bound to vfio-pci meanwhile, and reset",
    )
    device.completer = common.addresses  # type: ignore[attr-defined]
    parser.add_argument("--svg", metavar="FILE", type=Path, help="draw the sequences, too")
    common.add_json(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from pyvfio.replay import svg

    if options.vectors < 1:
        raise errors.ArgumentError(f"--vectors is at least 1, not {options.vectors}")
    if not 16 <= options.base <= 0x10000 - options.vectors:
        raise errors.ArgumentError(
            f"--base {options.base:#x}: sources are 16 to 0xffff, and {options.vectors} are needed"
        )
    console = None if options.json else common.console(width=160)
    if options.svg is not None:
        _check_writable(options.svg)
    with _device(options) as device, common.progress("Replaying") as progress:
        stages = [lives for lives in _replay(options, device, progress) if lives]
    lives = [life for stage in stages for life in stage]
    if not lives:
        raise errors.ArgumentError(
            "nothing is left to replay: d1f6af6-rebind is of the direct mapping"
        )
    if console is None:
        common.print_json([_plain(life) for life in lives])
    else:
        for stage in stages:
            _show(console, stage)
        _legend(console)
    if options.svg is not None:
        title = f"MSI-X through a reset: {lives[0].device}, Linux {os.uname().release}"
        options.svg.write_text(svg(title, lives), encoding="utf-8")
        print(f"drawn: {options.svg}", file=sys.stderr)
    return 0 if all(control.passed for life in lives for control in life.controls) else 1


@contextlib.contextmanager
def _device(options: argparse.Namespace) -> Iterator[Callable[[], DevicePart]]:
    """A device for each life: the host's, opened once, or modelled ones."""
    from pyvfio.replay import HostDevice, ModelledDevice

    if options.device is None:
        yield lambda: ModelledDevice(options.vectors)
        return
    import pyvfio

    function = common.function(options.device)
    with pyvfio.bound(function.address, notice=common.notice), pyvfio.open(function) as device:
        yield lambda: HostDevice(device)


def _replay(
    options: argparse.Namespace,
    device: Callable[[], DevicePart],
    progress: Callable[[str], None],
) -> Iterator[list[Life]]:
    from pyvfio.replay import VARIANTS, live

    for make in _machines(options):
        lives: list[Life] = []
        for name in options.policy or _VARIANTS:
            variant = VARIANTS[name]
            if variant.rebinding and make.mapping == "routed":
                continue  # an update of a route always rebinds
            with device() as part, make(options.vectors, base=options.base) as machine:
                life = live(
                    variant,
                    part,
                    machine,
                    options.vectors,
                    order=options.order,
                    keep_table=options.keep_table,
                    progress=_prefixed(progress, f"{machine.mapping}, {name}: "),
                )
                lives.append(life)
        yield lives


def _machines(options: argparse.Namespace) -> list[_MachineKind]:
    """What plays the VM: this host's KVM for the mapping that it has, a model for the other."""
    from pyvfio.replay import ApicMachine, ModelledDirectMachine, XicsMachine

    if os.uname().machine.startswith("ppc"):
        if options.mapping == "routed":
            raise errors.Unsupported(
                "a POWER host's KVM has no table of routes: replay the routed mapping on x86"
            )
        return [XicsMachine]
    machines: list[_MachineKind] = []
    if options.mapping == "routed" or (options.mapping == "both" and _kvm_is_here()):
        machines.append(ApicMachine)
    if options.mapping != "routed":
        machines.append(ModelledDirectMachine)
    return machines


def _check_writable(file: Path) -> None:
    """Before anything is done to a device: whether the picture can be written."""
    try:
        file.open("a").close()
    except OSError as error:
        raise errors.ArgumentError(f"--svg {file}: {error.strerror}") from None


def _kvm_is_here() -> bool:
    """Whether a VM can be had; if not, what is left can be replayed all the same."""
    from pyvfio.replay import ApicMachine

    try:
        ApicMachine(1).close()
    except errors.Error as error:
        common.notice(f"the routed mapping is left out: {error}")
        return False
    return True


def _prefixed(progress: Callable[[str], None], prefix: str) -> Callable[[str], None]:
    return lambda step: progress(prefix + step)


def _plain(life: Life) -> dict[str, Any]:
    """A life in JSON's types."""
    from pyvfio.replay import judge

    plain = dataclasses.asdict(life)
    del plain["labels"]
    plain["policy"] = plain.pop("variant")["name"]
    plain["commit"] = life.variant.policy.commit
    plain["ioctls"] = life.ioctls
    for step, written in zip(life.steps, plain["steps"], strict=True):
        if step.probe is not None:
            written["probe"]["lost"] = step.probe.lost
    return {**plain, "verdict": dataclasses.asdict(judge(life))}


def _show(console: Console, lives: list[Life]) -> None:
    from rich.text import Text

    from pyvfio.replay import judge

    first = lives[0]
    console.print(f"[bold]{first.machine}[/]")
    for half, where in (("KVM", first.kvm), ("VFIO", first.vfio)):
        style = "bold yellow" if where == "modelled" else "green"
        console.print(f"  {half}: [{style}]{where}[/]", end="")
    fixed = ", whose MSI-X cannot grow (NORESIZE)" if first.noresize else ""
    console.print(f"  device: {first.device}{fixed}\n")
    console.print(_sequences(lives))
    console.print(_verdicts(lives))
    for life in lives:
        for number, link in enumerate(judge(life).chain):
            if not number:
                console.print(f"\n  [bold]How {life.variant.name} loses vector 0[/]")
            step, _, what = link.partition(": ")
            console.print(Text.assemble("    ", (f"{step:13}", "bold"), what))
    console.print()
    for number, control in enumerate(first.controls):
        passed = all(life.controls[number].passed for life in lives)
        mark = "[green]✓[/]" if passed else "[bold red]FAILED[/]"
        console.print(f"  {mark} control: {control.name} [dim](seen: {control.seen})[/]")
    console.print()


def _sequences(lives: list[Life]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from pyvfio.replay.wording import calls, summary

    table = Table(show_lines=True, header_style="bold", expand=False)
    table.add_column("step", max_width=26)
    for life in lives:
        heading = f"{life.variant.name}\n[dim]{life.variant.policy.commit}[/]"
        table.add_column(heading, overflow="fold")
    for number, step in enumerate(lives[0].steps):
        cells = []
        for life in lives:
            theirs = life.steps[number]
            text = Text("\n".join(calls(theirs.events, life.labels)))
            seen = summary(theirs)
            if seen and theirs.probe is not None:
                lost, strays = theirs.probe.lost, theirs.probe.strays
                style = "bold red" if lost else "yellow" if strays else "green"
                text.append(("\n" if text else "") + f"→ {seen}", style)
            cells.append(text)
        table.add_row(Text.assemble((step.name, "bold"), (f"\n{step.what}", "dim")), *cells)
    return table


def _verdicts(lives: list[Life]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from pyvfio.replay import judge
    from pyvfio.replay.wording import gsis

    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in ("policy", "verdict", "ioctls", "bound at the end", "why"):
        table.add_column(column, justify="right" if column == "ioctls" else "left")
    for life in lives:
        verdict = judge(life)
        what = Text("all arrive", "green") if verdict.healthy else Text("LOST", "bold red")
        table.add_row(
            life.variant.name,
            what,
            str(life.ioctls),
            Text(gsis(life.steps[-1].gsis)),
            Text(verdict.why),
        )
    return table


def _legend(console: Console) -> None:
    from rich.text import Text

    from pyvfio.replay.wording import LEGEND

    for symbol, meaning in LEGEND:
        console.print(Text(f"  {symbol:12} {meaning}", "dim"))
