"""A file of weights that says what it is of: safetensors, with a header of plain text.

What `ssl-zoo import` and `ssl-zoo export --to safetensors` write, `backbone.weights` reads (as it
does any state_dict of timm's) and `ssl_zoo.load` builds again.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ssl_zoo.backbones.timm_model import TimmModel
from ssl_zoo.config import BACKBONES, bind
from ssl_zoo.system.files import replacing

FORMAT = "1"


@dataclass(frozen=True)
class Header:
    """What is known of a backbone besides its weights.

    Attributes:
        backbone: its block in a config, without `weights`.
        clean: the view that it is judged on, a block of `data.clean`.
        source: what it comes from: of a file its name, its SHA-256 and how it was laid out; of a
            run its path, step and network.
    """

    backbone: dict[str, Any]
    clean: dict[str, Any]
    source: dict[str, Any] = field(default_factory=dict)


def write(path: Path, state: dict[str, Tensor], header: Header) -> None:
    """A reader finds the old file or the whole new one."""
    about = {name: json.dumps(value) for name, value in asdict(header).items()}
    tensors = {name: x.detach().cpu().contiguous() for name, x in state.items()}
    with replacing(path) as staged:
        safetensors.torch.save_file(tensors, staged, {"ssl_zoo": FORMAT, **about})


def read_header(path: Path) -> Header | None:
    """None of a file that is no such file; ValueError of one that another version wrote."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except Exception as error:  # safetensors' own kinds, which have no common one
        raise ValueError(f"{path}: not a safetensors file, or not a whole one: {error}") from error
    if "ssl_zoo" not in about:
        return None
    if about["ssl_zoo"] != FORMAT:
        raise ValueError(f"{path}: of format {about['ssl_zoo']!r}, expected {FORMAT!r}")
    return Header(**{name: json.loads(about[name]) for name in ("backbone", "clean", "source")})


def build(block: dict[str, Any], state: dict[str, Tensor] | None = None) -> TimmModel:
    """The network of a block; with a state_dict of its `model`, which is strict, on its weights."""
    with torch.device("cpu"):
        backbone: nn.Module = bind(BACKBONES, block, "backbone")()
    if state is not None:
        backbone.model.load_state_dict(state)
    return backbone


def load(path: Path, header: Header) -> TimmModel:
    """The backbone of such a file, of which this is the header."""
    return build(header.backbone, safetensors.torch.load_file(path))
