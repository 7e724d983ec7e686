"""Notebook 01: who is shown, whether private and public faces are framed alike, and what was found."""

from __future__ import annotations

from typing import Any

from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib import plots
from lib.data import checks
from lib.reports.workbook import Workbook
from lib.stages import exhibits

NO_PHOTOS = "no private photos in this setup (`data.private: {source: none}`)"


def people(book: Workbook) -> Axes | Markdown:
    """The shown people with two training photos each."""
    if not book.has_photos:
        return Markdown(NO_PHOTOS)
    every = book.world.train.names
    names = exhibits.person_names(every, exhibits.shown_people(len(every)))
    photos = exhibits.by_person(exhibits.shown_photos(book.world))
    return plots.people_sheet(photos, names, title=f"{len(names)} of {len(every)} private people", width=7)


def mean_figure(book: Workbook) -> Figure:
    """The mean private and the mean public photo, and their difference."""
    sets = {"private": book.world.train, "public": book.world.public}
    sets = {name: photos for name, photos in sets.items() if len(photos)}
    means = {name: checks.mean_image(photos)[None] for name, photos in sets.items()}
    return plots.mean_faces(means, counts=[len(photos) for photos in sets.values()])


def framing_message(book: Workbook) -> str:
    if not book.has_photos:
        return f"framing not judged: {NO_PHOTOS}"
    return checks.framing(book.world.train, book.world.public).message


def finding(book: Workbook, duplicates: list[dict[str, Any]]) -> str:
    """What the page found, in words."""
    text = f"Preset {book.setup.name}: {len(book.world.public)} public photos for the priors"
    if book.has_photos:
        train = checks.counts(book.world)[0]
        text += (
            f", {train['people']} private people with {train['least']} to {train['most']} training photos each, "
            f"{len(book.world.test)} photos for testing"
        )
    text += f". Framing: {framing_message(book)}. Duplicates: {checks.duplicate_message(duplicates)}."
    if not book.conclusive:
        text += " **Too small to conclude anything about faces**: this preset shows the chain."
    return text
