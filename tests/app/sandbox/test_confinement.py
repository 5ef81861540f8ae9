import json
import os
import subprocess
import sys

from tests.conftest import ROOT

CONFINED = """
import json, os, socket, sys
inherited = open("/proc/self/status")
from app.sandbox.confinement import confine
restrictions = sorted(confine(64 << 20))

def outcome(attempt):
    try:
        attempt()
    except BaseException as error:
        return type(error).__name__
    return "done"

print(json.dumps({
    "restrictions": restrictions,
    "read": outcome(lambda: open("/etc/passwd")),
    "write": outcome(lambda: open("/tmp/confined", "w")),
    "list": outcome(lambda: os.listdir("/")),
    "socket": outcome(socket.socket),
    "fork": outcome(lambda: os.fork() or os._exit(0)),
    "execute": outcome(lambda: os.execv("/bin/true", ["true"])),
    "kill": outcome(lambda: os.kill(os.getppid(), 0)),
    "memory": outcome(lambda: bytearray(200 << 20)),
    "some memory": outcome(lambda: bytearray(20 << 20)),
    "many files": outcome(lambda: [os.dup(0) for _ in range(100)]),
}))
"""


def test_a_confined_process_reaches_no_file_no_network_and_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    restrictions = found.pop("restrictions")
    assert (found.pop("memory"), found.pop("some memory"), found.pop("many files")) == (
        "MemoryError",
        "done",
        "OSError",
    )
    if "seccomp" in restrictions:
        for attempt in ("read", "write", "list", "socket", "fork", "execute", "kill"):
            assert found[attempt] == "PermissionError", attempt
    elif "landlock" in restrictions:
        for attempt in ("read", "write", "list", "execute"):
            assert found[attempt] == "PermissionError", attempt
    assert restrictions == ["landlock", "seccomp"] or sys.platform != "linux" or "CI" not in os.environ
