"""ssl-zoo import: a published checkpoint as weights that a run starts from."""

import argparse

from ssl_zoo.system.files import check_target, user_path
from ssl_zoo.system.text import show


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Reads a checkpoint of another project (docs/weights.md lists them), says how "
        "it is laid out and how many tensors of how many were loaded, and writes the backbone "
        "alone, for backbone.weights=FILE and ssl_zoo.load(FILE).",
        epilog="examples:\n"
        "  ssl-zoo import moco_v2_800ep_pretrain.pth.tar\n"
        "  ssl-zoo import weights.pth name=resnet18 in_chans=1      # gray images\n"
        "  ssl-zoo import dino_deitsmall16_pretrain.pth options.img_size=96\n"
        "  ssl-zoo import resnet50-1x.pth --from simclr\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=user_path, metavar="FILE", help="or a folder with config.json")
    a_key = "of the block backbone: name, in_chans, options"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=a_key)
    parser.add_argument("--from", dest="layout", metavar="NAME", help="the project [by its keys]")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE", help="[<FILE>.ssl_zoo.safetensors]"
    )
    rest = "load what is there, and leave the rest as it starts"
    parser.add_argument("--partial", action="store_true", help=rest)
    parser.set_defaults(command=import_weights)


def import_weights(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.weights.importing import import_file

    out = arguments.out or arguments.path.with_name(f"{arguments.path.stem}.ssl_zoo.safetensors")
    check_target("--out", out, ".safetensors")
    written = config.Config({"backbone": {}})
    config.override(written, arguments.overrides, "backbone")
    block = written.data["backbone"]
    found = import_file(arguments.path, arguments.layout, block, arguments.partial)
    found.write(out)
    show("\n".join(found.lines))
    backbone = found.header.backbone
    # None: those of a config that the block is laid over are of its own network.
    block = {**backbone, "options": backbone.get("options") or None, "weights": str(out)}
    show(f"written: {out}\n{config.dump({'backbone': block}).strip()}")
    return 0
