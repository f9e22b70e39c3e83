"""A run's backbone as another library reads it: its files, and the lines that load them.

A library's layout is written here from its own code and not by importing it, so that an export
needs none of them but ONNX's exporter.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.models import ConvNeXt, ResNet, VisionTransformer, save_for_hf
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from ssl_zoo.backbones.timm_model import TimmModel
from ssl_zoo.config import not_among
from ssl_zoo.data.image.geometry import height_and_width
from ssl_zoo.system.files import made_folder, replacing, write_text
from ssl_zoo.weights import file as weights_file
from ssl_zoo.weights.card import markdown
from ssl_zoo.weights.file import Header
from ssl_zoo.weights.taking import take

State = dict[str, Tensor]


def export(path: Path, to: str, folder: Path, network: str | None = None) -> list[Path]:
    """Writes files and a card into a folder; the files' paths.

    Raises:
        ConfigError: no such format or network.
        ValueError: this architecture cannot be had there.
    """
    if to not in FORMATS:
        raise not_among("--to", "no such format", to, FORMATS)
    taken = take(path, network)
    taken.backbone.eval()
    with made_folder(folder):
        files, lines = FORMATS[to](taken.backbone, taken.header, folder)
        write_text(folder / "README.md", markdown(taken.header, taken.subject, to, lines))
    return [*(folder / name for name in files), folder / "README.md"]


Written = tuple[list[str], list[str]]  # names of files; lines of Python that load them


def to_safetensors(backbone: TimmModel, header: Header, folder: Path) -> Written:
    weights_file.write(folder / "model.safetensors", backbone.model.state_dict(), header)
    at = folder / "model.safetensors"
    return ["model.safetensors"], ["import ssl_zoo as sz", f"model = sz.load({str(at)!r})"]


def to_timm(backbone: TimmModel, header: Header, folder: Path) -> Written:
    _refuse_small_stem("timm", header)
    options = {**header.backbone.get("options", {}), "in_chans": backbone.in_chans}
    config = _normalization(header) | {"input_size": (backbone.in_chans, *backbone.made_for)}
    model_config = {"num_classes": 0, "pretrained_cfg": config}
    save_for_hf(backbone.model, folder, model_config, options, safe_serialization=True)
    named = f"local-dir:{folder}"
    lines = ["import timm", f"model = timm.create_model({named!r}, pretrained=True, num_classes=0)"]
    return ["model.safetensors", "config.json"], lines


def to_torchvision(backbone: TimmModel, header: Header, folder: Path) -> Written:
    model, state = backbone.model, backbone.model.state_dict()
    if isinstance(model, ResNet):
        _check_resnet("torchvision", model, header)
        made = _resnet_of_torchvision(model)
    elif isinstance(model, VisionTransformer):
        _check_vit("torchvision", model)
        state, made = _rename(state, _VIT_TORCHVISION), _vit_of_torchvision(model)
    else:
        raise _no("torchvision", header, "ResNets and ViTs")
    with replacing(folder / "model.pth") as staged:
        torch.save(state, staged)
    load = f"model.load_state_dict(torch.load({str(folder / 'model.pth')!r}))"
    head = "fc" if isinstance(model, ResNet) else "heads"
    lines = ["import torch, torchvision", f"model = {made}"]
    return ["model.pth"], [*lines, f"model.{head} = torch.nn.Identity()", load]


def to_detectron2(backbone: TimmModel, header: Header, folder: Path) -> Written:
    """As detection/convert-pretrain-to-detectron2.py of FAIR's moco: a pickle of arrays."""
    if not isinstance(backbone.model, ResNet):
        raise _no("detectron2", header, "ResNets")
    _check_resnet("detectron2", backbone.model, header)
    state = _rename(backbone.model.state_dict(), _DETECTRON2)
    arrays = {name: x.numpy() for name, x in state.items() if "num_batches_tracked" not in name}
    whole = {"model": arrays, "__author__": "ssl_zoo", "matching_heuristics": True}
    with replacing(folder / "model.pkl") as staged:
        staged.write_bytes(pickle.dumps(whole))
    lines = ["from detectron2.checkpoint import DetectionCheckpointer"]
    lines += [f"DetectionCheckpointer(model).load({str(folder / 'model.pkl')!r})"]
    scales = {k: [round(255 * x, 3) for x in v] for k, v in _normalization(header).items()}
    lines += [f"# INPUT.FORMAT RGB, MODEL.RESNETS.STRIDE_IN_1X1 False, MODEL.PIXEL_*: {scales}"]
    return ["model.pkl"], lines


