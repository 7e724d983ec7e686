"""Compositions with defences that lengthen or replace the batch: every row is seen through its photo's view."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from toys import NETWORKS, SMALL, bars, train_bars

from lib.defences import build, restore
from lib.errors import UserError
from lib.models import build_classifier
from lib.training import Defence
from lib.training.composition import criterion_of

COMPOSED = {  # rows per photo
    "re(0.1,0.4)+trapmid(0.2)": 2,
    "re(0.1,0.4)+atat(0.01)": 2,
    "negls(-0.05)+trapmid(0.2)": 2,
    "re(0.1,0.4)+advtrain(0.01)": 1,
    "trapmid(0.2)+re(0.1,0.4)+mid(0.01)": 2,
    "atat(0.01)+bido_hsic(0.05,0.5)+rolss": 2,
    "mixup(1)+atat(0.01)+negls(-0.05)": 2,
    "tldmi(2,bn_frozen=eval)+trapmid(0.2)+crop(0.5)": 2,
}
FEW = {"bido_hsic": {"identities": 3, "photos": 12}}


class Watch(Defence):
    """Last in a composition: the batch as others left it, the frozen view, and what the network was shown."""

    name = "watch"

    def __init__(self):
        self.shown, self.rows, self.views = [], [], []

    def build(self, model):
        self.model = model
        model.register_forward_pre_hook(
            lambda module, given: self.shown.append((module.training, given[0].detach().clone()))
        )
        return model

    def before(self, model, view, images, labels, generator):
        self.rows.append((images.detach().clone(), labels))
        self.views.append(view)
        self.inner, self.shown = self.shown, []


@pytest.mark.parametrize(("text", "rows"), COMPOSED.items())
def test_compositions_train_two_steps_and_are_rebuilt(text, rows):
    defences, watch = build(text, FEW), Watch()
    recipe = dataclasses.replace(SMALL, steps=2, batch=36)
    result = train_bars([*defences, watch], recipe)
    assert result.history[-1]["step"] == 2 and all(math.isfinite(row["loss"]) for row in result.history)
    assert [len(images) for images, _ in watch.rows] == [36 * rows] * 2
    for defence in defences:
        values = [v for key, v in result.diagnostics.items() if key.startswith(f"{defence.name}.")]
        assert values and all(math.isfinite(value) for value in values), defence.name
    meta = {"spec": result.model.spec, "num_classes": 3, "image_size": 16, "defence": text, "overrides": FEW}
    again = restore(result.model.state_dict(), meta)
    images = torch.rand(4, 3, 16, 16)
    result.model.eval()
    torch.testing.assert_close(again(images), result.model(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["trapmid(0.2)", "atat(0.01)"])
def test_a_photo_and_what_was_made_of_it_are_erased_alike_and_last(text):
    """Blend, augment, then erase both halves; perturb, then erase both halves."""
    erasing, defence = build(f"re(0.3,0.3,value=black)+{text}")
    watch = Watch()
    train_bars([erasing, defence, watch], dataclasses.replace(SMALL, steps=1))
    (images, _), view = watch.rows[0], watch.views[0]
    (training, shown) = watch.shown[0]
    assert training and len(watch.shown) == 1 and len(shown) == len(images) == 24
    hidden = (view(torch.ones_like(images)) == 0).all(1)
    assert hidden.any((1, 2)).all() and torch.equal(hidden[:12], hidden[12:])
    assert len(hidden[:12].flatten(1).unique(dim=0)) > 1
    kept = ~hidden[:, None].expand_as(images)
    assert not shown[~kept].any() and torch.equal(shown[kept], images[kept])
    inner = watch.inner
    assert len(inner) == (1 if text.startswith("trapmid") else 5)
    assert all(not seen[~kept[:12]].any() for _, seen in inner), "inner passes see the very mask"
    assert all(mode == text.startswith("atat") for mode, _ in inner), (
        "in training mode, or in evaluation mode"
    )


def test_the_triggers_are_drawn_to_their_person_only_where_the_network_sees_them():
    """Inside the mask a trigger follows the discriminator alone."""
    images, labels = bars().float(torch.arange(0, 36, 12)), torch.arange(3)
    (erasing,) = build("re(0.3,0.3,value=black)")
    view = erasing.input(images, labels, torch.Generator().manual_seed(0))
    inside = view.mask[:, None].expand_as(images)
    moved = []
    for weight in (1.0, -1.0):  # two networks that disagree
        torch.manual_seed(0)
        (defence,) = build("trapmid(0.2)")
        model = defence.build(build_classifier(NETWORKS["residual"], 3, 16)).eval()
        with torch.no_grad():
            model.head.weight.mul_(weight)
        defence._move_triggers(model, view, images, labels)
        moved.append(defence.triggers)
    assert torch.equal(moved[0][inside], moved[1][inside])
    assert (moved[0] != moved[1])[~inside].float().mean() > 0.1


def rows_of_the_criterion(first, second):
    """How many rows the first one's criterion is asked about in each of two steps of the composition."""
    seen, plain = [], first.criterion
    first.criterion = lambda logits, labels: seen.append(len(labels)) or plain(logits, labels)
    train_bars([first, second], dataclasses.replace(SMALL, steps=2))
    return seen


def test_negative_smoothing_is_of_both_halves():
    """The published combination; the triggers' own loss stays cross-entropy."""
    assert rows_of_the_criterion(*build("negls(-0.05,schedule=constant)+trapmid(0.2)")) == [24, 24]


def test_negative_smoothing_leaves_what_a_network_obeys_to_cross_entropy():
    """Of moved photos the loss is bounded: NegLS sees photos alone."""
    negls, atat = build("negls(-0.05,schedule=constant)+atat(0.01)")
    plain = negls.criterion
    assert rows_of_the_criterion(negls, atat) == [12, 12]
    logits, labels = torch.randn(24, 3), torch.arange(24) % 3
    found = criterion_of([negls, atat], SMALL, 12)(logits, labels)
    torch.testing.assert_close(found[:12], plain(logits[:12], labels[:12]))
    torch.testing.assert_close(found[12:], F.cross_entropy(logits[12:], labels[12:], reduction="none"))


def test_negative_smoothing_can_leave_the_traps_to_cross_entropy():
    shared, apart = (
        criterion_of(build(f"negls(-0.05,schedule=constant)+{text}"), SMALL, 2)
        for text in ("trapmid(0.2)", "trapmid(0.2,trap_loss=cross_entropy)")
    )
    logits, labels = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(apart(logits, labels)[:2], shared(logits, labels)[:2])
    plain = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(apart(logits, labels)[2:], plain[2:])


@pytest.mark.parametrize("text", ["trapmid(0.2)+mixup(1)", "atat(0.01)+cutmix(1)"])
def test_mixing_behind_rows_that_are_weighed_is_refused(text):
    first, second = text.split("+")
    with pytest.raises(UserError, match="expected to stand before"):
        train_bars(build(text), SMALL)
    train_bars(build(f"{second}+{first}"), dataclasses.replace(SMALL, steps=1))
