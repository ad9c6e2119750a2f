"""Run the steps of one stage of the Dockerfile without a container engine, in an environment of their own.

    python tests/launch/dockerfile_steps.py STAGE FOLDER [NAME=VALUE of a build argument ...]

As root, in a mount namespace: /etc, /home and /opt are overlays whose changes land in FOLDER, so the machine stays as
it is, and a later stage finds what an earlier one left. `python` is a virtual environment in FOLDER/opt/venv, in place
of the one that the base image has.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
OVERLAID = ("etc", "home", "opt")


def instructions(stage: str) -> list[tuple[str, str]]:
    """(instruction, argument) of the stage, in order; comments and continued lines are resolved."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    pairs = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]
    begin = next(i for i, (kind, rest) in enumerate(pairs) if kind == "FROM" and rest.endswith(f" AS {stage}"))
    length = next((i for i, (kind, _) in enumerate(pairs[begin + 1 :]) if kind == "FROM"), len(pairs))
    return pairs[begin + 1 : begin + 1 + length]


def shell_script(stage: str, folder: Path, arguments: dict[str, str]) -> str:
    """What bash runs for the stage; it prints each step and ends at the first that fails."""
    lines = ["set -euxo pipefail"]
    for name in OVERLAID:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / f".{name}").mkdir(exist_ok=True)
        layers = f"lowerdir=/{name},upperdir={folder}/{name},workdir={folder}/.{name}"
        lines.append(f"mount -t overlay overlay -o {layers} /{name}")
    lines.append("mount -t tmpfs tmpfs /tmp")
    lines += [f"[ -d /opt/venv ] || {shlex.quote(sys.executable)} -m venv /opt/venv", "PATH=/opt/venv/bin:$PATH"]
    user = ""
    for kind, rest in instructions(stage):
        if kind == "ARG":
            name, _, default = rest.partition("=")
            lines.append(f"export {name}={shlex.quote(arguments.get(name, default))}")
        elif kind == "COPY":
            source, target = rest.split()
            assert source == "."
            files = f"git -C {ROOT} ls-files -z | tar -C {ROOT} --null --files-from - --create"
            lines.append(f"mkdir -p {target}; {files} | tar -C {target} --extract")
        elif kind == "WORKDIR":
            lines += [f"mkdir -p {rest}", f"cd {rest}"]
        elif kind == "RUN":
            lines.append(f"bash -o pipefail -c {shlex.quote(rest)}")
        elif kind == "USER":
            user = f"setpriv --reuid {rest} --clear-groups "
        elif kind == "ENTRYPOINT":
            lines.append(user + shlex.join([*json.loads(rest), "--version"]))
        else:
            assert kind == "SHELL", f"{kind} is not known here"
    return "\n".join(lines)


def main(stage: str, folder: str, *settings: str) -> int:
    """Exit status of the stage's steps."""
    arguments = dict(setting.split("=", 1) for setting in settings)
    script = shell_script(stage, Path(folder).resolve(), arguments)
    return subprocess.run(["unshare", "--mount", "bash", "-c", script]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
