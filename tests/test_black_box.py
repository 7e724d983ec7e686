"""Attacks that only ask: what an oracle gives away, MIRROR's genetic search, BREP."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, DIM, NETWORKS, SIZE, KilledError, ToyPrior, ToyTarget, confidence, equal

from lib import attacks
from lib.attacks import brep, mirror_genetic, ppa
from lib.attacks.brep import BrepBudget, first_hits, repel
from lib.attacks.interface import Reconstructions
from lib.attacks.mirror_genetic import Draws, MirrorGeneticBudget, breed, fittest, share_of_first
from lib.attacks.oracle import Oracle, OracleAccess
from lib.attacks.pspace import Box, to_p
from lib.defences import build
from lib.errors import UserError
from lib.models import build_classifier
from lib.runtime import generator
from lib.store import Checkpoint

GENETIC = MirrorGeneticBudget(
    pool=40,
    population=10,
    candidates=3,
    keep=2,
    steps=6,
    views=3,
    chunk=2,
    truncation=1.0,
    learning_rate=0.3,
    stop_at=1.0,
    width=2.0,
)
BREP = BrepBudget(pool=60, candidates=2, keep=1, steps=12, patience=6, views=5, chunk=2)
BUDGETS = {"mirror_genetic": GENETIC, "brep": BREP}
BOTH = pytest.mark.parametrize("name", list(BUDGETS))


@pytest.fixture
def prior() -> ToyPrior:
    return ToyPrior()


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior).eval()


class PlainPrior(ToyPrior):
    """Three latents that are the image's three channels, so that a target may be any function of latents;
    crops and mirrors change nothing."""

    latent_dim = 3
    mean, deviation = 0.0, 1.0

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        return self.mean + self.deviation * torch.randn(n, 3, generator=generator) * truncation

    def synthesise(self, latents: Tensor) -> Tensor:
        return latents[:, :, None, None].expand(-1, -1, SIZE, SIZE)


class PlainTarget(nn.Module):
    """Class 1 where ``inside`` is true of the latents (B, 3), else class 0; of class 2 there is nothing."""

    num_classes, image_size = 3, SIZE

    def __init__(self, inside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, images: Tensor) -> Tensor:
        member = self.inside(images.mean((2, 3))).float()
        return torch.stack([1 - member, member, torch.full_like(member, -1.0)], 1)


class Counting(ToyTarget):
    """Counts the images it sees."""

    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return super().forward(images)


def run(name: str, target: Any, prior: Any, labels: Any, **kwargs: Any) -> Reconstructions:
    invert = {"mirror_genetic": mirror_genetic.invert, "brep": brep.invert}[name]
    return invert(target, prior, labels, **{"budget": BUDGETS[name], "seed": 3, **kwargs})


# --- the oracle -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reveals", ["scores", "labels"])
def test_an_oracle_counts_images_and_lets_no_gradient_through(
    target: ToyTarget, prior: ToyPrior, reveals: str
) -> None:
    target.train()  # asked in evaluation mode all the same
    oracle = Oracle(target, reveals=reveals)
    images = prior.synthesise(prior.sample(7, generator=generator(0, "latents"))).requires_grad_(True)
    answer = oracle.ask(images)
    access = OracleAccess(oracle, prior)
    logits = access.logits(images[:4])
    assert oracle.queries == 11 and access.counts["queries"] == access.counts["target_forward"] == 4
    assert answer.shape == ((7, CLASSES) if reveals == "scores" else (7,))
    for given in (answer, logits):
        assert given.grad_fn is None and not given.requires_grad
    (
        answer.float().sum() * images.sum()
    ).backward()  # usable in a graph, whose gradient does not see the target
    torch.testing.assert_close(images.grad, torch.full_like(images, answer.float().sum().item()))
    assert all(parameter.grad is None for parameter in target.parameters())
    assert target.training and not hasattr(oracle, "target")
    with torch.no_grad():
        said = target.eval()(images)
    if reveals == "scores":
        torch.testing.assert_close(answer, said.softmax(1))
        torch.testing.assert_close(logits.softmax(1), said[:4].softmax(1))
    else:
        assert torch.equal(answer, said.argmax(1)) and torch.equal(logits.argmax(1), answer[:4])


def test_an_oracle_leaves_a_random_defence_its_noise(prior: ToyPrior) -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16)
    for defence, same in (("none", True), ("mid(0.01)", False)):
        model = build_classifier(NETWORKS["residual"], 3, 16)
        for one in build(defence):
            model = one.build(model)
        oracle = Oracle(model.eval(), reveals="scores")
        first, second = oracle.ask(images), oracle.ask(images)
        assert torch.equal(first, second) is same
        OracleAccess(oracle, prior).restart()
        assert torch.equal(oracle.ask(images), first)


@pytest.mark.parametrize("reveals", ["scores", "labels"])
def test_an_oracle_hides_a_shift_of_the_logits(target: ToyTarget, prior: ToyPrior, reveals: str) -> None:
    class Shifted(ToyTarget):
        by = 0.0

        def forward(self, images: Tensor) -> Tensor:
            # whole 1/1024ths, so that the shift is exact
            return (super().forward(images) * 1024).round() / 1024 + self.by

    plain, shifted = Shifted(prior), Shifted(prior)
    shifted.by = 64.0
    images = prior.synthesise(prior.sample(20, generator=generator(0, "latents")))
    answers = [Oracle(network, reveals=reveals).ask(images) for network in (plain, shifted)]
    assert torch.equal(*answers)
    assert not torch.equal(plain.eval()(images), shifted.eval()(images))


def test_an_oracle_stops_at_its_cap_and_answers_nothing_beyond(prior: ToyPrior) -> None:
    network = Counting(prior)
    oracle = Oracle(network, reveals="labels", cap=10)
    images = prior.synthesise(prior.sample(6, generator=generator(0, "latents")))
    oracle.ask(images)
    with pytest.raises(UserError, match="at most 10 queries, got 12"):
        oracle.ask(images)
    assert oracle.queries == network.seen == 6
    oracle.ask(images[:4])
    assert oracle.queries == 10


# --- what both attacks promise --------------------------------------------------------------------------


@BOTH
def test_shapes_queries_and_the_way_through_the_store(prior: ToyPrior, name: str) -> None:
    network, budget = Counting(prior).train(), BUDGETS[name]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    oracle = Oracle(network, reveals="scores")
    found = run(name, oracle, prior, [4, 0, 2])
    n, m = budget.candidates, budget.keep
    assert found.attack == name and found.labels.tolist() == [4, 0, 2]
    assert found.latents.shape == found.initial.shape == (3, n, DIM)
    assert found.selected.shape == (3, m) and found.confidence.shape == found.loss.shape == (3, n)
    assert [row["step"] for row in found.history] == list(range(budget.steps))
    assert oracle.queries == network.seen == round(3 * found.cost["queries"])
    assert found.cost["queries"] == found.cost["target_forward"] and found.cost["target_backward"] == 0
    assert oracle.queries <= budget.most_queries(3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    back = Reconstructions.from_tensors(found.to_tensors(), found.meta())
    assert torch.equal(back.latents, found.latents) and torch.equal(back.initial, found.initial)
    assert attacks.get(name).sees == {"mirror_genetic": "scores", "brep": "labels"}[name]
    assert budget.short().work < budget.work


@BOTH
def test_an_attack_beats_its_starts_and_prior_samples(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    labels = torch.arange(CLASSES)
    more = {"mirror_genetic": {"steps": 15}, "brep": {"steps": 80, "patience": 30}}[name]
    found = run(name, target, prior, labels, budget=dataclasses.replace(BUDGETS[name], **more))
    samples = prior.sample(200, generator=generator(9, "samples")).expand(CLASSES, -1, -1)
    reached = confidence(target, prior, found.latents, labels).mean(1)
    assert (reached > confidence(target, prior, samples, labels).mean(1) + 0.3).all()
    assert (reached > confidence(target, prior, found.initial, labels).mean(1)).all()
    assert found.history[-1]["loss"] < found.history[0]["loss"]
    assert found.history[-1]["confidence"] > found.history[0]["confidence"]


@BOTH
def test_more_queries_find_more(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    labels = torch.arange(CLASSES)
    reached = []
    for steps in (1, 60):
        budget = dataclasses.replace(
            BUDGETS[name], steps=steps, **({"patience": 60} if name == "brep" else {})
        )
        found = run(name, target, prior, labels, budget=budget)
        reached.append(confidence(target, prior, found.latents, labels).mean().item())
    assert reached[1] > reached[0] + 0.02


@BOTH
def test_equal_seeds_equal_bits_and_the_order_of_labels_changes_nothing(
    target: ToyTarget, prior: ToyPrior, name: str
) -> None:
    first = run(name, target, prior, [0, 1, 2, 3, 4])
    assert equal(first, run(name, target, prior, torch.arange(5)))
    shuffled = run(name, target, prior, [3, 0, 4, 1, 2])
    back = shuffled.labels.argsort()
    assert torch.equal(shuffled.latents[back], first.latents)
    assert torch.equal(shuffled.selected[back], first.selected)
    assert not torch.equal(run(name, target, prior, [0, 1, 2, 3, 4], seed=4).latents, first.latents)


@BOTH
def test_an_identity_does_not_depend_on_its_company(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    together = run(name, target, prior, [0, 1, 2, 3, 4])
    alone = run(name, target, prior, [3])
    torch.testing.assert_close(alone.initial[0], together.initial[3])
    torch.testing.assert_close(alone.latents[0], together.latents[3], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(alone.confidence[0], together.confidence[3], atol=1e-2, rtol=1e-2)
    assert not torch.allclose(
        together.latents[3] - together.initial[3], together.latents[4] - together.initial[4]
    )


@BOTH
@pytest.mark.parametrize("done", [2, 4])
def test_killed_and_resumed_equals_uninterrupted(
    target: ToyTarget, prior: ToyPrior, tmp_path: Path, name: str, done: int
) -> None:
    labels = [4, 1, 0, 3, 2]
    whole = run(name, target, prior, labels)

    def kill(event: dict[str, Any]) -> None:
        if event["stage"] == name and event["done"] == done:
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    with pytest.raises(KilledError):
        run(name, target, prior, labels, callback=kill, checkpoint=checkpoint)
    stages: list[str] = []
    resumed = run(
        name,
        target,
        prior,
        labels,
        checkpoint=checkpoint,
        callback=lambda event: stages.append(event["stage"]),
    )
    assert stages.count(name) == {2: 2, 4: 1}[done]
    assert not any("search" in stage for stage in stages), "the pool was asked again"
    assert equal(whole, resumed)
    timeless = {"seconds", "memory_mb"}
    assert {k: v for k, v in whole.cost.items() if k not in timeless} == {
        k: v for k, v in resumed.cost.items() if k not in timeless
    }


@BOTH
def test_a_masked_gradient_is_no_obstacle(target: ToyTarget, prior: ToyPrior, name: str) -> None:
    class Masked(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.detach()).detach()

    assert equal(run(name, Masked(prior), prior, [0, 1, 2]), run(name, target, prior, [0, 1, 2]))


@BOTH
def test_rounding_stops_gradients_but_not_an_attack_that_only_asks(prior: ToyPrior, name: str) -> None:
    class Rounded(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.round())

    rounded, labels = Rounded(prior).eval(), torch.arange(CLASSES)
    blocked = ppa.invert(
        rounded, prior, labels, budget=ppa.Budget(pool=16, candidates=2, keep=1, steps=5, views=1), seed=3
    )
    assert torch.equal(blocked.latents, blocked.initial), "a gradient passed: this target masks nothing"
    more = {"mirror_genetic": {"steps": 15}, "brep": {"steps": 60, "patience": 30}}[name]
    found = run(name, rounded, prior, labels, budget=dataclasses.replace(BUDGETS[name], **more))
    samples = prior.sample(200, generator=generator(9, "samples")).expand(CLASSES, -1, -1)
    reached = confidence(rounded, prior, found.latents, labels).mean(1)
    assert (reached > confidence(rounded, prior, samples, labels).mean(1) + 0.2).all()


@BOTH
def test_work_is_half_the_queries(name: str) -> None:
    budget = BUDGETS[name]
    assert budget.work == budget.own_queries / 2
    assert budget.own_queries == {"mirror_genetic": 10 + 6 * 9 + 3 * 4, "brep": 12 * 2 * 33 + 2 * 6}[name]


@BOTH
def test_a_query_cap_shortens_the_attack_and_is_never_exceeded(
    target: ToyTarget, prior: ToyPrior, name: str
) -> None:
    budget = BUDGETS[name]
    patient = dataclasses.replace(budget, patience=100) if name == "brep" else budget
    per_step = {"mirror_genetic": 9, "brep": 2 * 33}[name]
    pool = {"mirror_genetic": 80, "brep": 60}[name]
    least = pool + per_step + budget.candidates * (1 + budget.views) + (10 if name == "mirror_genetic" else 0)
    with pytest.raises(
        UserError, match=f"query_cap: expected at least the {least} queries .* got {least - 1}"
    ):
        dataclasses.replace(patient, query_cap=least - 1)
    for cap, steps in ((least, 1), (least + per_step - 1, 1), (least + per_step, 2), (10**6, budget.steps)):
        capped = dataclasses.replace(patient, query_cap=cap)
        alone = run(name, target, prior, [2], budget=capped)
        assert len(alone.history) == steps and alone.cost["queries"] <= cap
        both = run(name, target, prior, [2, 3], budget=capped)
        torch.testing.assert_close(both.latents[0], alone.latents[0], atol=1e-2, rtol=1e-2)
        assert both.cost["queries"] <= cap


@BOTH
def test_an_oracle_that_would_stop_midway_is_refused_before_the_first_query(
    prior: ToyPrior, name: str
) -> None:
    network, needed = Counting(prior), BUDGETS[name].most_queries(2)
    oracle = Oracle(network, reveals="scores", cap=needed - 1)
    with pytest.raises(UserError, match=f"{name}: .* {needed} queries .* answers {needed - 1} more"):
        run(name, oracle, prior, [0, 1])
    assert network.seen == oracle.queries == 0
    enough = Oracle(network, reveals="scores", cap=needed)
    run(name, enough, prior, [0, 1])
    assert 0 < enough.queries <= needed


@BOTH
@pytest.mark.parametrize("same", [True, False])
def test_an_oracle_answers_no_more_of_a_resumed_attack_than_of_a_whole_one(
    prior: ToyPrior, tmp_path: Path, name: str, same: bool
) -> None:
    """The rest is what it must pay for; another oracle begins at what the first one had answered."""
    network, budget = Counting(prior), dataclasses.replace(BUDGETS[name], chunk=1)
    needed, checkpoint = budget.most_queries(2), Checkpoint(tmp_path / "attack.checkpoint", every=0)
    whole = run(name, Oracle(Counting(prior), reveals="scores"), prior, [0, 1], budget=budget)

    def stop(row: dict) -> None:
        if row["stage"] == name:
            raise KilledError

    first = Oracle(network, reveals="scores", cap=needed)
    with pytest.raises(KilledError):
        run(name, first, prior, [0, 1], budget=budget, checkpoint=checkpoint, callback=stop)
    spent = first.queries
    oracle = first if same else Oracle(network, reveals="scores", cap=needed)
    resumed = run(name, oracle, prior, [0, 1], budget=budget, checkpoint=checkpoint)
    assert 0 < spent < oracle.queries == 2 * whole.cost["queries"] == 2 * resumed.cost["queries"] <= needed


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mirror_genetic", {"steps": 0}, "steps"),
        ("mirror_genetic", {"population": 0}, "population"),
        ("mirror_genetic", {"population": 7}, "population: .* the 8 candidates, got 7"),
        ("mirror_genetic", {"population": 1, "candidates": 1}, "population: .* at least 2"),
        ("mirror_genetic", {"pool": 999}, "pool: .* population of 1000, got 999"),
        ("mirror_genetic", {"mutation_rate": 1.5}, "mutation_rate"),
        ("mirror_genetic", {"stop_at": 0}, "stop_at"),
        ("mirror_genetic", {"width": 0.0}, "width"),
        ("mirror_genetic", {"query_cap": 0}, "query_cap"),
        ("mirror_genetic", {"keep": 9}, "keep"),
        ("brep", {"steps": 0}, "steps"),
        ("brep", {"directions": 0}, "directions"),
        ("brep", {"radius": -1.0}, "radius"),
        ("brep", {"growth": 1.0}, "growth"),
        ("brep", {"grow_at": 1.0}, "grow_at"),
        ("brep", {"max_radius": 1.0}, "max_radius"),
        ("brep", {"clamp": 0}, "clamp"),
        ("brep", {"patience": 0}, "patience"),
        ("brep", {"pool": 3, "candidates": 4}, "candidates"),
        ("brep", {"query_cap": True}, "query_cap"),
        ("brep", {"repel": 1}, "unknown key 'repel'"),
    ],
)
def test_bad_budgets_are_refused(name: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attacks.get(name).budget(**values)


def test_unfit_oracles_and_attacks_are_refused(target: ToyTarget, prior: ToyPrior) -> None:
    oracle = Oracle(target, reveals="labels")
    with pytest.raises(UserError, match="reveals scores, got one that reveals labels"):
        run("mirror_genetic", oracle, prior, [0])
    for given in (oracle, Oracle(target, reveals="scores")):
        with pytest.raises(UserError, match="passes gradients, got an oracle"):
            ppa.invert(given, prior, [0], budget=ppa.Budget(pool=16), seed=0)
    with pytest.raises(UserError, match=f"classes 0 to {CLASSES - 1}"):
        run("brep", oracle, prior, [CLASSES])
    for values in ({"reveals": "logits"}, {"reveals": "labels", "cap": 0}):
        with pytest.raises(UserError, match="oracle"):
            Oracle(target, **values)
    for name in BUDGETS:
        with pytest.raises(UserError, match="ingredients on a white-box attack"):
            attacks.get(f"{name}+eot4")
    assert oracle.queries == 0


# --- MIRROR, black box ----------------------------------------------------------------------------------


def test_the_genetic_search_asks_what_it_says(target: ToyTarget, prior: ToyPrior) -> None:
    for labels in ([1], [0, 2, 4]):
        oracle = Oracle(target, reveals="scores")
        run("mirror_genetic", oracle, prior, labels)
        each = 10 + 6 * 9 + 3 * 4  # first generation, six more without their elite, selection
        assert oracle.queries == GENETIC.most_queries(len(labels)) == 2 * 40 + len(labels) * each


@pytest.mark.parametrize("reference", [False, True])
def test_the_elite_stays(target: ToyTarget, prior: ToyPrior, reference: bool) -> None:
    budget = dataclasses.replace(GENETIC, steps=12, learning_rate=3.0, mutation_rate=0.9, reference=reference)
    for label in range(CLASSES):
        found = run("mirror_genetic", target, prior, [label], budget=budget)
        losses = [row["loss"] for row in found.history]
        assert all(after <= before for before, after in zip(losses, losses[1:], strict=False))
        assert confidence(target, prior, found.latents, found.labels)[0, 0] >= math.exp(-losses[-1]) - 1e-5


def test_finished_identities_ask_no_more(prior: ToyPrior) -> None:
    """Class 1 reaches p = .95 in the pool, class 2 never."""

    class Easy(PlainTarget):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 20

    plain, budget = PlainPrior(), dataclasses.replace(GENETIC, stop_at=0.95)
    oracle, again = (Oracle(Easy(lambda z: z[:, 0] > 0), reveals="scores") for _ in range(2))
    found = run("mirror_genetic", oracle, plain, [1, 2], budget=budget)
    fixed = 10 + 3 * 4
    assert oracle.queries == 2 * 40 + 2 * fixed + 6 * 9
    alone = run("mirror_genetic", again, plain, [1], budget=budget)
    assert again.queries == 2 * 40 + fixed and len(alone.history) == 6
    torch.testing.assert_close(alone.latents[0], found.latents[0])
    assert alone.history[0]["confidence"] == alone.history[5]["confidence"] > 0.95


class SlopedPrior(ToyPrior):
    """Latents behind a leaky ReLU, Gaussian in P."""

    slope = 0.2

    def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
        return nn.functional.leaky_relu(super().sample(n, generator=generator), 0.2) * truncation


@pytest.mark.parametrize("truncation", [1.0, 0.5])
def test_the_genetic_search_stays_in_its_box(truncation: float) -> None:
    sloped = SlopedPrior()
    target = ToyTarget(sloped)
    budget = dataclasses.replace(
        GENETIC, learning_rate=5.0, mutation_rate=0.8, width=0.7, truncation=truncation
    )
    found = run("mirror_genetic", target, sloped, range(CLASSES), budget=budget)
    p = to_p(sloped.sample(40, generator=generator(3, "attack", "pool")), 0.2)
    # the prior's mean latent is 0, so that truncation multiplies
    made, started = to_p(found.latents / truncation, 0.2), to_p(found.initial / truncation, 0.2)
    away = (made - p.mean(0)).abs() / p.std(0, correction=0)
    assert away.max() == pytest.approx(0.7, abs=0.01), "the box binds"
    assert ((started - p.mean(0)).abs() / p.std(0, correction=0)).max() > 1, "starts are shown as they were"


def test_the_better_parent_gives_more_genes_unless_reference() -> None:
    """p = .8 and .2: a gene is the better one's with .8 x .8 + 2 x .8 x .2 x share."""
    count, genes = 20_000, 4
    members = torch.stack([torch.ones(count, genes), torch.zeros(count, genes)], 1)
    fitness = torch.tensor([0.8, 0.2]).log().expand(count, 2)
    box = Box(torch.full((genes,), -9.0), torch.full((genes,), 9.0), torch.ones(genes), 1.0)
    draws = Draws.of([generator(0, "crossover")], count + 1, genes, shared=False)
    draws = Draws(*(numbers.transpose(0, 1) for numbers in draws))
    odd = math.log(0.8) / (math.log(0.8) + math.log(0.2))
    for reference, share in ((False, 0.8), (True, odd)):
        two = torch.tensor([0.8]).log(), torch.tensor([0.2]).log()
        assert share_of_first(*two, reference=reference).item() == pytest.approx(share, abs=1e-5)
        budget = dataclasses.replace(GENETIC, mutation_rate=0.0, reference=reference)
        children = breed(members, fitness, draws, box=box, budget=budget)
        assert children.shape == (count, 1, genes)
        assert children.mean().item() == pytest.approx(0.64 + 0.32 * share, abs=0.01)
    sure = torch.zeros(1)
    assert share_of_first(sure, sure, reference=True) == share_of_first(sure, sure, reference=False) == 0.5


