"""RLB-MI and its soft actor-critic: closed forms, independence of stacked agents, learning, queries."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import CLASSES, DIM, KilledError, ToyPrior, ToyTarget, confidence, equal

from lib import attacks
from lib.attacks import rlb
from lib.attacks.interface import Reconstructions
from lib.attacks.oracle import Oracle
from lib.attacks.rlb import Best, Noise, RlbBudget, every_label, log_score_and_reward
from lib.attacks.sac import Agents, Layers, Replay, squash
from lib.errors import UserError
from lib.runtime import generator
from lib.store import Checkpoint

CPU = torch.device("cpu")
SMALL = RlbBudget(
    candidates=4, keep=2, steps=40, views=3, chunk=2, hidden=16, batch=8, learning_rate=3e-3, buffer=60
)


@pytest.fixture
def prior() -> ToyPrior:
    return ToyPrior()


@pytest.fixture
def target(prior: ToyPrior) -> ToyTarget:
    return ToyTarget(prior)


def run(target: ToyTarget | Oracle, prior: ToyPrior, labels: Any, **options: Any) -> Reconstructions:
    return rlb.invert(target, prior, labels, **{"budget": SMALL, "seed": 3, **options})


def agents(labels: list[int], dim: int = 3, **options: Any) -> Agents:
    streams = [generator(0, "weights", label) for label in labels]
    return Agents(streams, dim, **{"hidden": 8, "learning_rate": 0.01, "device": CPU, **options})


def weights(some: Agents) -> list[Tensor]:
    return [*some.actor.parameters, *(p for c in some.critics for p in c.parameters), some.log_temperature]


def test_the_log_density_is_that_of_a_squashed_normal() -> None:
    mean, log_std, noise = torch.randn(3, 50, 4, generator=generator(0, "squash")).unbind()
    log_std = 0.3 * log_std - 1
    actions, log_density = squash(mean, log_std, noise)
    expected = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(mean.double(), log_std.exp().double()),
        [torch.distributions.TanhTransform()],
    )
    assert (actions.abs() < 1).all()
    inside = actions.abs() < 0.999  # beyond, the inverse of tanh is lost in rounding
    torch.testing.assert_close(
        log_density[inside].double(), expected.log_prob(actions.double())[inside], atol=2e-3, rtol=1e-3
    )
    far = squash(torch.tensor([40.0]), torch.zeros(1), torch.zeros(1))[1]
    torch.testing.assert_close(far, torch.tensor([-0.5 * math.log(2 * math.pi) - math.log(1e-6)]))


def test_acting_reports_the_mean_log_density_per_dimension() -> None:
    some = agents([0, 1])
    states, noise = torch.randn(2, 2, 7, 3, generator=generator(0, "act")).unbind()
    mean, log_std = some.actor(states).chunk(2, -1)
    actions, log_density = some.act(states, noise)
    torch.testing.assert_close(actions, (mean + log_std.exp() * noise).tanh())
    torch.testing.assert_close(log_density, squash(mean, log_std, noise)[1].mean(-1))


def test_stacked_networks_are_ordinary_ones() -> None:
    layers = Layers((3, 5, 5, 2), [generator(0, k) for k in range(4)])
    inputs = torch.randn(4, 6, 3, generator=generator(0, "inputs"))
    for k in range(4):
        x = inputs[k]
        for i, (weight, bias) in enumerate(zip(layers.parameters[::2], layers.parameters[1::2], strict=True)):
            x = x @ weight[k] + bias[k]
            x = x if i == 2 else x.relu()
        torch.testing.assert_close(layers(inputs)[k], x)


def test_one_update_follows_the_three_losses() -> None:
    """Each optimiser steps along the gradient of the loss as written in the paper."""
    some = agents([0, 1], learning_rate=1e-3, target_entropy=-0.7)
    draws = generator(0, "update")
    pairs, rewards = torch.randn(2, 5, 6, generator=draws), torch.randn(2, 5, generator=draws)
    noise = torch.randn(2, 5, 3, generator=draws)
    before = [p.detach().clone() for p in some.critics[0].parameters]
    gradients = torch.autograd.grad(
        sum(0.5 * (v - rewards).square().mean(1).sum() for v in some.values(pairs)),
        some.critics[0].parameters,
    )
    actor_before = [p.detach().clone() for p in some.actor.parameters]
    with torch.no_grad():
        entropy = -some.act(pairs[..., :3], noise)[1].mean(1)
    some.update(pairs, rewards, noise)
    for was, now, gradient in zip(before, some.critics[0].parameters, gradients, strict=True):
        moved = gradient.abs() > 1e-4  # Adam's first step: the learning rate against the gradient's sign
        torch.testing.assert_close((now - was)[moved], -1e-3 * gradient.sign()[moved], atol=1e-6, rtol=1e-2)
    # the actor saw the updated critics
    steps = [now.detach() - was for was, now in zip(actor_before, some.actor.parameters, strict=True)]
    with torch.no_grad():
        for now, was in zip(some.actor.parameters, actor_before, strict=True):
            now.copy_(was)
    actions, log_density = some.act(pairs[..., :3], noise)
    value = torch.minimum(*some.values(torch.cat([pairs[..., :3], actions], -1)))
    gradients = torch.autograd.grad((log_density - value).mean(1).sum(), some.actor.parameters)
    for step, gradient in zip(steps, gradients, strict=True):
        moved = gradient.abs() > 1e-4
        torch.testing.assert_close(step[moved], -1e-3 * gradient.sign()[moved], atol=1e-6, rtol=1e-2)
    torch.testing.assert_close(some.log_temperature, 1e-3 * (-0.7 - entropy).sign(), atol=1e-6, rtol=1e-2)


def test_stacked_agents_are_the_agents_one_by_one() -> None:
    labels = [0, 1, 2]
    stacked = agents(labels)
    alone = [agents([label]) for label in labels]
    draws = generator(0, "updates")
    start = [p.detach().clone() for p in weights(stacked)]
    for _ in range(5):
        pairs, rewards = torch.randn(3, 6, 6, generator=draws), torch.randn(3, 6, generator=draws)
        rewards = rewards * torch.tensor([1.0, 10.0, 100.0])[:, None]
        noise = torch.randn(3, 6, 3, generator=draws)
        stacked.update(pairs, rewards, noise)
        for k, single in enumerate(alone):
            single.update(pairs[k : k + 1], rewards[k : k + 1], noise[k : k + 1])
    for k, single in enumerate(alone):
        for all_of_them, own in zip(weights(stacked), weights(single), strict=True):
            torch.testing.assert_close(all_of_them[k], own[0], atol=1e-5, rtol=1e-4)
    assert all((now - was).abs().max() > 1e-3 for was, now in zip(start, weights(stacked), strict=True))


@pytest.mark.parametrize("identical", [False, True])
def test_twins_stay_identical_only_when_they_start_so(identical: bool) -> None:
    some = agents([0, 1], twins_identical=identical)
    draws = generator(0, "twins")
    for _ in range(10):
        pairs, rewards = torch.randn(2, 6, 6, generator=draws), torch.randn(2, 6, generator=draws)
        some.update(pairs, rewards, torch.randn(2, 6, 3, generator=draws))
    first, second = some.values(torch.randn(2, 9, 6, generator=draws))
    assert torch.equal(first, second) if identical else (first - second).abs().min() > 1e-6
    start = agents([0, 1], twins_identical=identical)
    assert all(
        not torch.equal(was, now)
        for was, now in zip(start.critics[1].parameters, some.critics[1].parameters, strict=True)
    )


def test_the_temperature_holds_the_entropy_at_its_target_or_falls_for_ever() -> None:
    """Three agents whose targets differ, in one stack."""
    some = agents([0, 1, 2], learning_rate=0.01, hidden=16)
    some.target_entropy = torch.tensor([0.2, -0.3, -300.0])[:, None]
    draws, updates = generator(0, "entropy"), 600
    for _ in range(updates):
        pairs = 2 * torch.rand(3, 32, 6, generator=draws) - 1
        rewards = -3 * pairs[..., 3:].square().sum(-1)
        some.update(pairs, rewards, torch.randn(3, 32, 3, generator=draws))
    with torch.no_grad():
        states, noise = torch.randn(2, 3, 500, 3, generator=draws).unbind()
        entropy = -some.act(states, noise)[1].mean(1)
    torch.testing.assert_close(entropy[:2], torch.tensor([0.2, -0.3]), atol=0.15, rtol=0)
    # an unreachable target: one learning rate per update, whatever happens
    assert some.log_temperature[2].item() == pytest.approx(-updates * 0.01, rel=0.02)


def test_the_ring_forgets_the_oldest() -> None:
    memory = Replay(2, 4, 3, CPU)
    for i in range(6):
        value = torch.tensor([i, 10.0 + i])
        memory.add(value[:, None].expand(2, 3), value[:, None].expand(2, 3) / 2, value * 3)
        assert len(memory) == min(i + 1, 4)
    pairs, rewards = memory.draw(torch.tensor([[0.0, 0.25, 0.5, 0.75, 1 - 2**-24]]).expand(2, -1))
    held = torch.tensor([4.0, 5, 2, 3, 3])
    assert torch.equal(rewards / 3, torch.stack([held, held + 10]))
    torch.testing.assert_close(pairs[..., :3], (rewards / 3)[..., None].expand(-1, -1, 3))
    torch.testing.assert_close(pairs[..., 3:], (rewards / 6)[..., None].expand(-1, -1, 3))


def test_only_what_was_remembered_is_drawn() -> None:
    memory = Replay(1, 100, 2, CPU)
    for i in range(3):
        memory.add(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([1.0 + i]))
    rewards = memory.draw(torch.rand(1, 300, generator=generator(0, "draw")))[1]
    values, counts = rewards.unique(return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0] and counts.min() > 60


def test_agents_learn_a_bandit_each_its_own() -> None:
    """Reward -|a - a*|^2 with another a* per agent: late episodes earn much more than early ones."""
    goals = torch.tensor([[0.6, -0.5, 0.0], [-0.7, 0.3, 0.5]])
    some, memory, draws = agents([0, 1], hidden=32, learning_rate=5e-3), Replay(2, 600, 3, CPU), generator(0)
    earned = torch.zeros(400, 2)
    for step in range(400):
        states = torch.randn(2, 3, generator=draws)
        with torch.no_grad():
            actions = some.act(states[:, None], torch.randn(2, 1, 3, generator=draws))[0][:, 0]
        earned[step] = -10 * (actions - goals).square().sum(1)
        memory.add(states, actions, earned[step])
        if len(memory) > 32:
            some.update(
                *memory.draw(torch.rand(2, 32, generator=draws)), torch.randn(2, 32, 3, generator=draws)
            )
    assert (earned[-100:].mean(0) > 0.3 * earned[:50].mean(0)).all()


def test_the_reward_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
    labels = torch.tensor([0, 0])
    log_score, reward = log_score_and_reward(p.log() + 7, labels, (2.0, 2.0, 8.0))
    expected = [4 * math.log(0.5) + 8 * math.log(0.2), 4 * math.log(0.2) + 8 * math.log(1e-7)]
    torch.testing.assert_close(log_score, torch.tensor([math.log(0.5), math.log(0.2)]))
    torch.testing.assert_close(reward, torch.tensor(expected))
    torch.testing.assert_close(
        log_score_and_reward(p.log(), labels, (1.0, 0.0, 0.5))[1][0],
        torch.tensor(math.log(0.5) + 0.5 * math.log(0.2)),
    )
    hopeless = torch.tensor([[-300.0, 0.0, -300.0]])  # softmax would underflow to log 0
    log_score, reward = log_score_and_reward(hopeless, labels[:1], (2.0, 2.0, 8.0))
    torch.testing.assert_close(reward, torch.tensor([4 * -300.0 + 8 * math.log(1e-7)]))


def test_all_labels_at_once_are_the_labels_one_by_one() -> None:
    logits, labels = 3 * torch.randn(9, 6, generator=generator(0, "logits")), torch.tensor([4, 0, 5, 2])
    logits[0, [4, 1]] = 9.0  # two likeliest
    found = torch.stack(every_label(logits, labels, (2.0, 2.0, 8.0)))
    for k, label in enumerate(labels):
        one = torch.stack(log_score_and_reward(logits, label.expand(9), (2.0, 2.0, 8.0)))
        assert torch.equal(found[:, :, k], one)


def test_the_best_distinct_latents_are_kept() -> None:
    best = Best(2, 3, 2, CPU)
    draws = torch.randn(20, 2, 2, generator=generator(0, "best"))
    draws[7], draws[12] = draws[4], draws[4]
    scores = draws.sum(-1)
    for latents, score in zip(draws, scores, strict=True):
        best.offer(latents, score)
    for k in range(2):
        expected = draws[:, k].unique(dim=0)
        expected = expected[expected.sum(-1).topk(3).indices]
        order = best.scores[k].argsort(descending=True)
        assert torch.equal(best.latents[k, order], expected)
        torch.testing.assert_close(best.latents[k].sum(-1), best.scores[k])
    full = Best(1, 3, 2, CPU)
    for _ in range(5):
        full.offer(torch.ones(1, 2), torch.ones(1))
    assert full.scores.isfinite().sum() == 1, "one latent counted more than once"


def test_noise_is_each_identitys_own_and_per_dimension() -> None:
    options = dict(dim=4, budget=SMALL, seed=0, device=CPU)
    both, alone = Noise([1, 3], **options), Noise([3], **options)
    for step in range(120):
        assert torch.equal(both.state(step)[1:], alone.state(step))
        assert torch.equal(both.episode(step)[1:], alone.episode(step))
    assert torch.equal(both.fractions()[1:], alone.fractions())
    update = both.update()
    assert torch.equal(update[1:], alone.update()) and update.shape == (2, 8, 4)
    assert len(update.unique()) == update.numel() and not torch.equal(both.update(), update)
    scalar = Noise([1, 3], **{**options, "budget": dataclasses.replace(SMALL, reference=True)})
    assert scalar.update().shape == (2, 1, 1) and scalar.episode(0).shape == (2, 1, 1)


def test_latents_stay_in_the_box(target: ToyTarget, prior: ToyPrior) -> None:
    sizes = []
    for scale in (0.5, 1.0, 2.0):
        found = run(target, prior, [0, 1], budget=dataclasses.replace(SMALL, action_scale=scale))
        sizes.append(found.latents.abs().max().item())
        assert 0.5 * scale < sizes[-1] < 1.1 * scale  # the toy's latents are standard normal


@pytest.mark.parametrize("pool", [0, 60])
def test_the_attack_beats_prior_samples_and_its_untrained_agents(
    target: ToyTarget, prior: ToyPrior, pool: int
) -> None:
    labels = torch.arange(CLASSES)
    budget = dataclasses.replace(
        SMALL, steps=250, buffer=400, batch=32, action_scale=2.0, keep=1, chunk=5, pool=pool
    )
    found = run(target, prior, labels, budget=budget)
    samples = prior.sample(200, generator=generator(9, "samples")).expand(CLASSES, -1, -1)
    reached = confidence(target, prior, found.kept(), labels)[:, 0]
    assert (reached > confidence(target, prior, samples, labels).mean(1) + 0.3).all()
    assert (reached > confidence(target, prior, found.initial, labels).max(1).values).all()
    losses = torch.tensor([row["loss"] for row in found.history])
    assert losses[-60:].mean() < losses[:30].mean() - 0.5, "the agents learned nothing"


def test_a_pool_fills_the_memory_before_the_first_episode(target: ToyTarget, prior: ToyPrior) -> None:
    """With a pool larger than the batch agents learn from the first episode on, without it they do not yet."""
    few = dataclasses.replace(SMALL, steps=5, batch=20, action_scale=2.0)
    history = [
        run(target, prior, [0, 1], budget=dataclasses.replace(few, pool=pool, learning_rate=rate)).history
        for pool, rate in ((0, 1e-3), (0, 1e-1), (30, 1e-3), (30, 1e-1))
    ]
    assert history[0] == history[1] and history[2][1:] != history[3][1:]
    found = run(target, prior, [0, 1], budget=dataclasses.replace(few, pool=30, steps=4))
    plain = confidence(target, prior, found.latents, found.labels)
    drawn = confidence(target, prior, found.initial, found.labels)
    assert (plain.min(1).values >= drawn.min(1).values).all(), "pool latents are candidates too"
    assert not torch.equal(found.latents.sort(1).values, found.initial.sort(1).values)


@pytest.mark.parametrize("pool", [0, 30])
def test_queries_shapes_and_the_way_through_the_store(target: ToyTarget, prior: ToyPrior, pool: int) -> None:
    oracle = Oracle(target, reveals="scores")
    budget = dataclasses.replace(SMALL, pool=pool)
    found = run(oracle, prior, [4, 0, 2], budget=budget)
    own = 40 + 4 * (3 + 1)
    assert budget.own_queries == own and oracle.queries == pool + 3 * own
    assert found.cost["queries"] == found.cost["target_forward"] == pytest.approx(pool / 3 + own)
    assert found.cost["target_backward"] == 0 and found.cost["synthesis"] == pytest.approx(pool / 3 + 44)
    assert found.attack == "rlb" and found.labels.tolist() == [4, 0, 2]
    assert found.latents.shape == found.initial.shape == (3, 4, DIM)
    assert found.selected.shape == (3, 2) and [row["step"] for row in found.history] == list(range(40))
    assert all(row["loss"] >= -math.log(row["confidence"]) - 1e-4 for row in found.history)
    back = Reconstructions.from_tensors(found.to_tensors(), found.meta())
    assert torch.equal(back.latents, found.latents) and back.history == found.history


def test_candidates_are_the_best_episodes(target: ToyTarget, prior: ToyPrior) -> None:
    seen: list[Tensor] = []
    synthesise = prior.synthesise
    prior.synthesise = lambda latents: (seen.append(latents.clone()), synthesise(latents))[1]  # type: ignore
    found = run(target, prior, [2])
    prior.synthesise = synthesise
    episodes = torch.cat([latents for latents in seen if len(latents) == 1])[-40:][None]
    assert torch.equal(episodes[:, :4], found.initial)
    p = confidence(target, prior, episodes, found.labels)
    kept = confidence(target, prior, found.latents, found.labels)
    torch.testing.assert_close(kept.sort(1).values, p.topk(4).values.sort(1).values)
    best = confidence(target, prior, found.kept(), found.labels)
    torch.testing.assert_close(best, p.topk(2).values)  # ranked by the score of the plain image


def test_equal_seeds_equal_bits_and_the_order_of_labels_changes_nothing(
    target: ToyTarget, prior: ToyPrior
) -> None:
    first = run(target, prior, [0, 1, 2, 3, 4])
    assert equal(first, run(target, prior, torch.arange(5)))
    shuffled = run(target, prior, [3, 0, 4, 1, 2])
    assert torch.equal(shuffled.latents[shuffled.labels.argsort()], first.latents)
    assert not torch.equal(run(target, prior, [0, 1, 2, 3, 4], seed=4).latents, first.latents)


@pytest.mark.parametrize("pool", [0, 30])
def test_an_identity_does_not_depend_on_its_company(target: ToyTarget, prior: ToyPrior, pool: int) -> None:
    budget = dataclasses.replace(SMALL, pool=pool, steps=20)
    together = run(target, prior, [0, 1, 2, 3, 4], budget=budget)
    alone = run(target, prior, [3], budget=budget)
    torch.testing.assert_close(alone.initial[0], together.initial[3], atol=5e-3, rtol=5e-3)
    assert not torch.allclose(together.initial[3], together.initial[4]), "identities share their noise"
    torch.testing.assert_close(alone.latents[0], together.latents[3], atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(alone.confidence[0], together.confidence[3], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("pool", [0, 30])
def test_killed_and_resumed_equals_uninterrupted(
    target: ToyTarget, prior: ToyPrior, tmp_path: Path, pool: int
) -> None:
    budget, labels = dataclasses.replace(SMALL, pool=pool), [4, 1, 0, 3, 2]
    whole = run(target, prior, labels, budget=budget)

    def kill(event: dict[str, Any]) -> None:
        if event["stage"] == "rlb" and event["done"] == 4:
            raise KilledError

    checkpoint = Checkpoint(tmp_path / "attack.checkpoint", every=0)
    with pytest.raises(KilledError):
        run(target, prior, labels, budget=budget, callback=kill, checkpoint=checkpoint)
    seen: list[int] = []
    resumed = run(
        target,
        prior,
        labels,
        budget=budget,
        checkpoint=checkpoint,
        callback=lambda event: seen.append(event["done"]),
    )
    assert seen == [5] and equal(whole, resumed)
    assert whole.cost["queries"] == resumed.cost["queries"]


def test_progress_is_reported_during_a_chunk(target: ToyTarget, prior: ToyPrior) -> None:
    rows: list[tuple[str, int]] = []
    run(
        target,
        prior,
        [0],
        budget=dataclasses.replace(SMALL, steps=200, batch=199, buffer=200),
        callback=lambda row: rows.append((row["stage"], row["done"])),
    )
    assert rows == [("rlb episodes", 100), ("rlb episodes", 200), ("rlb", 1)]


def test_the_reference_runs_and_differs(target: ToyTarget, prior: ToyPrior) -> None:
    reference = run(target, prior, [0, 1], budget=dataclasses.replace(SMALL, reference=True))
    assert reference.confidence.isfinite().all()
    assert not torch.equal(reference.latents, run(target, prior, [0, 1]).latents)


def test_the_target_comes_back_as_it_was(target: ToyTarget, prior: ToyPrior) -> None:
    target.train()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    run(target, prior, [0, 1])
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())
    assert target.training and target.head.weight.requires_grad
    assert all(parameter.grad is None for parameter in target.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": 0}, "hidden"),
        ({"batch": 0}, "batch"),
        ({"buffer": 1.5}, "buffer"),
        ({"updates": 0}, "updates"),
        ({"action_scale": 0.0}, "action_scale"),
        ({"weights": [2, 2]}, "weights"),
        ({"weights": (2, -1, 8)}, "weights"),
        ({"target_entropy": math.nan}, "target_entropy"),
        ({"rank_by": "vibes"}, "rank_by"),
        ({"pool": -1}, "pool"),
        ({"pool": True}, "pool"),
        ({"pool": 20, "buffer": 10}, "pool: .*buffer of 10"),
        ({"candidates": 8, "steps": 7}, "candidates"),
        ({"steps": 0}, "steps"),
        ({"batch": 64, "buffer": 64}, "buffer: expected more than the batch of 64, .* got 64"),
        ({"query_cap": 0}, "query_cap"),
        ({"episodes": 3}, "unknown key 'episodes'"),
    ],
)
def test_bad_budgets_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attacks.get("rlb").budget(**values)


def test_a_query_cap_is_the_number_needed_or_more(target: ToyTarget, prior: ToyPrior) -> None:
    needed = 30 + 40 + 4 * (3 + 1)
    with pytest.raises(UserError, match=f"query_cap: expected at least the {needed} queries"):
        dataclasses.replace(SMALL, pool=30, query_cap=needed - 1)
    found = run(target, prior, [0, 1], budget=dataclasses.replace(SMALL, pool=30, query_cap=needed))
    assert found.cost["queries"] <= needed
    oracle = Oracle(target, reveals="scores", cap=2 * (needed - 30) - 1)
    with pytest.raises(UserError, match=f"still answers the {2 * (needed - 30)} queries"):
        run(oracle, prior, [0, 1])
    assert oracle.queries == 0


def test_work_counts_queries_and_the_short_attack_trains_its_agents(
    target: ToyTarget, prior: ToyPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SMALL.work == (40 + 4 * (3 + 1)) / 2
    for budget in (SMALL, RlbBudget(), dataclasses.replace(SMALL, batch=50, query_cap=56)):
        short = budget.short()
        assert short.work < budget.work and (short.batch, short.hidden) == (budget.batch, budget.hidden)
    updates: list[int] = []
    update = Agents.update
    monkeypatch.setattr(Agents, "update", lambda *given: (updates.append(1), update(*given))[1])
    run(target, prior, [0, 1], budget=SMALL.short())
    assert len(updates) == SMALL.short().steps, "time is measured without what takes the time"


def test_a_masked_gradient_is_no_obstacle(prior: ToyPrior) -> None:
    """Rounding leaves white-box attacks a gradient of 0, and agents what they need."""

    class Rounded(ToyTarget):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.round())

    rounded, labels = Rounded(prior), torch.arange(CLASSES)
    budget = dataclasses.replace(
        SMALL, steps=150, buffer=400, batch=32, action_scale=2.0, keep=1, chunk=5, pool=60
    )
    found = run(rounded, prior, labels, budget=budget)
    samples = prior.sample(200, generator=generator(9, "samples")).expand(CLASSES, -1, -1)
    reached = confidence(rounded, prior, found.kept(), labels)[:, 0]
    assert (reached > confidence(rounded, prior, samples, labels).mean(1) + 0.3).all()


def test_a_label_oracle_is_refused(target: ToyTarget, prior: ToyPrior) -> None:
    with pytest.raises(UserError, match="label-only attack"):
        run(Oracle(target, reveals="labels"), prior, [0])
    with pytest.raises(UserError, match="8 px like the target's, got 16 px"):
        run(target, ToyPrior(16), [0])
    with torch.no_grad():
        target.head.bias[0] = math.nan
    with pytest.raises(UserError, match="NaN or infinity"):
        run(target, prior, [0])


def test_it_is_found_by_name_with_the_published_defaults() -> None:
    attack, budget = attacks.get("rlb"), RlbBudget()
    assert attack.Budget is RlbBudget and attack.sees == "scores" and not attack.needs
    assert (budget.steps, budget.hidden, budget.batch, budget.buffer) == (40_000, 256, 256, 1_000_000)
    assert (budget.learning_rate, budget.weights, budget.pool) == (5e-4, (2, 2, 8), 0)
    assert budget.query_cap is None and not budget.reference
