"""Finding data sets under ``MIDRE_DATA``, and unpacking archives once and safely."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lib.errors import UserError
from lib.store import cache_dir

LAYOUTS = {
    "lfw": ("lfw-deepfunneled", "lfw-deepfunneled.tgz", "Labeled Faces in the Wild, deep-funneled"),
    "utkface": ("UTKFace", "utkface-96.tgz", "UTKFace, aligned and cropped"),
}


def data_dir() -> Path:
    """The folder ``MIDRE_DATA`` names."""
    text = os.environ.get("MIDRE_DATA")
    if not text:
        raise UserError(
            "MIDRE_DATA is not set: this setup needs real faces; set it to the folder with "
            + " and ".join(archive for _, archive, _ in LAYOUTS.values())
            + " (or the folders they unpack to); `make run` without SETUP needs no data"
        )
    folder = Path(text).expanduser()
    if not folder.is_dir():
        raise UserError(f"MIDRE_DATA={text}: expected a folder, found none; correct the path")
    return folder


def dataset(name: str) -> Path:
    """The unpacked folder of data set ``name``: as found under ``MIDRE_DATA``, else unpacked from its
    archive into the cache (once; a second process waits)."""
    folder_name, archive_name, title = LAYOUTS[name]
    root = data_dir()
    if (root / folder_name).is_dir():
        return root / folder_name
    archive = root / archive_name
    if not archive.exists():
        raise UserError(
            f"{title}: expected {folder_name}/ or {archive_name} in MIDRE_DATA={root}, found neither"
        )
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


def unpack(archive: Path, target: Path) -> None:
    """Unpack a tar archive of plain files into ``target``, which appears only when all of it is there.

    Raises:
        UserError: the archive is empty or damaged, or has an absolute or parent path, a link or a device.
    """
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    try:
        with tarfile.open(archive) as tar:
            count = 0
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(
                        f"{archive}: refused, {member.name!r} would be written outside the folder"
                    )
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{archive}: refused, {member.name!r} is a link or a device, not a file")
                tar.extract(member, aside, filter="data")
                count += member.isfile()
        if count == 0:
            raise UserError(f"{archive}: expected images, the archive is empty; download it again")
        os.replace(aside, target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive}: not a whole tar archive ({error}); download it again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
