"""Figures: axes with labels, the right number of artists, styles that never change, clear errors."""

from itertools import pairwise

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from lib import plots as P  # noqa: E402
from lib.errors import UserError  # noqa: E402
from lib.plots.style import DEFENCES, FAMILIES, MARKERS, OTHERS, SETS, family_styles, interval_errors  # noqa: E402


@pytest.fixture(autouse=True)
def clean():
    P.theme()
    yield
    plt.close("all")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def legend(owner) -> list[str]:
    texts = owner.legends[0] if isinstance(owner, plt.Figure) else owner.get_legend()
    return [text.get_text() for text in texts.get_texts()]


def points(frame_of: dict[str, float], **constants) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"defence": name, "value": value, "low": value - 0.05, "high": value + 0.05, **constants}
            for name, value in frame_of.items()
        ]
    )


def test_labels():
    assert P.label("none") == "NoDef"
    assert P.label("re(0.1,0.4)+negls(-0.05)") == "RE [.1, .4] + NegLS -.05"
    assert P.label("re(0.3,0.3,location=fixed)") == "RE [.3, .3] fixed"
    assert P.label("early(0.3)") == "NoDef, early .3"


def test_order_and_styles_are_fixed():
    names = ["zap(1)", "fe(0.5)", "re(0.1,0.4)", "none", "re(0.2,0.2)", "early(0.5)", "none"]
    assert P.order(names) == [
        "none", "early(0.5)", "re(0.1,0.4)", "re(0.2,0.2)", "fe(0.5)", "zap(1)",
    ]  # fmt: skip
    assert (
        P.styles(names)["re(0.1,0.4)"] == P.styles(["re(0.1,0.4)"])["re(0.1,0.4)"] == DEFENCES["re(0.1,0.4)"]
    )
    crowd = [f"re({i / 100},{i / 100})" for i in range(30, 30 + len(MARKERS) - 1)] + ["re(0.1,0.4)"]
    looks = P.styles(crowd)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(crowd)
    known = [(look.colour, look.marker, look.filled) for look in DEFENCES.values()]
    assert len(set(known)) == len(known)


def test_series_of_a_figure_can_be_told_apart():
    attacks = P.set_styles([f"attack {i}" for i in range(len(OTHERS))])
    assert len({look.colour for look in attacks.values()}) == len(OTHERS)
    assert len({colour for colour, _ in FAMILIES.values()}) == len(FAMILIES) - 1, "two controls share one"
    pairs = ["re(0.1,0.4)+negls(-0.05)", "re(0.1,0.4)+rolss", "negls(-0.05)+rolss", "negls(-0.05)", "none"]
    assert len({look.colour for look in P.styles(pairs).values()}) == len(pairs)
    families = family_styles(
        {"NoDef, weaker": "early(0.8)", "RE": "re(0.1,0.8)", "LS": "ls(0.1)", "x": "zap(1)"}
    )
    assert (
        families["RE"].colour == FAMILIES["re"][0]
        and families["LS"].colour == P.styles(["ls(0.3)"])["ls(0.3)"].colour
    )
    assert not families["NoDef, weaker"].filled and families["RE"].filled
    assert len({look.marker for look in families.values()}) == 4


def test_set_styles_keep_known_sets_and_take_new_ones():
    looks = P.set_styles(["mine", "reconstructions", "private_train"])
    assert list(looks) == ["private_train", "reconstructions", "mine"]
    assert looks["reconstructions"] == SETS["reconstructions"] and looks["mine"].label == "mine"


def test_interval_errors_draw_nothing_for_a_missing_bound():
    np.testing.assert_allclose(
        interval_errors([0.5, 0.5], [0.4, np.nan], [0.7, np.nan]), [[0.1, 0], [0.2, 0]]
    )


def test_percent_axis():
    ax = plt.figure().subplots()
    ax.plot([0, 1], [0, 1])
    P.percent_axis(ax)
    assert ax.yaxis.get_major_formatter()(0.25) == "25%"


