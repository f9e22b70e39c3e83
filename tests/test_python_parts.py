"""What Python gives where YAML has a block: classes, functions, partials, and what is ready."""

from functools import partial

import pytest
import torch
from tiny import TinyNet
from torch import nn

from ssl_zoo import config, evaluation, heads, losses, memory, methods
from ssl_zoo.config import EVALUATIONS, METHODS, ConfigError, Part, bind
from ssl_zoo.config.construct import as_parts
from ssl_zoo.core import Batch
from ssl_zoo.evaluation.monitor import Monitored

N = 8


class Plain(nn.Module):
    """A network that knows nothing of backbones but `num_features`."""

    num_features = 12

    def forward(self, images):
        return images.flatten(1)[:, :12]


def moco(backbone=None, **changed):
    parts = {
        "head": partial(heads.MLP, out_features=4),
        "memory": partial(memory.MoCoQueue, size=16, momentum=0.9),
        "loss": losses.InfoNCE(temperature=0.2),
    }
    backbone = backbone or TinyNet()
    return methods.Contrastive(backbone=backbone, num_samples=20, **parts | changed)


def step(method):
    views = torch.randn(2, N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(list(views), torch.arange(N), torch.zeros(N))
    out = method(batch)
    out["loss"].backward()
    method.after_step(batch, out)
    return out["loss"].item()


@pytest.mark.parametrize(
    "head",
    [
        Part(nn.Linear, out_features=4),
        partial(nn.Linear, out_features=4),
        lambda in_features: nn.Linear(in_features, 4),
    ],
    ids=["part", "partial", "function"],
)
def test_however_a_part_is_written_the_same_is_built(head):
    torch.manual_seed(0)
    plain = nn.Linear(12, 4)
    torch.manual_seed(0)
    method = moco(Plain(), head=head)
    assert torch.equal(method.encoder.head.weight, plain.weight) and step(method) > 0


def test_a_part_gets_what_its_signature_names_and_no_more():
    seen = {}

    class Own(memory.MoCoQueue):
        def __init__(self, encoder, *, size: int = 16):  # no num_samples
            seen["encoder"] = encoder
            super().__init__(encoder, size=size)

    method = moco(TinyNet(in_chans=3), memory=Own)
    assert seen["encoder"] is method.encoder and step(method) > 0


def test_what_is_ready_is_copied_so_that_a_second_run_starts_as_the_first():
    head = nn.Linear(12, 4)
    first, second = (moco(Plain(), head=head) for _ in range(2))
    assert first.encoder.head is not head
    assert torch.equal(first.encoder.head.weight, second.encoder.head.weight)


def test_checks_across_arguments_see_through_partials():
    with pytest.raises(ConfigError, match="MemoryBank recalls its keys"):
        moco(memory=partial(memory.MemoryBank), symmetric=True)


def test_constraints_hold_in_a_partial_too():
    with pytest.raises(ConfigError, match="out of range"):
        moco(memory=partial(memory.MoCoQueue, size=16, momentum=1.5))


def test_an_argument_that_a_part_does_not_have_is_found_before_anything_is_built():
    given = partial(methods.Contrastive, head=partial(heads.MLP, out_feature=4))
    with pytest.raises(ConfigError, match=r"method.head: MLP: .*'out_feature'"):
        as_parts(Part[METHODS], given, "method")


def test_blocks_and_parts_stand_side_by_side():
    block = {"type": "Contrastive", "head": partial(heads.MLP, out_features=4)}
    block |= {"memory": {"type": "EndToEnd"}, "loss": losses.InfoNCE()}
    method = bind(METHODS, block, "method")(backbone=TinyNet(in_chans=3), num_samples=20)
    assert isinstance(method.memory, memory.EndToEnd) and step(method) > 0
    with pytest.raises(ConfigError, match=r"method.memory.momentum: out of range"):
        bind(METHODS, block | {"memory": partial(memory.MoCoQueue, momentum=2.0)}, "method")


def test_keys_of_the_monitor_are_told_from_those_of_the_evaluation():
    part = as_parts(Part[EVALUATIONS, Monitored], partial(evaluation.KNN, k=5, every_epochs=2.0))
    assert part.spelled_out()["k"] == 5 and part.spelled_out()["every_epochs"] == 2.0
    assert part().k == 5 and part.beside().every_epochs == 2.0


def test_an_annotation_for_type_checkers_alone_is_named():
    class Own(memory.MoCoQueue):
        def __init__(self, encoder: "OnlyChecked", *, size: int = 16):  # noqa: F821
            super().__init__(encoder, size=size)

    with pytest.raises(ConfigError, match=r"annotation of .*Own cannot be read: .*'OnlyChecked'"):
        moco(memory=partial(Own, size=16))


def test_arguments_of_a_partial_are_named():
    with pytest.raises(ConfigError, match=r"by name, as in partial\(MLP, name=...\)"):
        moco(head=partial(heads.MLP, 12))


def test_a_head_of_unknown_width_is_refused():
    with pytest.raises(ConfigError, match=r"(?s)method.head: of unknown width.*Sequential"):
        moco(head=nn.Sequential(nn.Linear(12, 4)))


def test_a_run_records_what_python_gave_by_its_name():
    head, loss = partial(heads.MLP, out_features=4), losses.InfoNCE()
    given = partial(methods.Contrastive, head=head, memory=Plain, loss=loss)
    block = as_parts(Part[METHODS], given).spelled_out()
    assert block["type"] == "Contrastive" and block["symmetric"] is False
    assert block["head"]["type"] == "MLP" and block["head"]["out_features"] == 4
    assert block["memory"] == {"type": f"python: {__name__}.Plain"}
    assert block["loss"] == {"type": "python: ssl_zoo.losses.info_nce.InfoNCE"}
    again = bind(METHODS, config.loads(config.dump({"method": block}), "run").data["method"])
    assert again.spelled_out() == block
    with pytest.raises(ConfigError, match=r"(?s)memory.type: .*given in Python.*once more"):
        again(backbone=TinyNet(in_chans=3), num_samples=20)
