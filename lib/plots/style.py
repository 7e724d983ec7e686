"""The one look of all figures: theme, and the colour, marker, name and order of every defence and feature
set."""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator, PercentFormatter

WIDTH = 9.0
"""Default figure width in inches; with :data:`DPI` it fills a notebook column and keeps saved notebooks
small."""
DPI = 96
INK, FAINT, GRID = "#2b2b2b", "#8a8a8a", "#e6e6e6"


@dataclass(frozen=True)
class Style:
    """How one series is drawn: display name, colour, marker, whether the marker is filled, position in
    legends."""

    label: str
    colour: str
    marker: str
    filled: bool = True
    position: float = 1000.0

    @property
    def face(self) -> str:
        """Marker face colour."""
        return self.colour if self.filled else "white"


DEFENCES = {
    "none": Style("NoDef", INK, "o", position=0),
    "early(0.75)": Style("NoDef, 3/4 of the steps", "#777777", "o", filled=False, position=1),
    "early(0.5)": Style("NoDef, half the steps", "#777777", "s", filled=False, position=2),
    "early(0.25)": Style("NoDef, 1/4 of the steps", "#777777", "D", filled=False, position=3),
    "fewer(0.5)": Style("NoDef, half the images", "#a08c74", "s", filled=False, position=4),
    "small(0.5)": Style("NoDef, half the width", "#a08c74", "v", filled=False, position=5),
    "re(0.1,0.4)": Style("RE [.1, .4]", "#0072b2", "o", position=10),
    "re(0.1,0.8)": Style("RE [.1, .8]", "#4b2ca0", "s", position=11),
    "re(0.5,0.5)": Style("RE [.5, .5]", "#56b4e9", "D", position=12),
    "re(0.5,0.5,location=toroidal)": Style("RE [.5, .5] toroidal", "#009e73", "^", position=14),
    "re(0.5,0.5,location=fixed)": Style("RE [.5, .5] one place for all", "#b8a300", "P", position=15),
    "re(0.5,0.5,location=per_image)": Style("RE [.5, .5] one place an image", "#7fb800", "X", position=16),
    "fe(0.5)": Style("FE .5", "#d55e00", "v", position=20),
}
FAMILIES = {
    "none": (INK, 6),
    "early": ("#777777", 6.5),
    "fewer": ("#a08c74", 7),
    "small": ("#a08c74", 8),
    "re": ("#0072b2", 18),
    "fe": ("#d55e00", 25),
    "negls": ("#cc79a7", 100),
    "ls": ("#882255", 100),
    "tldmi": ("#8073ac", 100),
    "mid": ("#5c4a1e", 100),
    "bido_hsic": ("#e69f00", 100),
    "bido_coco": ("#a6611a", 100),
    "rolss": ("#6b8e23", 100),
    "ssf": ("#44aa99", 100),
    "tts": ("#17becf", 100),
    "trapmid": ("#c51b7d", 100),
    "atat": ("#e31a1c", 100),
    "advtrain": ("#800000", 100),
    "dpsgd": ("#000075", 100),
    "groupnorm": ("#2f4f4f", 100),
    "cutout": ("#f781bf", 100),
    "mixup": ("#b2a429", 100),
    "cutmix": ("#2ca02c", 100),
    "crop": ("#7cae00", 100),
    "noise": ("#ff7f50", 100),
}
"""Colour and position of defences that have no entry of their own, by the first word of their name: a family has one
colour on every page."""

