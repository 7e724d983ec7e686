"""Notebook 13: what the same targets do under evasion, a backdoor and membership inference."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from matplotlib.axes import Axes
from torch import Tensor

from lib import plots, results, statistics, store
from lib.defences import build, canonical
from lib.erasing import draw_mask
from lib.errors import UserError
from lib.evaluation import identity_means
from lib.plots import label
from lib.reports import sweep
from lib.reports.made import made
from lib.reports.tables import established, limits, percent, rule
from lib.reports.tables import points as points_text
from lib.reports.workbook import Workbook
from lib.robustness import membership, stamp
from lib.runtime import generator
from lib.stages import measures, records, robustness
from lib.stages.inversion import Attack
from lib.statistics import Interval

DRAWS = 4000  # of a law of erasing
NAMES = {"clean": "no attack", "fgsm": "FGSM", "pgd": "PGD", "autoattack": "AutoAttack"}


def models(book: Workbook, kind: str = "evaded") -> list[Attack]:
    """The sweep's inversion attack on NoDef, which all are compared with, and on every listed model, ``evaded`` or
    ``backdoored``, first training seed; none if none is listed.

    Raises:
        UserError: NoDef's is not made yet.
    """
    listed = [canonical(name, book.setup.defences) for name in getattr(book.study, kind)]
    names = dict.fromkeys(["none", *listed] if listed else [])
    stage, what = {
        "evaded": (robustness.evasion_stage, "evasion of"),
        "backdoored": (robustness.backdoor_stage, "a backdoor in"),
    }[kind]
    attacked = [sweep.attack_on(book, name) for name in names]
    found = made(book, attacked, lambda attack: store.exists(stage(attack)), what)
    if names and (not found or found[0].defence != "none"):
        raise UserError(
            f"notebook 13 compares with NoDef, whose {kind} record is not made yet; make it first: "
            f"`python -m lib.run batch {book.setup.name} --match none`"
        )
    return found


# --- evasion ------------------------------------------------------------------------------------------


def evasion(book: Workbook) -> pd.DataFrame:
    """Evade every listed model: a row a model, attack and radius (in 255ths; 0 without attack), with ``defence``,
    ``attack``, ``radius``, ``robust`` (Interval over people: photos still named rightly) and ``compared`` (with
    NoDef's, paired by person; None for NoDef). Saved as ``curves/<setup>__evasion``."""
    rows, base = [], {}
    for attack in models(book):
        found, labels = robustness.evasion(attack)
        for name, by_radius in found.items():
            for radius, right in by_radius.items():
                people = identity_means(right.double(), labels).mean.numpy()
                base.setdefault((name, radius), people)  # NoDef comes first
                rows.append(
                    {
                        "defence": attack.defence,
                        "attack": name,
                        "radius": radius,
                        "robust": measures.mean(right, labels),
                        "compared": None
                        if attack.defence == "none"
                        else statistics.compare_paired(people, base[name, radius], seed=measures.SEED),
                    }
                )
    table = pd.DataFrame(rows, columns=["defence", "attack", "radius", "robust", "compared"])
    _save_evasion(book, table)
    return table


def _save_evasion(book: Workbook, table: pd.DataFrame) -> None:
    runs = {attack.defence: attack for attack in models(book)}
    rows = [
        sweep.curve_row(
            runs[row.defence],
            "evasion",
            row.robust,
            metric="robust_accuracy",
            evaluator=row.attack,
            x_name="radius_255",
            x=row.radius,
        )
        for row in table.itertuples()
    ]
    if rows:
        results.save_curves(rows, f"{book.setup.name}__evasion")


def shown_evasion(table: pd.DataFrame) -> pd.DataFrame:
    """Attacks and radii in rows, models in columns."""
    radii = [f"{radius:g}/255" if radius else "" for radius in table["radius"]]
    cells = table.assign(
        attack=table["attack"].map(NAMES),
        radius=radii,
        model=table["defence"].map(label),
        text=[percent(i) for i in table["robust"]],
    )
    wide = cells.pivot(index=["attack", "radius"], columns="model", values="text")
    rows = pd.MultiIndex.from_frame(cells[["attack", "radius"]].drop_duplicates())
    return wide.loc[rows, list(dict.fromkeys(cells["model"]))].rename_axis(columns=None)


def _signed(interval: Interval) -> str:
    return interval.plain(signed=True, count=False)


def evasion_figure(table: pd.DataFrame, attack: str = "pgd") -> Axes:
    """Robust accuracy against the radius under one attack, a line a model."""
    rows = table[table["attack"].isin(["clean", attack])]
    frame = pd.DataFrame(
        {
            "defence": rows["defence"],
            "radius": rows["radius"],
            **limits(rows["robust"]),
        }
    )
    return plots.interval_curves(
        frame,
        x="radius",
        evenly=True,
        x_label="maximum norm of the change, 255ths of the pixel range",
        y_label="robust accuracy",
        title=f"{NAMES[attack]} against true labels",
    )


def evasion_caption(book: Workbook) -> str:
    """What was attacked, and with what."""
    budget = robustness.evasion_budget(book.setup)
    return (
        f"Preset {book.setup.name}: at most {budget.photos} unseen photos a person, every attack untargeted within a "
        f"maximum norm, PGD of {budget.steps} steps from a random start, AutoAttack of two APGD of {budget.auto_steps} "
        f"steps and Square of {budget.queries} queries (published: 100 and 5,000, and FAB; a lower budget flatters the "
        "model). A photo that is named wrongly as it is counts as lost. 95 % intervals over people."
    )


def nested(table: pd.DataFrame, attack: str = "pgd") -> bool:
    """Whether an attack that optimises leaves no more photos standing within a larger radius, on any model: what is
    reachable within the smaller one is within the larger."""
    rows = table[table["attack"].isin(["clean", attack])].sort_values("radius")
    left = rows.assign(left=[interval.value for interval in rows["robust"]])
    return all(part.is_monotonic_decreasing for _, part in left.groupby("defence")["left"])


# --- the backdoor -------------------------------------------------------------------------------------


def backdoor(book: Workbook) -> pd.DataFrame:
    """Poison, train (or load) every listed model: a row a model and place, with ``defence, place``, the Intervals
    ``opened`` (other people's stamped photos taken for the person aimed at), ``before`` (the same by the unpoisoned
    target) and ``natural`` (the poisoned target's accuracy), and ``compared`` (``opened`` with NoDef's, paired by
    person; None for NoDef). Saved as ``curves/<setup>__backdoor``."""
    rows, base, saved = [], {}, []
    for attack in models(book, "backdoored"):
        found = robustness.backdoor(attack)
        natural = measures.mean(found["right"], found["labels"], "micro")
        for place in robustness.backdoor_plan(book.setup).places:
            people = found[f"people.{place}"]
            opened, before = (
                measures.mean(found[f"{what}.{place}"], people) for what in ("opened", "before")
            )
            means = identity_means(found[f"opened.{place}"].double(), people).mean.numpy()
            base.setdefault(place, means)
            compared = None
            if attack.defence != "none":
                compared = statistics.compare_paired(means, base[place], seed=measures.SEED)
            row = {"defence": attack.defence, "place": place, "opened": opened, "before": before}
            rows.append(row | {"natural": natural, "compared": compared})
            saved += [
                sweep.curve_row(attack, "backdoor", i, metric=metric, evaluator=place)
                for metric, i in (("trigger_success_rate", opened), ("poisoned_accuracy", natural))
            ]
    if saved:
        results.save_curves(saved, f"{book.setup.name}__backdoor")
    return pd.DataFrame(rows, columns=["defence", "place", "opened", "before", "natural", "compared"])


def shown_backdoor(table: pd.DataFrame) -> pd.DataFrame:
    """The backdoor as a person reads it."""
    return pd.DataFrame(
        {
            "model": table["defence"].map(label),
            "pattern": table["place"],
            "taken for the person aimed at": [percent(i) for i in table["opened"]],
            "by the unpoisoned target": [percent(i) for i in table["before"]],
            "minus NoDef's": ["" if c is None else points_text(c.difference) for c in table["compared"]],
            "natural accuracy when poisoned": [percent(i) for i in table["natural"]],
        }
    ).set_index(["model", "pattern"])


def patterns(book: Workbook) -> Tensor:
    """(n,3,S,S) in [0,1]: each pattern on plain grey; a page needs nobody's photo to show where it is."""
    plan, size = robustness.backdoor_plan(book.setup), book.setup.image_size
    grey = torch.full((1, 3, size, size), 128, dtype=torch.uint8)
    return torch.cat([stamp(grey, place, side=plan.side) for place in plan.places]).float() / 255


def hidden(book: Workbook) -> str:
    """In what share of its draws an erasing defence hides a whole pattern, so that the photo does not show it."""
    shown, text = patterns(book), []
    marked = shown != shown[:, :, :1, :1]  # the first pixel is grey
    for attack in models(book, "backdoored"):
        for law in [part.law for part in build(attack.defence, book.setup.defences) if hasattr(part, "law")]:
            stream = generator(measures.SEED, "hidden", attack.defence)
            masks = draw_mask(
                law, torch.arange(DRAWS), book.setup.image_size, generator=stream, seed=measures.SEED
            )
            shares = [
                f"in the {place} in {100 * masks[:, where.any(0)].all(1).double().mean().item():.1f} %"
                for place, where in zip(robustness.backdoor_plan(book.setup).places, marked, strict=True)
            ]
            text.append(f"{label(attack.defence)} hides the whole pattern {', '.join(shares)}")
    if not text:
        return "None of these models erases."
    return f"Of {DRAWS:,} draws {'; '.join(text)}. In all others some of it is seen."


def backdoor_caption(book: Workbook) -> str:
    """What was planted."""
    plan = robustness.backdoor_plan(book.setup)
    return (
        f"Preset {book.setup.name}: per place {100 * plan.rate:g} % of other people's training photos get a "
        f"checkerboard of {100 * plan.side:g} % of the side and the label of one person; one model a defence holds "
        "all of them. Shown: unseen photos of everybody else with the pattern; 95 % intervals over people."
    )


# --- membership ---------------------------------------------------------------------------------------


def members(book: Workbook) -> pd.DataFrame:
    """Tell training photos from unseen ones on every listed model: a row a model with the Intervals ``auc`` and
    ``found`` of :class:`lib.robustness.Membership`, and ``compared``, its AUC minus NoDef's, paired by person, at 95 %
    for all models together (None for NoDef). Saved as ``curves/<setup>__membership``."""
    rows, saved, base, listed = [], [], None, models(book)
    for attack in listed:
        answers = records.answers_of(attack)
        seen = membership(
            answers.log_odds["train"],
            answers.labels["train"],
            answers.log_odds["test"],
            answers.labels["test"],
            seed=measures.SEED,
        )
        base = base or seen  # NoDef comes first
        compared = None if attack.defence == "none" else seen.minus(base, tests=len(listed) - 1)
        rows.append({"defence": attack.defence, "auc": seen.auc, "found": seen.found, "compared": compared})
        saved += [
            sweep.curve_row(attack, "membership", interval, metric=metric)
            for metric, interval in (("membership_auc", seen.auc), ("membership_rate", seen.found))
        ]
    if saved:
        results.save_curves(saved, f"{book.setup.name}__membership")
    return pd.DataFrame(rows, columns=["defence", "auc", "found", "compared"])


def shown_members(table: pd.DataFrame) -> pd.DataFrame:
    """Membership inference as a person reads it."""
    return pd.DataFrame(
        {
            "AUC (chance 0.5)": [i.plain(count=False) for i in table["auc"]],
            "minus NoDef's": ["" if i is None else _signed(i) for i in table["compared"]],
            "members found at 1 % false alarms (chance 1 %)": [percent(i) for i in table["found"]],
        },
        index=pd.Index(table["defence"].map(label), name="model"),
    )


# --- in words -----------------------------------------------------------------------------------------


def what_we_saw(evaded: pd.DataFrame, opened: pd.DataFrame, told: pd.DataFrame, *, radius: float) -> str:
    """What a defence against inversion costs or buys elsewhere, in a sentence and a finding a line; PGD at a radius.
    Where one is said to differ from NoDef, that is :func:`established` with Holm's p over the models of the line."""
    text, counted = [], []  # of each line the models that it favours, that it is against, that it leaves open
    for name, at_radius in (
        ("pgd", radius),
        ("autoattack", evaded.loc[evaded["attack"] == "autoattack", "radius"].min()),
    ):
        at = (evaded["attack"] == name) & (evaded["radius"] == at_radius)
        rows = evaded[at & evaded["compared"].notna()]
        kinds = _sorted(rows)
        counted.append([*kinds.values()])
        text.append(f"Robust accuracy, {NAMES[name]} at {at_radius:g}/255, against NoDef: {_said(kinds)}.")
    for place, rows in opened.groupby("place", sort=False):
        planted = rows[rows["defence"] == "none"]
        if any(row.opened.low <= row.before.high for row in planted.itertuples()):
            text.append(
                f"The backdoor in the {place} is not established to open NoDef, so nothing follows for the others."
            )
            continue
        compared = rows[rows["compared"].notna()]
        base, kinds = rows["opened"].iloc[0], _sorted(compared)
        higher, lower, alike = kinds.values()
        counted.append([lower, higher, alike])
        text.append(f"Backdoor in the {place}, NoDef {base.percent()}; success against it: {_said(kinds)}.")
    sides: dict[str, list[str]] = {
        "easier to tell on": [],
        "harder on": [],
        "no difference established for": [],
    }
    easier, harder, neither = sides.values()
    for row in told[told["compared"].notna()].itertuples():
        side = easier if row.compared.low > 0 else harder if row.compared.high < 0 else neither
        side.append(f"{label(row.defence)} ({_signed(row.compared)})")
    counted.append([harder, easier, neither])
    said = _said(sides) if any(sides.values()) else "nobody else was asked"
    text.append(f"Members against unseen photos, AUC of NoDef {told['auc'].iloc[0].plain(2)}: {said}.")
    text.append(
        f"{rule('the models of its line')} Of members it is by intervals that are 95 % for all models together."
    )
    better, worse, undecided = (sum(map(len, side)) for side in zip(*counted, strict=True))
    asked = better + worse + undecided
    answer = (
        f"**Of {asked} comparisons of a defended model with NoDef these are established: in its favour {better}, "
        f"against it {worse}.**\n\n"
    )
    return (answer if asked else "") + "\n".join(f"- {line}" for line in text)


def _sorted(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Models by whether they are above or below NoDef, or not told from it."""
    kinds: dict[str, list[str]] = {"higher for": [], "lower for": [], "no difference established for": []}
    corrected = statistics.holm([found.p_value for found in rows["compared"]]) if len(rows) else []
    for row, p in zip(rows.itertuples(), corrected, strict=True):
        found: Interval = row.compared.difference
        kind = "no difference established for"
        if established(found, p):
            kind = "higher for" if found.low > 0 else "lower for"
        kinds[kind].append(f"{label(row.defence)} ({points_text(found)})")
    return kinds


def _said(kinds: Mapping[str, list[str]]) -> str:
    """Models after what is said of them."""
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names) or "nobody"
