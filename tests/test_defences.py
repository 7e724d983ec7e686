"""Defences: found, built from names, doing what they say through the interface of the training loop."""

import inspect
import math

import pytest
import torch
from toys import NETWORKS, same

from lib import defences as package
from lib.data import Images
from lib.defences import build, canonical, constants, defence_class, names
from lib.errors import UserError
from lib.models import build_classifier
from lib.runtime import ROOT
from lib.training import train_classifier
from lib.training.interface import Defence, Recipe

KNOWN = ["early", "fe", "fewer", "none", "re", "small"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(count=6, size=16):
    return torch.rand(count, 3, size, size, generator=seeded()), torch.arange(count)


@pytest.fixture
def drop_in(tmp_path, monkeypatch):
    """Puts a file with a defence that replaces the loss into the package, as a user would."""

    def add(name, body="criterion = staticmethod(lambda logits, labels: logits[:, 0] * 0)"):
        source = (
            "from lib.training.interface import Defence\n\n\nclass Dropped(Defence):\n"
            f"    def __init__(self, alpha):\n        self.alpha = alpha\n\n    {body}\n"
        )
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])

    return add


def test_the_package_is_scanned():
    assert set(KNOWN) <= set(names())
    assert not [name for name in names() if name.startswith("_") or name in ("names", "registry")]


@pytest.mark.parametrize("name", names())
def test_every_file_is_one_documented_defence_whose_yaml_holds_its_keywords(name):
    cls = defence_class(name)
    assert cls.__doc__ and inspect.getmodule(cls).__doc__
    parameters = inspect.signature(cls).parameters.values()
    without = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert without <= set(constants(name)) <= keywords


def test_built_defences_carry_canonical_names_in_order():
    built = build(" FE(.50)+ re(0.10,.4,value=grey, location=toroidal)")
    assert [defence.name for defence in built] == ["fe(0.5)", "re(0.1,0.4,location=toroidal)"]
    assert "+".join(defence.name for defence in built) == canonical("fe(0.5)+re(0.1,0.4,location=toroidal)")


def test_none_is_the_identity():
    (defence,) = build("none")
    images, index = batch_of()
    recipe, model = Recipe(steps=10), torch.nn.Linear(2, 2)
    assert defence.plan(recipe) == recipe and defence.build(model) is model and defence.deploy(model) is model
    assert defence.source(images, index, 0) is images and defence.input(images, index, seeded()) is None


@pytest.mark.parametrize(("text", "field"), [("early", "stop"), ("fewer", "share"), ("small", "width")])
def test_controls_change_one_field_of_the_recipe(text, field):
    recipe = Recipe(steps=10)
    (defence,) = build(f"{text}(0.5)")
    planned = defence.plan(recipe)
    changed = [name for name in vars(recipe) if getattr(recipe, name) != getattr(planned, name)]
    assert changed == [field] and getattr(planned, field) == 0.5


# --- random erasing -----------------------------------------------------------------------------------------


def test_re_draws_anew_each_step_and_reports_what_it_erased():
    (defence,) = build("re(0.1,0.4)")
    images, index = batch_of()
    generator = seeded()
    assert defence.source(images, index, 1) is images
    views = [defence.input(images, index, generator) for _ in range(2)]
    assert not torch.equal(views[0].mask, views[1].mask)
    erased = views[0](images)
    inside = views[0].mask[:, None].expand_as(images)
    assert torch.equal(erased[~inside], images[~inside]) and not torch.equal(erased[inside], images[inside])
    expected = torch.stack([view.mask for view in views]).double().mean().item()
    assert defence.diagnostics() == {"re_erased_area": pytest.approx(expected)}


def test_the_erased_area_survives_a_checkpoint_and_is_nan_before_the_first_step():
    images, index = batch_of()
    (first,), (second,) = build("re(0.25,0.25)"), build("re(0.25,0.25)")
    assert math.isnan(first.diagnostics()["re_erased_area"])
    first.input(images, index, seeded())
    for key, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[key])
    assert second.diagnostics() == first.diagnostics() == {"re_erased_area": 0.25}


def test_re_same_generator_same_view():
    (defence,) = build("re(0.1,0.4)")
    images, index = batch_of()
    first, again = (defence.input(images, index, seeded(3))(images) for _ in range(2))
    assert torch.equal(first, again)


def test_re_keywords_reach_the_law():
    text = "re(0.1,0.2,p=0.5,ratio=2,value=black,location=per_image,shape=rectangle)"
    law = build(text)[0].law
    assert (law.p, law.scale, law.ratio, law.value) == (0.5, (0.1, 0.2), (0.5, 2.0), "black")
    assert (law.location, law.shape) == ("per_image", "rectangle")
    assert build("re(0.1,0.2,shape=squares,count=3)")[0].law.count == 3
    assert build("re(0.1,0.2,value=0.5)")[0].law.value == (0.5, 0.5, 0.5)