OTHERS = tuple(sns.color_palette("tab10").as_hex())
"""Colours of what is no known family: attacks, sets, compositions of defences."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "h", "p", "*")

SETS = {
    "private_train": Style("private, training", "#0072b2", "o", position=0),
    "private_held_out": Style("private, held out", "#56b4e9", "D", position=1),
    "private_erased": Style("private, erased", "#009e73", "^", position=2),
    "held_out_erased": Style("held out, erased", "#8fd3bd", "v", position=3),
    "reconstructions": Style("reconstructions", "#d55e00", "X", position=4),
    "prior_samples": Style("prior samples", "#9b72b8", "P", position=5),
    "other_classes": Style("other people", "#c4c4c4", "s", position=6),
}
PAIRS = {
    "reconstructions->private_train": replace(
        SETS["reconstructions"], label="reconstruction to private", position=2
    ),
    "reconstructions->private_erased": Style("reconstruction to erased", "#e69f00", "^", position=3),
    "private_held_out->private_train": replace(SETS["private_held_out"], label="unseen photo to private"),
    "held_out_erased->private_train": replace(
        SETS["held_out_erased"], label="erased unseen photo to private"
    ),
    "other_classes->private_train": replace(SETS["other_classes"], label="other people to private"),
    "prior_samples->private_train": replace(SETS["prior_samples"], label="prior sample to private"),
}
EVALUATORS = {
    "main": Style("main evaluator", "#0072b2", "o", position=0),
    "panel_1": Style("panel 1", "#56b4e9", "s", position=1),
    "panel_2": Style("panel 2", "#009e73", "D", position=2),
    "panel_majority": Style("panel majority", "#cc79a7", "^", position=3),
    "verifier": Style("disjoint verifier", "#e69f00", "v", position=4),
    "verifier_dlib": Style("outside verifier", "#d55e00", "P", position=5),
    "target": Style("target itself", "#777777", "X", position=6),
}


def theme() -> None:
    """Set the look for this session; call once at the top of a notebook."""
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette=[style.colour for style in DEFENCES.values() if style.filled],
        rc={
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "figure.facecolor": "white",
            "axes.edgecolor": FAINT,
            "axes.labelcolor": INK,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "axes.titlepad": 8,
            "axes.labelsize": 10.5,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "xtick.labelsize": 9.5,
            "ytick.labelsize": 9.5,
            "xtick.color": INK,
            "ytick.color": INK,
            "text.color": INK,
            "legend.fontsize": 9.5,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "font.family": "DejaVu Sans",
        },
    )


def _number(text: str) -> str:
    return re.sub(r"\b0\.", ".", text)


CONTROLS = ("none", "early", "fewer", "small")
WORDS = {  # as their authors write them; others in capitals
    "negls": "NegLS",
    "bido_hsic": "BiDO-HSIC",
    "bido_coco": "BiDO-COCO",
    "rolss": "RoLSS",
    "tts": "TTS",
    "tldmi": "TL-DMI",
    "trapmid": "Trap-MID",
    "atat": "AT-AT",
    "dpsgd": "DP-SGD",
    "groupnorm": "GroupNorm",
    "advtrain": "adversarial training",
    "cutout": "cutout",
    "mixup": "mixup",
    "cutmix": "CutMix",
    "crop": "crop",
    "noise": "noise",
}


def label(name: str) -> str:
    """Display name of a defence: ``re(0.1,0.4)+negls(-0.05)`` becomes ``RE [.1, .4] + NegLS -.05``."""
    if name in DEFENCES:
        return DEFENCES[name].label
    parts = []
    for term in re.split(r"\+(?![^(]*\))", name):
        found = re.fullmatch(r"(\w+)\((.*)\)", term)
        if not found:
            parts.append(WORDS.get(term, term))
            continue
        word, arguments = found[1], [argument.strip() for argument in found[2].split(",") if argument.strip()]
        plain = [_number(argument) for argument in arguments if "=" not in argument]
        named = [argument.split("=", 1) for argument in arguments if "=" in argument]
        text = f"[{', '.join(plain)}]" if word == "re" else ", ".join(plain)
        extra = [value if key == "location" else f"{key} {_number(value)}" for key, value in named]
        short = WORDS.get(word, word.upper() if word not in CONTROLS else f"NoDef, {word}")
        parts.append(" ".join(filter(None, [short, text, *extra])))
    return " + ".join(parts)


def _word(name: str) -> str:
    """The first word of a defence's name: its family."""
    return re.match(r"\w*", name)[0]


def _defence(name: str) -> Style:
    if name in DEFENCES:
        return DEFENCES[name]
    family = _word(name)
    # crc32, not hash(): a colour must not change with the process
    code = zlib.crc32(name.encode())
    colour, position = FAMILIES.get(family if "+" not in name else name, (OTHERS[code % len(OTHERS)], 100))
    return Style(
        label(name),
        colour,
        MARKERS[code % len(MARKERS)],
        filled=family not in ("early", "fewer", "small"),
        position=position,
    )


def order(names: Iterable[str]) -> list[str]:
    """Distinct defences in their fixed order; new ones by family, then by name."""
    return sorted(dict.fromkeys(names), key=lambda name: (_defence(name).position, name))


