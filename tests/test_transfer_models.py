"""Models of transfer tasks, on tiny networks."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import TinyNet
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import MultiScaleRoIAlign

from ssl_zoo.backbones import Timm, fits
from ssl_zoo.backbones.base import Level
from ssl_zoo.config import BACKBONES, ConfigError, Part, bind
from ssl_zoo.transfer.models import (
    FCN,
    TRANSFER_MODELS,
    DeepLabV3,
    FasterRCNN,
    KeypointRCNN,
    MaskRCNN,
)
from ssl_zoo.transfer.models.detection import moved
from ssl_zoo.transfer.models.regions import Anchors, RegionAlign, pasted, shape_cells

SIZE = (64, 80)
SMALL = {"min_size": (64,), "width": 8, "regions": 32, "proposals": 50}
DETECTORS = [
    (FasterRCNN, "c4"),
    (FasterRCNN, "fpn"),
    (FasterRCNN, "pyramid"),
    (MaskRCNN, "c4"),
    (MaskRCNN, "fpn"),
    (MaskRCNN, "pyramid"),
    (KeypointRCNN, "fpn"),
    (KeypointRCNN, "pyramid"),
]
detectors = pytest.mark.parametrize(("kind", "body"), DETECTORS)
segmenters = pytest.mark.parametrize("kind", [FCN, DeepLabV3])


def cnn(**options):
    return Timm(name="resnet18", options={"layers": [1] * 4, "channels": [8, 8, 16, 32]} | options)


def vit():
    options = {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return Timm(name="vit_tiny_patch16_224", options=options)


def detector(kind, body, **options):
    """Two classes, two keypoints."""
    backbone = vit() if body == "pyramid" else cnn()
    sizes = SMALL if body == "c4" else SMALL | {"box_width": 16, "box_convs": 1}
    return kind(backbone, 2, 2, body=body, **sizes | options)


def images(*sizes):
    return [torch.randn(3, *size) for size in sizes]


def target(objects: int):
    """Rectangles, which their masks fill, with keypoints in two corners."""
    boxes = torch.tensor([[4.0, 6, 30, 40], [20, 10, 60, 50]])[:objects]
    masks = torch.zeros(objects, *SIZE, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    keypoints = torch.cat([boxes.view(-1, 2, 2), torch.full((objects, 2, 1), 2.0)], dim=2)
    labels = torch.tensor([1, 2])[:objects]
    known = {"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints}
    return {**known, "size": SIZE, "drawn": objects / 4}


def without_gradient(model):
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in trained if p.grad is None or not p.grad.isfinite().all()]


@detectors
@pytest.mark.parametrize("objects", [(2, 1), (0, 0)], ids=["objects", "none"])
def test_losses_are_finite_and_reach_every_parameter(kind, body, objects):
    model = detector(kind, body)
    out = model(images(SIZE, SIZE), [target(n) for n in objects])
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(sum(v.item() for k, v in out.items() if k != "loss"))
    assert not without_gradient(model)
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    more = {MaskRCNN: "mask_loss", KeypointRCNN: "keypoint_loss"}.get(kind)
    assert ("box_loss" in out) and (more is None or (out[more] > 0) == (objects != (0, 0)))


@detectors
def test_predictions_have_shapes_and_lie_in_the_image(kind, body):
    model = detector(kind, body, detections=5, score_threshold=0.0).train()
    small, large = images((40, 50), SIZE)
    found = model.predict([small, large])
    assert model.training and model.net.roi_heads.training
    for image, one in zip((small, large), found, strict=True):
        height, width = image.shape[1:]
        n = len(one["boxes"])
        assert 0 < n <= 5
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height] * 2) + 1e-3).all()
        assert set(one["labels"].tolist()) <= {1, 2} and one["scores"].shape == (n,)
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)
        if kind is MaskRCNN:
            assert one["masks"].shape == (n, height, width) and one["masks"].dtype == torch.bool
        if kind is KeypointRCNN:
            assert one["keypoints"].shape == (n, 2, 3) and one["keypoint_scores"].shape == (n, 2)
    alone = model.predict([small])[0]
    assert all(torch.equal(alone[name], found[0][name]) for name in alone)
    nothing = detector(kind, body, score_threshold=1.0).predict([small])[0]
    assert [len(values) for values in nothing.values()] == [0] * len(nothing)


@pytest.mark.parametrize(("kind", "body"), [(MaskRCNN, "c4"), (KeypointRCNN, "fpn")])
def test_the_same_seed_gives_the_same_losses_and_gradients(kind, body):
    def step():
        torch.manual_seed(1)
        model = detector(kind, body, min_size=(48, 64))  # drawn for each image
        loss = model(images(SIZE, SIZE), [target(2), target(1)])["loss"]
        loss.backward()
        return loss, [p.grad for p in model.parameters()]

    (first, gradients), (again, others) = step(), step()
    assert torch.equal(first, again) and all(map(torch.equal, gradients, others))


def test_a_size_is_drawn_by_the_target_and_not_by_torchs_generator():
    model, sizes = detector(FasterRCNN, "fpn", min_size=(32, 48, 64)), []
    plain = model.net.transform.batch_images
    model.net.transform.batch_images = lambda x, **more: (
        sizes.append([min(i.shape[1:]) for i in x]) or plain(x, **more)
    )
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn = [{**target(1), "drawn": at} for at in (0.99, 0.0, 0.34)]
        model(images(SIZE, SIZE, SIZE), drawn)
    assert sizes == [[64, 32, 48], [64, 32, 48]]


def test_a_picture_that_would_be_scaled_to_nothing_is_said():
    with pytest.raises(ValueError, match=r"a picture of 300 x 2 pixels: .* 100 .max_size."):
        detector(FasterRCNN, "fpn", max_size=100).predict(images((2, 300)))


def test_keypoints_are_learned_and_found_in_the_middles_of_pixels():
    points = torch.tensor([[[10.0, 4, 2], [3, 0, 1], [0, 0, 0]]])
    middles = torch.tensor([[[10.5, 4.5, 2], [3.5, 0.5, 1], [0, 0, 0]]])
    assert torch.equal(moved(points, 0.5), middles) and torch.equal(moved(middles, -0.5), points)
    model, seen = detector(KeypointRCNN, "fpn"), {}
    hook = model.net.register_forward_pre_hook(
        lambda _, given: seen.update(points=given[1][0]["keypoints"])
    )
    given = target(2)
    model(images(SIZE), [given])
    hook.remove()
    assert torch.equal(seen["points"], moved(given["keypoints"], 0.5))
    model.net.register_forward_hook(lambda *_: [{
        "boxes": torch.zeros(1, 4), "labels": torch.ones(1), "scores": torch.ones(1),
        "keypoints": middles, "keypoints_scores": torch.ones(1, 3),
    }])  # fmt: skip
    assert torch.equal(model.predict(images(SIZE))[0]["keypoints"], points)


@detectors
def test_under_bf16_boxes_and_losses_are_float32(kind, body):
    model = detector(kind, body)
    seen = []
    model.net.rpn.register_forward_hook(lambda _, __, out: seen.extend(out[0]))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(SIZE, SIZE), [target(2), target(1)])
        found = model.predict(images(SIZE))[0]
    out["loss"].backward()
    assert not without_gradient(model)
    assert {x.dtype for x in (*out.values(), *seen, found["boxes"])} == {torch.float32}
    assert any((boxes != boxes.bfloat16()).any() for boxes in seen)


def test_an_fpn_gives_torchvisions_losses():
    backbone = Timm(name="resnet18", options={"layers": [1] * 4})
    small = {"min_size": (64,), "width": 8, "box_convs": 2, "box_width": 16}
    ours = FasterRCNN(backbone, 2, **small, regions=64)
    # Another rule for where cells lie, see `RegionAlign`; all else is to be the same.
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
    ours.net.roi_heads.box_roi_pool = pool

    names = {f"layer{i + 1}": str(i) for i in range(4)}
    layers = ResNet(BasicBlock, [1] * 4)
    theirs = detection.FasterRCNN(
        BackboneWithFPN(layers, names, [64, 128, 256, 512], 8, norm_layer=nn.BatchNorm2d),
        min_size=64,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(
            ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5
        ),
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=pool,
        box_head=FastRCNNConvFCHead((8, 7, 7), [8, 8], [16], nn.BatchNorm2d),
        box_predictor=FastRCNNPredictor(16, 3),
        box_batch_size_per_image=64,
    )
    theirs.transform.torch_choice = lambda sizes: sizes[0]  # draws nothing, as `Scaled`
    theirs.backbone.body.load_state_dict(backbone.model.state_dict())
    theirs.backbone.fpn.load_state_dict(ours.net.backbone.fpn.state_dict())
    theirs.rpn.load_state_dict(ours.net.rpn.state_dict())
    theirs.roi_heads.load_state_dict(ours.net.roi_heads.state_dict())

    seen = images((64, 128), (64, 128))  # sides for which torchvision's strides are right
    targets = [target(2), target(1)]
    torch.manual_seed(2)
    mine = ours(seen, targets)
    torch.manual_seed(2)
    known = [{name: t[name] for name in ("boxes", "labels")} for t in targets]
    expected = theirs(seen, known)
    assert mine["loss"].item() == pytest.approx(sum(expected.values()).item(), rel=1e-5)
    assert mine["class_loss"].item() == pytest.approx(expected["loss_classifier"].item(), rel=1e-5)
    assert mine["proposal_loss"].item() == pytest.approx(
        expected["loss_rpn_box_reg"].item(), rel=1e-5
    )


def order_of(model, seen, targets, **named):
    """Names and shapes of outputs of modules, in the order of their calls."""
    calls = []
    for name, module in named.items():
        module.register_forward_hook(
            lambda _, __, out, name=name: calls.append((name, tuple(out.shape)))
        )
    model(seen, targets)
    return calls


def test_c4_runs_conv5_on_regions_then_the_extra_batchnorm_then_the_mean():
    model = detector(MaskRCNN, "c4")
    backbone, heads = model.net.backbone.backbone, model.net.roi_heads
    calls = order_of(
        model,
        images(SIZE),
        [target(2)],
        conv4=backbone.model.layer3,
        regions=heads.box_roi_pool,
        conv5=backbone.model.layer4,
        norm=heads.box_head.norm,
        mean=heads.box_head,
        masks=heads.mask_predictor,
    )
    assert isinstance(heads.box_head.norm, nn.BatchNorm2d)
    (r, *_), (m, *_) = calls[1][1], calls[-1][1]
    assert calls == [
        ("conv4", (1, 16, 4, 5)),
        ("regions", (r, 16, 14, 14)),
        ("conv5", (r, 32, 7, 7)),  # once, for boxes and for masks
        ("norm", (r, 32, 7, 7)),
        ("mean", (r, 32)),
        ("masks", (m, 3, 14, 14)),
    ]
    assert 2 <= m < r <= 32
    assert isinstance(heads.mask_predictor[0], nn.ConvTranspose2d)
    anchors = model.net.rpn.anchor_generator
    assert anchors.sizes == ((32, 64, 128, 256, 512),) and anchors.strides == [16]


def test_masks_of_c4_are_of_the_regions_on_objects():
    heads = detector(MaskRCNN, "c4").net.roi_heads
    heads._objects = torch.tensor([True, False, True])
    regions = torch.randn(3, 16, 14, 14)
    heads.box_head(regions)
    kept = heads._object_maps({}, [], [])
    assert heads.box_head.maps is None  # nothing holds the graph
    assert torch.equal(kept, heads.box_head.mapped(regions)[[0, 2]])


def test_a_mask_is_learned_and_pasted_where_its_object_is():
    """Of an image that is scaled by an odd factor, cut out by boxes between pixels."""
    shapes = torch.zeros(2, 60, 80, dtype=torch.uint8)
    shapes[0, 10:38, 20:48], shapes[1, 30:50, 40:72] = 1, 1
    scale = 1.37
    own = torch.tensor([[20.0, 10, 48, 38], [20, 10, 76, 66], [31.5, 20.25, 79.5, 56.25]])
    cells = shape_cells(shapes, torch.tensor([0, 0, 1]), own * scale, (60 * scale, 80 * scale), 28)
    assert cells[0].all()  # a cell a pixel
    assert cells[1, :14, :14].all() and cells[1].sum() == 14 * 14
    masks = pasted(cells, own, (60, 80))
    assert masks.dtype == torch.bool and torch.equal(masks[:2], shapes[[0, 0]] == 1)
    shape = shapes[1] == 1  # cells of 48 / 28 pixels: its border to a cell
    assert (masks[2] & shape).sum() / (masks[2] | shape).sum() > 0.9
    rows, columns = (masks[2].any(1 - axis).nonzero()[:, 0].float().mean() for axis in range(2))
    assert abs(rows - 39.5) <= 0.5 and abs(columns - 55.5) <= 0.5
    full = pasted(
        torch.ones(2, 5, 5), torch.tensor([[0.4, 0.6, 3.6, 2.4], [78.6, 0, 80, 1.2]]), (60, 80)
    )
    assert full[0].nonzero().tolist() == [[1, x] for x in range(4)]  # middles that are inside
    assert full[1].nonzero().tolist() == [[0, 79]]
    assert pasted(torch.zeros(0, 5, 5), torch.zeros(0, 4), (6, 8)).shape == (0, 6, 8)


def test_a_copy_of_c4_runs_its_own_conv5():
    model = detector(FasterRCNN, "c4")
    copied = copy.deepcopy(model)
    other = copied.net.roi_heads.box_head.c5.__self__
    assert other is copied.net.backbone.backbone is not model.net.backbone.backbone
    names = [name for name, _ in model.named_parameters()]
    assert sum("layer4.0.conv1" in name for name in names) == 1
    assert sum("layer4.0.conv1" in name for name in model.state_dict()) == 1


def test_a_region_is_cut_where_it_lies():
    """Of maps that tell a cell's place the cells of a region are their places, at every level."""
    strides = [4.0, 8.0, 16.0]

    def places(stride):
        row = (torch.arange(512 // stride) + 0.5) * stride  # centers of cells, in pixels
        return torch.stack(torch.meshgrid(row, row, indexing="ij"))[None]

    maps = {str(i): places(stride) for i, stride in enumerate(strides)}
    boxes = torch.tensor([[20.0, 30, 55, 80], [100, 40, 300, 260], [90.5, 100, 410, 333]])
    pool = RegionAlign(strides, 7)
    assert pool.level_of([boxes]).tolist() == [0, 1, 2]
    out = pool(maps, [boxes], [])
    for region, (x0, y0, x1, y1) in zip(out, boxes.tolist(), strict=True):
        share = (torch.arange(7) + 0.5) / 7
        torch.testing.assert_close(region[0, :, 0], y0 + share * (y1 - y0))
        torch.testing.assert_close(region[1, 0], x0 + share * (x1 - x0))


def test_anchors_stand_a_stride_apart_on_odd_maps():
    strides = [16.0, 32.0]
    anchors = Anchors([[64.0], [128.0]], strides)
    maps = [torch.zeros(1, 1, 5, 3), torch.zeros(1, 1, 3, 2)]
    (boxes,) = anchors(ImageList(torch.zeros(1, 3, 80, 48), [(80, 48)]), maps)
    assert len(boxes) == 3 * (15 + 6)
    center, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    places = [(x * s, y * s) for (h, w), s in zip([(5, 3), (3, 2)], strides, strict=True)
              for y in range(h) for x in range(w) for _ in range(3)]  # fmt: skip
    assert center.tolist() == [[*place] for place in places]
    assert (side.prod(dim=1).sqrt().view(-1, 3).mean(dim=1).round() // 64).unique().tolist() == [
        1,
        2,
    ]
    ratios = (side[:, 1] / side[:, 0]).view(-1, 3)
    torch.testing.assert_close(ratios[0], torch.tensor([0.5, 1.0, 2.0]), atol=0.05, rtol=0)


def test_anchors_and_widths_of_an_fpn_by_default():
    with torch.device("meta"):
        model = MaskRCNN(Timm(name="resnet50"), 80)
    assert model.net.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert model.net.backbone.strides == [4, 8, 16, 32, 64]
    convs = [m.out_channels for m in model.net.roi_heads.box_head if hasattr(m, "out_channels")]
    assert convs == [256] * 4
    norms = [m for m in model.net.backbone.fpn.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8


@pytest.mark.parametrize(
    ("kind", "body", "proposals", "before", "after"),
    [
        (FasterRCNN, "c4", None, (12000, 6000), (2000, 1000)),  # detectron2's
        (FasterRCNN, "fpn", None, (2000, 1000), (1000, 1000)),
        (KeypointRCNN, "fpn", None, (2000, 1000), (1500, 1000)),
        (FasterRCNN, "fpn", 200, (400, 200), (200, 200)),
    ],
)
def test_proposals_before_suppression_are_in_proportion(kind, body, proposals, before, after):
    with torch.device("meta"):
        model = kind(Timm(name="resnet50"), 80, 17, body=body, proposals=proposals)
    rpn = model.net.rpn
    assert (*rpn._pre_nms_top_n.values(),) == before
    assert (*rpn._post_nms_top_n.values(),) == after


def test_a_pyramid_has_four_strides_of_a_vit_and_one_for_proposals():
    body = detector(FasterRCNN, "pyramid").net.backbone
    maps = body(torch.randn(2, 3, 64, 96))
    assert body.strides == [4, 8, 16, 32, 64]
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [tuple(x.shape) for x in maps.values()] == [(2, 8, *size) for size in sizes]


def test_one_channel_images_and_small_stems():
    options = {"layers": [1] * 4, "channels": [8, 8, 16, 16]}
    backbone = Timm(name="resnet18", in_chans=1, small_images=True, options=options)
    model = FasterRCNN(backbone, 1, min_size=(32,), width=8, box_width=8, regions=16)
    assert model.net.backbone.strides == [4, 8, 16]  # stem and stages: 1, 1, 2, 4, 8
    one = {"boxes": torch.tensor([[3.0, 4, 20, 30]]), "labels": torch.tensor([1])}
    assert model([torch.randn(1, 32, 40)], [one])["loss"].isfinite()


def test_a_detector_learns_one_picture():
    torch.manual_seed(6)
    model = detector(FasterRCNN, "fpn", anchors=(16, 32, 64, 128, 256), detections=2)
    seen, wanted = images(SIZE), target(1)
    x0, y0, x1, y1 = wanted["boxes"][0].int().tolist()
    seen[0][:, y0:y1, x0:x1] += 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(seen * 2, [wanted] * 2)["loss"].backward()
        optimizer.step()
    found = model.predict(seen)[0]
    assert found["labels"][0] == 1 and found["scores"][0] > 0.5
    assert torch.allclose(found["boxes"][0], wanted["boxes"][0], atol=8)


def filled(backbone):
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return backbone


@pytest.mark.parametrize("kind", [FasterRCNN, FCN])
def test_batchnorm_is_frozen_only_with_statistics(kind):
    with pytest.raises(ConfigError, match=r"statistics of model\.bn1 were never filled") as error:
        kind(cnn(), 2, norm="frozen")
    assert error.value.key == "norm" and "tuned" in error.value.expected
    with pytest.raises(ConfigError, match="no BatchNorm"):
        kind(vit(), 2, norm="frozen")

    backbone = filled(cnn())
    before = {name: x.clone() for name, x in backbone.state_dict().items() if "running" in name}
    learned = {name for name, _ in backbone.named_parameters()}
    options = SMALL if kind is FasterRCNN else {}
    model = kind(backbone, 2, norm="frozen", **options)
    targets = [target(1)] * 2 if kind is FasterRCNN else [torch.zeros(SIZE, dtype=torch.int64)] * 2
    model(images(SIZE, SIZE), targets)["loss"].backward()
    after = backbone.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert not any("bn" in name for name, _ in backbone.named_parameters())
    assert "model.layer4.0.conv1.weight" in learned & {n for n, _ in backbone.named_parameters()}
    new = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert new and all(m.running_var.ne(1).any() for m in new)
    assert not without_gradient(model)


def test_batchnorm_is_synchronized_on_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="between GPUs"):
        FCN(cnn(), 2, norm="synced")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = FasterRCNN(cnn(), 2, norm="synced", body="c4")
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {type(m) for m in norms} == {nn.SyncBatchNorm}
    assert model.net.roi_heads.box_head.c5.__self__ is model.net.backbone.backbone


@segmenters
@pytest.mark.parametrize("backbone", [cnn, vit])
def test_a_map_has_the_size_of_its_image(kind, backbone):
    model = kind(backbone(), 5)
    small, large = images((50, 70), (64, 90))
    targets = [torch.randint(0, 5, image.shape[1:]) for image in (small, large)]
    targets[0][:10] = 255
    out = model([small, large], targets)
    out["loss"].backward()
    assert not without_gradient(model) and out["loss"].isfinite()
    found = model.predict([small, large])
    assert [x.shape for x in found] == [(50, 70), (64, 90)] and model.training
    assert found[0].dtype == torch.int64 and set(found[0].unique().tolist()) <= set(range(5))


def test_what_pads_an_image_is_ignored():
    model = FCN(cnn(), 3).eval()
    (image,) = images((50, 70))
    labels = torch.randint(0, 3, (50, 70))
    padded = nn.functional.pad(image, (0, 10, 0, 14)), nn.functional.pad(labels, (0, 10, 0, 14))
    padded[1][50:], padded[1][:, 70:] = 255, 255
    alone, other = model([image], [labels]), model([padded[0]], [padded[1]])
    assert alone["loss"].item() == pytest.approx(other["loss"].item())
    with torch.no_grad():
        logits = model.logits(padded[0][None])[:, :, :50, :70]
    expected = nn.functional.cross_entropy(logits, labels[None])
    assert alone["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    nothing = model([image], [torch.full((50, 70), 255)])
    assert nothing["loss"] == 0 and nothing["pixel_accuracy"] == 0


@segmenters
def test_segmenters_under_bf16(kind):
    model = kind(cnn(), 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images(SIZE, SIZE), [torch.zeros(SIZE, dtype=torch.int64)] * 2)
    out["loss"].backward()
    assert out["loss"].dtype == torch.float32 and not without_gradient(model)


def test_an_fcn_is_as_in_the_paper():
    backbone = cnn()
    weights = copy.deepcopy(backbone.state_dict())
    model = FCN(backbone, 19)
    conv5 = [m for m in backbone.model.layer4.modules() if isinstance(m, nn.Conv2d)]
    wide = {m.kernel_size: (m.stride, m.dilation) for m in conv5}
    assert wide == {(3, 3): ((1, 1), (2, 2)), (1, 1): ((1, 1), (1, 1))}
    assert all(torch.equal(weights[name], x) for name, x in backbone.state_dict().items())
    assert backbone.levels[-1] == Level(16, 32)
    assert backbone.feature_map(torch.zeros(1, 3, 64, 96)).shape == (1, 32, 4, 6)

    leaves = [m for m in model.head.modules() if not [*m.children()]]
    first, second, last = (leaves[i] for i in (0, 3, 6))
    kinds = nn.Conv2d, nn.BatchNorm2d, nn.ReLU
    assert tuple(map(type, leaves)) == (*kinds, *kinds, nn.Conv2d)
    for conv in (first, second):
        assert (conv.kernel_size, conv.dilation, conv.out_channels) == ((3, 3), (6, 6), 256)
    assert last.kernel_size == (1, 1) and last.out_channels == 19


def test_an_fcn_learns_one_picture():
    torch.manual_seed(4)
    model = FCN(cnn(), 3, width=16)
    seen = images(SIZE)
    labels = torch.zeros(SIZE, dtype=torch.int64)
    labels[16:48, 16:64] = 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        model(seen, [labels])["loss"].backward()
        optimizer.step()
    assert (model.train().predict(seen)[0] == labels).float().mean() > 0.9


def test_deeplab_needs_two_images():
    model = DeepLabV3(cnn(), 3)
    with pytest.raises(ValueError, match="got one image, expected two"):
        model(images(SIZE), [torch.zeros(SIZE, dtype=torch.int64)])


def test_a_vits_map_is_the_same_and_of_any_size():
    backbone = vit()
    seen = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = backbone.feature_map(seen)
        backbone.only_maps()
        assert torch.equal(before, backbone.feature_map(seen))
        assert backbone.feature_map(torch.randn(1, 3, 96, 32)).shape == (1, 16, 6, 2)


def test_what_pools_is_not_trained():
    backbone = Timm(name="convnext_atto", options={"depths": [1] * 4, "dims": [4, 4, 8, 8]})
    model = FasterRCNN(backbone, 2, **SMALL, box_width=8, box_convs=0)
    left = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert [name.split("model.")[1] for name in left] == ["head.norm.weight", "head.norm.bias"]
    model(images(SIZE, SIZE), [target(1)] * 2)["loss"].backward()
    assert not without_gradient(model)


def test_networks_that_cannot_be_adapted_are_refused():
    swin = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8}
    with pytest.raises(ConfigError, match="many sizes") as error:
        FCN(Timm(name="swin_tiny_patch4_window7_224", options=swin), 2)
    assert error.value.key == "backbone.options.strict_img_size"
    with pytest.raises(ConfigError, match="cannot be dilated"):
        FCN(Timm(name="resnetblur18", options={"layers": [1] * 4}), 2)


@pytest.mark.parametrize(
    ("block", "key"),
    [
        ({"type": "FasterRCNN", "min_size": []}, "min_size"),
        ({"type": "FasterRCNN", "body": "c4", "box_width": 64}, "box_convs"),
        ({"type": "KeypointRCNN", "body": "c4"}, "body"),
        ({"type": "MaskRCNN", "norm": "none"}, "norm"),
        ({"type": "DeepLabV3", "dilations": [0]}, "dilations[0]"),
    ],
)
def test_a_config_is_checked_before_anything_is_built(block, key):
    with pytest.raises(ConfigError) as error:
        bind(TRANSFER_MODELS, block, "model")
    assert error.value.key == f"model.{key}"


def test_errors_that_take_a_backbone_or_a_data_set():
    cases = {
        "body": lambda: FasterRCNN(TinyNet(in_chans=3), 2),
        "anchors": lambda: FasterRCNN(cnn(), 2, anchors=(32, 64)),
        "backbone": lambda: FasterRCNN(vit(), 2, body="c4"),
        "type": lambda: KeypointRCNN(cnn(), 2),
    }
    for key, build in cases.items():
        with pytest.raises(ConfigError) as error:
            build()
        assert error.value.key == key and error.value.expected + error.value.found


def test_needs_are_known_before_there_is_a_backbone():
    model = bind(TRANSFER_MODELS, {"type": "MaskRCNN", "body": "c4"}, "model")
    needs = model.target.needs(**model.arguments())
    name = {"type": "Timm", "name": "vit_tiny_patch16_224"}
    assert not fits(bind(BACKBONES, name, "backbone"), needs)
    assert fits(Part(Timm, name="resnet50"), needs)
    assert all(FCN.needs(**Part(kind).arguments()) == "maps" for kind in (FCN, DeepLabV3))


def test_models_are_registered_with_tasks_and_papers():
    ours = {
        name: kind
        for name, kind in TRANSFER_MODELS.module_dict.items()
        if kind.__module__.startswith("ssl_zoo.")  # other tests register some of their own
    }
    assert ours.keys() == {"FasterRCNN", "MaskRCNN", "KeypointRCNN", "FCN", "DeepLabV3"}
    papers = {name: paper for name, _, paper in TRANSFER_MODELS.summary()}
    assert all(papers[name] for name in ours)
    tasks = {task for kind in ours.values() for task in kind.tasks}
    assert tasks == {"boxes", "masks", "keypoints", "semantic"}
