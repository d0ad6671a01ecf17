"""What a person allowed on the command line: programs that may be run, hosts that may be asked. No config can allow anything.

A recipe is a file from anybody. That it names a program or an address is no consent to run the one or to send answers to the other:
only a word of the command line is, which names the very file or host. Loopback addresses need none: nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Iterator
from pathlib import Path

from luyen.core.errors import UserError

_allowed: list[str] = []


@contextlib.contextmanager
def allowing(names: Iterable[str]) -> Iterator[None]:
    """Within the block these may be used: paths of programs, hosts, or hosts with a port as host:port."""
    before = list(_allowed)
    _allowed.extend(names)
    try:
        yield
    finally:
        _allowed[:] = before


def check_program(path: Path) -> None:
    """UserError unless this file was named."""
    if not any(Path(name).exists() and Path(name).resolve() == path.resolve() for name in _allowed):
        raise UserError(f"{path} is a program, and a recipe must not make programs run unasked",
                        fix=f"Read it, and if it may run, add --allow {path} to the command.")  # fmt: skip


def check_host(host: str, port: int | None) -> None:
    """UserError unless this host was named, or is this machine itself."""
    if is_loopback(host):
        return
    names = {host, f"{host}:{port}"} if port is not None else {host}
    if not names & set(_allowed):
        raise UserError(f"{host} is another machine, to which prompts and answers would be sent",
                        fix=f"If they may leave this one, add --allow {host} to the command.")  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its number or as localhost."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
