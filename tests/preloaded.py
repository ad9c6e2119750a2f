"""`python` without the seconds of imports: commands run as forks of one server that has imported everything once.

`python()` is the path of a program to start in place of `sys.executable`; it knows `-m MODULE`, `-c CODE` and a script.
Beside it are `megadna` and `torchrun`.
The program passes its arguments, environment, folder and standard streams to the server, which forks; signals go to the
fork, its exit status comes back, and it is killed when the program is. Other processes that the fork starts by
`sys.executable` (ranks, the gate's second process) are forks as well. What is about imports, about kill -9 of a tree of
processes or about process groups takes `sys.executable` itself.
"""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PRELOAD = (
    "megadna.train.loop",
    "megadna.train.saving",
    "megadna.hf.export",
    "megadna.hf.importing",
    "megadna.downstream.finetune",
    "megadna.downstream.predict",
    "megadna.downstream.windows",
    "megadna.downstream.splice_sites",
    "megadna.commands.preprocess",
    "transformers.trainer",
    "tensorboard.summary",
)
READ_AT_IMPORT = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "HF_MODULES_CACHE", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


@functools.cache
def python() -> str:
    """Path of the program; the server starts with the first call and ends with this process."""
    folder = tempfile.mkdtemp(prefix="megadna-python-")
    program = Path(folder, "python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    fixed = {name: environment.get(name) for name in READ_AT_IMPORT}
    program.write_text(
        f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"import preloaded\npreloaded.client({folder!r}, {fixed!r}, {sys.executable!r})\n"
    )
    program.chmod(0o755)
    for command, module in (("megadna", "megadna"), ("torchrun", "torch.distributed.run")):
        Path(folder, command).write_text(f'#!/bin/sh\nexec {program} -m {module} "$@"\n')
        Path(folder, command).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, folder, str(os.getpid())], env=environment, stdout=subprocess.PIPE
    )
    assert server.stdout is not None and server.stdout.read(5) == b"ready"
    atexit.register(server.kill)
    return str(program)


def client(folder: str, fixed: dict[str, str | None], executable: str) -> None:
    """What the program does: as `executable` would run the arguments."""
    arguments = sys.argv[1:]
    if any(os.environ.get(name) != value for name, value in fixed.items()) or not arguments:
        os.execv(executable, [executable, *arguments])
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(f"{folder}/socket")
    request = json.dumps({"arguments": arguments, "environment": dict(os.environ), "folder": str(Path.cwd())}).encode()
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(request)
    for number in FORWARDED:
        signal.signal(number, lambda number, _frame: connection.send(bytes([number])))
    status = int.from_bytes(connection.recv(4), "big", signed=True)
    if status < 0:  # ended by a signal, and so does this
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(folder: str, parent: int) -> None:
    """Fork for every connection until `parent` is gone."""
    for module in PRELOAD:
        __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks of this process
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen(64)
    listener.settimeout(2.0)
    os.write(1, b"ready")
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                connection.settimeout(None)
                _command(connection, f"{folder}/python")
            connection.close()


def _command(connection: socket.socket, program: str) -> None:
    """One command: a fork runs it, this process watches it and the client."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    size = int.from_bytes(size, "big")
    text = b""
    while len(text) < size:
        text += connection.recv(size - len(text))
    request = json.loads(text)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(request, streams, program)
    for stream in streams:
        os.close(stream)
    with contextlib.suppress(ProcessLookupError):
        for number in _signals(connection, pid):
            os.kill(pid, number)
    os._exit(0)


def _signals(connection: socket.socket, pid: int) -> Iterator[int]:
    """Signals that the client passes on, until the command ends or the client does."""
    connection.settimeout(0.01)
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
            return
        try:
            words = connection.recv(16)
        except TimeoutError:
            continue
        except ConnectionError:
            words = b""
        if not words:
            yield signal.SIGKILL
            return
        yield from words


def _become(request: dict, streams: list[int], program: str) -> None:
    import threading
    import traceback

    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.executable = program
    if "MEGADNA_LAUNCHER" in os.environ:  # who started the client; this fork's parent ends it with the client
        os.environ["MEGADNA_LAUNCHER"] = str(os.getppid())
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    status = 0
    try:
        _run(request["arguments"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _run(arguments: list[str]) -> None:
    import runpy

    kind, *rest = arguments[1:] if arguments[0] == "-u" else arguments  # torchrun asks for unbuffered streams
    if kind == "-c":
        code, sys.argv = rest[0], ["-c", *rest[1:]]
        sys.path.insert(0, "")
        namespace = {"__name__": "__main__"}
        exec(compile(code, "<string>", "exec"), namespace)
    elif kind == "-m":
        sys.argv = rest
        sys.path.insert(0, "")
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        assert not kind.startswith("-"), f"{kind}: give this option to sys.executable"
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # tests/ itself: its modules are no part of what is served
    serve(sys.argv[1], int(sys.argv[2]))
