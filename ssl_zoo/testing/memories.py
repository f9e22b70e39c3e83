"""What every memory must do, at one process and at two."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_zoo.config import MEMORY, Part
from ssl_zoo.config.constraints import SCHEDULED, marked
from ssl_zoo.heads import Linear
from ssl_zoo.losses import InfoNCE
from ssl_zoo.memory import Memory
from ssl_zoo.methods import Contrastive
from ssl_zoo.system import distributed
from ssl_zoo.testing.check import Check, each, part_of
from ssl_zoo.testing.methods import longer
from ssl_zoo.testing.ranks import on_ranks
from ssl_zoo.testing.tiny import TinyNet, noise_batch, share

N, SAMPLES, WIDTH = 8, 64, 6


def memory_checks(memory: Part | type[Memory] | Callable[..., Memory]) -> list[Check]:
    """Checks of a memory: a class, or `functools.partial(MyMemory, size=20)`.

    A contrastive method looks up in it with batches of 8 out of 64 images, and embeddings in 6
    dimensions.
    """
    part, name = part_of(MEMORY, memory)
    return each(CHECKS, part, name)


def method_with(memory: Part, num_samples: int = SAMPLES, symmetric: bool = False) -> Contrastive:
    torch.manual_seed(0)
    head, loss = partial(Linear, out_features=WIDTH), partial(InfoNCE, temperature=0.2)
    parts = {"head": head, "memory": memory, "loss": loss, "symmetric": symmetric}
    return Contrastive(TinyNet(), num_samples, **parts)


def updated(method: Contrastive, number: int, n: int = N) -> None:
    """What a step's n images change, without the optimizer."""
    whole = noise_batch(n, number, num_samples=SAMPLES)
    method.after_step(whole, {name: value.detach() for name, value in method(whole).items()})


def encoded(method: Contrastive, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [N, D], keys [N, D] and positions [N] of a step's batch."""
    whole = noise_batch(N, number, num_samples=SAMPLES)
    out = method(whole)
    return out["q"][:, 0], out["k"][:, 0], whole.index


def keys_are_unit_vectors_and_carry_a_gradient_as_declared(memory: Part, folder: Path) -> None:
    method = method_with(memory)
    _, k, _ = encoded(method, 0)
    assert k.shape == (N, WIDTH), f"keys {list(k.shape)} of {N} images, expected {[N, WIDTH]}"
    torch.testing.assert_close(k.detach().norm(dim=1), torch.ones(N))
    online = method.memory.online_keys
    assert k.requires_grad == online, f"online_keys is {online}, a key's gradient {not online}"


def a_look_up_answers_what_it_is_asked(memory: Part, folder: Path) -> None:
    method = method_with(memory)
    for number in range(3):
        q, k, index = encoded(method, number)
        found = method.memory.lookup(q, k, index)
        torch.testing.assert_close(found.q, q)
        torch.testing.assert_close(found.positive, k)
        assert found.num_negatives > 0, "no negatives"
        lengths = found.dictionary.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), msg="not of unit length")
        if found.index is not None:
            inside = (found.index >= -1) & (found.index < SAMPLES)
            assert found.index.shape == lengths.shape and inside.all(), "`index`: positions, or -1"
        updated(method, number)


def no_key_is_a_negative_of_its_own_image(memory: Part, folder: Path) -> None:
    method = method_with(memory)
    for number in range(4):
        _, k, index = encoded(method, number)
        nearest = method.memory.lookup(k, k, index).negatives.max()
        assert nearest < 1 - 1e-6, "the dictionary has the batch's own keys before the update"
        updated(method, number)


def what_is_drawn_is_a_function_of_seed_and_step(memory: Part, folder: Path) -> None:
    method = method_with(memory)
    for number in range(2):
        q, k, index = encoded(method, number)
        rng = torch.get_rng_state()
        first, again = (method.memory.lookup(q, k, index).negatives for _ in range(2))
        assert torch.equal(first, again), "one step's look-up gives different negatives"
        assert torch.equal(rng, torch.get_rng_state()), "drawn from torch's generator"
        updated(method, number)
        assert method.memory.steps == number + 1, "update begins with super().update(...)"