@pytest.mark.parametrize("reference", [False, True])
def test_mutation_is_uniform_in_p_and_each_childs_own_unless_reference(reference: bool) -> None:
    members, genes = 4001, 3
    population = torch.full((1, members, genes), -0.4)  # -2 in P
    spread = torch.tensor([0.5, 1.0, 2.0])
    box = Box(torch.full((genes,), -9.0), torch.full((genes,), 9.0), spread, 0.2)
    budget = dataclasses.replace(GENETIC, mutation_rate=0.25, learning_rate=0.3, reference=reference)
    draws = Draws.of([generator(0, "mutation")], members, genes, shared=reference)
    children = breed(population, torch.zeros(1, members), draws, box=box, budget=budget)[0]
    mutated = children != -0.4
    torch.testing.assert_close(mutated.float().mean(0), torch.full((genes,), 0.25), atol=0.03, rtol=0)
    steps = to_p(children, 0.2) + 2.0
    for gene in range(genes):
        moved, most = steps[mutated[:, gene], gene], 0.3 * spread[gene].item()
        if reference:
            assert moved.max() - moved.min() < 1e-5
        else:
            assert 0.98 * most < moved.max() <= 1.001 * most and abs(moved.mean()) < 0.1 * most
            assert moved.std() == pytest.approx(most / 3**0.5, rel=0.06)


