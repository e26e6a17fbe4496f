"""hrrl embed, hrrl search, hrrl export-retrieval, and the gallery they are about."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hrrl_ext.retrieval import (
    Gallery,
    JointEmbedding,
    Pairs,
    Words,
    build_joint_embedding,
    embed,
    evaluate,
    load_embeddings,
    load_pairs,
    open_gallery_images,
    save_joint_embedding,
)

pytest.importorskip("jsonargparse")
pytest.importorskip("PIL")
from PIL import Image

from hrrl_ext.cli import main

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Plain images, each with two captions."""
    folder = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        Image.fromarray(np.full((9, 12, 3), colour, np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a picture that is {name}\n{name}\n")
    return folder


@pytest.fixture(scope="module")
def model(photos) -> JointEmbedding:
    """One that knows the colours: made, not trained."""
    words = Words.of(load_pairs(photos, image_size=4).captions, min_count=1)
    torch.manual_seed(0)
    model = build_joint_embedding(
        "convnet", words, image_size=4, width=2, dim=3, word_dim=3, text_width=3
    )
    pairs = load_pairs(photos, image_size=4)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    tokens, lengths = words.encode(pairs.captions)
    images = pairs.images.__getitems__(pairs.owner)[0].float() / 255
    for _ in range(60):
        f, g = model(images, tokens, lengths)
        loss = nn.functional.cross_entropy(
            10 * f @ g.T, pairs.caption_group[:, None].eq(pairs.caption_group).float()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_joint_embedding(model, path)
    return path


@pytest.fixture(scope="module")
def index(folder, photos, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("index") / "photos.npz"
    assert (
        main(["embed", str(folder), "--data", str(photos), "--out", str(path), "--progress", "off"])
        == 0
    )
    return path


# --- the gallery


def test_each_row_is_what_the_model_gives(model, photos) -> None:
    pairs = load_pairs(photos, image_size=4)
    told: list[tuple[int, int]] = []
    model.train()
    gallery = embed(model, pairs, batch_size=2, progress=lambda done, of: told.append((done, of)))
    assert model.training and told == [(2, 9), (3, 9), (5, 9), (7, 9), (9, 9)]
    model.eval()
    images = pairs.images.__getitems__(range(3))[0].float() / 255
    with torch.no_grad():
        torch.testing.assert_close(gallery.image, model.encode_image(images))
        torch.testing.assert_close(gallery.caption, model.encode_captions(pairs.captions))


def test_a_file_brings_it_back_and_can_be_measured(model, photos, index, tmp_path) -> None:
    gallery = embed(model, load_pairs(photos, image_size=4))
    again = Gallery.load(index)
    for name in ("image", "caption", "image_group", "caption_group", "owner"):
        assert torch.equal(getattr(again, name), getattr(gallery, name)), name
    for name in ("similarity", "names", "captions", "weights"):
        assert list(getattr(again, name)) == list(getattr(gallery, name)), name
    again.require_model(model, "it")
    assert evaluate(*load_embeddings(index)).measures["rsum"] > 500  # it knows the colours
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        gallery.save(tmp_path / "x.safetensors")
    for about in (b"{", b'{"names": []}', b"[]"):
        np.savez(
            tmp_path / "x.npz",
            image=np.eye(2),
            caption=np.eye(2),
            about=np.frombuffer(about, np.uint8),
        )
        with pytest.raises(ValueError, match="about is not as hrrl embed writes it"):
            Gallery.load(tmp_path / "x.npz")


def test_what_is_found_is_the_nearest(index) -> None:
    gallery = Gallery.load(index)
    score = gallery.caption @ gallery.image.T
    for query, hits in enumerate(gallery.find_images(gallery.caption, k=2)):
        assert [hit.image for hit in hits] == score[query].argsort(descending=True)[:2].tolist()
        for hit in hits:
            assert hit.image is not None and Path(hit.name).name == f"{hit.captions[1]}.png"
            torch.testing.assert_close(hit.score, score[query, hit.image].item())
    (hits,) = gallery.find_captions(gallery.image[:1], k=99)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 6 and all(hit.captions[0] in gallery.captions for hit in hits)


def test_order_embeddings_are_searched_by_order() -> None:
    image = torch.tensor([[1.0, 1.0], [5.0, 0.0], [0.4, 0.4]])
    gallery = Gallery(image, torch.tensor([[0.5, 0.5]]), "order")
    (hits,) = gallery.find_images(torch.tensor([[0.9, 0.9]]), k=3)
    # -‖max(0, g - f)‖: 0, -0.9, -√0.5
    assert [hit.image for hit in hits] == [0, 2, 1]
    np.testing.assert_allclose([hit.score for hit in hits], [0, -(0.5**0.5), -0.9], rtol=1e-6)


def test_features_are_embedded_as_features(model) -> None:
    features = torch.rand(2, 16)
    gallery = embed(model, Pairs(features, ["red", "blue"], [0, 1]))
    with torch.no_grad():
        torch.testing.assert_close(gallery.image, model.encode_image(features, precomputed=True))


def test_a_folder_without_texts_is_images_alone(model, photos, tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    for at, name in enumerate(("b.png", "deep/a.PNG", ".hidden.png")):
        (tmp_path / name).write_bytes((photos / f"{list(COLOURS)[at]}.png").read_bytes())
    (tmp_path / ".cache").mkdir()
    for name in (".cache/c.png", "c.heic", "README.txt", ".cache/a.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"2 images are taken; left out are other files, 1 x \.txt, 1 x \.heic"
    ):
        images = open_gallery_images(tmp_path, image_size=4)
    gallery = embed(model, images)
    assert [Path(name).name for name in gallery.names] == ["b.png", "a.PNG"]
    gallery.save(tmp_path / "x.npz")
    gallery = Gallery.load(tmp_path / "x.npz")
    assert gallery.caption.shape == (0, 3) and gallery.owner is None
    ((hit,),) = gallery.find_images(model.encode_captions(["green"]).detach(), k=1)
    assert hit.image == 1 and hit.captions == []
    with pytest.raises(ValueError, match="no captions in it"):
        gallery.find_captions(gallery.image)
    with pytest.raises(ValueError, match="give image_size="):
        open_gallery_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in it or below it"):
        open_gallery_images(tmp_path / "empty", image_size=4)


def test_a_split_of_images_alone_is_no_other(photos, tmp_path) -> None:
    for split, name in (("train", "red"), ("test", "blue")):
        (tmp_path / split).mkdir()
        shutil.copy(photos / f"{name}.png", tmp_path / split)
    opened = [open_gallery_images(tmp_path, split=split, image_size=4) for split in ("test", "all")]
    assert [len(images) for images in opened] == [1, 2]
    assert [Path(name).name for name in opened[0].sources] == ["blue.png"]
    with pytest.raises(ValueError, match="split 'val' is not known"):
        open_gallery_images(tmp_path, split="val", image_size=4)
    with pytest.raises(ValueError, match="root goes with a file of names"):
        open_gallery_images(tmp_path, root=tmp_path, image_size=4)


# --- the commands


def test_a_caption_finds_its_images(folder, index, tmp_path, capsys) -> None:
    out, picture = tmp_path / "found.json", tmp_path / "found.png"
    options = ["--k", "2", "--out", str(out), "--picture", str(picture)]
    assert main(["search", str(folder), str(index), "red", "that is blue", *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "red" and "red.png; a picture that is red; red" in printed[1]
    assert printed[3] == "that is blue" and "blue.png" in printed[4]
    found = json.loads(out.read_text())
    assert list(found) == ["red", "that is blue"] and [len(hits) for hits in found.values()] == [
        2,
        2,
    ]
    assert Path(found["red"][0]["name"]).name == "red.png"
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 0, 255)):  # the images stand on it
        assert (pixels == colour).all(1).sum() > 1000
    assert main(["search", str(folder), str(index), "red", "--out", str(out)]) == 1
    assert "exists; choose another" in capsys.readouterr().err


def test_a_picture_is_of_the_images_that_were_embedded(
    folder, photos, tmp_path, monkeypatch, capsys
) -> None:
    """From whatever folder it is drawn, and not where the images are others by now."""
    shutil.copytree(photos, tmp_path / "photos")
    Path(tmp_path / "list.txt").write_text(f"{tmp_path / 'photos' / 'green.png'}\n")
    monkeypatch.chdir(tmp_path)
    data = ["--data", "photos:leave_out=list.txt", "--out", "x.npz", "--progress", "off"]
    assert main(["embed", str(folder), *data]) == 0
    assert [Path(name).name for name in Gallery.load("x.npz").names] == ["blue.png", "red.png"]
    monkeypatch.chdir(folder)
    words = ["search", str(folder), str(tmp_path / "x.npz"), "red", "--picture"]
    assert main([*words, str(tmp_path / "a.png")]) == 0
    for suffix in (".png", ".txt"):
        shutil.copy(photos / f"green{suffix}", tmp_path / "photos" / f"000{suffix}")
    capsys.readouterr()
    assert main([*words, str(tmp_path / "b.png")]) == 1
    said = capsys.readouterr().err
    assert re.search(
        r"row 0 was .*blue\.png, and is .*000\.png; make it again with hrrl embed", said
    )


def test_an_image_finds_its_captions(folder, index, photos, capsys) -> None:
    assert (
        main(["search", str(folder), str(index), "--image", str(photos / "green.png"), "--k", "2"])
        == 0
    )
    lines = capsys.readouterr().out.splitlines()[1:]
    assert sorted(line.split("; ")[1] for line in lines) == ["a picture that is green", "green"]


def test_images_are_indexed_at_once(folder, photos, index, capsys) -> None:
    words = ["blue", "--k", "1", "--progress", "off"]
    printed = []
    for where in (str(index), str(photos)):
        assert main(["search", str(folder), where, *words]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_embeddings_of_others_are_searched_by_row(folder, tmp_path, capsys) -> None:
    path = tmp_path / "clip.npz"
    np.savez(
        path, image_embeds=np.eye(3, dtype=np.float32), text_embeds=np.eye(3, dtype=np.float32)
    )
    assert main(["search", str(folder), str(path), "red", "--k", "1"]) == 0
    assert "image " in capsys.readouterr().out
    photo = tmp_path / "red.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(photo)
    assert main(["search", str(folder), str(path), "--image", str(photo), "--k", "1"]) == 0
    assert re.fullmatch(r" +1 +-?\d\.\d+  caption \d", capsys.readouterr().out.splitlines()[1])
    picture = tmp_path / "x.png"
    assert main(["search", str(folder), str(path), "red", "--picture", str(picture)]) == 1
    assert "is not known; hrrl embed notes it" in capsys.readouterr().err


def test_an_index_of_another_model_is_an_error(model, folder, index, tmp_path, capsys) -> None:
    """Its scores would be noise, and look like any others."""
    with torch.no_grad():
        other = build_joint_embedding(
            "convnet", model.words, image_size=4, width=2, dim=3, word_dim=3, text_width=3
        )
    save_joint_embedding(other, tmp_path)
    assert main(["search", str(tmp_path), str(index), "red"]) == 1
    assert "was embedded by another model" in capsys.readouterr().err
    np.savez(tmp_path / "wide.npz", image=np.eye(4), caption=np.eye(4))
    assert main(["search", str(folder), str(tmp_path / "wide.npz"), "red"]) == 1
    assert "embeddings of 4 numbers, the model gives 3" in capsys.readouterr().err


def test_errors_are_one_line(folder, photos, index, tmp_path, capsys) -> None:
    for words, said in (
        (["search", folder, index], "give a TEXT, or --image FILE"),
        (["search", folder, index, "red", "--k", "0"], "from 1 on, got 0"),
        (["search", folder, tmp_path / "none", "red"], "does not exist"),
        (["search", tmp_path, index, "red"], "no model and no run"),
        (
            ["search", folder, index, "red", "--split", "test"],
            "--split is of images that are to be",
        ),
        (["search", folder, index, "red", "--image_size", "4"], "--image_size is of images"),
        (
            ["search", folder, "emoji:leave_out=none", "red"],
            f"leave_out: {Path.cwd() / 'none'} does",
        ),
        (["embed", folder, "--data", photos, "--out", index], "exists; choose another out"),
        (["embed", folder, "--data", photos, "--out", tmp_path / "x.csv"], "must end in .npz"),
        (["embed", folder, "--data", "emojis", "--out", tmp_path / "x.npz"], "does not exist"),
    ):
        assert main([*map(str, words)]) == 1
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error


def test_a_model_of_features_takes_no_image_files(tmp_path, photos, index, capsys) -> None:
    save_joint_embedding(
        build_joint_embedding("features", Words(["red"]), features=4, dim=3), tmp_path
    )
    np.savez(tmp_path / "x.npz", image=np.eye(3), caption=np.eye(3))
    words = ["search", tmp_path, tmp_path / "x.npz", "--image", photos / "red.png"]
    assert main([*map(str, words)]) == 1
    assert "the model takes features" in capsys.readouterr().err


def test_names_and_captions_are_shown_as_they_are(model, tmp_path, capsys) -> None:
    from hrrl_ext.plots import plot_contact_sheet

    sheet = [("_$x^$", [(torch.zeros(3, 4, 4, dtype=torch.uint8), "$\\frac{$ _a <b>")])]
    assert plot_contact_sheet(sheet, tmp_path / "x.png").stat().st_size > 0
    with pytest.raises(ValueError, match="nothing was found"):
        plot_contact_sheet([("a", [])], tmp_path / "y.png")


def test_export_retrieval_writes_both_encoders(folder, tmp_path, capsys) -> None:
    assert (
        main(["export-retrieval", str(folder), "--formats", "torch", "--out", str(tmp_path)]) == 0
    )
    assert capsys.readouterr().out.count("saved") == 2
    assert (tmp_path / "image.pt2").is_file() and (tmp_path / "tokenizer.json").is_file()