def to_onnx(backbone: TimmModel, header: Header, folder: Path) -> Written:
    """Takes [N, C, H, W] of any N; a ResNet of any size, others of the one they are made for."""
    any_of = {0: torch.export.Dim("N")}
    if isinstance(backbone.model, ResNet):  # nothing in it is of one size
        any_of |= {2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    images = torch.zeros(2, backbone.in_chans, *_size(backbone, header))
    torch.onnx.export(
        backbone,
        (images,),
        folder / "model.onnx",
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"images": any_of},
        external_data=False,
        verbose=False,
    )
    lines = [
        "import onnxruntime",
        f"model = onnxruntime.InferenceSession({str(folder / 'model.onnx')!r})",
    ]
    return ["model.onnx"], [*lines, "[features] = model.run(None, {'images': images})"]


def to_transformers(backbone: TimmModel, header: Header, folder: Path) -> Written:
    """The hub's names, which every version of transformers reads."""
    model = backbone.model
    if isinstance(model, ResNet):
        _check_resnet("transformers", model, header)
        config, rules = _resnet_config(model), _RESNET_TRANSFORMERS
        kind, features = "ResNetModel", "pooler_output.flatten(1)"
    elif isinstance(model, VisionTransformer):
        _check_vit("transformers", model)
        config, rules = _vit_config(model), _VIT_TRANSFORMERS
        kind, features = "ViTModel", "last_hidden_state[:, 0]"
    elif isinstance(model, ConvNeXt):
        config, rules = _convnext_config(model, header), _CONVNEXT_TRANSFORMERS
        kind, features = "ConvNextModel", "pooler_output"
    else:
        raise _no("transformers", header, "ResNets, ViTs and ConvNeXts")
    config |= {"architectures": [kind], "num_channels": backbone.in_chans}
    state = _rename(_divided(model.state_dict()), rules)
    # timm may have a 1 x 1 convolution where transformers has a linear layer.
    state = {
        name: x.flatten(1) if ".pwconv" in name and x.ndim == 4 else x for name, x in state.items()
    }
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    extra = ", add_pooling_layer=False" if kind == "ViTModel" else ""
    lines = ["import transformers"]
    lines += [f"model = transformers.{kind}.from_pretrained({str(folder)!r}{extra})"]
    lines += [f"features = model(images).{features}"]
    return ["model.safetensors", "config.json"], lines


FORMATS: dict[str, Callable[[TimmModel, Header, Path], Written]] = {
    "safetensors": to_safetensors,
    "timm": to_timm,
    "torchvision": to_torchvision,
    "onnx": to_onnx,
    "detectron2": to_detectron2,
    "transformers": to_transformers,
}


# What each library has, and what it calls it.