def test_contact_sheet_places_every_pixel():
    red, blue = torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    red[:, 0], blue[:, 2] = 1, 1
    ax = P.contact_sheet({"red": red, "blue": blue}, marks={"red": [True, None]}, title="Two rows")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["red", "blue"]
    assert ax.get_title(loc="left") == "Two rows" and len(ax.patches) == 1
    canvas = ax.images[0].get_array()
    tile = int(np.sqrt((canvas == [1, 0, 0]).all(2).sum() / 2))
    assert (canvas == [1, 0, 0]).all(2).sum() == 2 * (canvas == [0, 0, 1]).all(2).sum() == 2 * tile**2
    assert ax.figure.get_size_inches()[0] <= 10


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((3, 8, 8, 8)), "3, S, S"),
        (np.full((1, 3, 8, 8), 255.0), "divide uint8"),
        (np.zeros((0, 3, 8, 8)), "at least one image"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(UserError, match=message):
        P.contact_sheet({"row": images})


@pytest.mark.parametrize("columns", [2, 4, 12])
def test_headings_of_sheets_do_not_run_into_each_other(rng, columns):
    faces = [rng.random((1, 3, 8, 8))] * 2
    names = [f"attack {i}\neigenfaces\nheadline" for i in range(columns)]
    with matplotlib.rc_context():
        P.theme()
        people = ["Alejandro Toledo", "B"]
        ax = P.side_by_side(faces, dict.fromkeys(names, faces), people, heading="private", width=6.0)
        ax.figure.canvas.draw()
    boxes = [tick.get_window_extent() for tick in ax.get_xticklabels()]
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_side_by_side_and_sheets(rng):
    private = [rng.random((2, 3, 8, 8)) for _ in range(3)]
    found = {"NoDef": [rng.random((2, 3, 8, 8)) for _ in range(3)], "RE": [rng.random((1, 3, 8, 8))] * 3}
    ax = P.side_by_side(private, found, ["A", "B", "C"], marks={"NoDef": [[True, False]] * 3})
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["private photos", "NoDef", "RE"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["A", "B", "C"]
    assert len(ax.patches) == 6 and legend(ax.figure) == ["taken for the person", "not taken for the person"]
    with pytest.raises(UserError, match="2 people"):
        P.side_by_side(private, found, ["A", "B"])
    assert len(P.sample_sheet(rng.random((7, 3, 8, 8)), columns=3).images) == 1
    assert {text.get_text() for text in P.people_sheet(private, ["Ann", "Bo", "Cy"]).texts} >= {"Ann", "Cy"}
    with pytest.raises(UserError, match="equally many images"):
        P.people_sheet([private[0], private[0][:1]], ["Ann", "Bo"])
    figure = P.mean_faces({"private": private[0], "public": private[1]})
    assert len(figure.axes) == 4 and "2 images" in figure.axes[0].texts[0].get_text()
    np.testing.assert_allclose(
        figure.axes[2].images[0].get_array(), (private[1] - private[0]).mean((0, 1)), atol=1e-6
    )


def test_erasing_figures(rng):
    ax = P.erasing_gallery({"RE": rng.random((3, 3, 8, 8))}, original=rng.random((3, 3, 8, 8)))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["untouched", "RE"]
    corner = np.full((8, 8), 0.5)
    corner[0, 0] = 0
    figure = P.exposure_maps({"RE": corner, "toroidal": torch.full((8, 8), 0.25)})
    assert [text.get_text() for text in figure.axes[0].texts] == ["50%", "0%"]
    assert len(figure.axes) == 3 and "share of draws" in figure.axes[2].get_ylabel()
    with pytest.raises(UserError, match="average the masks"):
        P.exposure_maps({"RE": np.full((8, 8), 3.0)})
    exposure = np.linspace(0, 1, 64).reshape(8, 8)
    ax = P.exposure_against_error(exposure, {"re(0.1,0.4)": 2 * exposure, "none": 0 * exposure}, bins=4)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 2 * ax.lines[1].get_xdata())
    assert len(ax.lines) == 2 and legend(ax) == ["NoDef", "RE [.1, .4]"]
    assert "4 of equal count; band: their middle half" in ax.get_xlabel()
    assert [group.tolist() for group in P.by_exposure([[3, 0], [1, 2]], 2)] == [[1, 2], [3, 0]]


def test_learning_curves(rng):
    frame = pd.DataFrame({"step": np.tile(np.arange(5), 2), "defence": ["re(0.1,0.4)"] * 5 + ["none"] * 5})
    frame["loss"], frame["accuracy"] = rng.random(10), rng.random(10)
    figure = P.learning_curves(
        frame, metrics=["loss", "accuracy"], percent=["accuracy"], logarithmic=["loss"]
    )
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "accuracy"]
    assert all(len(ax.lines) == 2 for ax in figure.axes) and figure.axes[0].get_yscale() == "log"
    assert legend(figure) == ["NoDef", "RE [.1, .4]"]
    with pytest.raises(UserError, match="lacks speed"):
        P.learning_curves(frame, metrics=["speed"])


