"""Photos are read whatever their mode, archives cannot write elsewhere, people and photos are cut once, and the
checks of a world find what they are for."""

from __future__ import annotations

import errno
import io
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lib.data import Images, World, checks, load_world
from lib.data import world as world_module
from lib.data.archives import data_dir, dataset, unpack
from lib.data.decode import decode, decode_all
from lib.data.sources import digits, folder, lfw
from lib.data.splits import choose_people, cut_by_name, hold_out, split_photos
from lib.data.world import data_stage, move_down
from lib.errors import UserError
from lib.setups import load_setup
from lib.setups.schema import FOLDER

SIDE = 16


def people(counts: dict[str, int], side: int = 4) -> Images:
    """``counts[name]`` random photos of each person, shuffled; every photo has its own file name."""
    names = list(counts)
    labels = torch.tensor([k for k, name in enumerate(names) for _ in range(counts[name])], dtype=torch.int64)
    files = [f"{name}/{i}" for name in names for i in range(counts[name])]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    pixels = torch.randint(0, 256, (len(labels), 3, side, side), dtype=torch.uint8)
    return Images(pixels, labels, names, files).take(order)


def smooth(count: int, side: int = 64, seed: int = 0) -> torch.Tensor:
    """(count,3,S,S) uint8 pictures with as much detail as a face: blurred noise."""
    noise = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)
    return large.clamp(0, 1).mul(255).round().byte()


