"""Features of a folder's images: embedded, resumed, indexed, searched, and who is there twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TinyNet

import ssl_zoo as sz
from ssl_zoo.cli.command_line import main
from ssl_zoo.config import Part
from ssl_zoo.data.image import Views
from ssl_zoo.ops.weights import digest_of_weights
from ssl_zoo.search import image_index, table
from ssl_zoo.search.folder import embed_images
from ssl_zoo.search.image_index import ImageIndex
from ssl_zoo.search.sheet import Picture, thumbnail, write_sheet
from ssl_zoo.testing.ranks import on_ranks

BAD = "b/broken.jpg"


def trained(out: Path, seed: int = 0):
    """A network of random weights, nearly: one step."""
    images = torch.randint(0, 256, (8, 3, 12, 12), dtype=torch.uint8)
    return sz.train(
        out=out,
        seed=seed,
        method=partial(
            sz.methods.Contrastive,
            head=partial(sz.heads.MLP, out_features=4),
            memory=partial(sz.memory.MoCoQueue, size=8),
            loss=sz.losses.InfoNCE(temperature=0.2),
        ),
        backbone=partial(TinyNet, in_chans=3),
        data=images.unbind(),
        size=8,
        epochs=1,
        batch_size=8,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run").path


def picture(path: Path, seed: int, width: int = 14, height: int = 12) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """9 images of several sizes, of which one is there twice; one more that is none, and a text."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(8):
        picture(root / "ab"[i % 2] / f"{i}.png", seed=i, width=12 + i)
    shutil.copy(root / "a" / "2.png", root / "copy.png")
    (root / BAD).write_bytes(b"no image")
    (root / "notes.txt").write_text("none either")
    return root


@pytest.fixture(scope="module")
def embedder(run):
    return sz.load(run)


@pytest.fixture(scope="module")
def embedded(run, photos, tmp_path_factory) -> Path:
    """The .npy file of all photos, by the command."""
    out = tmp_path_factory.mktemp("out") / "photos.npy"
    words = ["embed", run, photos, "--out", out, "--batch-size", 3, "--workers", 0]
    assert main(list(map(str, words))) == 0
    return out


@pytest.fixture(scope="module")
def index(embedded) -> Path:
    assert main(["index", str(embedded)]) == 0
    return embedded.with_suffix(".index")


def said(capsys, *words) -> tuple[int, str]:
    status = main(list(map(str, words)))
    shown = capsys.readouterr()
    return status, shown.out + shown.err


def quiet(embedder, photos, out, **more):
    return embed_images(embedder, photos, out, workers=0, log=lambda text: None, **more)


# Embedding.


def test_features_are_those_of_each_image_alone_with_its_path(embedded, embedder, photos):
    header, paths, features = table.load(embedded)
    assert paths == [*(f"a/{i}.png" for i in (0, 2, 4, 6)), *(f"b/{i}.png" for i in (1, 3, 5, 7)),
                     "copy.png"]  # fmt: skip
    expected = embedder.embed([photos / name for name in paths])
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
    assert features.dtype == np.float32
    assert list(header["unreadable"]) == [BAD] and "no kind" in header["unreadable"][BAD]
    assert header["run"] == str(sz.Run(Path(header["run"]).parents[1]).folder.checkpoints()[-1])


def test_what_is_left_out_is_told_and_a_finished_file_is_kept(run, photos, embedded, capsys):
    written = embedded.stat().st_mtime_ns
    status, text = said(capsys, "embed", run, photos, "--out", embedded)
    assert status == 0 and "there already" in text and embedded.stat().st_mtime_ns == written
    assert "10 images; not read: 1 file .txt" in text
    assert "left out, 1 image that cannot be read:" in text and BAD in text


