"""WebDataset's shards: how members become samples, labels and columns; what is damaged; that places are kept."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hrrl_ext.data import Batches, concepts_of, load_images, readable
from hrrl_ext.data.shards import shard_paths
from hrrl_ext.data.tar_index import TarIndex, tar_index

Image = pytest.importorskip("PIL.Image")


@cache
def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@cache
def picture(number: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels(number)).save(stream, kind)
    return stream.getvalue()


def write(path: Path, members: Iterable[tuple[str, bytes | str]], age: int = 100) -> Path:
    """A tar file that was written so many seconds ago."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    past = os.stat(path).st_mtime - age
    os.utime(path, (past, past))
    return path


def sample(number: int, **texts: str) -> list[tuple[str, bytes | str]]:
    return [
        (f"{number:03}.png", picture(number)),
        *((f"{number:03}.{s}", t) for s, t in texts.items()),
    ]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two, of five samples each, whose classes are 0, 1, 10 in turn."""
    for shard in range(2):
        numbers = range(5 * shard, 5 * shard + 5)
        write(
            tmp_path / f"train-{shard:03}.tar",
            [
                member
                for n in numbers
                for member in sample(
                    n, cls=f"{(0, 1, 10)[n % 3]}\n", json=json.dumps({"place": "ab"[n % 2], "n": n})
                )
            ],
        )
    return tmp_path


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_samples_of_several_shards(shards: Path) -> None:
    images = load_images(f"wds:{shards}/train-{{000..001}}.tar", image_size=8)
    assert len(images) == 10
    assert images.classes == ["0", "1", "10"]  # by value, as everywhere
    assert images.target.tolist() == [n % 3 for n in range(10)]
    rows = [7, 0, -1]
    x, target = images.__getitems__(rows)
    assert x.numpy().transpose(0, 2, 3, 1).tolist() == [pixels(n).tolist() for n in (7, 0, 9)]
    assert target.tolist() == [1, 0, 0]
    part = images.subset(rows)
    assert torch.equal(part.__getitems__(range(3))[0], x)
    assert part.columns["n"].tolist() == ["7", "0", "9"]
    concept, names = concepts_of("column:place", images)
    assert (concept.tolist(), names) == ([0, 1] * 5, ["a", "b"])


def test_rows_of_each_shard_as_they_stand_there(shards: Path) -> None:
    """Of a part of the images, in any order, too."""
    images = load_images(f"wds:{shards}", image_size=8)
    assert [rows.tolist() for rows in images.shards or ()] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    part = images.subset([7, 3, -4, 0])
    assert [rows.tolist() for rows in part.shards or ()] == [[3, 1], [2, 0]]
    of_second = images.subset([9]).relabelled(["a", "b"], [0, 0, 1])
    assert [rows.tolist() for rows in of_second.shards or ()] == [[], [0]]
    batches = Batches(part, part.target, 2, shuffle=True, shuffle_buffer=1)
    (x, *_), _ = batches.epoch(0)  # the pictures themselves, of one shard
    assert any(torch.equal(x, part.__getitems__(rows)[0] / 255) for rows in ([3, 1], [2, 0]))


def test_any_order_and_workers_change_no_bit(shards: Path) -> None:
    images = load_images(f"wds:{shards}", image_size=8)
    epochs = [
        [
            x
            for x, *_ in Batches(
                images, images.target, 4, shuffle=True, num_workers=w, keep_gib=0
            ).epoch(3)
        ]
        for w in (0, 1)
    ]
    assert all(map(torch.equal, *epochs))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("train-{000..001}.tar", ["train-000.tar", "train-001.tar"]),
        ("train-{001,000}.tar", ["train-001.tar", "train-000.tar"]),
        ("{train,train}-00{0..1}.tar", ["train-000.tar", "train-001.tar"] * 2),
        ("train-*.tar", ["train-000.tar", "train-001.tar"]),
        ("train-00?.tar", ["train-000.tar", "train-001.tar"]),
        (".", ["./train-000.tar", "./train-001.tar"]),
    ],
)  # fmt: skip
def test_patterns(
    shards: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, found: list[str]
) -> None:
    monkeypatch.chdir(shards)
    assert shard_paths(pattern) == found


def test_what_a_shell_makes_of_braces(shards: Path) -> None:
    parts = [f"wds:{shards}/train-00{i}.tar:label=n" for i in (0, 1)]
    assert load_images(parts, image_size=8).classes == [str(n) for n in range(10)]
    with pytest.raises(ValueError, match="other settings"):
        load_images([parts[0], parts[1] + ",image=png"], image_size=8)


@pytest.mark.parametrize(
    ("pattern", "error"),
    [
        ("train-{000..002}.tar", "no shard '.*train-002.tar'"),
        ("train-{3..1}.tar", "must count up"),
        ("train-{0..9999999}.tar", "must count up, to 1,000,000"),
        ("test-*.tar", "no shard"),
        ("train-000.tar:label=plce", "did you mean 'place'"),
        ("train-000.tar:image=jpg", "a picture 'jpg' is not known"),
        ("train-000.tar:lable=n", "lable"),
    ],
)
def test_what_is_not_there(shards: Path, pattern: str, error: str) -> None:
    with pytest.raises((FileNotFoundError, ValueError), match=error):
        load_images(f"wds:{shards}/{pattern}", image_size=8)


def test_without_the_prefix_it_is_named(shards: Path) -> None:
    with pytest.raises(ValueError, match=r'"wds:.*train-000\.tar" reads it'):
        load_images(shards / "train-000.tar", image_size=8)
    with pytest.raises(ValueError, match="image_size"):
        load_images(f"wds:{shards}")


def test_names_of_classes(shards: Path, tmp_path: Path) -> None:
    """Beside the shards, or given; labels are numbers of lines, or names."""
    (shards / "classes.txt").write_text("\n".join("abcdefghijkl"))
    images = load_images(f"wds:{shards}", image_size=8)
    assert [images.classes[c] for c in images.target[:3]] == ["a", "b", "k"]
    (tmp_path / "other").write_text("b\na\n")
    by_name = load_images(f"wds:{shards}:label=place,classes={tmp_path / 'other'}", image_size=8)
    assert by_name.classes == ["b", "a"]
    assert by_name.target.tolist() == [1, 0] * 5
    with pytest.raises(
        ValueError, match=r"train-000.tar, sample '002' has the label '10', which is neither"
    ):
        load_images(f"wds:{shards}:classes={tmp_path / 'other'}", image_size=8)


def test_layouts_of_others(tmp_path: Path) -> None:
    """Folders and dots in names, several pictures, other members, a sample without a picture, a long name."""
    deep = "x" * 120  # of which the header is one of pax
    members: list[tuple[str, bytes | str]] = [
        ("a/1.seg.png", picture(5)), ("a/1.jpg", picture(1, "JPEG")), ("a/1.json", '{"label": "cat", "none": null, "box": [1, 2]}'),
        ("a/._1.jpg", b"clutter"), ("a/2.npy", b"array"), ("a/2.n\nw", b""),
        ("a/3.json", '{"label": "none"}'),
        (f"{deep}/1.PNG", picture(2)), (f"{deep}/1.json", '{"label": "dog"}'),
    ]  # fmt: skip
    shard = write(tmp_path / "a.tar", members)
    with pytest.warns(
        UserWarning, match=r"members 1 x .npy, 1 x '.n\\nw' and 1 samples without a picture"
    ):
        images = load_images(f"wds:{shard}", image_size=8)
    assert (images.classes, images.target.tolist()) == (["cat", "dog"], [0, 1])
    assert images.columns["box"].tolist() == ["[1, 2]", ""]
    jpeg = np.asarray(Image.open(io.BytesIO(picture(1, "JPEG"))))
    assert images[0][0].permute(1, 2, 0).tolist() == jpeg.tolist()
    with pytest.warns(UserWarning, match="2 samples without"):
        seg = load_images(f"wds:{shard}:image=seg.png", image_size=8)
    assert seg[0][0].permute(1, 2, 0).tolist() == pixels(5).tolist()


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([("1.png", picture(1)), ("1.jpg", picture(1)), ("1.cls", "0")], "sample '1' has several pictures"),
        ([("1.png", picture(1)), ("1.png", picture(1)), ("1.cls", "0")], "'1.png' at byte .* twice"),
        ([("1.png", picture(1)), ("2.png", picture(1)), ("1.cls", "0")], "the sample '1' began before another"),
        ([("1.png", picture(1)), ("1.cls", b"\xff")], "'1.cls' at byte .* is not text in UTF-8"),
        ([("1.png", picture(1)), ("1.cls", b"3\n\0")], "'1.cls' at byte .* is not text in UTF-8: a byte of 0 at 2"),
        ([("1.png", picture(1)), ("1.json", "{")], "'1.json' at byte .* is not valid JSON"),
        ([("1.png", picture(1)), ("1.json", "[1]")], "must hold an object, got list"),
        ([("1.png", picture(1)), ("1.txt", "a cat")], "no .cls, and no field"),
        ([("1.png", picture(1)), ("1.cls", " \n")], "sample '1' has no label in 'cls'"),
        ([("1.cls", "0")], "no picture in it"),
        ([], "damaged at byte 0|no picture"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, members: list[tuple[str, bytes | str]], error: str) -> None:
    shard = write(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=rf"a\.tar.*({error})"):
        load_images(f"wds:{shard}", image_size=8)


def test_links_are_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="is a link"):
        load_images(f"wds:{tmp_path}/a.tar", image_size=8)


# --- damage


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ({"size": 2**33 - 1}, "'1.json' at byte 0 is to have 8589934591 bytes, and the shard ends before"),
        ({"pax_headers": {"path": "1\0.json"}}, r"'1\\x00.json' at byte 0: that is no name"),
        ({"pax_headers": {"path": ""}}, "'' at byte 0: that is no name"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be(tmp_path: Path, header: dict[str, Any], error: str) -> None:
    """With checksums that are right."""
    member = tarfile.TarInfo("1.json")
    for name, value in header.items():
        setattr(member, name, value)
    (tmp_path / "a.tar").write_bytes(member.tobuf() + b"{}" + bytes(3 * 512 - 2))
    with pytest.raises(ValueError, match=rf"a\.tar, {error}"):
        load_images(f"wds:{tmp_path}/a.tar", image_size=8)


def test_compressed(shards: Path) -> None:
    shard = shards / "train-000.tar"
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(ValueError, match=r"train-000.tar is compressed by gzip.*unpack"):
        load_images(f"wds:{shard}", image_size=8)


@pytest.mark.parametrize(
    "how", ["header", "blank", "cut", "cut in the end", "header cut", "behind", "foreign"]
)
def test_a_damaged_shard_is_named_with_the_place(shards: Path, how: str) -> None:
    """tarfile alone takes all of these but one for whole archives of fewer members."""
    shard = shards / "train-000.tar"
    whole = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
    third, end = members[3].offset, members[-1].offset_data + 512
    at = third
    if how == "header":
        whole[third + 100] ^= 1
    elif how == "blank":
        whole[third : third + 512] = bytes(512)
    elif how == "cut":
        del whole[members[3].offset_data + 1 :]
        at = members[3].offset_data + 512 * -(-members[3].size // 512)
    elif how == "cut in the end":
        del whole[end + 100 :]
        at = end
    elif how == "header cut":
        del whole[third + 100 :]
    elif how == "behind":
        whole += bytes(whole)
        at = end
    else:
        whole[:] = b"\x89PNG" + bytes(3000)
        at = 0
    shard.write_bytes(whole)
    with pytest.raises(
        ValueError, match=rf"train-000\.tar is damaged at byte {at}: .*leave it out"
    ):
        load_images(f"wds:{shard}", image_size=8)


def test_a_damaged_picture_is_left_out(shards: Path) -> None:
    shard = shards / "train-001.tar"
    with tarfile.open(shard) as archive:
        broken = archive.getmember("007.png")
    whole = bytearray(shard.read_bytes())
    whole[broken.offset_data : broken.offset_data + 8] = bytes(8)
    shard.write_bytes(whole)
    images = load_images(f"wds:{shards}", image_size=8)
    name = f"{shard}, sample '007' at byte {broken.offset_data}"
    with pytest.raises(OSError, match=f"cannot decode image {name}: its first bytes"):
        images[7]
    with pytest.warns(UserWarning, match="1 of 10 images cannot be read"):
        left = readable(images)
    assert len(left) == 9
    assert left.left_out == [name]


def test_a_shard_that_changed_since_it_was_opened(shards: Path) -> None:
    images = load_images(f"wds:{shards}", image_size=8)
    (shards / "train-001.tar").write_bytes(b"")
    with pytest.raises(OSError, match="another than when it was opened"):
        images[9]


# --- the cache


def test_the_cache_is_of_this_state_of_the_file(
    shards: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shards / "train-000.tar"
    index = tar_index(shard)
    (file,) = (kept / "hrrl_ext" / "shards").iterdir()
    monkeypatch.setattr("hrrl_ext.data.tar_index._scanned", lambda path: TarIndex(["new"]))
    assert tar_index(shard) == index
    text = file.read_text()
    file.write_text(text.replace('"10"', '"11"'))  # a digit that flipped
    assert tar_index(shard) == TarIndex(["new"])
    file.write_text(text)
    os.utime(shard, (1, 1))
    assert tar_index(shard) == TarIndex(["new"])


def test_what_was_just_written_is_not_kept(shards: Path, kept: Path) -> None:
    """Within a tick of the clock it may change, and have the same time and length."""
    write(shards / "new.tar", sample(1, cls="3"), age=0)
    assert load_images(f"wds:{shards}/new.tar", image_size=8).classes == ["3"]
    write(shards / "new.tar", sample(1, cls="4"), age=0)
    assert load_images(f"wds:{shards}/new.tar", image_size=8).classes == ["4"]
    assert not kept.joinpath("hrrl_ext").exists()


def test_a_cache_that_cannot_be_written(
    shards: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept / "file"))
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME names another place"):
        assert len(load_images(f"wds:{shards}/train-000.tar", image_size=8)) == 5
