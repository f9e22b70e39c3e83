"""Masked methods against their equations written out plainly, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import LayerNorm

from ssl_zoo.backbones import Backbone, Timm
from ssl_zoo.config import ConfigError, Part
from ssl_zoo.core import Batch
from ssl_zoo.heads import DiscreteVAE, ViTDecoder
from ssl_zoo.heads.decoder import sincos_positions
from ssl_zoo.methods.beit import BEiT
from ssl_zoo.methods.data2vec import Data2Vec
from ssl_zoo.methods.ijepa import IJEPA
from ssl_zoo.methods.mae import MAE
from ssl_zoo.methods.maskfeat import MaskFeat, hog
from ssl_zoo.methods.simmim import SimMIM
from ssl_zoo.ops.masking import block
from ssl_zoo.ops.patches import patchify
from ssl_zoo.system import rng

N, SIZE, PATCH, GRID, WIDTH = 3, 16, 4, 4, 16
L = GRID * GRID
DECODER = Part(ViTDecoder, width=16, depth=1, num_heads=2)
TOKENIZER = Part(DiscreteVAE, vocabulary=6, width=8, kl_weight=0.1)


def vit(channels: int = 2, **options) -> Backbone:
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    return Timm(name="vit_tiny_patch16_224", in_chans=channels, options=sizes | options)


def batch(channels: int = 2) -> Batch:
    images = torch.randn(N, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    index = torch.tensor([7, 0, 31])
    return Batch([images], index, index % 3)


def patch(images: torch.Tensor, n: int, number: int) -> torch.Tensor:
    """Patch `number` of image n, [C, p, p]."""
    top, left = PATCH * (number // GRID), PATCH * (number % GRID)
    return images[n, :, top : top + PATCH, left : left + PATCH]


def gradient(method, loss) -> list[torch.Tensor]:
    parameters = [p for p in method.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_same_with_gradient(method, value, expected):
    torch.testing.assert_close(value, expected)
    ours, theirs = gradient(method, value), gradient(method, expected)
    assert any(g.any() for g in ours)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def spy(monkeypatch, module, name: str) -> list:
    """What a function of a module is called with and returns from now on."""
    calls, original = [], getattr(module, name)

    def called(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    monkeypatch.setattr(module, name, called)
    return calls


def masked_input(method, monkeypatch) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """forward's outputs, the mask [N, L] that the ViT was given, and its patches' tokens."""
    calls = spy(monkeypatch, method.encoder.backbone, "tokens")
    out = method(batch())
    (_, masked, token), _, z = calls[0]
    assert token is method.mask_token
    return out, masked, z[:, 1:]


# Parts


def test_patchify_cuts_row_by_row():
    images = batch().views[0]
    cut = patchify(images, (PATCH, PATCH))
    assert cut.shape == (N, L, 2 * PATCH * PATCH)
    for number in range(L):
        assert torch.equal(cut[1, number], patch(images, 1, number).flatten())


def test_decoder_positions_are_sines_and_cosines_of_row_and_column():
    table = sincos_positions((3, 5), 8)
    assert table.shape == (15, 8)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (row, column):
                angles = [place * 10000.0 ** (-i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[row * 5 + column], torch.tensor(expected))


def test_decoder_tells_places_apart_and_cares_for_no_order_of_what_was_seen():
    decoder = DECODER(in_features=5, out_features=3, grid=(GRID, GRID)).eval()
    x, seen = torch.randn(2, 5, 5), torch.tensor([[3, 0, 9, 12]] * 2)  # a class token first
    wanted = torch.tensor([[1, 2, 15]] * 2)
    y = decoder(x, seen, wanted)
    assert y.shape == (2, 3, 3)
    assert not torch.allclose(y[:, 0], y[:, 1], atol=1e-4)
    turned = torch.cat([x[:, :1], x[:, 1:].flip(1)], dim=1)
    torch.testing.assert_close(decoder(turned, seen.flip(1), wanted), y)
    torch.testing.assert_close(decoder(x, seen, wanted.flip(1)), y.flip(1))
    assert not torch.allclose(decoder(x, seen.flip(1), wanted), y, atol=1e-4)


@pytest.mark.parametrize("width, num_heads", [(6, 2), (16, 3), (0, 1)])
def test_decoder_refuses_widths_that_do_not_divide(width, num_heads):
    with pytest.raises(ConfigError, match="width"):
        ViTDecoder(5, 3, (GRID, GRID), width=width, num_heads=num_heads)


MAKE = {
    "MAE": lambda backbone: MAE(backbone, decoder=DECODER),
    "SimMIM": lambda backbone: SimMIM(backbone, mask_patch=8),
    "MaskFeat": lambda backbone: MaskFeat(backbone, cell=2),
    "BEiT": lambda backbone: BEiT(backbone, tokenizer=TOKENIZER, tokenizer_steps=2),
    "Data2Vec": lambda backbone: Data2Vec(backbone, top_blocks=2),
    "IJEPA": lambda backbone: IJEPA(backbone, predictor=DECODER),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_norm_after_pooling_that_tokens_would_not_train_is_refused(name):
    with pytest.raises(ConfigError, match="fc_norm: false"):
        MAKE[name](vit(global_pool="avg"))
    method = MAKE[name](vit(global_pool="avg", fc_norm=False))
    assert isinstance(method.encoder.backbone.model.norm, LayerNorm)


@pytest.mark.parametrize("name", MAKE)
def test_attention_that_pools_and_that_tokens_would_not_train_is_refused(name):
    with pytest.raises(ConfigError, match="pools by attention") as caught:
        MAKE[name](vit(global_pool="map"))
    assert caught.value.key == "backbone.options"


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("size", [SIZE - PATCH, SIZE + PATCH])
def test_images_that_masks_do_not_fit_are_refused(name, size):
    method, index = MAKE[name](vit(dynamic_img_size=True)), torch.arange(N)
    said = f"images of {size} x {size} pixels make .* expected {SIZE} x {SIZE} pixels"
    with pytest.raises(ValueError, match=said):
        method(Batch([torch.randn(N, 2, size, size)], index, index))
    assert method(batch())["loss"].isfinite()


@pytest.mark.parametrize("name", MAKE)
def test_images_of_another_shape_with_as_many_patches_are_refused(name):
    method, index = MAKE[name](vit(dynamic_img_size=True)), torch.arange(N)
    said = f"images of {SIZE // 2} x {2 * SIZE} pixels make .* expected {SIZE} x {SIZE} pixels"
    with pytest.raises(ValueError, match=said):
        method(Batch([torch.randn(N, 2, SIZE // 2, 2 * SIZE)], index, index))


@pytest.mark.parametrize("name", MAKE)
def test_masks_are_of_the_sample_and_the_step_alone(name):
    method, whole = MAKE[name](vit()).eval(), batch()
    alone = Batch([whole.views[0][1:2]], whole.index[1:2], whole.label[1:2])
    keyed = []
    for part in (whole, alone):
        method.random_key = lambda purpose, index: (
            keyed.append(rng.hashed(purpose, index)) or keyed[-1]
        )
        method(part)
    half = len(keyed) // 2
    assert half and all(
        torch.equal(a[1:2], b) for a, b in zip(keyed[:half], keyed[half:], strict=True)
    )
    del method.random_key
    before = method(whole)["loss"]
    assert torch.equal(method(whole)["loss"], before)
    method.steps += 1
    assert not torch.equal(method(whole)["loss"], before)


@pytest.mark.parametrize("name", [name for name in MAKE if name != "IJEPA"])
def test_the_share_that_is_masked_may_change_from_step_to_step(name, monkeypatch):
    method, counts = MAKE[name](vit()), []
    calls = spy(monkeypatch, method.encoder.backbone, "tokens")
    for method.mask_ratio in (0.25, 0.75, 0.0):
        assert method(batch())["loss"].isfinite()
        (_, *masked), named, _ = calls[-1]
        counts.append(L - named["kept"].shape[1] if named else masked[0].sum().item() // N)
    unit = 4 if name == "SimMIM" else 1  # patches that are masked together
    assert counts == [4, 12, unit]


def test_ijepas_shares_may_change_from_step_to_step():
    method = MAKE["IJEPA"](vit())
    method.target_scale, method.context_scale, method.context_kept = 0.25, 1.0, 0.125
    context, targets = method.blocks(torch.arange(N))
    assert context.shape == (N, 2) and targets.shape == (N, 4, 4)
    with pytest.raises(ConfigError, match="at most context_scale") as caught:
        IJEPA(vit(), predictor=DECODER, context_scale=0.3)
    assert caught.value.key == "context_kept"


# MAE


@pytest.mark.parametrize("normalize", [True, False])
def test_mae_is_the_squared_error_of_what_the_encoder_did_not_see(normalize, monkeypatch):
    method = MAE(vit(), decoder=DECODER, normalize_pixels=normalize)
    calls = spy(monkeypatch, method.encoder.backbone, "tokens")
    loss, images = method(batch())["loss"], batch().views[0]
    kept = calls[0][1]["kept"]
    assert kept.shape == (N, L // 4)
    z = method.encoder.backbone.tokens(images, kept=kept)
    total, count = 0.0, 0
    for n in range(N):
        hidden = [i for i in range(L) if i not in kept[n].tolist()]
        assert len(hidden) == L - L // 4
        y = method.encoder.head(z[n : n + 1], kept[n : n + 1], torch.tensor([hidden]))[0]
        for row, number in enumerate(hidden):
            x = patch(images, n, number).flatten()
            if normalize:
                x = (x - x.mean()) / (x.var() + 1e-6) ** 0.5
            total = total + ((y[row] - x) ** 2).mean()
            count += 1
    assert_same_with_gradient(method, loss, total / count)


def test_mae_encoder_never_sees_masked_pixels(monkeypatch):
    method, given = MAE(vit(), decoder=DECODER), batch()
    calls = spy(monkeypatch, method.encoder.backbone, "tokens")
    method(given)
    kept, z = calls[0][1]["kept"], calls[0][2]
    other = torch.randn_like(given.views[0])
    for n in range(N):
        for number in kept[n].tolist():
            patch(other, n, number).copy_(patch(given.views[0], n, number))
    torch.testing.assert_close(method.encoder.backbone.tokens(other, kept=kept), z)


# SimMIM


def test_simmim_is_the_absolute_error_of_masked_pixels(monkeypatch):
    method = SimMIM(vit(), mask_patch=8, mask_ratio=0.6)
    out, masked, z = masked_input(method, monkeypatch)
    y, images, errors = method.encoder.head(z), batch().views[0], []
    for n in range(N):
        for number in range(L):
            if masked[n, number]:
                for a, b in zip(y[n, number], patch(images, n, number).flatten(), strict=True):
                    errors.append((a - b).abs())
    assert_same_with_gradient(method, out["loss"], sum(errors) / len(errors))


def test_simmim_masks_whole_units_as_many_in_each_sample():
    method = SimMIM(vit(), mask_patch=8, mask_ratio=0.6)  # 2 x 2 units of 2 x 2 patches
    masks = method.masks(torch.arange(50)).view(50, GRID, GRID)
    units = masks[:, ::2, ::2]
    for down, across in ((0, 1), (1, 0), (1, 1)):
        assert torch.equal(masks[:, down::2, across::2], units)
    assert (units.flatten(1).sum(1) == 3).all()  # 0.6 * 4, rounded up
    assert units.flatten(1).any(dim=0).all() and not units.flatten(1).all(dim=0).any()


@pytest.mark.parametrize("mask_patch", [6, 12])
def test_simmim_refuses_units_that_fit_neither_patch_nor_image(mask_patch):
    with pytest.raises(ConfigError, match="mask_patch"):
        SimMIM(vit(), mask_patch=mask_patch)


# MaskFeat


@pytest.mark.parametrize("channels", [1, 3])
def test_hog_equals_a_loop_over_pixels(channels):
    images, cell, bins = torch.randn(2, channels, 8, 12), 4, 9
    found = hog(images, cell, bins)
    assert found.shape == (2, channels * bins, 2, 3)
    for n in range(2):
        for c in range(channels):

            def at(row, column, image=images[n, c]):  # mirrored without the border itself
                row, column = abs(row), abs(column)
                row, column = min(row, 14 - row), min(column, 22 - column)
                return float(image[row, column])

            for i in range(2):
                for j in range(3):
                    votes = [0.0] * bins
                    for y in range(cell * i, cell * (i + 1)):
                        for x in range(cell * j, cell * (j + 1)):
                            gx = gy = 0.0
                            for d, weight in ((-1, 1), (0, 2), (1, 1)):
                                gx += weight * (at(y + d, x + 1) - at(y + d, x - 1))
                                gy += weight * (at(y + 1, x + d) - at(y - 1, x + d))
                            angle = math.degrees(math.atan2(gy, gx)) % 180
                            votes[int(angle // (180 / bins)) % bins] += math.hypot(gx, gy)
                    length = math.sqrt(sum(v * v for v in votes))
                    expected = torch.tensor([v / length for v in votes])
                    torch.testing.assert_close(
                        found[n, c * bins : (c + 1) * bins, i, j], expected, rtol=1e-3, atol=1e-4
                    )


def test_hog_does_not_change_with_brightness_contrast_or_half_a_turn_of_the_gradient():
    images = torch.rand(1, 1, 8, 8)
    torch.testing.assert_close(hog(3 * images + 5, 4, 9), hog(images, 4, 9), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(hog(-images, 4, 2), hog(images, 4, 2), rtol=1e-3, atol=1e-3)


def test_hog_of_a_ramp_has_one_direction_and_of_nothing_is_zero():
    ramp = torch.arange(12.0).expand(1, 1, 12, 12)
    middle = hog(ramp, 4, 9)[0, :, 1, 1]
    assert middle[0] == 1 and not middle[1:].any()
    assert not hog(torch.ones(1, 1, 8, 8), 4, 9).any()


def test_maskfeat_is_the_squared_error_of_masked_histograms(monkeypatch):
    method = MaskFeat(vit(), cell=2, mask_ratio=0.4)
    out, masked, z = masked_input(method, monkeypatch)
    assert (masked.sum(1) == round(0.4 * L)).all()
    cells = hog(batch().views[0], 2, 9)  # [N, 18, 8, 8]
    y, errors = method.encoder.head(z), []
    for n in range(N):
        for number in range(L):
            if masked[n, number]:
                top, left = 2 * (number // GRID), 2 * (number % GRID)
                x = cells[n, :, top : top + 2, left : left + 2].flatten()
                errors.append(((y[n, number] - x) ** 2).mean())
    assert_same_with_gradient(method, out["loss"], sum(errors) / len(errors))


def test_maskfeat_refuses_cells_that_do_not_fill_a_patch():
    with pytest.raises(ConfigError, match="cell"):
        MaskFeat(vit(), cell=3)


def test_hog_does_not_blow_up_rounding_on_flat_ground():
    images = torch.full((1, 1, 8, 8), -0.81) * (1 + 1e-7 * torch.randn(8, 8))
    assert hog(images, 4, 9).abs().max() < 0.01


# BEiT


def test_beit_is_the_cross_entropy_of_masked_words_and_the_tokenizer_gets_none_of_it(monkeypatch):
    method = MAKE["BEiT"](vit())
    out, masked, z = masked_input(method, monkeypatch)
    assert (masked.sum(1) == round(0.4 * L)).all()
    logits, losses = method.encoder.head(z), []
    scores = method.tokenizer.encode(batch().views[0])  # [N, V, h, w]
    for n in range(N):
        for number in range(L):
            if masked[n, number]:
                word = scores[n, :, number // GRID, number % GRID].argmax()
                losses.append(
                    -torch.log(logits[n, number].exp()[word] / logits[n, number].exp().sum())
                )
    assert_same_with_gradient(method, out["token_loss"], sum(losses) / len(losses))
    torch.testing.assert_close(out["loss"], out["token_loss"] + out["tokenizer_loss"])
    words = list(method.tokenizer.parameters())
    assert torch.autograd.grad(out["token_loss"], words, allow_unused=True) == (None,) * len(words)


def test_discrete_vae_is_reconstruction_and_divergence_of_a_relaxed_draw():
    images, temperature, key = batch().views[0], torch.tensor(0.7), torch.tensor([3, 1, 4])
    vae = TOKENIZER(in_chans=2, patch_size=(PATCH, PATCH))
    loss, words = vae(images, temperature, key)
    logits = vae.encode(images)
    u = rng.uniform(key[:, None], "gumbel", torch.arange(6 * L)).view(N, 6, GRID, GRID)
    soft = torch.empty_like(logits)
    divergence = 0.0
    for n in range(N):
        for i in range(GRID):
            for j in range(GRID):
                row = logits[n, :, i, j]
                noisy = ((row - torch.log(-torch.log(u[n, :, i, j]))) / temperature).exp()
                soft[n, :, i, j] = noisy / noisy.sum()
                q = row.exp() / row.exp().sum()
                divergence = divergence + (q * torch.log(q * 6)).sum()
                assert words[n, i * GRID + j] == row.argmax()
    expected = ((vae.decode(soft) - images) ** 2).mean() + 0.1 * divergence / (N * L)
    assert_same_with_gradient(vae, loss, expected)


def test_discrete_vae_survives_the_ends_of_the_uniform_draw(monkeypatch):
    vae, images = TOKENIZER(in_chans=2, patch_size=(PATCH, PATCH)), batch().views[0]
    for end in (0.0, 1 - 2.0**-24):
        monkeypatch.setattr(rng, "uniform", lambda *keys, end=end: torch.full((N, 6 * L), end))
        loss, _ = vae(images, torch.tensor(0.01), torch.arange(N))
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in vae.parameters())


def test_beit_trains_its_tokenizer_first_then_the_vit_and_never_both():
    method = MAKE["BEiT"](vit()).train()  # two steps for the tokenizer
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(4):
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        out = method(batch())
        out["loss"].backward()
        method.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(batch(), out)
        moved = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
        of_tokenizer = {n for n in before if n.startswith("tokenizer.")}
        assert moved == (of_tokenizer if step < 2 else before.keys() - of_tokenizer)


def test_beits_tokenizer_once_frozen_says_the_same_words_and_has_no_loss(monkeypatch):
    learning, frozen = MAKE["BEiT"](vit()), MAKE["BEiT"](vit())
    frozen.load_state_dict(learning.state_dict())
    learning.tokenizer_steps = 4
    for method in (learning, frozen):
        method.steps += 2
    expected, out = learning(batch()), frozen(batch())
    assert torch.equal(out["token_loss"], expected["token_loss"])
    assert "tokenizer_loss" not in out and out["loss"] == out["token_loss"]
    out["loss"].backward()  # DDP wants a gradient of every parameter
    assert not any(p.grad.any() for p in frozen.tokenizer.parameters())
    decoded = spy(monkeypatch, frozen.tokenizer.decode, "forward")
    frozen(batch())
    assert not decoded


def test_beit_temperature_falls_geometrically_and_stays():
    method = BEiT(vit(), tokenizer=TOKENIZER, tokenizer_steps=4, temperatures=(1.0, 0.0625))
    found = []
    for _ in range(7):
        found.append(method.temperature().item())
        method.steps += 1
    assert found == pytest.approx([1, 0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0625])


# data2vec and I-JEPA


def apart(method):
    """The target somewhere else than the student, as after some steps."""
    for target in ("teacher", "target_encoder"):
        for p in getattr(method, target, torch.nn.Identity()).parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return method


@pytest.mark.parametrize("blocks", [1, 2])
def test_data2vec_is_smooth_l1_to_the_mean_of_the_teachers_top_blocks(blocks, monkeypatch):
    method = apart(Data2Vec(vit(), top_blocks=blocks, beta=0.5))
    out, masked, z = masked_input(method, monkeypatch)
    assert (masked.sum(1) == round(0.6 * L)).all()
    model = method.teacher.encoder.model
    with torch.no_grad():
        x, targets = model._pos_embed(model.patch_embed(batch().views[0])), 0.0
        for number, layer in enumerate(model.blocks):
            x = layer(x)
            if number >= len(model.blocks) - blocks:
                mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
                targets = targets + (x - mean) / (variance + 1e-5) ** 0.5 / blocks
    y, errors = method.encoder.head(z), []
    for n in range(N):
        for number in range(L):
            if masked[n, number]:
                e = (y[n, number] - targets[n, 1 + number]).abs()  # after the class token
                errors.append(torch.where(e < 0.5, e**2 / (2 * 0.5), e - 0.25).mean())
    assert_same_with_gradient(method, out["loss"], sum(errors) / len(errors))


def test_data2vec_refuses_more_blocks_than_there_are():
    with pytest.raises(ConfigError, match="top_blocks"):
        Data2Vec(vit(), top_blocks=3)


def test_ijepa_is_smooth_l1_to_the_target_encoder_of_the_whole_image(monkeypatch):
    method = apart(IJEPA(vit(), predictor=DECODER, num_targets=2))
    loss, images = method(batch())["loss"], batch().views[0]
    context, targets = method.blocks(method.random_key("blocks", batch().index))
    encoder, predictor = method.encoder.backbone, method.encoder.head
    with torch.no_grad():
        s = method.target_encoder.encoder.tokens(images)[:, 1:]
    losses = []
    for n in range(N):
        z = encoder.tokens(images[n : n + 1], kept=context[n : n + 1])
        for m in range(2):
            s_hat = predictor(z, context[n : n + 1], targets[n : n + 1, m])[0]
            for row, number in enumerate(targets[n, m].tolist()):
                h = s[n, number]
                h = (h - h.mean()) / (h.var(correction=0) + 1e-5) ** 0.5
                e = (s_hat[row] - h).abs()
                losses.append(torch.where(e < 1, e**2 / 2, e - 0.5).mean())
    assert_same_with_gradient(method, loss, sum(losses) / len(losses))


@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (6, 10)])
def test_ijepa_contexts_hold_no_patch_of_a_target(grid):
    method = IJEPA(vit(img_size=(4 * grid[0], 4 * grid[1])), predictor=DECODER)
    length = math.prod(grid)
    context, targets = method.blocks(torch.arange(300))
    assert context.shape == (300, round(0.35 * length))
    assert targets.shape == (300, 4, round(0.175 * length))
    for sample in range(300):
        seen, wanted = set(context[sample].tolist()), set(targets[sample].flatten().tolist())
        assert seen and not seen & wanted and seen | wanted <= set(range(length))
    distinct = [len(set(row.tolist())) for row in context]
    assert sum(n == context.shape[1] for n in distinct) > 200  # seldom too few are left


@pytest.mark.parametrize("grid, size", [((7, 7), 9), ((14, 14), 34), ((3, 10), 20), ((10, 3), 20)])
def test_ijepa_blocks_are_rectangles_with_a_short_last_row(grid, size):
    found = block(torch.arange(200), grid, size, (0.75, 1.5))
    shapes, corners = set(), set()
    for patches in found.tolist():
        assert len(set(patches)) == size
        places = [divmod(number, grid[1]) for number in patches]
        assert all(0 <= row < grid[0] for row, _ in places)
        rows, columns = zip(*places, strict=True)
        top, left, width = min(rows), min(columns), max(columns) - min(columns) + 1
        assert places == [(top + i // width, left + i % width) for i in range(size)]
        shapes.add(width)
        corners.add((top, left))
    assert len(corners) > 3 and (min(grid) < 5 or len(shapes) > 1)


@pytest.mark.parametrize("name, target", [("Data2Vec", "teacher"), ("IJEPA", "target_encoder")])
def test_targets_start_equal_get_no_gradient_and_follow_once_a_step(name, target):
    method = MAKE[name](vit())
    online, slow = method.encoder.backbone, getattr(method, target).encoder
    pairs = list(zip(online.parameters(), slow.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    method.momentum = 0.75
    out = method(batch())
    out["loss"].backward()
    assert all(b.grad is None for _, b in pairs) and any(a.grad.any() for a, _ in pairs)
    with torch.no_grad():
        for a, _ in pairs:
            a.add_(1.0)
    before = [b.clone() for _, b in pairs]
    method(batch())
    assert all(torch.equal(b, old) for (_, b), old in zip(pairs, before, strict=True))
    method.after_step(batch(), out)
    for (a, b), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(b, 0.75 * old + 0.25 * a)


@pytest.mark.parametrize("name, target", [("Data2Vec", "teacher"), ("IJEPA", "target_encoder")])
def test_targets_are_without_drop_path(name, target):
    method = MAKE[name](vit(drop_path_rate=0.9)).train()
    seen = []
    slow = getattr(method, target)
    slow.encoder.model.blocks[1].register_forward_hook(lambda _module, _input, x: seen.append(x))
    method(batch())
    method.eval()(batch())
    torch.testing.assert_close(seen[0], seen[1])
