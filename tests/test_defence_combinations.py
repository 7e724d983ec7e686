"""Compositions: they build, train, record what each was up to and are rebuilt; what cannot be combined is refused."""

import dataclasses
import math

import pytest
import torch
from toys import SMALL, train_bars

from lib.defences import build, restore
from lib.errors import UserError

COMPOSED = [
    "re(0.1,0.4)+negls(-0.05)",
    "re(0.1,0.4)+bido_hsic(0.05,0.5)",
    "re(0.1,0.4)+bido_coco(1,50)",
    "re(0.1,0.4)+tldmi(2)",
    "re(0.1,0.4)+rolss",
    "re(0.1,0.4)+mid(0.01)",
    "tldmi(1,bn_frozen=eval)+bido_hsic(0.05,0.5)+rolss",
    "ssf(0.2)+mid(0.01)+ls(0.1)",
    "mixup(1)+re(0.1,0.4)+negls(-0.05)+bido_coco(1,50)",
    "crop(0.5)+cutout(0.5)+noise(0.1)+cutmix(1)+mixup(1)",
]
FEW = {name: {"identities": 3, "photos": 4} for name in ("bido_hsic", "bido_coco")}


@pytest.mark.parametrize("text", COMPOSED)
def test_compositions_train_two_steps_and_are_rebuilt(text):
    defences = build(text, FEW)
    recipe = dataclasses.replace(SMALL, steps=2, batch=36)  # two epochs: schedules that begin halfway begin
    result = train_bars(defences, recipe)
    assert [row["step"] for row in result.history][-1] == 2
    for defence in defences:
        values = [v for key, v in result.diagnostics.items() if key.startswith(f"{defence.name}.")]
        assert values and all(math.isfinite(value) for value in values), defence.name
    meta = {"spec": result.model.spec, "num_classes": 3, "image_size": 16, "defence": text, "overrides": FEW}
    again = restore(result.model.state_dict(), meta)
    images = torch.rand(4, 3, 16, 16)
    result.model.eval()  # a bottleneck's noise begins anew
    torch.testing.assert_close(again(images), result.model(images), atol=1e-5, rtol=1e-5)


def test_every_part_acts_as_alone():
    """The erased photo is what BiDO's kernels see; the frozen part gets no say in its penalty."""
    seen = []
    erasing, bido = build("re(0.5,0.5,value=black)+bido_hsic(0.05,0.5)", FEW)
    penalty = bido.penalty
    bido.penalty = lambda images, labels, taps: seen.append((images, taps)) or penalty(images, labels, taps)
    train_bars([erasing, bido, *build("tldmi(2)")], dataclasses.replace(SMALL, steps=1))
    images, taps = seen[0]
    assert (images == 0).all(1).float().mean().item() == pytest.approx(11**2 / 16**2)
    assert [tap.requires_grad for tap in taps] == [False, False, True, True, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("negls(-0.05)+ls(0.1)", "two losses cannot both stand in its place"),
        ("re(0.1,0.4)+ls(0.1)+negls(-0.05)", "two losses cannot both stand in its place"),
        ("none+mid(0.1)", "expected none to stand alone"),
        ("mid(0.1)+mid(0.2)", "expected each defence once"),
    ],
)
def test_what_cannot_be_combined_is_refused_with_the_reason(text, message):
    with pytest.raises(UserError, match=message):
        build(text)