def test_candidates_are_the_fittest_and_distinct(target: ToyTarget, prior: ToyPrior) -> None:
    latents = torch.tensor([[[1.0], [2.0], [1.0], [3.0], [2.0]], [[5.0]] * 5])
    fitness = torch.tensor([[0.3, 0.9, 0.3, 0.1, 0.9], [0.1, 0.2, 0.3, 0.2, 0.1]])
    assert fittest(latents, fitness, 3)[0].tolist() == [1, 0, 3]
    assert fittest(latents, fitness, 3)[1, 0] == 2
    still = dataclasses.replace(GENETIC, mutation_rate=0.0, population=30)  # crossover alone repeats itself
    found = run("mirror_genetic", target, prior, range(CLASSES), budget=still)
    assert all(len(each.unique(dim=0)) == still.candidates for each in found.latents)
    reached = confidence(target, prior, found.latents, found.labels)
    assert (reached.diff(dim=1) <= 1e-5).all()


# --- BREP -----------------------------------------------------------------------------------------------


def test_the_step_is_the_boundarys_normal() -> None:
    """Outside a half space at distance h, the mean of -u is along its normal; over the unit sphere in d
    dimensions its length is gamma(d / 2) (1 - (h / R)^2)^((d - 1) / 2) / ((d - 1) sqrt(pi) gamma((d - 1) / 2))."""
    dim, count, distance = 6, 40_000, 0.5
    normal = nn.functional.normalize(torch.randn(dim, generator=generator(0, "normal")), dim=0)
    directions = nn.functional.normalize(
        torch.randn(2, count, dim, generator=generator(0, "directions")), dim=2
    )
    radius = torch.tensor([2.0, 12.0])
    inside = (radius[:, None, None] * directions) @ normal > -distance
    move, wider = repel(inside, directions, radius, BREP)
    assert torch.equal(wider, radius), "too many points are outside to grow"
    for index, length in ((0, 2 / 3), (1, 3.0)):  # min(R / 3, 3)
        aligned = nn.functional.cosine_similarity(move[index], normal, dim=0)
        assert aligned > 0.99
        share = distance / radius[index].item()
        shape = math.gamma(dim / 2) / (math.pi**0.5 * math.gamma((dim - 1) / 2) * (dim - 1))
        expected = length * shape * (1 - share**2) ** ((dim - 1) / 2)
        assert move[index].norm().item() == pytest.approx(expected, rel=0.05)


