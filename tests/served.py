"""The program ``hrrl`` from a server that has imported what it needs: seconds less for each command.

A command is a process of its own all the same, forked where the real one would import for four seconds;
it has the folder, the environment and the files of whoever calls. POSIX only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

# Without site-packages it begins at once.
CLIENT = """#!{python} -SEs
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(call).to_bytes(8, "big")], [0, 1, 2])
server.sendall(call)
sys.exit(int(server.recv(16) or b"1"))
"""


@contextlib.contextmanager
def program(folder: Path) -> Iterator[Path]:
    """A folder for PATH, with a file ``hrrl``."""
    address = folder / "server"
    server = subprocess.Popen([sys.executable, __file__, str(address)])
    client = folder / "bin" / "hrrl"
    client.parent.mkdir()
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)), encoding="utf-8")
    client.chmod(0o755)
    while not address.exists():
        assert server.poll() is None
        time.sleep(0.01)
    try:
        yield client.parent
    finally:
        server.kill()
        server.wait()


def serve(address: str) -> None:
    import sklearn.svm  # noqa: F401
    import torch._dynamo

    import hrrl_ext.cli  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()
    os.rename(address + ".new", address)
    while True:
        caller, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            status = 1
            try:
                status = command(caller)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                caller.sendall(str(status).encode())
                os._exit(0)
        caller.close()


def command(caller: socket.socket) -> int:
    """What the console script does, as the caller would have it done."""
    from hrrl_ext.cli import main

    size, files, _, _ = socket.recv_fds(caller, 8, 3)
    with caller.makefile("rb") as stream:
        arguments, folder, environment = json.loads(stream.read(int.from_bytes(size, "big")))
    for theirs, ours in zip(files, range(3), strict=True):
        os.dup2(theirs, ours)
        os.close(theirs)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["hrrl", *arguments]
    try:
        return main()
    except SystemExit as end:  # of argparse, or of a run that was stopped
        return end.code if isinstance(end.code, int) else 1


if __name__ == "__main__":
    serve(sys.argv[1])
