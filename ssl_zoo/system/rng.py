"""Random numbers as a pure function of what they are for, and the state of the global generators.

Each is a hash of a few integers (seed, epoch, index, view, operation), whatever was drawn before
and by whom. Integer arithmetic only, so CPU and GPU agree to the bit.
"""

import hashlib
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_zoo.system import distributed

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as a signed 64-bit number
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor | np.ndarray, bits: int) -> Tensor | np.ndarray:
    """Logical right shift; `>>` on int64 copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor | np.ndarray) -> Tensor | np.ndarray:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014); int64 multiplication wraps."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def reduced(number: int) -> int:
    """A number below 2^64, as generators want it: the number itself, or else a hash of it."""
    if number < 2**64:
        return number
    whole = number.to_bytes(-(-number.bit_length() // 8), "big")
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big")


def code(name: int | str) -> int:
    """A signed 64-bit number for a name or any integer from -2^63 on, the same in every process."""
    number = reduced(name) if isinstance(name, int) else zlib.crc32(name.encode())
    return number - 2**64 if number >= 2**63 else number


def hashed(*keys: Tensor | int | str) -> Tensor:
    """Hash of integers and names, [broadcast shape of the tensors among them] int64."""
    if any(isinstance(key, Tensor) and key.device.type != "cpu" for key in keys):
        return _hashed_on_gpu(*keys)
    # NumPy computes the same at a quarter of the cost: these are many operations on few numbers.
    state = np.zeros((), dtype=np.int64)
    with np.errstate(over="ignore"):
        for key in keys:
            key = key.numpy() if isinstance(key, Tensor) else np.int64(code(key))
            state = _mix((state ^ key) + _GOLDEN)
    return torch.from_numpy(np.asarray(state))


def _hashed_on_gpu(*keys: Tensor | int | str) -> Tensor:
    state = torch.zeros((), dtype=torch.int64)
    for key in keys:
        key = key if isinstance(key, Tensor) else torch.tensor(code(key))
        if key.device != state.device:
            # A CPU scalar mixes with GPU tensors as it is; a vector moves, never off the GPU.
            if state.dim() and state.device.type == "cpu":
                state = state.to(key.device, non_blocking=True)
            elif key.dim() and key.device.type == "cpu":
                key = key.to(state.device, non_blocking=True)
        state = _mix((state ^ key) + _GOLDEN)
    return state


def uniform(*keys: Tensor | int | str) -> Tensor:
    """Uniform on [0, 1), float32 with 24 random bits, a function of the keys alone."""
    return _shift(hashed(*keys), 40).to(torch.float32) * 2.0**-24


def integers(n: int, *keys: Tensor | int | str) -> Tensor:
    """Integers on [0, n), int64, a function of the keys; uniform but for a bias of n / 2^63."""
    return _shift(hashed(*keys), 1) % n


def permutation(n: int, *keys: Tensor | int | str, device: torch.device | str = "cpu") -> Tensor:
    """A permutation of n, [n] int64, a function of the keys alone."""
    return torch.argsort(hashed(*keys, torch.arange(n, device=device)), stable=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """Of torch's, NumPy's and Python's generators, in tensors and plain values, for checkpoints."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [str(kind), keys.tolist(), int(position), int(has_gauss), float(cached)],
        "python": [version, list(words), gauss],
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def seed_all(seed: int) -> None:
    """All ranks alike, by any integer from 0 on."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(reduced(seed))


def seed_rank(seed: int) -> None:
    """torch's generators alone, so that each rank draws its own."""
    torch.manual_seed(reduced(seed * 1_000_003 + distributed.rank()))


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Whatever is seeded or drawn inside, outside the generators are as they were."""
    state = random_state(device)
    try:
        yield
    finally:
        set_random_state(state, device)
