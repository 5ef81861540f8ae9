"""Binds the service's address before the model is loaded, so that an address that is taken ends the start at once.

with bound(settings) as sockets:
    server.run(sockets)                  # listens

The address is HOST and PORT, or UDS: a Unix socket, a file through which a proxy on the same machine connects.
"""

import errno
import os
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..settings import Settings

BACKLOG = 2048  # uvicorn's
UMASK = 0o117  # mode 0660: for the owner and the group
PROBE_SECONDS = 1.0


class BindError(Exception):
    """The address cannot be served; the message is one line for the operator."""

    def __init__(self, place: str, error: OSError | ValueError) -> None:
        reason = str(error)
        if isinstance(error, UnicodeError):
            reason = "it is no host name"
        elif isinstance(error, socket.gaierror):
            reason = str(error.strerror)
        elif isinstance(error, OSError) and error.errno:
            reason = os.strerror(error.errno)
        super().__init__(f"{place}: {reason}")


def place_of(settings: Settings) -> str:
    """Where the service is reached, and by which settings, for an error."""
    return _port(settings.host, settings.port) if settings.uds is None else _file(settings.uds)


def _port(host: str, port: int) -> str:
    return f"HOST, PORT: cannot serve at {host[:80]!r}, port {port}"


def _file(path: Path) -> str:
    return f"UDS: cannot serve at {str(path)[:160]!r}"


@contextmanager
def bound(settings: Settings) -> Iterator[list[socket.socket]]:
    """The bound sockets, closed at the end; the file of a Unix socket is removed then. Raises BindError."""
    sockets = bind(settings.host, settings.port) if settings.uds is None else [bind_file(settings.uds)]
    try:
        yield sockets
    finally:
        _close(sockets)
        if settings.uds is not None:
            with suppress(OSError):  # another process serves there now, or the folder is gone
                _remove_unused(settings.uds)


def bind(host: str, port: int) -> list[socket.socket]:
    """A bound TCP socket for each address of the host, not yet listening.

    An empty host, and `::`, stand for all addresses, of IPv4 and IPv6. For port 0 the system chooses, for each address
    anew. Raises BindError. Two processes may bind a port while no process listens on it; then the second one cannot
    listen.
    """
    place = _port(host, port)
    name = None if host in ("", "::") else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BindError(place, error) from None
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bind(family, kind, protocol, address))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                _close(sockets)
                raise BindError(place, error) from None
            missing = error  # a name may have addresses of a family that this machine has switched off
    if not sockets and missing is not None:
        raise BindError(place, missing)
    return sockets


def bind_file(path: Path) -> socket.socket:
    """A listening Unix socket of mode 0660; it replaces the file that a killed process has left. Raises BindError.

    It listens at once, and clients wait until the model is loaded: that is how another process sees that it is in use.
    """
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(UMASK)  # of the process: no thread of ours runs yet
    try:
        _remove_unused(path)
        opened.bind(str(path))
        opened.listen(BACKLOG)
    except (OSError, ValueError) as error:  # ValueError: a NUL
        opened.close()
        raise BindError(_file(path), error) from None
    finally:
        os.umask(umask)
    return opened


def _remove_unused(path: Path) -> None:
    """Remove the file of a socket on which no process listens, if there is one. Raises OSError for any other file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError("there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except (BlockingIOError, TimeoutError):  # so many connections wait there that none fits
        pass
    raise OSError(errno.EADDRINUSE, "")


def _bind(family: int, kind: int, protocol: int, address: object) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix" and sys.platform != "cygwin":  # elsewhere it would let two programs share a port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        opened.bind(address)  # type: ignore[arg-type]
    except OSError:
        opened.close()
        raise
    return opened


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()
