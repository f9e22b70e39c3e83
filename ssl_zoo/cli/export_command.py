"""ssl-zoo export: a run's backbone for other libraries, with a card."""

import argparse

from ssl_zoo.system.files import user_path
from ssl_zoo.system.text import show


def add(commands, common: argparse.ArgumentParser, name: str, summary: str) -> None:
    parser = commands.add_parser(
        name,
        parents=[common],
        help=summary,
        description="Writes a backbone as another library reads it, and README.md beside it: what "
        "it was trained by and on, what it scored under which protocol, and how it is loaded.",
        epilog="examples:\n"
        "  ssl-zoo export RUN --to timm --out exported/timm\n"
        "  ssl-zoo export RUN --to onnx network=teacher --out exported/onnx\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=user_path, metavar="RUN", help="or a checkpoint, or weights")
    parser.add_argument(
        "overrides", nargs="*", metavar="network=NAME", help="[the one that the paper evaluates]"
    )
    formats = "safetensors, timm, torchvision, onnx, detectron2 or transformers"
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    parser.add_argument("--out", required=True, type=user_path, metavar="DIR")
    parser.set_defaults(command=export_weights)


def export_weights(arguments: argparse.Namespace) -> int:
    from ssl_zoo import config
    from ssl_zoo.weights.exporting import export

    written = config.Config({})
    config.override(written, arguments.overrides)
    for key in written.data.keys() - {"network"}:
        raise config.not_among(key, "an export has no such key", key, ["network"])
    for path in export(arguments.path, arguments.to, arguments.out, written.data.get("network")):
        show(path)
    return 0