def test_interval_curves_join_seeds_and_ring_the_headline():
    frame = pd.concat(
        [points({"none": value, "fe(0.5)": 0.2}, steps=s) for s in (1, 2) for value in (0.4, 0.6)]
    )
    ax = P.interval_curves(frame, x="steps", y_label="natural accuracy", headline={"none": 2})
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.5, 0.5])
    ring = [offsets for c in ax.collections for offsets in c.get_offsets().tolist() if offsets == [2, 0.5]]
    assert ax.get_ylim()[0] < 0.15 and ax.get_ylim()[1] > 0.65 and ax.get_xlim()[0] < 1 < 2 < ax.get_xlim()[1]
    assert len(ring) == 1 and legend(ax) == ["NoDef", "FE .5"] and ax.get_xlabel() == "steps"


def test_tradeoff():
    frame = pd.DataFrame(
        {
            "defence": ["none", "re(0.1,0.4)", "new(1)"],
            "natural": [0.9, 0.88, 0.7],
            "attack": [0.8, 0.4, 0.5],
        }
    )
    for side in ("natural", "attack"):
        frame[f"{side}_low"], frame[f"{side}_high"] = frame[side] - 0.02, frame[side] + 0.02
    frontier = pd.DataFrame(
        {"natural": [0.9, 0.7], "attack": [0.8, 0.5], "low": [0.7, 0.4], "high": [0.9, 0.6]}
    )
    ax = P.tradeoff(frame, frontier=frontier, title="RE is worth it")
    assert legend(ax) == ["NoDef frontier", "Pareto front", "NoDef", "RE [.1, .4]", "NEW 1"]
    assert len(ax.containers) == 3 and all(c.has_xerr and c.has_yerr for c in ax.containers)
    assert "natural accuracy" in ax.get_xlabel() and "attack accuracy" in ax.get_ylabel()
    front = next(line for line in ax.lines if line.get_label() == "Pareto front")
    np.testing.assert_allclose(front.get_xdata(), [0.88, 0.9])


def test_attack_bars_and_budget_curve():
    values = {"re(0.1,0.4)": 0.4, "none": 0.8}
    frame = pd.concat([points(values, evaluator=name) for name in ("verifier", "main")])
    ax = P.attack_bars(frame, chance=0.1)
    assert legend(ax) == ["chance", "main evaluator", "disjoint verifier"]
    assert sorted(bar.get_height() for bar in ax.patches) == [0.4, 0.4, 0.8, 0.8]
    assert [tick.get_text() for tick in ax.get_xticklabels()][0] == "NoDef"
    ax = P.budget_curve(pd.concat([points(values, budget=b) for b in (100, 200)]))
    assert ax.get_xscale() == "log" and ax.get_ylim()[0] == 0


def test_feature_panels(rng):
    sets = {name: rng.normal(size=(9, 2)) for name in ("reconstructions", "private_train")}
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 0]])
    figure = P.pca_panels(
        {"NoDef": sets, "RE": sets},
        hulls={"NoDef": {"reconstructions": square}},
        explained={"NoDef": [0.5, 0.25]},
    )
    first, second = figure.axes
    assert first.get_xlabel() == "component 1 (50% of the variance)" and second.get_ylabel() == "component 2"
    assert len(first.patches) == 1 and not second.patches and first.get_xlim() == second.get_xlim()
    assert legend(figure) == ["private, training", "reconstructions"]
    figure = P.tsne_panels({0: sets, 1: sets})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["seed 0", "seed 1"]
    assert not figure.axes[0].get_xticks().size
    identity = np.repeat([4, 5, 6], 3)
    figure = P.class_map({"NoDef": (sets["private_train"], identity)}, names={4: "A", 5: "B", 6: "C"})
    assert legend(figure) == ["A", "B", "C"]
    with pytest.raises(UserError, match="at most 10 people"):
        P.class_map({"NoDef": (rng.normal(size=(11, 2)), np.arange(11))})