def test_a_setup_overrides_constants_and_a_name_overrides_the_setup():
    overrides = {"re": {"value": "mean", "mean": [0.1, 0.2, 0.3]}}
    (changed,) = build("re(0.1,0.4)", overrides)
    assert (
        changed.law.value == "mean" and changed.law.mean == (0.1, 0.2, 0.3) and changed.name == "re(0.1,0.4)"
    )
    (explicit,) = build("re(0.1,0.4,value=grey)", overrides)
    assert explicit.law.value == "grey" and explicit.name == "re(0.1,0.4,value=grey)"


# --- fixed erasing ------------------------------------------------------------------------------------------


def test_fe_hides_the_same_part_of_an_image_at_every_visit():
    (defence,) = build("fe(0.5)")
    images, index = batch_of()
    first, again = (defence.source(images, index, 5) for _ in range(2))
    assert torch.equal(first, again) and defence.input(images, index, seeded()) is None
    hidden = (first != images).any(1)
    assert hidden.flatten(1).unique(dim=0).shape[0] > 1
    alone = defence.source(images[4:5], index[4:5], 5)
    assert torch.equal(alone[0], first[4])
    assert not torch.equal(first, defence.source(images, index, 6))
    assert defence.diagnostics() == {"fe_erased_area": pytest.approx(11**2 / 16**2)}


def test_fe_in_the_output_frame_erases_last():
    (defence,) = build("fe(0.5,frame=output)")
    images, index = batch_of()
    assert defence.source(images, index, 5) is images
    masks = [defence.input(images, index, seeded(seed)).mask for seed in range(2)]
    assert torch.equal(*masks)


def test_re_and_fe_compose():
    images, index = batch_of()
    fixed, fresh = build("fe(0.2)+re(0.1,0.2,value=black)")
    once = fixed.source(fresh.source(images, index, 0), index, 0)
    view = fresh.input(once, index, seeded())
    twice = view(once)
    hidden = (once != images).any(1)
    assert (twice.permute(0, 2, 3, 1)[view.mask] == 0).all()
    assert torch.equal(
        twice.permute(0, 2, 3, 1)[hidden & ~view.mask], once.permute(0, 2, 3, 1)[hidden & ~view.mask]
    )


# --- new files and bad input --------------------------------------------------------------------------------


def test_a_new_file_is_a_new_defence(drop_in):
    drop_in("dropped_in")
    assert "dropped_in" in names()
    built = build("re(0.1,0.4)+dropped_in(-0.050)")
    assert [defence.name for defence in built] == ["re(0.1,0.4)", "dropped_in(-0.05)"]
    assert isinstance(built[1], Defence) and built[1].alpha == -0.05


def test_two_criteria_are_refused_with_the_reason(drop_in):
    drop_in("first_loss")
    drop_in("second_loss")
    with pytest.raises(UserError, match=r"first_loss\(1\) and second_loss\(2\); two losses cannot"):
        build("first_loss(1)+second_loss(2)")


def test_a_file_without_a_defence_is_a_defect(tmp_path, monkeypatch):
    (tmp_path / "empty_file.py").write_text("")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    with pytest.raises(TypeError, match="exactly one Defence"):
        build("empty_file")


def test_an_unknown_defence_can_be_read_but_not_built():
    assert canonical("unheard_of(-0.050)") == "unheard_of(-0.05)"
    with pytest.raises(UserError, match=f"expected one of {', '.join(names())};") as caught:
        build("re(0.1,0.4)+unheard_of(-0.05)")
    assert "unheard_of" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "re",
        "re(0.1)",
        "re(0.1,0.4,0.5)",
        "re(0.4,0.1)",
        "re(0,0.4)",
        "re(0.1,1)",
        "re(a,b)",
        "re(0.1,0.4,p=2)",
        "re(0.1,0.4,p=true)",
        "re(0.1,0.4,where=here)",
        "re(0.1,0.4,low=0.1)",
        "re(0.1,0.4,location=centre)",
        "re(0.1,0.4,shape=rectangle,ratio=0.5)",
        "re(0.1,0.4,ratio=wide)",
        "re(0.1,0.4,shape=squares,count=1.5)",
        "re(0.1,0.4,curriculum=1.5)",
        "re(0.1,0.4,curriculum=true)",
        "re(0.5,0.5,curriculum=0.5)",
        "fe",
        "fe(1.5)",
        "fe(0.5,frame=inner)",
        "fe(0.5,location=random)",
        "none(1)",
        "early",
        "early(0)",
        "early(1)",
        "fewer(-0.5)",
        "small(half)",
        "none+re(0.1,0.4)",
        "re(0.1,0.4)+re(0.1,0.4)",
    ],
)
def test_bad_defences_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)


@pytest.mark.parametrize(
    "overrides", [{"re": {"fill": "black"}}, {"none": {"p": 1}}, {"unheard_of": {"p": 1}}]
)
def test_bad_overrides_are_one_clear_error(overrides):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got|^[^\n]*expected one of[^\n]*$"):
        build("re(0.1,0.4)", overrides)


