"""Binds the service's port before the model is loaded, so that a port that is taken ends the start at once.

sockets = bind("127.0.0.1", 8000)
server.run(sockets)                  # listens
"""

import errno
import os
import socket
import sys


class BindError(Exception):
    """The address cannot be served; the message is one line for the operator."""

    def __init__(self, host: str, port: int, error: OSError | UnicodeError) -> None:
        reason = "it is no host name"
        if isinstance(error, socket.gaierror):
            reason = str(error.strerror)
        elif isinstance(error, OSError):
            reason = os.strerror(error.errno) if error.errno else str(error)
        super().__init__(f"HOST, PORT: cannot serve at {host[:80]!r}, port {port}: {reason}")


def bind(host: str, port: int) -> list[socket.socket]:
    """A bound TCP socket for each address of the host, not yet listening. An empty host stands for all addresses.

    For port 0 the system chooses, for each address anew. Raises BindError. Two processes may bind a port while no
    process listens on it; then the second one cannot listen.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise BindError(host, port, error) from None
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            sockets.append(_bind(family, kind, protocol, address))
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                _close(sockets)
                raise BindError(host, port, error) from None
            missing = error  # a name may have addresses of a family that this machine has switched off
    if not sockets and missing is not None:
        raise BindError(host, port, missing)
    return sockets


def _bind(family: int, kind: int, protocol: int, address: object) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix" and sys.platform != "cygwin":  # elsewhere it would let two programs share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        bound.bind(address)  # type: ignore[arg-type]
    except OSError:
        bound.close()
        raise
    return bound


def _close(sockets: list[socket.socket]) -> None:
    for bound in sockets:
        bound.close()