def styles(names: Iterable[str]) -> dict[str, Style]:
    """Style of each defence in order. Known names and families always have the same colour; others have one that no
    other of the figure has, while there are any. No two of a figure share colour and marker."""
    result: dict[str, Style] = {}
    names = order(names)
    taken = {(DEFENCES[name].colour, DEFENCES[name].marker) for name in names if name in DEFENCES}
    colours = {_defence(name).colour for name in names if _known(name)}
    for name in names:
        style = _defence(name)
        if not _known(name):
            free = [colour for colour in _from(OTHERS, style.colour) if colour not in colours]
            style = replace(style, colour=free[0] if free else style.colour)
            colours.add(style.colour)
        if name not in DEFENCES:
            used = {marker for _, marker in taken}
            markers = _from(MARKERS, style.marker)
            free = [marker for marker in markers if marker not in used]
            free += [marker for marker in markers if (style.colour, marker) not in taken]
            style = replace(style, marker=free[0] if free else style.marker)
            taken.add((style.colour, style.marker))
        result[name] = style
    return result


def _from(choice: tuple[str, ...], first: str) -> tuple[str, ...]:
    """All of them, beginning with one."""
    start = choice.index(first)
    return choice[start:] + choice[:start]


def _known(name: str) -> bool:
    """Whether a defence or its family has a colour of its own."""
    return name in DEFENCES or ("+" not in name and _word(name) in FAMILIES)


def family_styles(members: Mapping[str, str]) -> dict[str, Style]:
    """Style of each family of defences, by one of its ``members``: in the colour of their family, and a marker of its
    own."""
    looks = {}
    for i, (family, member) in enumerate(members.items()):
        plain = _defence(f"{_word(member)}()")  # of no strength that has a colour of its own
        looks[family] = replace(plain, label=family, marker=MARKERS[i % len(MARKERS)], position=float(i))
    return looks


def set_styles(names: Iterable[str], *, known: dict[str, Style] | None = None) -> dict[str, Style]:
    """Style of each feature set (or of what ``known`` lists), in fixed order; unknown ones get the spare
    colours."""
    known = SETS if known is None else known
    names = list(dict.fromkeys(names))
    spare = iter(range(len(names)))
    found = {}
    for name in names:
        if name in known:
            found[name] = known[name]
        else:
            i = next(spare)
            text = name.replace("->", " to ").replace("_", " ")
            found[name] = Style(text, OTHERS[i % len(OTHERS)], MARKERS[i % len(MARKERS)], position=1000 + i)
    return dict(sorted(found.items(), key=lambda item: item[1].position))


def percent_axis(ax: Axes, which: str = "y", *, decimals: int = 0, bounded: bool = False) -> None:
    """Show a share in [0, 1] as percent on the axes in ``which`` ("x", "y" or "xy"); ``bounded`` spans 0 to
    100 %."""
    for letter in which:
        axis = ax.xaxis if letter == "x" else ax.yaxis
        axis.set_major_formatter(PercentFormatter(1.0, decimals=decimals, symbol="%"))
        axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))  # not 2.5 %: it would be rounded
        if bounded:
            (ax.set_xlim if letter == "x" else ax.set_ylim)(0, 1)


def axes_or_new(ax: Axes | None, *, width: float = WIDTH, height: float = 4.2) -> Axes:
    """The given axes or new ones."""
    return ax if ax is not None else new_figure(width, height).subplots()


def new_figure(width: float, height: float) -> Figure:
    """A new pyplot figure with constrained layout."""
    return plt.figure(figsize=(width, height), layout="constrained")


def grid(
    count: int, *, columns: int, width: float = WIDTH, height: float, **subplots
) -> tuple[Figure, np.ndarray]:
    """A figure with ``count`` axes in rows of ``columns``, each row ``height`` inches: (figure, axes
    (count,))."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(width, rows * height)
    axes = figure.subplots(rows, columns, squeeze=False, **subplots).ravel()
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def legend_right(ax: Axes, **options) -> Legend | None:
    """Legend to the right of the data; None where a single series or none has a name."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return None
    return ax.legend(
        handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), borderaxespad=0.4, **options
    )


def legend_below(figure: Figure, axes: Sequence[Axes], *, columns: int | None = None) -> Legend | None:
    """One legend for several axes under the figure, each name once."""
    found = {}
    for ax in axes:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(text, handle)
    if not found:
        return None
    return figure.legend(
        list(found.values()), list(found), loc="outside lower center", ncols=columns or min(len(found), 4)
    )


def interval_errors(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths below and above the value for matplotlib's error bars, (2, n); a missing bound (NaN) draws no
    bar."""
    value, low, high = (np.asarray(part, dtype=float) for part in (value, low, high))
    return np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)


def blend(colour: str, share: float) -> tuple[float, float, float]:
    """The colour mixed with white; share 1 is the colour itself."""
    return tuple(share * np.array(mpl.colors.to_rgb(colour)) + (1 - share))


def suptitle(figure: Figure, title: str | None) -> None:
    """The title of a figure of several panels, left aligned; None leaves it out."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold", color=INK)
