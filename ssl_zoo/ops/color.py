"""Color spaces, for pretext tasks about color."""

import torch
from torch import Tensor

# Linear sRGB -> CIE XYZ, and the white that gives L = 100, a = b = 0 (IEC 61966-2-1, D65, 2 deg).
_XYZ = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
_KNEE = 6 / 29


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB in [0, 1] -> CIE L*a*b* under D65, [N, 3, H, W] float32 -> [N, 3, H, W] float32.

    L is in [0, 100]; a (green to red) is about -86 to 98, b (blue to yellow) -108 to 94.
    """
    images = images.float()
    linear = torch.where(
        images <= 0.04045, images / 12.92, ((images.clamp(min=0) + 0.055) / 1.055) ** 2.4
    )
    red, green, blue = linear.unbind(dim=1)  # [N, H, W] each
    # Numbers and not a matrix: autocast would multiply it in bf16, and Lab be off by whole units;
    # and to bring it to a GPU is a wait.
    of_white = [(r * red + g * green + b * blue) / (r + g + b) for r, g, b in _XYZ]
    xyz = torch.stack(of_white, dim=1)  # over the white's X, Y, Z
    f = torch.where(
        xyz > _KNEE**3, xyz.clamp(min=_KNEE**3) ** (1 / 3), xyz / (3 * _KNEE**2) + 4 / 29
    )
    f_x, f_y, f_z = f.unbind(dim=1)  # [N, H, W] each
    return torch.stack([116 * f_y - 16, 500 * (f_x - f_y), 200 * (f_y - f_z)], dim=1)
