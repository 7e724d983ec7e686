"""LOMMA: its identity loss by hand, the attacks it makes of GMI and KEDMI; and the students it needs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import CLASSES, SIZE, KilledError, SizedTarget, ToyPrior, ToyTarget, smooth_images

from lib import attacks
from lib.attacks import Knowledge, Reconstructions
from lib.attacks.access import Access
from lib.attacks.adaptive.eot import ErasedViews
from lib.attacks.lomma import Options, feature_statistics, logit_loss, make_identity
from lib.attacks.lomma_gmi import LommaGmiBudget
from lib.attacks.lomma_kedmi import LommaKedmiBudget
from lib.attacks.losses import cross_entropy
from lib.erasing import ErasingLaw
from lib.errors import UserError
from lib.runtime import frozen, generator
from lib.store import Checkpoint
from lib.training import distil as distilling
from lib.training.distil import Student, distil, distillation_loss

NAMES = ("lomma_gmi", "lomma_kedmi")
COMMON = dict(candidates=3, keep=2, steps=5, views=3, chunk=2)
SMALL = {
    "lomma_gmi": LommaGmiBudget(**COMMON, clip=2.0),
    "lomma_kedmi": LommaKedmiBudget(**COMMON, clip=2.0, learning_rate=0.05),
}


@pytest.fixture
def prior() -> ToyPrior:
    toy = ToyPrior()
    toy.critic = lambda images: F.logsigmoid(6.0 * images[:, 0, 0, 0] - 3.0)
    toy.name = "inversion_gan"
    return toy


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior).eval()


@pytest.fixture
def known(prior: ToyPrior) -> Knowledge:
    public = prior.synthesise(prior.sample(60, generator=generator(0, "public")))
    return Knowledge(public=public.mul(255).byte(), students=tuple(student_of(prior, i) for i in range(2)))


def student_of(prior: ToyPrior, seed: int) -> ToyTarget:
    """Nearly the target."""
    student = ToyTarget(prior).eval()
    with torch.no_grad():
        head = student.head.weight
        head += 0.1 * head.std() * torch.randn(head.shape, generator=generator(seed, "student"))
    return student


def images_of(prior: ToyPrior, count: int) -> Tensor:
    return prior.synthesise(prior.sample(count, generator=generator(1, "images")))


def say(
    target: nn.Module, known: Knowledge, images: Tensor, labels: Sequence[int], seed: int = 0, **options: Any
) -> Tensor:
    """(B,) the identity loss."""
    identity = make_identity(target, known, Options(**options), seed=seed)
    access = Access(target, ToyPrior(), fast=False)
    return identity(access, images, torch.tensor(labels))[0]


def run(name: str, *args: Any, change: dict[str, Any] | None = None, **kwargs: Any) -> Reconstructions:
    budget = dataclasses.replace(SMALL[name], **(change or {}))
    return attacks.get(name).invert(*args, **{"budget": budget, "seed": 3, **kwargs})


# --- the identity loss ----------------------------------------------------------------------------------


def test_without_the_regulariser_it_is_minus_the_mean_target_logit(
    target: ToyTarget, prior: ToyPrior, known: Knowledge
) -> None:
    images, labels = images_of(prior, 4), torch.tensor([0, 3, 1, 3])
    said = say(target, known, images, labels.tolist(), students=False, feature_weight=0.0)
    with torch.no_grad():
        wanted = torch.stack([-target(images)[i, label] for i, label in enumerate(labels.tolist())])
    torch.testing.assert_close(said, wanted)
    assert said.mean().item() == pytest.approx(wanted.mean().item())
    torch.testing.assert_close(said, F.nll_loss(target(images), labels, reduction="none"))
    assert logit_loss(torch.tensor([[7.0, 900.0]]), torch.tensor([1])).tolist() == [-900.0]  # no softmax


def test_the_regulariser_vanishes_at_p_reg_and_is_the_mean_square_elsewhere(
    target: ToyTarget, prior: ToyPrior
) -> None:
    public = images_of(prior, 1).mul(255).byte()
    at, away = public / 255, images_of(prior, 2)[1:]
    known = Knowledge(public=public.expand(6, -1, -1, -1))  # no spread: p_reg is what the target sees there
    for reference in (True, False):
        options = dict(students=False, reference=reference)
        without, weighted = (say(target, known, at, [2], feature_weight=w, **options) for w in (0.0, 5.0))
        torch.testing.assert_close(weighted, without, atol=1e-6, rtol=0)
        without, weighted = (say(target, known, away, [2], feature_weight=w, **options) for w in (0.0, 5.0))
        gap = (target.features(away) - target.features(at)).square().mean()
        torch.testing.assert_close(weighted - without, 5.0 * gap[None])


def test_with_erased_photos_p_reg_is_of_those(target: ToyTarget, prior: ToyPrior) -> None:
    clean, erased = (image.mul(255).byte().expand(6, -1, -1, -1) for image in images_of(prior, 2))
    at = erased[:1] / 255
    found, wanted = (
        say(target, known, at, [2], feature_weight=5.0, students=False)
        for known in (Knowledge(public=clean, erased=erased), Knowledge(public=erased))
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(
        found, say(target, Knowledge(public=clean), at, [2], feature_weight=5.0, students=False)
    )


def test_p_reg_is_of_whole_photos_where_the_target_is_shown_erased_views(
    target: ToyTarget, prior: ToyPrior
) -> None:
    clean, erased = (image.mul(255).byte().expand(6, -1, -1, -1) for image in images_of(prior, 2))

    def loss(**photos: Tensor) -> Tensor:
        seen = ErasedViews(target, ErasingLaw(scale=(0.2, 0.3)), masks=2, seed=0)
        return say(seen, Knowledge(**photos), clean[:1] / 255, [2], feature_weight=5.0, students=False)

    assert torch.equal(loss(public=clean, erased=erased), loss(public=clean))
    assert not torch.equal(loss(public=clean), loss(public=erased))


@pytest.mark.parametrize("name", NAMES)
def test_erased_photos_are_for_who_asks_for_them(
    target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str
) -> None:
    """A referee's members may share what they know."""
    other = dataclasses.replace(known, erased=255 - known.public, law=ErasingLaw())
    found = [
        attacks.get(text).invert(target, prior, [0, 2], budget=SMALL[name], seed=0, knowledge=knows).latents
        for text, knows in ((name, known), (name, other), (f"{name}+re_students", other))
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_p_reg_is_drawn_from_the_public_features_and_their_mean_with_reference(prior: ToyPrior) -> None:
    target, public = SizedTarget(SIZE, 3000).eval(), smooth_images(50, SIZE)
    with torch.no_grad():
        features = target.features(public / 255)
    mean, deviation = feature_statistics(target, public, seed=0)
    torch.testing.assert_close(mean, features.mean(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(deviation, features.std(0), atol=1e-6, rtol=1e-4)

    class Flat(nn.Module):
        """Whose features are the image, and all logits 0: the loss is the regulariser."""

        num_classes, image_size = 3000, SIZE

        def features(self, images: Tensor) -> Tensor:
            return images.flatten(1)

        def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return images.flatten(1), torch.zeros(len(images), 3000)

    flat, known, grey = Flat(), Knowledge(public=public), torch.full((3000, 3, SIZE, SIZE), 0.5)
    mean, deviation = feature_statistics(flat, public, seed=0)
    drawn, fixed = (
        say(flat, known, grey, range(3000), students=False, reference=reference)
        for reference in (False, True)
    )
    square = (0.5 - mean).square()
    torch.testing.assert_close(fixed, square.mean().expand(3000))
    # E (a - mean - s eps)^2 = (a - mean)^2 + s^2, and identities differ
    assert drawn.mean().item() == pytest.approx((square + deviation.square()).mean().item(), rel=0.02)
    assert len(drawn.unique()) == 3000


def test_an_identitys_p_reg_does_not_depend_on_its_company(
    target: ToyTarget, prior: ToyPrior, known: Knowledge
) -> None:
    images = images_of(prior, 1)
    together = say(target, known, images.expand(3, -1, -1, -1), [4, 0, 2])
    for row, label in enumerate((4, 0, 2)):
        torch.testing.assert_close(say(target, known, images, [label])[0], together[row])
    assert not torch.allclose(together, say(target, known, images.expand(3, -1, -1, -1), [4, 0, 2], seed=1))


def test_students_count_as_much_as_the_target_and_the_regulariser_is_the_targets_alone(
    target: ToyTarget, prior: ToyPrior, known: Knowledge
) -> None:
    images, labels = images_of(prior, 3), torch.tensor([1, 0, 4])
    said, alone = (
        say(target, known, images, labels.tolist(), students=s, feature_weight=0.0) for s in (True, False)
    )
    networks = (target, *known.students)
    with torch.no_grad():
        single = torch.stack([logit_loss(network(images), labels) for network in networks])
    assert single.std(0).min() > 1e-3, "equal students would show nothing"
    torch.testing.assert_close(said, single.mean(0))
    weighted = say(target, known, images, labels.tolist(), feature_weight=2.0)
    weighted_alone = say(target, known, images, labels.tolist(), students=False, feature_weight=2.0)
    torch.testing.assert_close(weighted - said, weighted_alone - alone)


def test_gradients_of_the_students_reach_images_but_no_weight(
    target: ToyTarget, prior: ToyPrior, known: Knowledge
) -> None:
    images = images_of(prior, 2).requires_grad_()
    networks = (target, *known.students)
    with frozen(*networks):
        say(target, known, images, [3, 3], feature_weight=0.0).sum().backward()
    scale = 3 * (1 + target.norm.eps) ** 0.5  # of the mean and of the batch norm, which has seen nothing
    wanted = -sum(network.head.weight[3] for network in networks).detach() / scale
    torch.testing.assert_close(images.grad, wanted.view(3, SIZE, SIZE).expand_as(images))
    assert all(p.grad is None for network in networks for p in network.parameters())


def test_cross_entropy_may_be_kept(target: ToyTarget, prior: ToyPrior, known: Knowledge) -> None:
    images, labels = images_of(prior, 3), torch.tensor([1, 0, 4])
    said = say(target, known, images, labels.tolist(), maximise="cross_entropy", feature_weight=9.0)
    single = [cross_entropy(network(images), labels) for network in (target, *known.students)]
    torch.testing.assert_close(said, torch.stack(single).mean(0))  # without a regulariser


# --- the attacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_it_beats_prior_samples(target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str) -> None:
    # the toy's logits are small: at weight 1 its features would hold it at the public mean
    change = dict(steps=120, chunk=5, feature_weight=0.01)
    found = run(name, target, prior, range(CLASSES), knowledge=known, change=change)
    samples = prior.sample(200, generator=generator(9, "samples"))
    with torch.no_grad():
        usual = target(prior.synthesise(samples)).softmax(1).mean(0)
        reached = target(prior.synthesise(found.kept().flatten(0, 1))).softmax(1).unflatten(0, (CLASSES, -1))
    assert (reached.mean(1).diagonal() > usual + 0.3).all()
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.attack == name


@pytest.mark.parametrize("name", NAMES)
def test_an_identity_does_not_depend_on_its_company_or_place(
    target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str
) -> None:
    together, shuffled, alone = (
        run(name, target, prior, labels, knowledge=known) for labels in (range(5), [3, 0, 4, 1, 2], [3])
    )
    assert torch.equal(shuffled.latents[0], together.latents[3])
    assert torch.equal(shuffled.latents[2], together.latents[4])
    torch.testing.assert_close(alone.latents[0], together.latents[3], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_attack_has_the_bits_of_the_whole(
    target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str, tmp_path: Path
) -> None:
    whole = run(name, target, prior, range(3), knowledge=known)

    def kill(event: dict[str, Any]) -> None:
        if event["done"] == 2:
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    with pytest.raises(KilledError):
        run(name, target, prior, range(3), knowledge=known, checkpoint=checkpoint, callback=kill)
    resumed = run(name, target, prior, range(3), knowledge=known, checkpoint=checkpoint)
    assert torch.equal(whole.latents, resumed.latents) and whole.history == resumed.history
    assert whole.cost["student"] == resumed.cost["student"]


@pytest.mark.parametrize("name", NAMES)
def test_every_part_of_it_matters(target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str) -> None:
    changes = [
        {},
        {"maximise": "cross_entropy"},
        {"students": False},
        {"reference": True},
        {"feature_weight": 9.0},
    ]
    found = [run(name, target, prior, [0, 1], knowledge=known, change=change) for change in changes]
    for i, one in enumerate(found):
        assert not any(torch.equal(one.latents, other.latents) for other in found[:i])
    shown = found[0].cost["target_backward"]
    assert found[0].cost["student"] == 2 * shown and "student" not in found[2].cost
    # with the cross entropy alone it is the attack it changes
    plain = dict(students=False, maximise="cross_entropy")
    base = name.removeprefix("lomma_")
    budget = {f.name: getattr(SMALL[name], f.name) for f in dataclasses.fields(attacks.get(base).Budget)}
    wanted = attacks.get(base).invert(
        target, prior, [0, 1], budget=attacks.get(base).budget(**budget), seed=3
    )
    assert torch.equal(
        run(name, target, prior, [0, 1], knowledge=known, change=plain).latents, wanted.latents
    )


@pytest.mark.parametrize("name", NAMES)
def test_all_networks_come_back_as_they_were(
    target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str
) -> None:
    networks = (target, *known.students)
    evaluated = run(name, target, prior, [0, 1], knowledge=known)
    for network in networks:
        network.train()
    before = [{n: t.clone() for n, t in network.state_dict().items()} for network in networks]
    trained = run(name, target, prior, [0, 1], knowledge=known)
    assert torch.equal(trained.latents, evaluated.latents), "all are asked in evaluation mode"
    for network, kept in zip(networks, before, strict=True):
        assert network.training and all(torch.equal(t, kept[n]) for n, t in network.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_missing_knowledge_is_named(target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str) -> None:
    public, students = Knowledge(public=known.public), Knowledge(students=known.students)
    assert attacks.get(name).needs == {"public", "students"}
    with pytest.raises(UserError, match="lomma: expected knowledge of students"):
        run(name, target, prior, [0], knowledge=public)
    with pytest.raises(UserError, match="lomma: expected knowledge of public"):
        run(name, target, prior, [0], knowledge=students)
    assert run(name, target, prior, [0], knowledge=public, change={"students": False}).attack == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("size", "classes"), [(SIZE, CLASSES + 1), (2 * SIZE, CLASSES)])
def test_students_of_another_target_are_refused(
    target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str, size: int, classes: int
) -> None:
    wrong = dataclasses.replace(known, students=(*known.students, SizedTarget(size, classes)))
    with pytest.raises(UserError, match=f"got one of {classes} and {size} px"):
        run(name, target, prior, [0], knowledge=wrong)


@pytest.mark.parametrize("name", ["public", "erased"])
def test_images_that_the_target_does_not_take_are_refused(
    target: ToyTarget, prior: ToyPrior, known: Knowledge, name: str
) -> None:
    for images in (
        smooth_images(10, 2 * SIZE),
        smooth_images(10, SIZE).float() / 255,
        smooth_images(10, SIZE)[0],
    ):
        wrong = dataclasses.replace(known, law=ErasingLaw(), erased=known.public)
        wrong = dataclasses.replace(wrong, **{name: images})
        with pytest.raises(UserError, match=f"lomma: expected {name} images as uint8 .* {SIZE}, {SIZE}"):
            attacks.get("lomma_gmi+re_students").invert(
                target, prior, [0], budget=SMALL["lomma_gmi"], seed=0, knowledge=wrong
            )


def test_lomma_on_kedmi_needs_its_critic(target: ToyTarget, known: Knowledge) -> None:
    assert attacks.get("lomma_kedmi").prior == "inversion_gan" and attacks.get("lomma_gmi").prior is None
    with pytest.raises(UserError, match="lomma_kedmi: expected a prior with a critic"):
        run("lomma_kedmi", target, ToyPrior(), [0], knowledge=known)


@pytest.mark.parametrize("name", NAMES)
def test_budgets(name: str) -> None:
    budget = attacks.get(name).budget()
    assert (budget.steps, budget.clip, budget.feature_weight, budget.identity_weight) == (
        2400,
        1.0,
        1.0,
        100.0,
    )
    assert budget.maximise == "logit" and budget.students and not budget.reference
    for values in ({"maximise": "mind"}, {"feature_weight": -1.0}, {"clip": 0.0}, {"keep": 6}):
        with pytest.raises(UserError, match=next(iter(values))):
            attacks.get(name).budget(**values)


# --- students -------------------------------------------------------------------------------------------

PLAIN = {"kind": "residual", "widths": [8, 8, 16, 16], "stem_stride": 2}
DROPS = {"kind": "ir", "widths": [4, 4, 8, 8], "units": [1, 1, 1, 1], "feature_size": 8}  # has dropout


def study(network: dict[str, Any] = PLAIN, *, size: int = 16, **changes: Any) -> tuple[Any, list[dict]]:
    rest = {name: changes.pop(name) for name in ("checkpoint", "callback") if name in changes}
    config = Student(**{"network": network, "steps": 9, "batch": 8} | changes)
    public = smooth_images(400, size)
    return distil(public, SizedTarget(size, 4), config=config, seed=0, device=torch.device("cpu"), **rest)


def test_the_distillation_loss_by_hand() -> None:
    teacher = 2 * torch.randn(6, 5, generator=generator(0, "teacher"))
    student = 2 * torch.randn(6, 5, generator=generator(0, "student"))
    assert distillation_loss(teacher, teacher, logit_weight=3.0).abs().max() < 1e-6
    p, q = teacher.softmax(1), student.softmax(1)
    divergence = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(distillation_loss(student, teacher, logit_weight=0.0), divergence)
    square = (student - teacher).square().mean(1)
    torch.testing.assert_close(
        distillation_loss(student, teacher, logit_weight=0.3), divergence + 0.3 * square
    )
    # a constant added to all logits changes what only the square sees
    shifted = distillation_loss(teacher + 2, teacher, logit_weight=0.5)
    torch.testing.assert_close(shifted, torch.full((6,), 2.0))


def test_a_student_learns_to_agree_with_the_target_on_new_images() -> None:
    student, history = study(steps=120, batch=32, learning_rate=5e-3)
    new, target = smooth_images(300, 16, seed=1) / 255, SizedTarget(16, 4).eval()
    with torch.no_grad():
        wanted, said = target(new).argmax(1), student(new).argmax(1)
    assert not student.training and (student.num_classes, student.image_size) == (4, 16)
    chance = (wanted.bincount(minlength=4) / 300).max()
    assert (said == wanted).float().mean() > chance + 0.3
    assert history[-1]["loss"] < history[0]["loss"] and history[-1]["step"] == 120


def test_the_target_is_asked_in_evaluation_mode_and_comes_back_as_it_was() -> None:
    target = SizedTarget(16, 4).train()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    random = torch.get_rng_state()
    config = Student(network=PLAIN, steps=2, batch=8)
    distil(smooth_images(20, 16), target, config=config, seed=0, device=torch.device("cpu"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    assert target.training and all(p.requires_grad and p.grad is None for p in target.parameters())
    assert torch.equal(torch.get_rng_state(), random), "the global random state is left alone"


@pytest.mark.parametrize("network", [PLAIN, DROPS], ids=["plain", "dropout"])
def test_a_resumed_student_has_the_bits_of_the_whole(
    network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "ROW_EVERY", 3)
    whole, history = study(network)
    checkpoint = Checkpoint(tmp_path / "student.checkpoint", every=0)

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 6:
            raise KilledError

    with pytest.raises(KilledError):
        study(network, checkpoint=checkpoint, callback=kill)
    assert checkpoint.load()["step"] == 3
    torch.manual_seed(1234)  # another process
    resumed, resumed_history = study(network, checkpoint=checkpoint)
    states = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert [row["step"] for row in history] == [3, 6, 9] and history == resumed_history


class Asymmetric(nn.Module):
    """Linear, so that training and evaluation mode agree; it counts what it is shown."""

    num_classes, image_size = 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 16 * 16, 4)
        self.shown = 0

    def forward(self, images: Tensor) -> Tensor:
        self.shown += len(images)
        return self.head(images.flatten(1))


@pytest.mark.parametrize(("mirror", "asked"), [(False, 20), (True, 40)])
def test_mirrored_images_have_answers_of_their_own(
    monkeypatch: pytest.MonkeyPatch, mirror: bool, asked: int
) -> None:
    target = Asymmetric()
    monkeypatch.setattr(distilling, "build_classifier", lambda *_: copy.deepcopy(target))
    monkeypatch.setattr(distilling, "ROW_EVERY", 1)
    config = Student(steps=4, batch=8, mirror=mirror, learning_rate=1e-12)
    _, history = distil(smooth_images(20, 16), target, config=config, seed=0, device=torch.device("cpu"))
    assert target.shown == asked
    assert all(row["loss"] < 1e-6 and row["agreement"] == 1 for row in history), "the student is the target"


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"batch": 1}, {"learning_rate": 0.0}, {"logit_weight": -0.1}]
)
def test_bad_students_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="student: expected steps"):
        Student(network=PLAIN, **values)