def test_the_sphere_grows_at_29_of_32_and_the_reference_shortens_that_step() -> None:
    directions = nn.functional.normalize(torch.randn(3, 32, 4, generator=generator(0, "directions")), dim=2)
    inside = torch.arange(32) >= torch.tensor([[4], [3], [0]])  # 28, 29 and 32 of them
    radius = torch.tensor([2.0, 2.0, 30.0])
    move, wider = repel(inside, directions, radius, BREP)
    torch.testing.assert_close(wider, torch.tensor([2.0, 2.6, 39.0]))
    expected = torch.stack([-2 / 3 * directions[0, :4].sum(0) / 32, -2 / 3 * directions[1, :3].sum(0) / 32])
    torch.testing.assert_close(move[:2], expected)
    assert move[2].abs().max() == 0, "repulsion only: points inside attract nothing"
    shorter, same = repel(inside, directions, radius, dataclasses.replace(BREP, reference=True))
    assert torch.equal(same, wider)
    torch.testing.assert_close(shorter[0], move[0])
    torch.testing.assert_close(shorter[1], move[1] / 1.3)  # old R / new R


def test_the_first_hits_are_the_starts_again_where_too_few() -> None:
    named, wanted = torch.tensor([7, 3, 5, 3, 3]), torch.tensor([3, 7, 9])
    assert first_hits(named, wanted, 2).tolist() == [[1, 3], [0, 0], [0, 1]]
    assert first_hits(named, wanted, 5).tolist() == [[1, 3, 4, 1, 3], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]]


