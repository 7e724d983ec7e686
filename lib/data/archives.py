"""Finding data sets under ``MIDRE_DATA``, and unpacking archives once and safely."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lib.errors import UserError
from lib.store import cache_dir


@dataclass(frozen=True)
class Layout:
    """How a data set comes: its folder, the archives that hold it, the first being the one results were made from, and
    how many photos there are."""

    folder: str
    archives: tuple[str, ...]
    title: str
    photos: int


LAYOUTS = {
    "lfw": Layout(
        "lfw-deepfunneled", ("lfw-deepfunneled.tgz",), "Labeled Faces in the Wild, deep-funneled", 13_233
    ),
    "utkface": Layout(
        "UTKFace", ("utkface-96.tgz", "UTKFace.tar.gz"), "UTKFace, aligned and cropped", 23_707
    ),
}
COMPLETE = 0.999  # share of the photos: copies of UTKFace differ by a few of odd names
FULL = (errno.ENOSPC, errno.EDQUOT)
BLOCK = 4096  # bytes of disk that a small file takes at least


def data_dir() -> Path:
    """The folder ``MIDRE_DATA`` names."""
    text = os.environ.get("MIDRE_DATA")
    if not text:
        raise UserError(
            "MIDRE_DATA is not set: this setup needs real faces; set it to the folder with "
            + " and ".join(" or ".join(layout.archives) for layout in LAYOUTS.values())
            + " (or the folders they unpack to); `make run` without SETUP needs no data"
        )
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UserError(f"MIDRE_DATA={text}: expected a folder, found none; correct the path")
    return folder


def dataset(name: str) -> Path:
    """The unpacked folder of data set ``name``: as found under ``MIDRE_DATA``, else unpacked from its
    archive into the cache (once; a second process waits)."""
    layout = LAYOUTS[name]
    folder_name, root = layout.folder, data_dir()
    if (root / folder_name).is_dir():
        return root / folder_name
    found = [root / archive for archive in layout.archives if (root / archive).exists()]
    if not found:
        raise UserError(
            f"{layout.title}: expected {folder_name}/ or {' or '.join(layout.archives)} in MIDRE_DATA={root}, found "
            "neither"
        )
    archive = found[0]
    target = cache_dir() / "unpacked" / f"{archive.stem}-{archive.stat().st_size}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not target.exists():
            unpack(archive, target)
    if not (target / folder_name).is_dir():
        raise UserError(
            f"{archive}: expected a folder {folder_name}/ inside, found none; it is another archive"
        )
    return target / folder_name


def check_complete(name: str, folder: Path, photos: int) -> None:
    """Raises: UserError for fewer ``photos`` than the data set has: results of all would be taken for theirs."""
    layout = LAYOUTS[name]
    if photos < COMPLETE * layout.photos:
        raise UserError(
            f"{layout.title}: expected its {layout.photos:,} photos in {folder}, found {photos:,}; unpack it anew, or "
            "name a part of it as a folder of yours (source: folder)"
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack a tar archive of plain files into ``target``, which appears only when all of it is there.

    The archive is read once to its end before anything is written.

    Raises:
        UserError: the archive is empty or damaged, or has an absolute or parent path, a link or a device; or
            the disk is full.
    """
    needed = _checked_size(archive) / 1e6
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpacking-") as aside:
            whole = Path(aside) / "whole"
            with tarfile.open(archive) as tar:
                tar.extractall(whole, filter="data")
            os.replace(whole, target)
    except (tarfile.TarError, OSError) as error:
        if getattr(error, "errno", None) in FULL:
            free = shutil.disk_usage(target.parent).free / 1e6
            raise UserError(
                f"{archive}: the disk is full; unpacking takes about {needed:.0f} MB in {target.parent}, "
                f"{free:.0f} MB are free there; make room or point MIDRE_CACHE elsewhere"
            ) from error
        raise UserError(
            f"{archive}: could not be unpacked into {target.parent} ({error}); "
            "point MIDRE_CACHE at a folder you may write to"
        ) from error


def _checked_size(archive: Path) -> int:
    """Bytes on disk that the files of a whole and harmless archive take.

    tarfile takes whatever is not a header for the end. So a closing block has to be there, only padding may
    follow it, and the stream is read to its end, where the checksum is.
    """
    size = count = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(
                        f"{archive}: refused, {member.name!r} would be written outside the folder"
                    )
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{archive}: refused, {member.name!r} is a link or a device, not a file")
                size += -(-member.size // BLOCK) * BLOCK
                count += member.isfile()
            if tar.fileobj.tell() < tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it ends early")
            while rest := tar.fileobj.read(1 << 20):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("a damaged header, or something behind the last file")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive}: not a whole tar archive ({error}); download it again") from error
    if count == 0:
        raise UserError(f"{archive}: expected images, the archive is empty; download it again")
    return size
