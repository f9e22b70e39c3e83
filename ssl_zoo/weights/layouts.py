"""How published checkpoints are laid out: two tables, taken from each project's own code.

`LAYOUTS` says where in a file a project keeps the backbone that it evaluates. `NAMINGS` says how
the tensors of a backbone are called there, and what timm calls them. A file is in the first layout
and the first naming that its keys fit.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# What torch's wrappers put between names: DDP, compile, FSDP, recomputation.
WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
# Tensors among the backbone's that may stay behind: heads of classifiers and of pretext tasks,
# decoders, and buffers that timm makes anew.
NOT_OF_BACKBONE = re.compile(
    r"(?:fc|heads?|linear|classifier|pooler|projection_head|prototypes|decoder\w*)(?:\.|$)"
    r"|mask_token$|decoder_pos_embed$|.*relative_position_index$"
)
ANY = "timm"  # the last of both tables: whatever it holds is called as timm does


class Layout(NamedTuple):
    """Where a project's files keep a backbone.

    Attributes:
        inside: keys from the top of a file to the state_dict, 'a/b'; '' is the top itself.
        prefixes: what the backbone's keys begin with; of several the first that is there.
        has: some key matches, from its beginning; a pattern.
        source: the code that writes the files.
        options: of timm's model, where theirs differs in what no shape tells: {name: options}.
        when: (pattern, options) that hold where some key of the file matches as well.
        normalized: whether its images have ImageNet's mean and deviation taken out.
    """

    inside: tuple[str, ...]
    prefixes: tuple[str, ...]
    has: str
    source: str
    options: dict[str, dict] = {}  # noqa: RUF012
    when: tuple[tuple[str, dict[str, dict]], ...] = ()
    normalized: bool = True


_DINOV3 = tuple(  # those without biases first, which many published ones have, all of them zero
    f"vit_{size}_patch16_dinov3{biases}"
    for size in ("small", "small_plus", "base", "large", "huge_plus")
    for biases in ("", "_qkvb")
)
_DINOV3 += ("vit_7b_patch16_dinov3",)
_BY_CLASS = {name: {"global_pool": "token"} for name in _DINOV3}  # timm averages patches
# Projects save a state_dict as it is, or below one of these; Lightning and mmengine do the latter.
_USUAL = ("state_dict", "model", "model_ema", "state_dict_ema", "")
_FAIR = "github.com/facebookresearch"
_TWELVE_HEADS = {"vit_small_patch16_224": {"num_heads": 12}}
_TINY_TOO = {"vit_tiny_patch16_224": {"num_heads": 12}}
# Whoever has a plain `backbone` beside others evaluates that.
_LIGHTLY_NAMES = tuple(
    f"{who}backbone." for who in ("", "teacher_", "student_", "query_", "online_")
)
# The most telling first. Of two networks the one that the project evaluates: MoCo's query encoder,
# DINO's teacher, I-JEPA's target encoder.
LAYOUTS: dict[str, Layout] = {
    "moco": Layout(_USUAL, ("encoder_q.",), r"encoder_q\.", f"{_FAIR}/moco main_moco.py"),
    "moco-v3": Layout(
        _USUAL,
        ("base_encoder.",),
        r"base_encoder\.",
        f"{_FAIR}/moco-v3 main_moco.py, vits.py",
        options=_TWELVE_HEADS,
    ),
    "simsiam": Layout(
        _USUAL, ("encoder.",), r"encoder\.fc\.6\.", f"{_FAIR}/simsiam simsiam/builder.py"
    ),
    "mae": Layout(_USUAL, ("",), r"decoder_embed\.", f"{_FAIR}/mae util/misc.py, models_mae.py"),
    "dinov3": Layout(
        ("teacher", ""),
        ("backbone.", ""),
        r"(?:backbone\.)?(?:storage_tokens$|rope_embed\.|norms\.3\.)",
        f"{_FAIR}/dinov3 dinov3/train/train.py, dinov3/models",
        options=_BY_CLASS,
    ),
    "dinov2": Layout(
        ("teacher", ""),
        ("backbone.", ""),
        r"(?:backbone\.)?mask_token$",
        f"{_FAIR}/dinov2 dinov2/train/train.py, dinov2/models/vision_transformer.py",
    ),
    "dino": Layout(
        ("teacher",), ("backbone.",), r"backbone\.", f"{_FAIR}/dino main_dino.py, utils.py"
    ),
    "ijepa": Layout(
        ("target_encoder",),
        ("",),
        r"patch_embed\.",
        f"{_FAIR}/ijepa src/train.py, src/models/vision_transformer.py",
    ),
    "swav": Layout(
        _USUAL, ("",), r"(?:projection_head|prototypes)\.", f"{_FAIR}/swav src/resnet50.py"
    ),
    "vissl": Layout(
        ("classy_state_dict/base_model/model/trunk", "model_state_dict", ""),
        ("base_model._feature_blocks.", "_feature_blocks."),
        r"(?:base_model\.)?_feature_blocks\.",
        f"{_FAIR}/vissl extra_scripts/convert_vissl_to_torchvision.py",
    ),
    "simclr-v2": Layout(
        ("resnet",),
        ("",),
        r"net\.1\.blocks\.0\.",
        "github.com/Separius/SimCLRv2-Pytorch convert.py, resnet.py",
        normalized=False,
    ),
    "simclr": Layout(  # its names are torchvision's, so it has to be told: --from simclr
        _USUAL,
        ("",),
        r"(?!)",
        "github.com/tonylins/simclr-converter convert.py, eval.py",
        normalized=False,
    ),
    "mmpretrain": Layout(  # and mmselfsup, from which it has them
        _USUAL,
        ("backbone.",),
        r"(?:data_preprocessor|neck|encoder_k|target_net)\.|head\.(?:fc|layers|predictor)\."
        r"|momentum_encoder\.(?:\d|steps)",
        "github.com/open-mmlab/mmpretrain mmpretrain/models, tools/model_converters",
        when=((r"momentum_encoder\.", _TWELVE_HEADS),),  # MoCo v3's
    ),
    "solo-learn": Layout(
        _USUAL,
        ("backbone.", "encoder."),
        r"(?:classifier|momentum_(?:backbone|encoder|classifier))\.",
        "github.com/vturrisi/solo-learn main_linear.py, solo/methods/base.py",
        when=((r"decoder\.", _TWELVE_HEADS | _TINY_TOO),),  # MAE's
    ),
    "barlowtwins": Layout(
        _USUAL, ("backbone.",), r"bn\.running_mean$", f"{_FAIR}/barlowtwins main.py"
    ),
    "vicreg": Layout(_USUAL, ("backbone.",), r"projector\.", f"{_FAIR}/vicreg main_vicreg.py"),
    "lightly": Layout(
        _USUAL,
        (*(f"{name}vit." for name in _LIGHTLY_NAMES), *_LIGHTLY_NAMES),
        r"(?:\w+_)?backbone\w*\.",
        "github.com/lightly-ai/lightly examples, benchmarks",
    ),
    "transformers": Layout(
        _USUAL,
        ("vit.", "dinov2.", "dinov2_with_registers.", "ijepa.", "resnet.", "convnext.", ""),
        r"(?:\w+\.)?embed(?:dings\.patch_embeddings|der\.embedder)\.",
        "github.com/huggingface/transformers PreTrainedModel.save_pretrained",
        options=_BY_CLASS,
    ),
    "torchvision": Layout(
        _USUAL,
        ("",),
        r"(?:encoder\.layers\.encoder_layer_0|features\.1\.0\.block|layer1\.0\.conv1)\.",
        "github.com/pytorch/vision torchvision/models",
    ),
    ANY: Layout(_USUAL, ("",), "", "github.com/huggingface/pytorch-image-models"),
}


class Naming(NamedTuple):
    """How a network's tensors are called.

    Attributes:
        has: some key matches, from its beginning; a pattern.
        rules: (pattern, its replacement), one after the other, of each key.
        names: timm's models, to be told apart by the shapes of the tensors.
    """

    has: str
    rules: tuple[tuple[str, str], ...]
    names: tuple[str, ...]


_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
_RESNETS += ("wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d")
_CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")
_VITS = tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
_VITS += ("vit_small_patch8_224", "vit_base_patch8_224", "vit_small_patch32_224")
_VITS += ("vit_base_patch32_224", "vit_large_patch32_224", "vit_huge_patch14_224")
_NO_CLASS = ("vit_huge_patch14_gap_224", "vit_giant_patch16_gap_224")
_DINOV2 = tuple(f"vit_{s}_patch14_dinov2" for s in ("small", "base", "large", "giant"))
_DINOV2 += tuple(name.replace("_dinov2", "_reg4_dinov2") for name in _DINOV2)
_QKV = (  # of transformers, as it saves them and, from version 5 on, as it holds them
    (r"attention\.(?:attention\.)?(?:query|q_proj)\.", "attn.q."),
    (r"attention\.(?:attention\.)?(?:key|k_proj)\.", "attn.k."),
    (r"attention\.(?:attention\.)?(?:value|v_proj)\.", "attn.v."),
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
)
_TRANSFORMERS_DINOV3 = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.", ""),
    (r"^(?:model\.)?layer\.", "blocks."),
    *_QKV,
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_LAYERS = tuple(  # children of a torchvision ResNet in an nn.Sequential: maxpool is the fourth
    (rf"^{index}\.", name)
    for index, name in [(0, "conv1."), (1, "bn1."), *((n + 3, f"layer{n}.") for n in range(1, 5))]
)
_LIGHTLY = tuple(  # of lightly's own, which has neither ReLU nor pooling among its children
    (rf"^{index}\.", name)
    for index, name in [(0, "conv1."), (1, "bn1."), *((n + 1, f"layer{n}.") for n in range(1, 5))]
)
NAMINGS: dict[str, Naming] = {
    "ResNet": Naming(r"layer1\.0\.conv1\.", ((r"\.shortcut\.", ".downsample."),), _RESNETS),
    "children of a torchvision ResNet": Naming(r"7\.0\.conv1\.", _LAYERS, _RESNETS),
    "children of lightly's ResNet": Naming(
        r"5\.0\.conv1\.", (*_LIGHTLY, (r"\.shortcut\.", ".downsample.")), _RESNETS
    ),
    "SimCLR's ResNet": Naming(
        r"net\.1\.blocks\.0\.net\.",
        (
            (r"^net\.0\.0\.", "conv1."),
            (r"^net\.0\.1\.0\.", "bn1."),
            (r"^net\.(\d)\.blocks\.(\d+)\.", r"layer\1.\2."),
            (r"\.projection\.shortcut\.", ".downsample.0."),
            (r"\.projection\.bn\.0\.", ".downsample.1."),
            (r"\.net\.0\.", ".conv1."),
            (r"\.net\.1\.0\.", ".bn1."),
            (r"\.net\.2\.", ".conv2."),
            (r"\.net\.3\.0\.", ".bn2."),
            (r"\.net\.4\.", ".conv3."),
            (r"\.net\.5\.0\.", ".bn3."),
        ),
        _RESNETS,
    ),
    "transformers' ResNet": Naming(
        r"embedder\.embedder\.",
        (
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            (r"^encoder\.stages\.0\.layers\.", "layer1."),
            (r"^encoder\.stages\.1\.layers\.", "layer2."),
            (r"^encoder\.stages\.2\.layers\.", "layer3."),
            (r"^encoder\.stages\.3\.layers\.", "layer4."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            *((rf"\.layer\.{n}\.convolution\.", f".conv{n + 1}.") for n in range(3)),
            *((rf"\.layer\.{n}\.normalization\.", f".bn{n + 1}.") for n in range(3)),
        ),
        _RESNETS,
    ),
    "DINOv3's ViT": Naming(r"storage_tokens$|rope_embed\.", (), _DINOV3),
    "transformers' gated DINOv3": Naming(  # of the sizes S+, H+ and 7B
        r"(?:model\.)?layer\.0\.mlp\.gate_proj\.",
        (
            (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
            (r"\.mlp\.up_proj\.", ".mlp.fc1_x."),
            *_TRANSFORMERS_DINOV3,
        ),
        _DINOV3,
    ),
    "transformers' DINOv3": Naming(
        r"(?:model\.)?layer\.0\.attention\.o_proj\.", _TRANSFORMERS_DINOV3, _DINOV3
    ),
    "FAIR's ViT in chunks": Naming(
        r"blocks\.0\.0\.", ((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),), _DINOV2
    ),
    "DINOv2's ViT": Naming(r"blocks\.0\.ls1\.gamma$", (), _DINOV2),
    "ViT": Naming(r"blocks\.0\.attn\.qkv\.", (), _VITS + _NO_CLASS),
    "mmpretrain's ViT": Naming(
        r"layers\.0\.ln1\.",
        (
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.", "blocks."),
            (r"\.ln(\d)\.", r".norm\1."),
            (r"^ln1\.", "norm."),
            (r"^ln2\.", "fc_norm."),
            (r"^pre_norm\.", "norm_pre."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"\.attn\.gamma1\.weight$", ".ls1.gamma"),
            (r"\.ffn\.gamma2\.weight$", ".ls2.gamma"),
        ),
        _VITS,
    ),
    "torchvision's ViT": Naming(
        r"encoder\.layers\.encoder_layer_0\.",
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"^encoder\.ln\.", "norm."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
        ),
        _VITS,
    ),
    "transformers' ViT": Naming(
        r"embeddings\.patch_embeddings\.projection\.",
        (
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.", ""),
            (r"^(?:encoder\.layer|layers)\.", "blocks."),
            *_QKV,
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
            (r"\.mlp\.weights_in\.", ".mlp.w12."),
            (r"\.mlp\.weights_out\.", ".mlp.w3."),
            (r"^layernorm\.", "norm."),
        ),
        (*_VITS, *_NO_CLASS, *_DINOV2),
    ),
    "torchvision's ConvNeXt": Naming(
        r"features\.1\.0\.block\.",
        (
            (r"^features\.0\.", "stem."),
            *((rf"^features\.{2 * n + 1}\.", f"stages.{n}.blocks.") for n in range(4)),
            *((rf"^features\.{2 * n}\.", f"stages.{n}.downsample.") for n in range(1, 4)),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"\.layer_scale$", ".gamma"),
            (r"^classifier\.0\.", "head.norm."),
        ),
        _CONVNEXTS,
    ),
    "transformers' ConvNeXt": Naming(
        r"encoder\.stages\.0\.layers\.0\.dwconv\.",
        (
            (r"^embeddings\.patch_embeddings\.", "stem.0."),
            (r"^embeddings\.layernorm\.", "stem.1."),
            (r"^encoder\.stages\.(\d)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"^encoder\.stages\.(\d)\.layers\.", r"stages.\1.blocks."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv", ".mlp.fc"),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"^layernorm\.", "head.norm."),
        ),
        _CONVNEXTS,
    ),
    "mmpretrain's ConvNeXt": Naming(
        r"stages\.0\.0\.depthwise_conv\.",
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.depthwise_conv\.", ".conv_dw."),
            (r"\.pointwise_conv", ".mlp.fc"),
            (r"^norm3\.", "head.norm."),
        ),
        _CONVNEXTS,
    ),
    "FAIR's ConvNeXt": Naming(r"stages\.0\.0\.dwconv\.", (), _CONVNEXTS),
    ANY: Naming("", (), ()),
}