def test_runs_from_one_start_go_their_own_ways() -> None:
    plain = PlainPrior()
    second, first = plain.sample(60, generator=generator(3, "attack", "pool"))[:, 0].sort().values[-2:]
    network = PlainTarget(lambda z: z[:, 0] > (first + second) / 2)  # of the pool only the first
    budget = dataclasses.replace(BREP, clamp=5.0, candidates=3, keep=3)
    found = run("brep", network, plain, [1], budget=budget)
    assert len(found.initial[0].unique(dim=0)) == 1 and len(found.latents[0].unique(dim=0)) == 3
    fewer = run("brep", network, plain, [1], budget=dataclasses.replace(budget, candidates=2, keep=1))
    torch.testing.assert_close(fewer.latents[0], found.latents[0, :2])


def test_labels_are_all_brep_sees(target: ToyTarget, prior: ToyPrior) -> None:
    class Rescaled(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            return (3.0 * super().forward(images)).sinh() - 7.0

    class Certain(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return 9.0 * nn.functional.one_hot(logits.argmax(1), CLASSES)

    plain = run("brep", target, prior, [0, 1, 2, 3, 4])
    for network in (Rescaled(prior), Certain(prior)):
        assert equal(plain, run("brep", network, prior, [0, 1, 2, 3, 4]))
        for reveals in ("labels", "scores"):
            oracle = Oracle(network, reveals=reveals)
            assert equal(plain, run("brep", oracle, prior, [0, 1, 2, 3, 4]))
    shares = plain.confidence * BREP.views
    torch.testing.assert_close(shares, shares.round(), atol=1e-3, rtol=0)
    assert 0 < plain.confidence.mean() < 1


def test_a_label_never_hit_is_a_failure_and_harms_nobody() -> None:
    plain, network = PlainPrior(), PlainTarget(lambda z: z[:, 0] > 0)
    both = run("brep", network, plain, [2, 1])
    assert both.confidence[0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(both.confidence[1], torch.ones(2), atol=1e-3, rtol=0)
    first = plain.sample(60, generator=generator(3, "attack", "pool"))[:2].clamp(-1.5, 1.5)
    torch.testing.assert_close(both.latents[0], first, atol=0.1, rtol=0.05)
    assert torch.equal(both.initial[0], both.latents[0]) and both.loss.isfinite().all()
    assert not torch.equal(both.latents[0, 0], both.latents[0, 1])
    alone = run("brep", network, plain, [1])
    torch.testing.assert_close(alone.latents[0], both.latents[1])
    lost = Oracle(network, reveals="labels")
    rows = run("brep", lost, plain, [2]).history
    assert rows == [{"step": step, "loss": -2.0, "confidence": 0.0} for step in range(12)]
    assert lost.queries == 60 + 2 * 6, "a failure asks about the pool and its candidates, and no sphere"


def test_a_failure_stays_one_although_a_view_has_its_label(prior: ToyPrior) -> None:
    """Crops get the label that no whole image has."""

    class Crops(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            whole = (images - images.flatten(1).mean(1)[:, None, None, None]).abs().amax((1, 2, 3)) > 0.2
            return torch.stack([whole, ~whole, ~whole, ~whole, ~whole], 1).float()

    halves = torch.ones(3, SIZE, SIZE)
    halves[:, :, -1] = 0.0

    class Edge(ToyPrior):
        def synthesise(self, latents: Tensor) -> Tensor:
            return (0.5 * halves).expand(len(latents), -1, -1, -1)

    budget = dataclasses.replace(BREP, views=40, view_scale=(0.2, 0.3))
    found = run("brep", Crops(prior), Edge(), [1, 0], budget=budget)
    assert found.confidence[0].max() == 0 and 0 < found.confidence[1].min() < 1


def test_moves_that_leave_the_class_are_refused_and_do_not_count() -> None:
    """Latents of -1 and 1; a class of one corner and half the first sphere around it: every move leaves it, no
    patience is used up, and a run goes on to its last pass from where it began."""

    class Corners(PlainPrior):
        def sample(self, n: int, *, generator: torch.Generator, truncation: float = 1.0) -> Tensor:
            return torch.randn(n, 3, generator=generator).sign()

    corner = torch.tensor([1.0, -1.0, 1.0])

    def inside(latents: Tensor) -> Tensor:
        offset = latents - corner
        on_sphere = ((offset.norm(dim=1) - 2).abs() < 0.05) & (offset[:, 0] > 0.01)
        return on_sphere | (offset.abs().amax(1) < 2e-3)

    oracle = Oracle(PlainTarget(inside), reveals="labels")
    budget = dataclasses.replace(BREP, steps=20, patience=1)
    found = run("brep", oracle, Corners(), [1], budget=budget)
    assert torch.equal(found.latents, found.initial)
    torch.testing.assert_close(found.latents[0], corner.expand(2, -1), atol=2e-3, rtol=0)
    assert oracle.queries == 60 + 2 * 20 * 33 + 2 * 6
    assert all(0.25 < row["confidence"] < 0.75 and row["loss"] == -2.0 for row in found.history)


def test_a_run_ends_patience_after_its_last_growth_and_its_result_is_from_there() -> None:
    """In a half space every move is accepted; after the last growth the centre goes on along the boundary."""
    results, radii = [], []
    for patience in (9, 40):
        oracle = Oracle(PlainTarget(lambda z: z[:, 0] > 0), reveals="labels")
        budget = dataclasses.replace(BREP, candidates=1, radius=0.5, steps=300, patience=patience)
        found = run("brep", oracle, PlainPrior(), [1], budget=budget)
        rows = [0.5, *(-row["loss"] for row in found.history)]
        growing = [index for index in range(300) if rows[index + 1] > rows[index]]
        assert len(growing) > 3 and growing[-1] > len(growing), "it also moved without growing before"
        assert oracle.queries == 60 + (growing[-1] + 1 + patience) * 33 + 6
        results.append(found.latents)
        radii.append(rows[-1])
    assert radii[0] == radii[1] and torch.equal(*results)


def test_patience_ends_a_run_that_moves_but_does_not_grow() -> None:
    """Half of a sphere far larger than the clamp is always outside, and every move leads inside."""
    oracle = Oracle(PlainTarget(lambda z: z[:, 0] > 0), reveals="labels")
    budget = dataclasses.replace(BREP, radius=60.0, steps=50, patience=7, candidates=1)
    found = run("brep", oracle, PlainPrior(), [1], budget=budget)
    assert oracle.queries == 60 + 7 * 33 + 6
    assert found.latents[0, 0, 0] == pytest.approx(1.5, abs=0.06), "clamped after each step"
    assert found.history[-1]["loss"] == -60.0 and len(found.history) == 50


def test_a_sphere_grows_until_nothing_is_left_to_flee() -> None:
    oracle = Oracle(PlainTarget(lambda z: z[:, 0] > -torch.inf), reveals="labels")
    found = run("brep", oracle, PlainPrior(), [1], budget=dataclasses.replace(BREP, steps=50, candidates=1))
    grown = math.ceil(math.log(100 / 2) / math.log(1.3))
    assert found.history[-1]["loss"] == pytest.approx(-2 * 1.3**grown, rel=1e-4)
    assert oracle.queries == 60 + grown * 33 + 6
    assert torch.equal(found.latents, found.initial)


def test_brep_finds_the_middle_in_units_of_the_prior() -> None:
    """A ball of 1.2 deviations around (.8, -.4, 0): the sphere is pushed to its middle and grows to its size."""
    wide = PlainPrior()
    wide.mean, wide.deviation = 5.0, 3.0
    middle = 5.0 + 3.0 * torch.tensor([0.8, -0.4, 0.0])
    network = PlainTarget(lambda z: (z - middle).norm(dim=1) < 3.6)
    budget = dataclasses.replace(
        BREP, candidates=6, keep=6, steps=150, patience=60, radius=0.4, pool=300, directions=64
    )
    found = run("brep", network, wide, [1], budget=budget)
    distance, before = ((each[0] - middle).norm(dim=1) / 3.0 for each in (found.latents, found.initial))
    assert before.mean() > 0.6 and distance.mean() < 0.3
    assert 0.85 < -found.history[-1]["loss"] < 1.7
    assert len(found.latents[0].unique(dim=0)) == 6, "runs are independent"


def test_brep_stays_within_its_clamp() -> None:
    wide = PlainPrior()
    wide.mean, wide.deviation = 5.0, 3.0
    network = PlainTarget(lambda z: z.sum(1) > 15.0)
    budget = dataclasses.replace(BREP, clamp=0.8, steps=40, patience=40, candidates=4, keep=4, chunk=1)
    found = run("brep", network, wide, [0, 1], budget=budget)
    away = (found.latents - 5.0).abs() / 3.0
    assert away.max() == pytest.approx(0.8, abs=0.04)
    assert ((found.initial - 5.0).abs() / 3.0).max() == pytest.approx(0.8, abs=0.04)