_DETECTRON2 = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    *((rf"^layer{n}\.", f"res{n + 1}.") for n in range(1, 5)),
    (r"(^|\.)bn(\d)\.", r"\1conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_RESNET_TRANSFORMERS = (
    (r"^conv1\.", "embedder.embedder.convolution."),
    (r"^bn1\.", "embedder.embedder.normalization."),
    *((rf"^layer{n + 1}\.(\d+)\.", rf"encoder.stages.{n}.layers.\1.") for n in range(4)),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    *((rf"\.conv{n + 1}\.", f".layer.{n}.convolution.") for n in range(3)),
    *((rf"\.bn{n + 1}\.", f".layer.{n}.normalization.") for n in range(3)),
)
_VIT_TORCHVISION = (
    (r"^cls_token$", "class_token"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^norm\.", "encoder.ln."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
)
_VIT_TRANSFORMERS = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.(query|key|value)\.", r".attention.attention.\1."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_CONVNEXT_TRANSFORMERS = (
    (r"^stem\.0\.", "embeddings.patch_embeddings."),
    (r"^stem\.1\.", "embeddings.layernorm."),
    (r"^head\.norm\.", "layernorm."),
    (r"^stages\.(\d)\.downsample\.", r"encoder.stages.\1.downsampling_layer."),
    (r"^stages\.(\d)\.blocks\.(\d+)\.norm\.", r"encoder.stages.\1.layers.\2.layernorm."),
    (r"^stages\.(\d)\.blocks\.", r"encoder.stages.\1.layers."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc", ".pwconv"),
    (r"\.gamma$", ".layer_scale_parameter"),
)


def _rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, x in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        renamed[key] = x.contiguous()
    return renamed


def _divided(state: State) -> State:
    """A ViT's queries, keys and values as tensors of their own."""
    divided = {}
    for key, x in state.items():
        if ".attn.qkv." in key:
            parts = zip(("query", "key", "value"), x.chunk(3), strict=True)
            divided |= {key.replace(".qkv.", f".{name}."): part for name, part in parts}
        else:
            divided[key] = x
    return divided


_ACT = re.compile(r"(?:^|\.)act\d?$")


def _no(library: str, header: Header, known: str) -> ValueError:
    return ValueError(f"{header.backbone['name']} cannot go to {library}: it takes {known}")


def _refuse_small_stem(library: str, header: Header) -> None:
    if header.backbone.get("small_images"):
        raise ValueError(f"small_images cannot go to {library}: its ResNets have a 7 x 7 stem")


def _check_resnet(library: str, model: ResNet, header: Header) -> None:
    """ValueError for a ResNet that is not the one of arXiv:1512.03385, which libraries have."""
    _refuse_small_stem(library, header)
    first, names = model.layer1[0], model.state_dict()
    inner = [first.se, getattr(first, "aa", None)]
    odd = ["a deep stem"] * (not isinstance(model.conv1, nn.Conv2d))
    odd += ["layers within blocks"] * any(
        x is not None and type(x) is not nn.Identity for x in inner
    )
    odd += ["pooled shortcuts"] * any(".downsample.2." in name for name in names)
    odd += _other_activation(model, "ReLU")
    convs = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    odd += ["dilation"] * any(conv.dilation != (1, 1) for conv in convs)
    if library == "transformers" and isinstance(first, Bottleneck):
        odd += ["grouped convolutions"] * (first.conv2.groups > 1)
        odd += ["wide blocks"] * (first.conv2.out_channels * 4 != first.conv3.out_channels)
    expansion = 4 if isinstance(first, Bottleneck) else 1
    if library == "torchvision" and model.num_features != 512 * expansion:
        odd.append(f"{model.num_features} channels")
    if odd:
        problem = f"{header.backbone['name']} with these options cannot go to {library}"
        raise ValueError(f"{problem}: its ResNets are plain; found {', '.join(odd)}")


def _other_activation(model: nn.Module, expected: str) -> list[str]:
    """By the names of classes, since timm has some of its own."""
    acts = [part for name, part in model.named_modules() if _ACT.search(name)]
    found = {type(act).__name__ for act in acts} - {expected, "Identity"}
    found |= {"GELU by tanh" for act in acts if getattr(act, "approximate", "none") != "none"}
    return [f"activations {name}" for name in sorted(found)]


def _check_vit(library: str, model: VisionTransformer) -> None:
    """ValueError for a ViT that is not the one of arXiv:2010.11929, pooled by its class token."""
    names = " ".join(model.state_dict())
    others = (
        "ls1",
        "reg_token",
        "fc_norm",
        "norm_pre",
        "q_norm",
        "attn_pool",
        "mlp.norm",
        "mlp.fc1_g",
    )
    odd = [name for name in others if name in names]
    odd += _other_activation(model, "GELU")
    if model.cls_token is None or model.global_pool != "token":
        odd.append(f"global_pool {model.global_pool}")
    if odd or model.no_embed_class or "qkv.bias" not in names:
        found = ", ".join(odd) or "other positions or biases"
        raise ValueError(f"this ViT cannot go to {library}: its ViTs are plain; found {found}")


def _layers(model: ResNet) -> list[int]:
    return [len(getattr(model, f"layer{n}")) for n in range(1, 5)]


def _resnet_of_torchvision(model: ResNet) -> str:
    kind = "Bottleneck" if isinstance(model.layer1[0], Bottleneck) else "BasicBlock"
    conv = model.layer1[0].conv2
    width = conv.out_channels // conv.groups
    more = f", groups={conv.groups}" if conv.groups > 1 else ""
    more += f", width_per_group={width}" if (conv.groups, width) != (1, 64) else ""
    made = f"torchvision.models.resnet.ResNet(torchvision.models.resnet.{kind}, {_layers(model)}"
    return f"{made}{more})"


def _vit_of_torchvision(model: VisionTransformer) -> str:
    size, patch = model.patch_embed.img_size[0], model.patch_embed.patch_size[0]
    block = model.blocks[0]
    sizes = [size, patch, len(model.blocks), block.attn.num_heads, model.embed_dim]
    sizes += [block.mlp.fc1.out_features]
    return f"torchvision.models.VisionTransformer({', '.join(map(str, sizes))})"


def _resnet_config(model: ResNet) -> dict[str, Any]:
    bottleneck = isinstance(model.layer1[0], Bottleneck)
    last = [getattr(model, f"layer{n}")[-1] for n in range(1, 5)]
    return {
        "model_type": "resnet",
        "embedding_size": model.conv1.out_channels,
        "hidden_sizes": [(x.bn3 if bottleneck else x.bn2).num_features for x in last],
        "depths": _layers(model),
        "layer_type": "bottleneck" if bottleneck else "basic",
        "hidden_act": "relu",
    }


def _vit_config(model: VisionTransformer) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "model_type": "vit",
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "image_size": list(model.patch_embed.img_size),
        "patch_size": list(model.patch_embed.patch_size),
        "layer_norm_eps": model.norm.eps,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }


def _convnext_config(model: ConvNeXt, header: Header) -> dict[str, Any]:
    names = " ".join(model.state_dict())
    odd = "grn" in names or ".gamma" not in names or isinstance(model.stem[0], nn.Sequential)
    if odd or _other_activation(model, "GELU"):
        raise _no("transformers", header, "ConvNeXts as published first, with layer scale and GELU")
    return {
        "model_type": "convnext",
        "hidden_sizes": [info["num_chs"] for info in model.feature_info],
        "depths": [len(stage.blocks) for stage in model.stages],
        "num_stages": len(model.stages),
        "patch_size": model.stem[0].kernel_size[0],
        "layer_norm_eps": model.head.norm.eps,
        "hidden_act": "gelu",
    }


def _normalization(header: Header) -> dict[str, Any]:
    """The mean and deviation that its clean view takes out of pixels in [0, 1]."""
    ops: Mapping[str, Any] = header.clean.get("ops", {})
    last = next((op for op in ops.values() if op.get("type") == "Normalize"), None)
    last = last or {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    return {"mean": tuple(last["mean"]), "std": tuple(last["std"])}


def _size(backbone: TimmModel, header: Header) -> tuple[int, int]:
    """Of the clean view where that says it, else the one that the backbone is made for."""
    sizes = [op["size"] for op in header.clean.get("ops", {}).values() if "size" in op]
    return tuple(height_and_width(sizes[-1])) if sizes else tuple(backbone.made_for)