@pytest.mark.parametrize("suffix", table.KINDS)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_one_goes_on_and_ends_in_the_same_bytes(
    embedder, photos, tmp_path, suffix, workers
):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    whole, parts, seen = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}", []
    quiet(embedder, photos, whole, batch_size=2)

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == 6:
            raise Killed

    with pytest.raises(Killed):
        quiet(embedder, photos, parts, batch_size=2, told=kill)
    with open(tmp_path / f"parts{suffix}.part" / "features.f32", "ab") as file:
        file.write(b"half a row")  # of a batch that no state tells of
    with open(tmp_path / f"parts{suffix}.part" / "unreadable.jsonl", "a") as file:
        file.write('{"name": "copy.png", "why": ""}\n{"na')
    embed_images(
        embedder, photos, parts, batch_size=2, workers=workers, log=seen.append,
        told=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert seen[1:] == [f"{parts}.part: 6 images were done before", 8, 10]
    assert sorted(x.name for x in tmp_path.glob("parts*") if x.suffix != ".json") == [parts.name]
    assert parts.read_bytes() == whole.read_bytes()
    for name in ("header", "paths"):
        assert getattr(table.load(parts), name) == getattr(table.load(whole), name)


def on_a_rank(run: Path, photos: Path, out: Path) -> tuple[dict, list]:
    told = []
    header = quiet(sz.load(run), photos, out, batch_size=1, told=lambda *done: told.append(done))
    return header, told


def test_two_ranks_go_on_from_one_and_end_in_the_same_bytes(run, photos, tmp_path):
    whole, parts = tmp_path / "whole.npy", tmp_path / "parts.npy"
    header, told = on_a_rank(run, photos, whole)
    assert told == [(n, 10) for n in range(1, 11)]

    def kill(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quiet(sz.load(run), photos, parts, batch_size=1, told=kill)
    # Rank 0 gets the broken image; for the last turn there is one image.
    (first, told), (second, nothing) = on_ranks(2, on_a_rank, run, photos, parts)
    assert first == second == header and told == [(n, 10) for n in (5, 7, 9, 10)] and not nothing
    assert parts.read_bytes() == whole.read_bytes()
    assert table.load(parts).paths == table.load(whole).paths


def test_the_network_may_compute_in_bf16_which_is_another_file(run, photos, embedded, tmp_path):
    out = tmp_path / "x.npy"
    words = ["embed", run, photos, "--out", out, "--batch-size", 3, "--workers", 0]
    assert main([*map(str, words), "--precision", "bf16"]) == 0
    exact, found = (table.load(file) for file in (embedded, out))
    assert found.header["precision"] == "bf16" and found.features.dtype == np.float32
    assert not np.array_equal(exact.features, found.features)
    np.testing.assert_allclose(found.features, exact.features, rtol=0.02, atol=0.01)
    assert main([*map(str, words)]) == 2  # the file is of another precision


def test_a_damaged_half_is_not_gone_on_with(embedder, photos, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    out, part = tmp_path / "x.npy", tmp_path / "x.npy.part"
    with pytest.raises(KeyboardInterrupt):
        quiet(embedder, photos, out, batch_size=9, told=stop)
    rows, left_out = (part / name for name in ("features.f32", "unreadable.jsonl"))
    for file in rows, left_out:
        whole = file.read_bytes()
        file.write_bytes(whole[:-5])
        with pytest.raises(ValueError, match=r"x\.npy\.part: damaged: .* starts afresh"):
            quiet(embedder, photos, out)
        file.write_bytes(whole)
    quiet(embedder, photos, out)


def test_what_is_there_of_another_set_or_network_is_not_gone_on_with(
    embedder, photos, tmp_path, embedded
):
    def stop(done, total):
        raise KeyboardInterrupt

    out, copy = tmp_path / "x.npy", tmp_path / "photos"
    shutil.copytree(photos, copy)
    with pytest.raises(KeyboardInterrupt):
        quiet(embedder, copy, out, batch_size=4, told=stop)
    picture(copy / "more.png", 99)
    with pytest.raises(FileExistsError, match=r"(?s)x\.npy\.part holds .*other images.*images: '"):
        quiet(embedder, copy, out)
    other = sz.Embedder(TinyNet(in_chans=3), embedder.clean, embedder.about)
    with pytest.raises(FileExistsError, match=r"(?s)photos\.npy holds .*weights: '"):
        quiet(other, photos, embedded)
    moved = tmp_path / "moved"
    (copy / "more.png").unlink()
    shutil.move(copy, moved)
    quiet(embedder, moved, out)  # where it lies is no difference
    np.testing.assert_allclose(np.load(out), np.load(embedded), rtol=1e-5, atol=1e-6)


def test_parquet_has_a_list_for_each_path(embedder, photos, tmp_path, embedded, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(table, "ROWS_AT_ONCE", 4)
    quiet(embedder, photos, tmp_path / "x.parquet", batch_size=3)
    header, paths, features = table.load(tmp_path / "x.parquet")
    npy = table.load(embedded)
    assert paths == npy.paths and (features == npy.features).all() and header == npy.header


def test_images_of_one_size_need_no_view_that_brings_them_to_one(embedder, tmp_path):
    colors = Part(sz.data.Normalize, mean=[0.5] * 3, std=[0.2] * 3)
    views = Views(ops={"normalize": colors})
    embedder = sz.Embedder(embedder.backbone, views, embedder.about)
    for i, (width, height) in enumerate([(12, 12), (12, 12), (13, 12)]):
        picture(tmp_path / "photos" / f"{i}.png", i, width, height)
    header = quiet(embedder, tmp_path / "photos", tmp_path / "x.npy", batch_size=2)
    assert "13 x 12 pixels, the first 12 x 12" in header["unreadable"]["2.png"]
    first = embedder.embed([tmp_path / "photos" / "0.png"])
    np.testing.assert_allclose(np.load(tmp_path / "x.npy")[:1], first, rtol=1e-5, atol=1e-6)


def test_a_network_of_the_run_is_taken_by_name(run, photos, tmp_path, capsys):
    out = tmp_path / "x.npy"
    words = ("embed", run, photos, "--workers", "0", "--out", out)
    status, text = said(capsys, *words, "network=key_encoder")
    assert status == 0 and f"{out}: of key_encoder of " in text
    assert table.load(out).header["network"] == "key_encoder"
    assert said(capsys, *words, "network=teacher")[0] == 2
    assert "no key of embed" in said(capsys, *words, "netwrok=teacher")[1]


def test_what_cannot_be_embedded_is_said_before_anything_is_paid_for(
    run, photos, tmp_path, capsys, monkeypatch
):
    def refused(*words) -> str:
        status, text = said(capsys, "embed", run, *words)
        assert status == 2 and not list(tmp_path.glob("*.part"))
        return text

    out = tmp_path / "x.npy"
    assert "nowhere: no such folder" in refused(tmp_path / "nowhere", "--out", out)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    text = refused(tmp_path / "empty", "--out", out)
    assert "no image (" in text and "not read: 1 file .txt" in text
    assert "ends in .npy or .parquet" in refused(photos, "--out", tmp_path / "x.csv")
    assert "a folder that exists" in refused(photos, "--out", tmp_path / "no" / "x.npy")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    text = refused(photos, "--out", tmp_path / "x.parquet")
    assert "pip install 'ssl_zoo[search]'" in text
    with pytest.raises(SystemExit):
        main(["embed", str(run), str(photos), "--out", str(out), "--batch-size", "0"])
    assert "a whole number from 1 on" in capsys.readouterr().err


def test_a_folder_in_which_nothing_can_be_read_is_refused(embedder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    (folder / "b.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match="none of 2 images can be read"):
        quiet(embedder, folder, tmp_path / "x.npy")
    assert list(tmp_path.iterdir()) == [folder]


def test_names_that_are_no_text_are_kept_in_npy_and_refused_in_parquet(embedder, tmp_path):
    pytest.importorskip("pyarrow")
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "x.png", 0)
    name = os.fsdecode(b"\xff.png")
    os.rename(folder / "x.png", folder / name)
    quiet(embedder, folder, tmp_path / "x.npy")
    assert table.load(tmp_path / "x.npy").paths == [name]
    with pytest.raises(ValueError, match=r"(?s)UTF-8.*xff\.png"):
        quiet(embedder, folder, tmp_path / "x.parquet")


# The index.


def test_the_nearest_come_first_and_the_image_itself_before_all(index, photos, capsys, tmp_path):
    sheet = tmp_path / "sheet.png"
    status, text = said(capsys, "search", index, photos / "a" / "2.png", "-k", 3, "--sheet", sheet)
    lines = text.splitlines()
    assert status == 0 and len(lines) == 4
    assert {line.partition("  ")[2] for line in lines[:2]} == {
        str(photos / name) for name in ("a/2.png", "copy.png")
    }
    values = [float(line.split()[0]) for line in lines[:3]]
    assert values[0] == values[1] == 1.0 > values[2]
    with Image.open(sheet) as image:
        assert image.size == (8 + 3 * 168, 8 + 2 * 198)


def test_similarities_are_cosines(index, embedded, embedder, photos):
    _, paths, features = table.load(embedded)
    query = embedder.embed([photos / "a" / "0.png"])[0]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ (query / np.linalg.norm(query))
    found = ImageIndex.load(index).nearest(query, 5)
    order = np.argsort(-cosine)[:5]
    assert [match.path for match in found] == [photos / paths[i] for i in order]
    np.testing.assert_allclose([m.similarity for m in found], cosine[order], rtol=1e-5)


def test_more_than_there_are_is_all(index, photos, capsys):
    _, text = said(capsys, "search", index, photos / "copy.png", "-k", 50)
    first, *lines = text.splitlines()
    assert "no more than 9 images" in first and len(lines) == 9


def test_what_cannot_be_searched_is_said(index, photos, tmp_path, capsys):
    assert "cannot be decoded" in said(capsys, "search", index, photos / BAD)[1]
    assert "No such file" in said(capsys, "search", index, tmp_path / "x.png")[1]
    assert "expected a folder that" in said(capsys, "search", tmp_path, photos / "copy.png")[1]


def test_another_network_than_the_indexs_is_refused(index, photos, run, tmp_path, capsys):
    other = trained(tmp_path / "other", seed=1).path
    image = photos / "copy.png"
    status, text = said(capsys, "search", index, image, "--run", other)
    assert status == 2 and "other weights than those that made the index" in text
    moved = shutil.copytree(run, tmp_path / "moved")
    assert said(capsys, "search", index, image, "--run", moved)[0] == 0
    # A folder of its own: the index says where the network was.
    lost = shutil.copytree(index, tmp_path / "lost")
    about = json.loads((lost / "index.json").read_text())
    (lost / "index.json").write_text(json.dumps(about | {"run": str(tmp_path / "gone.pt")}))
    status, text = said(capsys, "search", lost, image)
    assert status == 2 and "gone.pt" in text and "--run says where" in text


def test_an_index_of_the_same_is_kept_and_one_of_another_is_refused(
    index, embedded, embedder, photos, tmp_path, capsys
):
    assert "there already" in said(capsys, "index", embedded)[1]
    file = tmp_path / "x.npy"
    quiet(sz.Embedder(TinyNet(in_chans=3), embedder.clean, embedder.about), photos, file)
    status, text = said(capsys, "index", file, "--out", index)
    assert status == 2 and "of another network" in text and "weights: '" in text
    assert said(capsys, "index", file, "--out", tmp_path)[0] == 2  # a folder of something else


def test_features_and_an_index_of_images_that_were_moved_say_where_they_are_now(
    embedder, photos, tmp_path
):
    before, now = shutil.copytree(photos, tmp_path / "before"), tmp_path / "now"
    file, folder = tmp_path / "x.npy", tmp_path / "x.index"
    quiet(embedder, before, file)
    assert ImageIndex.over(file).save(folder)
    features = np.load(file)
    before.rename(now)
    quiet(embedder, now, file)
    assert table.header_of(file)["folder"] == str(now) and (np.load(file) == features).all()
    assert not ImageIndex.over(file).save(folder)
    assert ImageIndex.load(folder).path(0).is_file()


def test_other_pixels_in_an_uncompressed_file_are_other_images(embedder, tmp_path):
    image = Image.new("RGB", (12, 12), "red")
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "a.bmp")
    quiet(embedder, tmp_path / "photos", tmp_path / "x.npy")
    Image.new("RGB", (12, 12), "blue").save(tmp_path / "photos" / "a.bmp")
    with pytest.raises(FileExistsError, match="of other images"):
        quiet(embedder, tmp_path / "photos", tmp_path / "x.npy")


def test_files_are_decoded_as_the_runs_folder_of_images_is(run, photos, tmp_path):
    picture(tmp_path / "plain.png", seed=3, width=12, height=20)
    turned = Image.open(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (12, 12), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    plain = sz.load(run)
    other = sz.Embedder(plain.backbone, plain.clean, plain.about, {"exif": False, "background": 0})
    for name in ("turned.jpg", "clear.png"):
        path = tmp_path / name
        assert not torch.equal(plain.transform(path), other.transform(path))
    assert other.transform(tmp_path / "clear.png").max() < 0  # black, normalized


def test_a_run_on_a_folder_says_how_its_files_are_decoded(tmp_path):
    for split in ("train", "val"):
        for label in "ab":
            picture(tmp_path / "data" / split / label / "0.png", seed=1)
    words = ["digits/moco_v2", "evaluations.knn=null", "train.epochs=1", "data.batch_size=2"]
    folder = {"type": "ImageFolder", "root": str(tmp_path / "data"), "background": [9, 0, 0]}
    words += [f"data.dataset={json.dumps(folder)}", "backbone={type: TinyNet, in_chans: 3}"]
    crop = "crop: {type: %s, size: 8}"
    for view, kind in (("clean", "CenterCrop"), ("views", "RandomResizedCrop")):
        words += [f"data.{view}.ops={{normalize: null, jitter: null, {crop % kind}}}"]
    words += ["method.memory.size=2", "data.workers=0", "--no-baselines", "--device", "cpu"]
    assert main(["train", *words, "--out", str(tmp_path / "run")]) == 0
    found = sz.load(tmp_path / "run")
    assert found.decoding.background == (9, 0, 0) and found.decoding.exif
    assert found.about["clean"]["decoding"] == {"background": [9, 0, 0]}


def test_an_index_is_whole_or_not_there(embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(image_index, "write_json", Mock(side_effect=OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        ImageIndex.over(embedded).save(tmp_path / "new" / "x.index")
    assert not list((tmp_path / "new").iterdir())


def test_a_broken_file_or_index_is_named(embedded, index, tmp_path, capsys):
    def of_file(name: str, spoil) -> str:
        for path in (embedded, table._beside(embedded)):
            shutil.copy(path, tmp_path / path.name.replace("photos", name))
        spoil(tmp_path / f"{name}.npy", tmp_path / f"{name}.npy.json")
        status, text = said(capsys, "index", tmp_path / f"{name}.npy")
        assert status == 2 and name in text
        return text

    assert "no such file" in of_file("alone", lambda npy, beside: beside.unlink())
    assert "damaged" in of_file("cut", lambda npy, beside: npy.write_bytes(npy.read_bytes()[:200]))
    assert "damaged" in of_file("json", lambda npy, beside: beside.write_text("{"))
    text = of_file("short", lambda npy, beside: np.save(npy, np.load(npy)[1:]))
    assert "float32 [8, 8] for 9 paths" in text

    def not_finite(npy, beside):
        features = np.load(npy)
        features[3, 0] = np.nan
        np.save(npy, features)

    assert "1 image are not all finite, the first is a/6.png" in of_file("nan", not_finite)
    assert "no such file" in said(capsys, "index", tmp_path / "none.npy")[1]
    assert "expected what" in said(capsys, "index", tmp_path / "none.txt")[1]

    def of_index(name: str, spoil) -> str:
        broken = shutil.copytree(index, tmp_path / name)
        spoil(broken)
        status, text = said(capsys, "duplicates", broken)
        assert status == 2 and name in text
        return text

    assert "damaged" in of_index("a", lambda x: (x / "index.faiss").write_bytes(b"IxFI"))
    assert "no such file" in of_index("b", lambda x: (x / "index.faiss").unlink())

    def fewer(folder):
        about = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(about | {"paths": about["paths"][1:]}))

    assert "9 x 8 numbers for 8 paths" in of_index("c", fewer)


def test_a_parquet_file_of_something_else_is_refused(tmp_path, capsys):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table({"path": ["a"]}), tmp_path / "x.parquet")
    assert "metadata say nothing" in said(capsys, "index", tmp_path / "x.parquet")[1]
    (tmp_path / "y.parquet").write_bytes(b"no parquet")
    assert "y.parquet: damaged" in said(capsys, "index", tmp_path / "y.parquet")[1]


# Near-duplicates.


def clustered(folder: Path) -> ImageIndex:
    """Unit vectors at these angles: a chain of three, a pair, and one alone."""
    degrees = np.array([0.0, 120.0, 4.0, 200.0, 8.0, 121.0])
    angle = np.deg2rad(degrees).astype(np.float32)
    features = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 3
    header = dict.fromkeys(image_index.MADE_OF, "") | {"folder": str(folder)}
    made = table.Embeddings(header, [f"{i}.png" for i in range(6)], features)
    table.save(folder / "x.npy", made)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_groups_are_what_is_alike_and_what_is_like_that(tmp_path, kind, at_once, monkeypatch):
    monkeypatch.setattr(image_index, "PAIRS_AT_ONCE", at_once)
    clustered(tmp_path)
    index = ImageIndex.over(tmp_path / "x.npy", kind)
    groups = index.groups(0.995)  # 5.7 degrees
    assert ("finds 100.0% of the 6 nearest" in index.about["index"]) == (kind != "flat")
    assert [[m.path.name for m in group] for group in groups] == [
        ["1.png", "5.png"],
        ["0.png", "2.png", "4.png"],
    ]
    expected = [[1.0, 1.0], [4.0, 4.0, 4.0]]
    for group, degrees in zip(groups, expected, strict=True):
        cosines = np.cos(np.deg2rad(degrees))
        np.testing.assert_allclose([m.similarity for m in group], cosines, atol=1e-6)


def test_too_many_pairs_are_refused_before_memory_is_full(tmp_path, monkeypatch):
    clustered(tmp_path)
    monkeypatch.setattr(image_index, "MOST_PAIRS", 3)
    index = ImageIndex.over(tmp_path / "x.npy")
    assert len(index.groups(0.995)) == 2
    with pytest.raises(ValueError, match=r"more than 3 pairs are 0\.9 alike .* raise --threshold"):
        index.groups(0.9)


def test_duplicates_come_with_pictures(index, photos, tmp_path, capsys):
    out = tmp_path / "out"
    status, text = said(capsys, "duplicates", index, "--threshold", "1", "--out", out)
    pair = [str(photos / "a" / "2.png"), str(photos / "copy.png")]
    assert status == 0 and "1 group with 2 images of 9 images, 1 alike or more" in text
    assert [line.split("  ")[-1] for line in text.splitlines()[2:4]] == pair
    rows = list(csv.reader((out / "groups.csv").read_text().splitlines()))
    assert rows[0] == ["group", "similarity", "path"] and [row[2] for row in rows[1:]] == pair
    assert [x.name for x in out.glob("*.png")] == ["sheet_001.png"]
    (out / "sheet_002.png").write_bytes(b"of a lower threshold")
    assert said(capsys, "duplicates", index, "--threshold", "1", "--out", out)[0] == 0
    assert [x.name for x in out.glob("*.png")] == ["sheet_001.png"]
    with pytest.raises(SystemExit):
        main(["duplicates", str(index), "--threshold", "95"])
    assert "at most 1" in capsys.readouterr().err


def test_a_sheet_shows_what_it_can(photos, tmp_path):
    wide = tmp_path / "wide.png"
    picture(wide, 0, width=400, height=100)
    assert thumbnail(wide).size == (160, 40) and thumbnail(photos / "a" / "0.png").size == (12, 12)
    assert thumbnail(photos / BAD).getpixel((5, 5)) == (210, 210, 210)
    rows = [[Picture(wide, ("1", "a very long name of a file " * 3))], [Picture(None, ("2 more",))]]
    write_sheet(rows, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (176, 404)


def test_the_digest_of_weights_is_of_every_tensor(embedder):
    one = digest_of_weights(embedder.backbone)
    net = TinyNet(in_chans=3)
    net.load_state_dict(embedder.backbone.state_dict())
    assert digest_of_weights(net) == one
    with torch.no_grad():
        net.net[0].bias[3] += 1e-3
    assert digest_of_weights(net) != one