def test_a_fixed_location_without_a_seed_is_refused():
    images, index = batch_of()
    with pytest.raises(UserError, match="expected a seed"):
        build("re(0.1,0.4,location=fixed)")[0].input(images, index, seeded())


# --- whether a defence does anything ------------------------------------------------------------------------

OVERRIDES = {
    "bido_hsic": {"identities": 5, "photos": 8},
    "bido_coco": {"identities": 5, "photos": 8},
    "trapmid": {"blend": 0.3, "step": 0.1},
}
CHANGES_THE_RECIPE = {"none", "early", "fewer", "small"}  # alone: there is nothing else to compare
EFFECTS = {  # defence -> through what it acts on a training
    "re(0.1,0.4)": "input", "fe(0.5)": "source", "cutout(0.5)": "input", "crop(0.5)": "input", "noise(0.1)": "input",
    "negls(-0.05)": "criterion", "ls(0.1)": "criterion", "bido_hsic(0.05,0.5)": "penalty",
    "bido_coco(1,50)": "penalty", "mixup(1)": "batch", "cutmix(1)": "batch", "trapmid(0.2)": "batch",
    "atat(0.1)": "batch", "advtrain(0.01)": "batch", "tldmi(1)": "freeze", "rolss": "build", "ssf(0.2)": "build",
    "tts": "build", "mid(0.01)": "penalty", "groupnorm": "build", "dpsgd(8)": "optimise",
}  # fmt: skip

OTHERS = {"batch": ("before", "exact")}  # what makes the batch, and the precision it wants


def trained(defences, recipe):
    """Weights after a few steps on 120 photos of five people."""
    pixels = torch.randint(0, 256, (120, 3, 16, 16), generator=seeded(), dtype=torch.uint8)
    images = Images(pixels, torch.arange(120) % 5, list("abcde"))
    return train_classifier(
        lambda planned: build_classifier(NETWORKS["residual"], 5, 16, width=planned.width),
        images,
        recipe=recipe,
        defences=defences,
        seed=0,
        device=torch.device("cpu"),
    ).model.state_dict()


def test_the_effect_of_every_defence_is_known():
    known = {canonical(text).partition("(")[0] for text in EFFECTS} | CHANGES_THE_RECIPE
    listed = {name for name in names() if f"`{name}`" in (ROOT / "README.md").read_text()}
    assert listed <= known <= set(names()), "one's own may be beside them"


@pytest.mark.parametrize(("text", "hook"), EFFECTS.items())
def test_a_defence_trains_another_network_and_without_its_effect_the_same(text, hook):
    """Bit for bit, under the same recipe and draws: a defence that is silently inactive fails here."""
    (part,) = build(text, OVERRIDES)
    recipe = part.plan(Recipe(steps=9, batch=40, learning_rate=5e-3))  # three epochs
    plain = trained([Defence()], recipe)
    assert not same(trained([part], recipe), plain)
    (idle,) = build(text, OVERRIDES)
    for name in (hook, *OTHERS.get(hook, ()), *(("build", "taps") if text.startswith("mid") else ())):
        setattr(idle, name, getattr(Defence(), name))
    if hook == "optimise":
        with pytest.raises(TypeError, match="nothing would be private"):
            trained([idle], recipe)
        return
    assert same(trained([idle], recipe), plain)


def test_a_network_of_other_constants_is_not_taken_for_one_of_these():
    """What a YAML file says is in no stage key."""
    model = build_classifier(NETWORKS["residual"], 5, 16)
    meta = {"spec": model.spec, "num_classes": 5, "image_size": 16, "defence": "cutout(0.5)"}
    now = package.resolved("cutout(0.5)")
    assert now == {"cutout": constants("cutout")}
    assert package.resolved("cutout(0.5,side=0.3)", {"cutout": {"value": 0.2}})["cutout"] == {
        "side": 0.3,
        "value": 0.2,
    }
    older = {"cutout": {"side": now["cutout"]["side"]}}  # made before the other constant was
    for known in (None, now, older):
        assert same(
            package.restore(model.state_dict(), meta | {"constants": known}).state_dict(), model.state_dict()
        )
    then = {"cutout": {**now["cutout"], "side": 0.9}}
    with pytest.raises(UserError, match="expected the constants of cutout .* 0.9.* put cutout.yaml back"):
        package.restore(model.state_dict(), meta | {"constants": then})


def test_erasing_that_can_never_fit_is_refused():
    model = build_classifier(NETWORKS["residual"], 5, 16)
    for text in ("re(0.99,0.995)", "fe(0.99)"):
        (part,) = build(text)
        with pytest.raises(UserError, match="expected squares that fit into an image of 16 px"):
            part.build(model)
    assert build("re(0.1,0.99)")[0].build(model) is model
