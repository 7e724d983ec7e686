"""Anti-adversarial and adversarial training: who is moved towards whom, at what weight, and to what end."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F
from toys import NETWORKS, SMALL, assert_resumes, bars, train_bars

from lib.defences import build
from lib.defences._pgd import perturbed
from lib.defences.atat import all_or_next, others
from lib.errors import UserError
from lib.models import build_classifier

BOTH = ["atat(0.1)", "advtrain(0.1)"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stepped(text, **options):
    """One step behind a defence: it, the photos that came in, and what its ``batch`` made of them."""
    (defence,) = build(text)
    torch.manual_seed(0)
    model = defence.build(build_classifier(NETWORKS["residual"], 3, 16)).train()
    images = bars().float(torch.arange(0, 36, 3))
    labels = options.pop("labels", bars().labels[::3])
    view = options.pop("view", lambda x: x)
    extras = defence.before(model, view, images, labels, seeded(options.pop("seed", 0)))
    return defence, model, images, labels, defence.batch(images, labels, extras)


def test_targets_are_other_people_each_equally_often():
    labels = torch.arange(5).repeat_interleave(4000)
    targets = others(labels, 5, seeded())
    assert not (targets == labels).any()
    table = torch.zeros(5, 5).index_put((labels, targets), torch.ones(()), accumulate=True) / 4000
    expected = (1 - torch.eye(5)) / 4
    torch.testing.assert_close(table, expected, atol=5 * math.sqrt(3 / 16 / 4000), rtol=0)
    assert torch.equal(others(torch.tensor([0, 1, 1]), 2, seeded()), torch.tensor([1, 0, 0]))
    mixed = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]).repeat_interleave(500, 0)
    drawn = others(mixed, 4, seeded())
    assert set(drawn[:500].tolist()) == {2, 3} and set(drawn[500:].tolist()) == {0, 1, 2, 3}


def test_the_targets_of_the_public_code_favour_the_next_person():
    labels = torch.arange(5).repeat_interleave(4000)
    targets = all_or_next(labels, 5, seeded())
    assert not (targets == labels).any()
    next_one = (targets == (labels + 1) % 5).float().mean().item()
    assert next_one == pytest.approx(0.4, abs=0.02), "twice its share"
    images = torch.rand(20, 3, 16, 16, generator=seeded())
    drawn = []
    for text in ("atat(0.1)", "atat(0.1,targets=next)"):
        (defence,) = build(text)
        torch.manual_seed(0)
        model = defence.build(build_classifier(NETWORKS["residual"], 5, 16))
        drawn.append(defence.before(model, lambda x: x, images, torch.arange(20) % 5, seeded())[1])
    assert torch.equal(drawn[1], all_or_next(torch.arange(20) % 5, 5, seeded()))
    assert not torch.equal(*drawn)


def test_atat_appends_the_moved_photos_under_their_targets_at_their_weight():
    defence, _, images, labels, (x, y, weights) = stepped("atat(0.01,weight=0.3)")
    assert torch.equal(x[:12], images) and torch.equal(y[:12], labels) and len(x) == len(y) == 24
    assert not torch.equal(x[12:], images) and (x[12:] - images).abs().max() <= 0.005
    assert not (y[12:] == labels).any()
    torch.testing.assert_close(weights, torch.tensor([1.0] * 12 + [0.3] * 12))
    furthest = defence.diagnostics()["furthest"]
    assert furthest == pytest.approx(0.01, rel=1e-4) and furthest <= 0.01, "on the scale of eps"


def test_advtrain_moves_every_photo_and_keeps_its_label():
    defence, _, images, labels, (x, y, weights) = stepped("advtrain(0.01)")
    assert x.shape == images.shape and torch.equal(y, labels) and torch.equal(weights, torch.ones(12))
    change = (x - images).abs().flatten(1).amax(1)
    assert (change > 0.0049).all() and (change <= 0.005).all()
    assert defence.diagnostics()["furthest"] <= 0.01


def test_mixed_photos_are_moved_towards_people_who_are_not_in_them():
    mixed = (
        0.5 * F.one_hot(bars().labels[::3], 3).float() + 0.5 * F.one_hot(torch.zeros(12).long(), 3).float()
    )
    _, _, _, _, (x, y, _) = stepped("atat(0.01)", labels=mixed)
    assert x.shape[0] == 24 and y.shape == (24, 3) and torch.equal(y[:12], mixed)
    assert ((y[12:] > 0).sum(1) == 1).all() and not ((y[12:] > 0) & (mixed > 0)).any()
    assert stepped("advtrain(0.01)", labels=mixed)[4][1] is mixed


def test_the_loss_is_the_clean_one_plus_the_weighted_one():
    recipe = dataclasses.replace(SMALL, steps=1, batch=36)
    kept = []
    (defence,) = build("atat(0.1,weight=0.5)")
    made = defence.batch
    defence.batch = lambda *given: kept.append(made(*given)) or kept[-1]
    model = build_classifier(NETWORKS["residual"], 3, 16)
    before = copy.deepcopy(model)
    loss = train_bars([defence], recipe, model=model).history[0]["loss"]
    ((x, y, _),) = kept
    losses = F.cross_entropy(before.train()(x), y, reduction="none")
    assert loss == pytest.approx((losses[:36].mean() + 0.5 * losses[36:].mean()).item(), rel=0.02)


@pytest.mark.parametrize(
    ("text", "inner"), [("atat(0.01)", 5), ("advtrain(0.01)", 10), ("atat(0.01,steps=2)", 2)]
)
def test_inner_passes_are_collected_by_the_batch_norms_or_not(text, inner):
    recipe = dataclasses.replace(SMALL, steps=2)
    for bn_inner, passes in (("track", inner + 1), ("hold", 1)):
        name = f"{text[:-1]},bn_inner={bn_inner})"
        model = train_bars(build(name), recipe).model
        assert model.body.stem[1].num_batches_tracked == 2 * passes
    tracked, held = (stepped(f"{text[:-1]},bn_inner={word})")[4][0] for word in ("track", "hold"))
    assert torch.equal(tracked, held), "the same photos either way"


@pytest.mark.parametrize("text", BOTH)
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, text, average):
    recipe = dataclasses.replace(SMALL, steps=6, average=average)
    assert_resumes(lambda: build(text), recipe, tmp_path)


def test_the_furthest_change_is_of_the_run_and_survives_a_checkpoint():
    (defence,), (second,) = build("advtrain(0.01)"), build("advtrain(0.01)")
    defence._furthest = torch.tensor(0.009)
    second.tensors()["furthest"].copy_(defence.tensors()["furthest"])
    assert second.diagnostics()["furthest"] == pytest.approx(0.009)
    assert math.isnan(second.diagnostics()["success"]), "before the first step"


def test_one_learns_to_obey_and_the_other_to_resist():
    recipe = dataclasses.replace(SMALL, steps=120, batch=36)
    images, labels = bars().float(torch.arange(36)), bars().labels
    obeyed, curves = {}, {}
    for text in ("none", "atat(0.1,weight=1)", "advtrain(0.1)"):
        result = train_bars(build(text), recipe)
        targets = (labels + 1) % 3
        moved = perturbed(result.model, images, targets, eps=0.05, step=0.01, steps=5, targeted=True)
        obeyed[text] = (result.model(moved).argmax(1) == targets).float().mean().item()
        curves[text] = [row.get(f"{text}.success") for row in result.history]
        assert (result.model(images).argmax(1) == labels).float().mean() > 0.9
    assert obeyed["atat(0.1,weight=1)"] > obeyed["none"] + 0.3, obeyed
    assert curves["atat(0.1,weight=1)"][-1] > 0.6
    resisting = curves["advtrain(0.1)"]
    assert resisting[0] > 0.5 > 0.3 > resisting[-1], resisting


def test_what_does_not_move_does_not_pass_for_a_defence_that_acts():
    (atat,), (resist,) = build("atat(0.1)"), build("advtrain(0.1)")
    for shares, obeys in (([0.2, 0.3], True), ([0.6, 0.7], True), ([0.93, 0.83], False), ([0.2, 0.2], False)):
        assert atat.acted([{"success": share} for share in shares]) is obeys, shares
    for shares, gains, acted in (
        ([0.7, 0.1], [0.2, 0.0], True),
        ([0.7, 0.1], [0.0, 0.0], False),  # the steps add nothing to the random start
        ([0.7, 0.7], [0.2, 0.2], False),
    ):
        rows = [{"success": s, "gained": g} for s, g in zip(shares, gains, strict=True)]
        assert resist.acted(rows) is acted, rows


def test_the_network_is_shown_what_was_crafted_where_others_train_in_bf16(monkeypatch):
    def bf16(device):
        return torch.autocast(device.type, torch.bfloat16)

    monkeypatch.setattr("lib.training.loop.autocast", bf16)
    seen = {}
    for text in ("none", *BOTH, "re(0.1,0.4)+atat(0.1)"):
        model = build_classifier(NETWORKS["residual"], 3, 16)
        kinds = seen.setdefault(text, set())
        model.body.stem[0].register_forward_hook(lambda *parts, kinds=kinds: kinds.add(parts[2].dtype))
        train_bars(build(text), dataclasses.replace(SMALL, steps=1), model=model)
    assert seen.pop("none") == {torch.bfloat16}
    assert all(kinds == {torch.float32} for kinds in seen.values()), seen


def test_only_one_defence_can_lengthen_or_replace_the_batch():
    with pytest.raises(
        UserError, match=r"advtrain\(0.1\): expected a batch .*, got that of atat\(0.1\); drop one"
    ):
        train_bars(build("atat(0.1)+advtrain(0.1)"))


def test_one_person_alone_has_no_targets():
    model = build_classifier(NETWORKS["residual"], 1, 16)
    with pytest.raises(UserError, match="expected at least 2 people, got 1; add some"):
        build("atat(0.1)")[0].build(model)


@pytest.mark.parametrize(
    "text", ["atat", "atat(0)", "atat(-0.1)", "atat(3)", "atat(true)", "atat(0.1,weight=-1)", "atat(0.1,steps=0)"]
    + ["atat(0.1,step=0)", "atat(0.1,bn_inner=eval)", "advtrain", "advtrain(0)", "advtrain(0.1,weight=1)"]
    + ["advtrain(0.1,steps=1.5)"],
)  # fmt: skip
def test_values_out_of_range_are_one_clear_error(text):
    with pytest.raises(UserError, match=r"^[^\n]*expected[^\n]*got[^\n]*;[^\n]*$"):
        build(text)