def blob(right: float = 0.0, down: float = 0.0, zoom: float = 1.0, side: int = 64) -> Images:
    """One picture of two 'eyes' and a 'mouth', moved and magnified about the middle."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    x, y = ((x / side - 0.5 - right) / zoom, (y / side - 0.5 - down) / zoom)
    centres = ((-0.17, -0.12), (0.17, -0.12), (0.0, 0.15))
    dark = sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.006) for a, b in centres)
    grey = (0.8 - 0.6 * dark).clamp(0, 1).mul(255).round().byte()
    return Images(grey.expand(1, 3, -1, -1).contiguous(), torch.zeros(1, dtype=torch.int64))


# --- splits -------------------------------------------------------------------------------------------

counts = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4), st.integers(3, 30), min_size=1, max_size=6
)


@settings(max_examples=40, deadline=None)
@given(counts, st.floats(0.05, 0.45), st.floats(0.05, 0.45), st.integers(0, 5))
def test_a_split_is_a_partition_with_everybody_in_every_part(counts, validation, test, seed):
    images = people(counts)
    parts = split_photos(images, validation=validation, test=test, seed=seed)
    files = [file for part in parts.values() for file in part.files]
    assert sorted(files) == sorted(images.files)
    for part in parts.values():
        assert set(part.labels.tolist()) == set(range(len(counts))) and part.names == images.names
        assert [file.split("/")[0] for file in part.files] == [part.names[k] for k in part.labels]
    for k, n in enumerate(counts.values()):
        assert abs(int((parts["test"].labels == k).sum()) - test * n) <= 1


@settings(max_examples=25, deadline=None)
@given(counts, st.integers(0, 5))
def test_a_persons_split_depends_on_nobody_else(counts, seed):
    chosen = next(iter(counts))
    alone, together = people({chosen: counts[chosen]}), people(counts)
    alone = alone.take(torch.argsort(torch.tensor([int(f.split("/")[1]) for f in alone.files])))
    together = together.take(torch.argsort(torch.tensor([int(f.split("/")[1]) for f in together.files])))
    options = {"validation": 0.2, "test": 0.2, "seed": seed}
    mine = {k: v.files for k, v in split_photos(alone, **options).items()}
    every = split_photos(together, **options)
    assert {k: [f for f in v.files if f.split("/")[0] == chosen] for k, v in every.items()} == mine


def test_split_refuses_too_few_photos_and_impossible_fractions():
    with pytest.raises(UserError, match="Bo: expected at least 3 photos .* found 2"):
        split_photos(people({"Ann": 5, "Bo": 2}), validation=0.1, test=0.2, seed=0)
    for validation, test in ((0.5, 0.5), (0.0, 0.2), (0.1, 1.0)):
        with pytest.raises(UserError, match="fractions"):
            split_photos(people({"Ann": 9}), validation=validation, test=test, seed=0)
    parts = split_photos(people({"Ann": 3}), validation=0.05, test=0.9, seed=0)
    assert [len(part) for part in parts.values()] == [1, 1, 1], "one for each, whatever the fractions say"
    with pytest.raises(UserError, match="shares .* sum to at most 1"):
        cut_by_name(people({"Ann": 3}), {"near_public": 0.7, "verifier": 0.7}, seed=0)


@settings(max_examples=25, deadline=None)
@given(counts, st.integers(3, 12), st.integers(0, 20))
def test_people_are_chosen_by_their_number_of_photos(counts, least, most):
    images = people(counts)
    enough = [name for name, n in counts.items() if n >= least]
    if len(enough) < 2:
        with pytest.raises(UserError, match=f"at least 2 people with {least}"):
            choose_people(images, min_images=least, max_images=most, seed=0)
        return
    chosen, others = choose_people(images, min_images=least, max_images=most, seed=0)
    assert chosen.names == enough
    kept = torch.bincount(chosen.labels).tolist()
    assert kept == [min(counts[name], most or counts[name]) for name in enough]
    assert {others.names[k] for k in others.labels.tolist()} == set(counts) - set(enough)


@settings(max_examples=40, deadline=None)
@given(counts, st.floats(0.1, 0.5), st.floats(0.1, 0.5), st.integers(0, 5))
def test_people_are_cut_by_name_disjointly_and_for_good(counts, first, second, seed):
    shares = {"near": first, "verifier": second}
    sets = cut_by_name(people(counts), shares, seed=seed)
    near, verifier = (set(sets[name].names) for name in shares)
    assert not near & verifier and near | verifier <= set(counts)
    for part in sets.values():
        assert set(part.labels.tolist()) == set(range(len(part.names)))
    fewer = {name: n for name, n in counts.items() if name not in near}
    if fewer:
        again = cut_by_name(people(fewer), shares, seed=seed)
        assert set(again["verifier"].names) == verifier and not again["near"].names
    assert cut_by_name(people(counts), {}, seed=seed) == {}


def test_a_full_cut_leaves_nobody_out():
    names = {f"person {i}": 1 for i in range(300)}
    sets = cut_by_name(people(names, side=2), {"near": 0.25, "verifier": 0.4, "pretraining": 0.35}, seed=0)
    assert sum(len(part.names) for part in sets.values()) == 300
    assert 0.15 < len(sets["near"].names) / 300 < 0.35


def test_held_out_photos_are_a_partition():
    images = people({"a": 20, "b": 11})
    kept, out = hold_out(images, 0.3, seed=1)
    assert len(out) == round(31 * 0.3) and sorted(kept.files + out.files) == sorted(images.files)


# --- archives -----------------------------------------------------------------------------------------


def photo(value: int = 90, size: tuple[int, int] = (20, 20), mode: str = "RGB", suffix: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, (value,) * len(mode) if len(mode) > 1 else value).save(buffer, suffix)
    return buffer.getvalue()


def write_tar(path: Path, *members: tuple[tarfile.TarInfo | str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "word"),
    [
        ("/tmp/outside.png", "outside the folder"),
        ("../outside.png", "outside the folder"),
        ("a/../../outside.png", "outside the folder"),
        (special("a/link.png", tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
        (special("a/hard.png", tarfile.LNKTYPE, "a/good.png"), "a link or a device"),
        (special("a/pipe", tarfile.FIFOTYPE), "a link or a device"),
    ],
)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, member, word):
    archive = write_tar(tmp_path / "a.tgz", ("a/good.png", photo()), (member, b""))
    with pytest.raises(UserError, match=word):
        unpack(archive, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]
    assert not Path("/tmp/outside.png").exists()


@pytest.mark.parametrize("kind", ["empty", "no files", "text", "cut", "missing"])
def test_a_broken_archive_is_one_clear_error_and_leaves_nothing(tmp_path, kind):
    archive = tmp_path / "a.tgz"
    if kind == "empty":
        write_tar(archive)
    elif kind == "no files":
        write_tar(archive, (special("a", tarfile.DIRTYPE), b""))
    elif kind == "text":
        archive.write_text("not an archive")
    elif kind == "cut":
        write_tar(archive, *((f"a/{i}.png", np.random.default_rng(i).bytes(5000)) for i in range(9)))
        archive.write_bytes(archive.read_bytes()[:20_000])
    word = "archive is empty" if kind in ("empty", "no files") else "not a whole tar archive"
    with pytest.raises(UserError, match=word):
        unpack(archive, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tgz"}


def zeroed(content: bytes, start: int, length: int) -> bytes:
    return content[:start] + bytes(length) + content[start + length :]


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, "checksum", "cut", "cut checksum"])
def test_a_damaged_stream_is_never_unpacked(tmp_path, part):
    noise = np.random.default_rng(0)
    archive = write_tar(tmp_path / "a.tgz", *((f"a/{i}.png", noise.bytes(5000)) for i in range(9)))
    whole = archive.read_bytes()
    damaged = {
        "checksum": zeroed(whole, len(whole) - 8, 4),
        "cut": whole[: len(whole) // 2],
        "cut checksum": whole[:-4],
    }
    archive.write_bytes(damaged[part] if part in damaged else zeroed(whole, int(part * len(whole)), 64))
    with pytest.raises(UserError, match="a.tgz: not a whole tar archive .*; download it again"):
        unpack(archive, tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_a_header_wiped_out_in_an_archive_without_checksums_is_noticed(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"a/{i}.png")
            info.size = 512
            tar.addfile(info, io.BytesIO(b"x" * 512))
    whole = archive.read_bytes()
    for wiped in (zeroed(whole, 1024, 512), zeroed(whole, 1024, 100), whole[:1100], whole[:1024]):
        archive.write_bytes(wiped)
        with pytest.raises(UserError, match="not a whole tar archive"):
            unpack(archive, tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
    archive.write_bytes(whole)
    unpack(archive, tmp_path / "target")
    assert sorted(path.name for path in (tmp_path / "target" / "a").iterdir()) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_a_disk_that_takes_no_more_is_not_called_a_broken_archive(tmp_path, monkeypatch, reason):
    archive = write_tar(tmp_path / "a.tgz", *((f"a/{i}.png", bytes(500_000)) for i in range(4)))
    copy, copied = tarfile.copyfileobj, []

    def fill(*arguments, **options):
        copied.append(1)
        if len(copied) == 3:
            raise OSError(reason, "as simulated")
        return copy(*arguments, **options)

    monkeypatch.setattr(tarfile, "copyfileobj", fill)
    full = r"the disk is full; unpacking takes about 2 MB in .*, \d+ MB are free there; make room"
    message = full if reason != errno.EACCES else "could not be unpacked into .*as simulated"
    with pytest.raises(UserError, match=f"a.tgz: {message}.*point MIDRE_CACHE") as error:
        unpack(archive, tmp_path / "target")
    assert "download" not in str(error.value) and len(copied) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_data_sets_are_found_as_a_folder_or_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDRE_DATA", str(tmp_path))
    with pytest.raises(UserError, match="expected UTKFace/ or utkface-96.tgz .* found neither"):
        dataset("utkface")
    archive = write_tar(tmp_path / "utkface-96.tgz", ("UTKFace/1.png", photo()))
    first = dataset("utkface")
    assert first.name == "UTKFace" and [p.name for p in first.iterdir()] == ["1.png"]
    (first / "1.png").write_bytes(b"changed")
    assert dataset("utkface") == first and (first / "1.png").read_bytes() == b"changed", "unpacked once"
    (tmp_path / "UTKFace").mkdir()
    assert dataset("utkface") == tmp_path / "UTKFace", "a folder is preferred"
    archive.unlink()
    write_tar(tmp_path / "lfw-deepfunneled.tgz", ("another/1.png", photo()))
    with pytest.raises(UserError, match="expected a folder lfw-deepfunneled/ inside"):
        dataset("lfw")


def test_a_missing_data_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("MIDRE_DATA", raising=False)
    with pytest.raises(UserError, match="MIDRE_DATA is not set"):
        data_dir()
    monkeypatch.setenv("MIDRE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="expected a folder, found none"):
        data_dir()


# --- decoding -----------------------------------------------------------------------------------------


def saved(tmp_path: Path, image: Image.Image, suffix: str = "png") -> Path:
    path = tmp_path / f"photo.{suffix}"
    image.save(path)
    return path


def test_every_mode_becomes_rgb(tmp_path):
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8) * 16, (SIDE, 1))
    rgb = np.stack([ramp, ramp[::-1, ::-1], np.full_like(ramp, 7)], 2)
    colour = Image.fromarray(rgb)
    grey = np.repeat(ramp[None], 3, 0)
    cases = {
        "RGB": (colour, rgb.transpose(2, 0, 1)),
        "L": (Image.fromarray(ramp), grey),
        "I;16": (Image.fromarray(ramp.astype(np.uint16) * 257), grey),
        "P": (colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=256), rgb.transpose(2, 0, 1)),
        "1": (Image.fromarray(ramp > 100), np.repeat(np.where(ramp > 100, 255, 0)[None], 3, 0)),
    }
    for mode, (image, wanted) in cases.items():
        found = decode(saved(tmp_path, image), SIDE)
        assert found.shape == (3, SIDE, SIDE) and found.dtype == np.uint8, mode
        assert np.abs(found.astype(int) - wanted).max() <= 8, mode
    print_colours = decode(saved(tmp_path, colour.convert("CMYK"), "tif"), SIDE)
    assert np.abs(print_colours.astype(int) - rgb.transpose(2, 0, 1)).mean() < 3


def test_a_dark_photo_of_16_bits_stays_dark(tmp_path):
    values = np.full((SIDE, SIDE), 200, np.uint16)
    assert decode(saved(tmp_path, Image.fromarray(values)), SIDE).max() == 0, "200 of 65535 is black"
    assert decode(saved(tmp_path, Image.fromarray(values), "tif"), SIDE).max() == 0
    big_endian = Image.frombytes("I;16B", (SIDE, SIDE), values.astype(">u2").tobytes())
    assert decode(saved(tmp_path, big_endian, "tif"), SIDE).max() == 0
    wide = Image.fromarray(values.astype(np.int32))
    assert (decode(saved(tmp_path, wide, "tif"), SIDE) == 200).all(), "32 bits do not say what white is"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_orientation_says(tmp_path, orientation, suffix):
    upright = np.zeros((24, 16, 3), np.uint8)  # two bright corners, the left one brighter
    upright[:8, :8], upright[:8, 8:] = 250, 120
    stored = {  # how the camera held that way wrote it: the inverse of what a viewer has to do
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"photo.{suffix}"
    options = {} if suffix in ("png", "tif") else {"quality": 95}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    wanted = upright[4:20].transpose(2, 0, 1).astype(int)
    assert np.abs(decode(path, 16) - wanted).max() <= 24


def test_odd_exif_data_do_not_make_a_photo_unreadable(tmp_path):
    exif = Image.Exif()
    exif[274], exif[271], exif[37510] = 6, "maker", "comment"
    good, noise = bytearray(exif.tobytes()), np.random.default_rng(0)
    image = Image.fromarray(np.full((SIDE, 2 * SIDE, 3), 90, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it skips
        for _ in range(300):
            odd = bytearray(good)
            odd[int(noise.integers(6, len(odd)))] = int(noise.integers(256))
            image.save(tmp_path / "odd.jpg", exif=bytes(odd[: int(noise.integers(20, 2 * len(odd)))]))
            assert decode(tmp_path / "odd.jpg", SIDE).shape == (3, SIDE, SIDE)


def test_transparency_is_laid_over_black(tmp_path):
    half = np.full((SIDE, SIDE, 4), 200, np.uint8)
    half[..., 3] = np.where(np.arange(SIDE) < SIDE // 2, 0, 255)
    found = decode(saved(tmp_path, Image.fromarray(half)), SIDE)
    assert (found[..., : SIDE // 2] == 0).all() and (found[..., SIDE // 2 :] == 200).all()
    palette = Image.new("P", (SIDE, SIDE), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    path = tmp_path / "p.png"
    palette.save(path, transparency=0)
    assert (decode(path, SIDE) == 0).all()


def test_the_centre_is_cut_and_resized(tmp_path):
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:40] = 250
    path = saved(tmp_path, Image.fromarray(image))
    assert (decode(path, 20, crop=20) == 250).all()
    assert decode(path, 10).shape == (3, 10, 10), "without a crop the largest centred square"
    with pytest.raises(UserError, match="60x40 px is smaller than the crop of 50"):
        decode(path, 10, crop=50)


@pytest.mark.parametrize("content", [b"", b"text", photo()[:60]])
def test_an_unreadable_image_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match="broken.png: expected an image"):
        decode_all([path], SIDE)


def test_no_images_at_all():
    with pytest.raises(UserError, match="found none"):
        decode_all([], SIDE)


# --- sources and worlds -------------------------------------------------------------------------------


def faces(root: Path, counts: dict[str, int]) -> Path:
    for k, (name, count) in enumerate(counts.items()):
        for i in range(count):
            path = root / name / "deeper" / f"{i:03d}.png" if i % 2 else root / name / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(10 * k + i))
    return root


def test_a_folder_has_one_identity_per_folder(tmp_path):
    root = faces(tmp_path, {"Bo": 3, "Ann": 2})
    (root / "Ann" / "notes.txt").write_text("not an image")
    (root / "stray.png").write_bytes(photo())
    images = folder(8, path=root)
    assert images.names == ["Ann", "Bo"] and torch.bincount(images.labels).tolist() == [2, 3]
    assert all(
        images.names[k] == file.split("/")[0] for k, file in zip(images.labels, images.files, strict=True)
    )


def test_a_folder_that_holds_no_faces_is_refused(tmp_path):
    with pytest.raises(UserError, match="expected a folder with one folder per identity"):
        folder(8, path=tmp_path / "nowhere")
    (tmp_path / "flat.png").write_bytes(photo())
    with pytest.raises(UserError, match="<identity>/.*found none"):
        folder(8, path=tmp_path)


def test_digits_are_bundled_and_have_ten_classes():
    images = digits(8)
    assert images.pixels.shape == (1797, 3, 8, 8) and images.pixels.dtype == torch.uint8
    assert torch.bincount(images.labels).min() > 170 and images.names == list("0123456789")


def folder_setup(tmp_path: Path, own: Path, others: Path, /, **changes):
    content = yaml.safe_load((FOLDER / "digits.yaml").read_text())
    content["image_size"] = 8
    content["data"] = {
        "private": {"source": "folder", "path": str(own), "min_images": 4, "max_images": 6},
        "public": {"source": "folder", "path": str(others)},
        "others": {"verifier": 1.0},
        "public_held_out": 0.25,
    } | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_setup(path)


def test_a_world_of_ones_own_photos(tmp_path):
    private = faces(tmp_path / "private", {"Ann": 4, "Bo": 9, "Cy": 5, "Di": 2, "Ed": 1})
    public = faces(tmp_path / "public", {"x": 8, "y": 4})
    world = load_world(folder_setup(tmp_path, private, public))
    assert world.train.names == ["Ann", "Bo", "Cy"] and set(world.verifier.names) == {"Di", "Ed"}
    assert [len(getattr(world, name)) for name in checks.PRIVATE] == [9, 3, 3]
    assert (len(world.public), len(world.public_held_out)) == (9, 3)
    assert checks.shared_people(world) == {"public": 0, "public_held_out": 0, "verifier": 0}
    again = load_world(folder_setup(tmp_path, private, public))
    assert torch.equal(again.train.pixels, world.train.pixels) and again.train.files == world.train.files


def test_photos_that_come_to_a_folder_make_another_world(tmp_path, monkeypatch):
    private = faces(tmp_path / "private", {"Ann": 4, "Bo": 4, "Di": 1, "Ed": 1})
    public = faces(tmp_path / "public", {"x": 8})
    before = data_stage(folder_setup(tmp_path, private, public)).key
    faces(private, {"Cy": 5})
    world_module._files.cache_clear()  # as in another process
    setup = folder_setup(tmp_path, private, public)
    assert data_stage(setup).key != before and load_world(setup).train.names == ["Ann", "Bo", "Cy"]
    relative = folder_setup(tmp_path, Path("private"), Path("public"))
    assert load_world(relative).train.names == ["Ann", "Bo", "Cy"], "paths are from the setup's folder"
    key = data_stage(relative).key
    monkeypatch.chdir(public)
    assert data_stage(load_setup(tmp_path / "mine.yaml")).key == key, "whoever reads it from where"
    monkeypatch.chdir(tmp_path)
    assert data_stage(load_setup("mine.yaml")).key == key, "and however it is called"


def test_what_is_no_photo_makes_no_other_world(tmp_path):
    private = faces(tmp_path / "private", {"Ann": 4, "Bo": 4})
    setup = folder_setup(tmp_path, private, private)
    before = data_stage(setup).key
    for path in (private / ".DS_Store", private / "Ann" / "Thumbs.db", private / "stray.png"):
        path.write_bytes(photo())
    world_module._files.cache_clear()  # as in another process
    assert data_stage(setup).key == before


@pytest.mark.parametrize(
    ("named", "changes", "remedy"),
    [
        (True, {"others": {"verifier": 1.0}}, "or set data.verifier_share"),
        (False, {"others": {"verifier": 1.0}}, "raise data.private.min_images.$"),
        (False, {"others": {}, "verifier_share": 0.5}, "no names: leave out data.verifier_share"),
    ],
)
def test_a_verifier_needs_people_who_have_names(tmp_path, monkeypatch, named, changes, remedy):
    private = faces(tmp_path / "private", {"Ann": 4, "Bo": 4})
    names = ["x"] if named else []
    strangers = Images(torch.zeros(8, 3, 8, 8, dtype=torch.uint8), torch.full((8,), len(names) - 1), names)
    monkeypatch.setitem(world_module.SOURCES, "strangers", lambda size: strangers)
    setup = folder_setup(tmp_path, private, private, public={"source": "strangers"}, **changes)
    with pytest.raises(UserError, match=f"digits: expected at least 2 people for the verifier.*{remedy}"):
        load_world(setup)


def test_only_worlds_of_ones_own_photos_were_read_anew_when_orientation_came(tmp_path):
    own = data_stage(folder_setup(tmp_path, tmp_path, tmp_path))
    mixed = data_stage(folder_setup(tmp_path, tmp_path, tmp_path, private={"source": "lfw"}))
    assert own.version == mixed.version == 2
    known = [load_setup(name) for name in ("digits", "lfw64", "lfw64_funneled")]
    assert {data_stage(setup).version for setup in known} == {1}, "their stages are shipped and cached"


def test_bad_sources_of_a_world_are_one_clear_error(tmp_path):
    public = faces(tmp_path / "public", {"x": 8})
    few = faces(tmp_path / "few", {"Ann": 2, "Bo": 3})
    with pytest.raises(
        UserError, match="at least 2 people with 4 or more photos, found 0 .the largest has 3"
    ):
        load_world(folder_setup(tmp_path, few, public))
    enough = faces(tmp_path / "enough", {"Ann": 4, "Bo": 5})
    with pytest.raises(UserError, match="data source 'moon' is unknown; expected one of digits, folder"):
        load_world(folder_setup(tmp_path, enough, public, public={"source": "moon"}))
    with pytest.raises(UserError, match="'folder' needs a path"):
        load_world(folder_setup(tmp_path, enough, public, private={"source": "folder"}))
    with pytest.raises(UserError, match="expected down in"):
        moved = {"source": "folder", "path": str(public), "down": 0.6}
        load_world(folder_setup(tmp_path, enough, public, public=moved))


def test_photos_are_moved_down_and_keep_their_size():
    pixels = torch.zeros(1, 3, 20, 20, dtype=torch.uint8)
    pixels[:, :, 5] = 255
    moved = move_down(pixels, 0.1)
    assert moved.shape == pixels.shape and moved.dtype == torch.uint8
    assert int(moved[0, 0].float().mean(1).argmax()) == 7


# --- checks of a world --------------------------------------------------------------------------------


def world_of(**sets: Images) -> World:
    empty = Images(torch.zeros(0, 3, 64, 64, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    needed = dict.fromkeys(("train", "validation", "test", "public", "public_held_out"), empty)
    return World(**(needed | sets))


def named(pixels: torch.Tensor, *names: str, prefix: str = "f") -> Images:
    labels = torch.arange(len(pixels)) % max(1, len(names)) if names else torch.full((len(pixels),), -1)
    return Images(pixels, labels, list(names), [f"{prefix}{i}" for i in range(len(pixels))])


def test_counts_have_a_row_per_set_that_is_there():
    world = world_of(train=named(smooth(5), "Ann", "Bo"), public=named(smooth(3)))
    assert checks.counts(world) == [
        {"set": "train", "photos": 5, "people": 2, "least": 2, "median": 2, "most": 3},
        {"set": "public", "photos": 3, "people": 0, "least": "", "median": "", "most": ""},
    ]


def test_duplicates_survive_what_photo_software_does_to_a_copy(tmp_path):
    original = smooth(6)
    path = tmp_path / "copy.jpg"
    Image.fromarray(original[1].permute(1, 2, 0).numpy()).resize((150, 150)).save(path, quality=60)
    reencoded = torch.from_numpy(decode(path, 64).copy())
    brighter = (original[2].float() * 0.7 + 40).round().byte()
    copies = torch.stack([original[0], reencoded, brighter, original[3].flip(2), smooth(1, seed=9)[0]])
    found = checks.duplicates(named(copies), named(original))
    assert found.exact.tolist() == [[0, 0]]
    assert found.near.tolist() == [[1, 1], [2, 2], [3, 3]] and found.bits.max() <= checks.NEAR_BITS
    assert checks.unseen_among(named(copies), named(original[:1])).files == ["f1", "f2", "f3", "f4"]


def test_different_pictures_are_no_duplicates():
    found = checks.duplicates(named(smooth(40)), named(smooth(40, seed=1)))
    assert not len(found.exact) and not len(found.near)


def test_duplicate_rows_name_the_sets_and_a_file(tmp_path):
    photos = smooth(12)
    world = world_of(
        train=named(photos[:6], "Ann", prefix="train"),
        test=named(torch.cat([photos[2:3], smooth(5, seed=4)]), "Ann", prefix="test"),
        public=named(torch.cat([smooth(6, seed=5), photos[5:6].flip(3)]), prefix="public"),
    )
    rows = {(row["first"], row["second"]): row for row in checks.duplicate_rows(world)}
    assert set(rows) == {("train", "test"), ("train", "public"), ("test", "public")}
    assert (rows["train", "test"]["exact"], rows["train", "test"]["example"]) == (1, "train2 = test0")
    assert (rows["train", "public"]["near"], rows["train", "public"]["example"]) == (1, "train5 = public6")
    message = checks.duplicate_message(list(rows.values()))
    assert "train and test: 1 equal, 0 nearly; train and public: 0 equal, 1 nearly" in message
    assert "no photo is in two sets" in checks.duplicate_message([rows["test", "public"]])


def test_a_hash_that_finds_too_much_is_not_believed():
    flat = named(
        torch.zeros(8, 3, 64, 64, dtype=torch.uint8) + torch.arange(8, dtype=torch.uint8)[:, None, None, None]
    )
    world = world_of(train=flat, test=named(flat.pixels + 20))
    assert "too little detail" in checks.duplicate_message(checks.duplicate_rows(world))
    assert len(checks.unseen_among(named(flat.pixels + 20), flat)) == 8


def test_a_private_name_in_another_set_is_counted():
    world = world_of(train=named(smooth(4), "Ann", "Bo"), verifier=named(smooth(3), "Bo", "Cy"))
    assert checks.shared_people(world) == {"verifier": 1}


def test_a_digest_notices_who_is_where_and_not_how_pixels_were_rounded():
    images = people({"a": 4, "b": 3})
    brighter = Images(images.pixels + 1, images.labels, images.names, images.files)
    assert checks.digest(brighter) == checks.digest(images)
    assert checks.digest(images.take(torch.arange(6))) != checks.digest(images)
    assert checks.digest(images.take(torch.arange(6, -1, -1))) != checks.digest(images)


@pytest.mark.parametrize(("right", "down", "zoom"), [(0.0, -0.09, 1.0), (0.08, 0.0, 1.0), (0.0, 0.0, 0.8)])
def test_framing_finds_how_public_faces_were_moved(right, down, zoom):
    found = checks.framing(blob(), blob(right, down, zoom))
    assert found.mismatch and found.after > 0.98 > found.before
    assert found.right == pytest.approx(-right, abs=0.02) and found.down == pytest.approx(-down, abs=0.02)
    assert found.zoom == pytest.approx(1 / zoom, rel=0.05)
    assert found.message.startswith("warning, framed differently")


def test_framing_is_content_with_equal_sets_and_silent_on_unlike_ones():
    assert checks.framing(blob(), blob(0.01, 0.01, 1.03)).message.startswith("framed alike")
    other = named(smooth(1, seed=3))
    assert checks.framing(blob(), other).message.startswith("framing not judged")
    with pytest.raises(UserError, match="one size, got 64 and 32"):
        checks.framing(blob(), blob(side=32))


def test_mean_image_is_the_mean():
    pixels = smooth(7)
    assert torch.allclose(checks.mean_image(named(pixels)), pixels.float().mean(0) / 255, atol=1e-6)


def test_links_to_folders_are_followed(tmp_path):
    faces(tmp_path / "elsewhere", {"Bo": 3})
    root = faces(tmp_path / "root", {"Ann": 2})
    (root / "Bo").symlink_to(tmp_path / "elsewhere" / "Bo", target_is_directory=True)
    assert folder(8, path=root).names == ["Ann", "Bo"]


def test_a_photo_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    faces(tmp_path, {"Ann": 1})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    with pytest.raises(UserError, match="000.png: expected an image"):
        decode(tmp_path / "Ann" / "000.png", 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"others": {"verifer": 1.0}},
            "data.others: expected near_public, pretraining, verifier, got verifer",
        ),
        ({"public": {"source": "near_public"}}, "near_public has no people"),
        (
            {"private": {"source": "folder", "path": "all", "min_images": 3}},
            "2 people for the verifier, got 0",
        ),
    ],
)
def test_a_world_that_cannot_be_is_refused_before_training(tmp_path, changes, message):
    faces(tmp_path / "private", {"Ann": 4, "Bo": 4, "Cy": 1, "Di": 1})
    faces(tmp_path / "all", {"Ann": 4, "Bo": 4})
    public = faces(tmp_path / "public", {"x": 8})
    setup = folder_setup(tmp_path, tmp_path / "private", public, **changes)
    with pytest.raises(UserError, match=message):
        load_world(setup)


def test_a_part_of_a_data_set_is_not_taken_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MIDRE_DATA", str(tmp_path))
    faces(tmp_path / "lfw-deepfunneled", {"Ann": 3})
    with pytest.raises(UserError, match="expected its 13,233 photos in .*, found 3; unpack it anew"):
        lfw(8)


def test_public_classes_are_those_of_the_public_photos(tmp_path):
    private = faces(tmp_path / "private", {"Ann": 4, "Bo": 4, "Cy": 1, "Di": 1})
    public = faces(tmp_path / "public", {"x": 8, "y": 4})
    chosen = {"source": "folder", "path": str(public), "classes": [1]}
    world = load_world(folder_setup(tmp_path, private, public, public=chosen))
    assert {Path(name).parts[0] for name in (*world.public.files, *world.public_held_out.files)} == {"y"}