def its_state_is_in_the_checkpoint(memory: Part, folder: Path) -> None:
    method, other = method_with(memory), method_with(memory)
    for number in range(3):
        updated(method, number)
    other.load_state_dict(method.state_dict())
    whole = noise_batch(N, 3, num_samples=SAMPLES)
    assert torch.equal(method(whole)["loss"], other(whole)["loss"]), "another loss after loading"


def what_it_keeps_is_described(memory: Part, folder: Path) -> None:
    method = method_with(memory)
    kept = method.memory
    if not hasattr(kept, "stored"):
        return
    for number in range(3):
        updated(method, number)
        assert kept.stored.ndim == 2 and kept.stored.shape[1] == WIDTH, "`stored` is [M, D]"
        assert kept.written.shape == kept.stored.shape[:1], "`written` is [M]"
        assert (kept.written[kept.rows] == number + 1).all(), "`written` is the step of `rows`"
        lengths = kept.stored.norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), msg="not of unit length")


def what_has_a_row_for_each_image_is_declared(memory: Part, folder: Path) -> None:
    fewer, more = (method_with(memory, SAMPLES + n).memory for n in (0, 7))
    declared = {
        f"{prefix}.{name}".removeprefix("."): [dim]
        for prefix, module in fewer.named_modules()
        for name, dim in getattr(module, "per_sample", {}).items()
    }
    found = longer(fewer.state_dict(), more.state_dict())
    assert found == declared, f"per_sample: declared {declared}, found {found}"


def scheduled_numbers_are_attributes(memory: Part, folder: Path) -> None:
    kept = vars(method_with(memory).memory)
    for name in marked(memory.target, SCHEDULED):
        assert type(kept.get(name)) is float, f"{name} is Scheduled, and no attribute"


def any_batch_will_do(memory: Part, folder: Path) -> None:
    for n in (2, 5, 13, 40):
        method = method_with(memory)
        for number in range(2):
            updated(method, number, n)
        loss = method(noise_batch(n, 2, num_samples=SAMPLES))["loss"]
        assert loss.isfinite(), f"a batch of {n}: loss {loss}"


def two_steps(memory: Part, symmetric: bool) -> dict[str, Any]:
    """Loss, gradients and memory after two steps of a global batch of 8, on any world size."""
    method = method_with(memory, symmetric=symmetric)
    optimizer = torch.optim.SGD(method.param_groups(0.0), lr=0.1)
    losses, gradients = [], []
    for number in range(2):
        whole = noise_batch(N, number, num_samples=SAMPLES)
        part = share(whole, distributed.rank(), distributed.world())
        out = method(part)
        optimizer.zero_grad()
        out["loss"].backward()
        for p in method.encoder.parameters():
            p.grad = distributed.mean(p.grad)  # as DistributedDataParallel does
        losses.append(distributed.mean(out["loss"].detach()))
        gradients += [p.grad.clone() for p in method.encoder.parameters()]
        optimizer.step()
        method.after_step(part, {n: v.detach() for n, v in out.items()})
    return {"losses": losses, "gradients": gradients, "memory": dict(method.memory.state_dict())}


def each_way(memory: Part) -> list[dict[str, Any]]:
    """`two_steps` in one direction, and in both where the memory can."""
    return [two_steps(memory, both) for both in (False, True)[: memory.target.num_views]]


def two_processes_equal_one_in_loss_gradient_and_memory(memory: Part, folder: Path) -> None:
    one = each_way(memory)
    for rank in on_ranks(2, each_way, memory):
        torch.testing.assert_close(rank, one)


CHECKS = (
    keys_are_unit_vectors_and_carry_a_gradient_as_declared,
    a_look_up_answers_what_it_is_asked,
    no_key_is_a_negative_of_its_own_image,
    what_is_drawn_is_a_function_of_seed_and_step,
    its_state_is_in_the_checkpoint,
    what_it_keeps_is_described,
    what_has_a_row_for_each_image_is_declared,
    scheduled_numbers_are_attributes,
    any_batch_will_do,
    two_processes_equal_one_in_loss_gradient_and_memory,
)