def test_separation_plot():
    frame = pd.concat(
        [points({"none": 0.5, "fe(0.5)": 0.4}, measure=m) for m in ("silhouette", "davies_bouldin")]
    )
    figure = P.separation_plot(frame)
    assert [ax.get_xlabel() for ax in figure.axes] == ["right is better", "left is better"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["NoDef", "FE .5"]


@pytest.mark.parametrize("kind", ["violin", "ecdf"])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_distance_distributions(rng, kind, logarithmic):
    pair = ["reconstructions->private_train", "private_held_out->private_train"]
    frame = pd.DataFrame({"defence": np.repeat(["none", "fe(0.5)"], 20), "pair": pair * 20})
    frame["value"] = rng.random(40) + 0.5
    figure = P.distance_distributions(frame, kind=kind, logarithmic=logarithmic)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["NoDef", "FE .5"]
    names = ["unseen photo to private", "reconstruction to private"]
    if kind == "violin":
        assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == names
        medians = [line.get_xdata()[0] for line in figure.axes[0].lines[1::2]]
        expected = frame[frame["defence"] == "none"].groupby("pair")["value"].median()[pair[::-1]]
        np.testing.assert_allclose(10 ** np.array(medians) if logarithmic else medians, expected, rtol=0.01)
    else:
        assert legend(figure) == names and len(figure.axes[0].lines) == 2
    with pytest.raises(UserError, match="violin or ecdf"):
        P.distance_distributions(frame, kind="box")


def test_difference_plot_is_hollow_where_nothing_is_established():
    frame = points({"re(0.1,0.4)": 0.2, "early(0.5)": 0.01})
    ax = P.difference_plot(
        frame, by="defence", x_label="advantage", left="worse", right="better", title="RE helps"
    )
    faces = [container.lines[0].get_markerfacecolor() for container in ax.containers]
    assert faces == ["white", DEFENCES["re(0.1,0.4)"].colour]
    assert ax.get_xlim()[0] == -ax.get_xlim()[1] and [text.get_text() for text in ax.texts] == [
        "← worse",
        "better →",
    ]


def test_costs_stand_at_their_true_places():
    frame = pd.DataFrame(
        {
            "attack": ["brep\neigenfaces"] * 3,
            "defence": ["none", "re(0.1,0.4)", "re(0.1,0.8)"],
            "passes": [200.0, 200.0, 250.0],
            "value": [0.5, 0.4, 0.3],
            "low": [0.4, 0.3, 0.2],
            "high": [0.6, 0.5, 0.4],
        }
    )
    ax = P.attack_costs(frame, x_label="queries", y_label="AttAcc")
    drawn = [bars[0].get_xdata().tolist() for bars in ax.containers]
    assert drawn == [[200.0], [200.0], [250.0]]
    shown = [bars[0].get_transform().transform((200.0, 0.5))[0] for bars in ax.containers]
    assert shown[0] == shown[1] == shown[2], "nothing is moved along an axis that says how much"
    sizes = [bars[0].get_markersize() for bars in ax.containers]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3, "of equal points all are seen"
    assert len({bars[0].get_color() for bars in ax.containers}) == 3
    assert {bars[0].get_marker() for bars in ax.containers} == {"o"}, "one attack, one marker"
    legends = [[text.get_text() for text in found.get_texts()] for found in ax.artists]
    assert legends == [["NoDef", "RE [.1, .4]", "RE [.1, .8]"], ["brep, eigenfaces"]]
    ax.figure.draw_without_rendering()
    boxes = [found.get_window_extent() for found in ax.artists]
    assert all(box.y0 >= 0 and box.y1 < ax.get_window_extent().y0 for box in boxes), "below, and on the page"
    assert boxes[0].x1 < boxes[1].x0 and ax.get_position().width > 0.8
    assert ax.get_xlim()[0] < 200 and ax.get_xlim()[1] > 250


def test_budget_curves_have_a_panel_an_attack_and_a_line_a_prior_and_choice_of_constants():
    frame = pd.DataFrame(
        {
            "attack": ["ppa, eigenfaces"] * 2 + ["brep, eigenfaces"] * 2 + ["brep, eigenfaces, settled"] * 2,
            "passes": [100.0, 400.0, 50.0, 100.0, 60.0, 120.0],
            "value": [0.5, 0.9, 0.2, 0.3, 0.4, 0.5],
            "low": [0.4, 0.8, 0.1, 0.2, 0.3, 0.4],
            "high": [0.6, 1.0, 0.3, 0.4, 0.5, 0.6],
        }
    )
    figure = P.attack_budgets(frame, x_label="passes", y_label="AttAcc", title="t")
    ppa, brep = figure.axes
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == ["ppa", "brep"]
    assert {ax.get_xscale() for ax in figure.axes} == {"log"} and ppa.get_xlim() == brep.get_xlim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "eigenfaces",
        "eigenfaces, settled",
    ]
    assert sorted(ppa.lines[0].get_xdata()) == [100.0, 400.0] and len(ppa.containers) == 1
    first, second = brep.containers
    assert first.lines[0].get_color() == ppa.containers[0].lines[0].get_color() != second.lines[0].get_color()


def test_ratios_have_a_row_a_defence_and_a_line_at_one():
    frame = pd.DataFrame(
        {"defence": ["none", "negls(-0.05)"], "value": [1.0, 1.2], "low": [1.0, 1.1], "high": [1.0, 1.4]}
    )
    ax = P.ratios(frame, x_label="time")
    assert [text.get_text() for text in ax.get_yticklabels()] == ["NoDef", "NegLS -.05"]
    assert any(line.get_xdata()[0] == line.get_xdata()[-1] == 1 for line in ax.lines)
    (bar,) = ax.containers[1].lines[2]
    assert [point[0] for point in bar.get_segments()[0]] == pytest.approx([1.1, 1.4])
