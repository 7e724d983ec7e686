"""PPA as its published code works through it (Struppek et al. 2022; the same in MIDRE's attack), from scratch.

The order of work, the batches, what is computed again and what is read back at each step are theirs;
networks, loss and random law are those of our side. Each of :class:`Ways` replaces one of their ways by ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from lib import evaluation
from lib.attacks.interface import device_of
from lib.attacks.losses import poincare
from lib.attacks.ppa import PpaBudget
from lib.models import folded
from lib.runtime import generator
from tests.bench.clock import Clock
from tests.bench.measures import Outcome, accuracy, mean_prdc, nearest
from tests.bench.networks import synthesise_nchw
from tests.bench.world import World

BATCH = 16  # MIDRE's; PPA's own files say 20 to 25 a GPU
JUDGED = 64  # images at a time where nothing is differentiated


@dataclass(frozen=True)
class Ways:
    """False is the published way; in the order in which the benchmark switches them on.

    Attributes:
        activations: modulate activations, not the weights of each sample.
        frozen: no gradients of weights, which nobody uses.
        rendered_once: keep the images of the final selection instead of synthesising them for each measure.
        top_k: one top-k of the pool for all targets instead of a full sort per target and candidate.
        features_once: each judge sees each photo and image once instead of once a measure.
        channels_last: the memory layout convolutions are fastest in.
        folded: the target's normalisation folded into its convolutions.
        quiet: nothing is read back and shown at each step.
        large_batches: 64 samples, not 16, and the selection views of all targets at once.
    """

    activations: bool = False
    frozen: bool = False
    rendered_once: bool = False
    top_k: bool = False
    features_once: bool = False
    channels_last: bool = False
    folded: bool = False
    quiet: bool = False
    large_batches: bool = False


MEASURES = tuple(field.name for field in dataclasses.fields(Ways))


def run(world: World, budget: PpaBudget, *, seed: int, ways: Ways, clock: Clock) -> Outcome:
    """Attack and judge all labels of the world."""
    modules = (world.target, world.evaluator, world.verifier, world.prior.generator)
    with _gradients(modules, not ways.frozen), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Pipeline(world, budget, ways, clock).run(seed)


class _Pipeline:
    def __init__(self, world: World, budget: PpaBudget, ways: Ways, clock: Clock) -> None:
        self.world, self.budget, self.ways, self.clock = world, budget, ways, clock
        self.device = device_of(world.target)
        self.target = folded(world.target) if ways.folded else world.target
        self.batch = 4 * BATCH if ways.large_batches else BATCH
        size = world.prior.image_size
        self.step_view = v2.RandomResizedCrop(size, scale=budget.crop_scale, ratio=(1.0, 1.0), antialias=True)
        self.select_view = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=budget.view_scale, ratio=budget.view_ratio, antialias=True),
                v2.RandomHorizontalFlip(0.5),
            ]
        )
        self.layout = torch.channels_last if ways.channels_last else torch.contiguous_format
        self.kept_features: dict[tuple[int, bool], tuple[Tensor, Tensor]] = {}

    def run(self, seed: int) -> Outcome:
        with self.clock.phase("search"):
            starts = self._search(seed)
        with self.clock.phase("optimise"):
            latents = self._optimise(starts)
        with self.clock.phase("select"), torch.no_grad():
            confidence, rendered = self._select(latents)
            selected = confidence.argsort(1, descending=True)[:, : self.budget.keep]
        self.rendered = rendered
        with torch.no_grad():
            measures = self._judge(latents, selected)
        return Outcome(starts.cpu(), latents.cpu(), selected.cpu(), confidence.cpu(), measures)

    # --- networks -------------------------------------------------------------------------------------

    def _images(self, w: Tensor) -> Tensor:
        if self.ways.channels_last:
            return self.world.prior.synthesise(w)
        return synthesise_nchw(self.world.prior.generator, w, fused=not self.ways.activations)

    def _target(self, images: Tensor) -> Tensor:
        return self.target(images.contiguous(memory_format=self.layout))

    def _seen(self, network: nn.Module, batches: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Features and logits, moved to the host batch by batch."""
        parts = [network.both(batch.contiguous(memory_format=self.layout)) for batch in batches]
        return torch.cat([f.cpu() for f, _ in parts]), torch.cat([o.cpu() for _, o in parts])

    # --- attack ---------------------------------------------------------------------------------------

    def _search(self, seed: int) -> Tensor:
        """(K, n, d): the best of the pool for each target."""
        budget, prior, labels = self.budget, self.world.prior, self.world.labels
        stream = generator(seed, "attack", "pool")
        pool = prior.sample(budget.pool, generator=stream, truncation=budget.truncation)
        scores = []
        with torch.no_grad():
            for w in pool.split(self.batch):
                images = self._images(w)
                views = [self._target(view).softmax(1) for view in (images, images.flip(-1))]
                scores.append((views[0] + views[1]) / 2)
        scores = torch.cat(scores)
        if self.ways.top_k:
            return pool[scores[:, labels].topk(budget.candidates, dim=0).indices.T]
        chosen = []
        for label in labels:
            own = scores[:, label].clone()
            for _ in range(budget.candidates):
                best = own.sort(descending=True).indices[0].item()
                chosen.append(pool[best])
                own[best] = -1.0
        return torch.stack(chosen).view(len(labels), budget.candidates, -1)

    def _optimise(self, starts: Tensor) -> Tensor:
        """One target-major list of all samples, cut into batches; a fresh optimiser for each."""
        budget = self.budget
        aimed = torch.tensor(self.world.labels, device=self.device).repeat_interleave(budget.candidates)
        done = []
        for part, labels in zip(starts.flatten(0, 1).split(self.batch), aimed.split(self.batch), strict=True):
            w = part.clone().requires_grad_(True)
            optimiser = torch.optim.Adam([w], lr=budget.learning_rate, betas=(0.1, 0.1))
            schedule = torch.optim.lr_scheduler.MultiStepLR(
                optimiser, [round(m * budget.steps) for m in budget.milestones], gamma=budget.decay
            )
            with _bar(budget.steps, self.ways.quiet) as bar:
                for _ in bar:
                    logits = self._target(self.step_view(self._images(w)))
                    loss = poincare(logits, labels).mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                    if not self.ways.quiet:
                        p = logits.detach().softmax(1).gather(1, labels[:, None]).mean()
                        bar.set_description(f"loss {loss.item():.4f} confidence {p.item():.4f}")
            done.append(w.detach())
        return torch.cat(done).view_as(starts)

    def _select(self, latents: Tensor) -> tuple[Tensor, Tensor | None]:
        """The target's mean p_y (K, n) over the views, one draw per call; and the images, where they stay."""
        labels = torch.tensor(self.world.labels, device=self.device)
        at_once = len(labels) if self.ways.large_batches else 1
        scores, rendered = [], []
        for w, own in zip(latents.split(at_once), labels.split(at_once), strict=True):
            flat = own.repeat_interleave(latents.shape[1])
            images = torch.cat([self._images(part) for part in w.flatten(0, 1).split(10 * self.batch)])
            total = torch.zeros(len(images), device=self.device)
            for _ in range(self.budget.views):
                p = self._target(self.select_view(images)).softmax(1)
                total += p.gather(1, flat[:, None])[:, 0]
            scores.append(total.view(len(own), -1) / self.budget.views)
            rendered.append(images.unflatten(0, (len(own), -1)))
        return torch.cat(scores), torch.cat(rendered) if self.ways.rendered_once else None

    # --- measures -------------------------------------------------------------------------------------

    def _judge(self, latents: Tensor, selected: Tensor) -> dict[str, float]:
        """Accuracy of all and of the kept, Fréchet distance, PRDC and two feature distances, one by one."""
        evaluator, verifier = self.world.evaluator, self.world.verifier
        count, labels = latents.shape[1], torch.tensor(self.world.labels)
        everything = torch.arange(count).repeat(len(labels), 1)
        selected = selected.cpu()
        measures = {}
        for suffix, chosen in (("_all", everything), ("", selected)):
            logits = self._fakes(evaluator, latents, chosen)[1]
            measures |= accuracy(logits, labels.repeat_interleave(chosen.shape[1]), suffix)
        real = torch.cat([self._photos(evaluator, row) for row in range(len(labels))])
        fake = self._fakes(evaluator, latents, selected)[0]
        with self.clock.phase("judge"):
            measures["frechet"] = evaluation.frechet_distance(real, fake)
        rows = range(len(labels))
        measures |= mean_prdc(
            [self._class(evaluator, latents, selected, row, evaluation.prdc) for row in rows]
        )
        for name, network in (("distance_evaluator", evaluator), ("distance_verifier", verifier)):
            found = [
                self._class(network, latents, selected, row, lambda real, fake: nearest(fake, real))
                for row in rows
            ]
            measures[name] = torch.cat(found).mean().item()
        return measures

    def _class(self, network: nn.Module, latents: Tensor, selected: Tensor, row: int, measure: Callable):
        """A measure of one class, from the features of its photos and of its kept images."""
        real = self._photos(network, row)
        fake = self._fakes(network, latents, selected, row)[0]
        with self.clock.phase("judge"):
            return measure(real, fake)

    def _fakes(
        self, network: nn.Module, latents: Tensor, chosen: Tensor, row: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features and logits of the chosen candidates (K, m), of one class or of all, identity-major."""
        rows = torch.arange(len(chosen)) if row is None else torch.tensor([row])
        with self.clock.phase("judge"):
            if self.ways.features_once:
                whole = self._once(network, False, lambda: self._batches(latents.flatten(0, 1)))
                index = (rows[:, None] * latents.shape[1] + chosen[rows]).flatten()
                return whole[0][index], whole[1][index]
            source = latents if self.rendered is None else self.rendered
            return self._seen(network, self._batches(source[rows[:, None], chosen[rows]].flatten(0, 1)))

    def _photos(self, network: nn.Module, row: int) -> Tensor:
        """Features of the private photos of one class."""
        own = self.world.photo_labels == self.world.labels[row]
        with self.clock.phase("references"):
            if self.ways.features_once:
                return self._once(network, True, lambda: self._loaded(self.world.photos))[0][own]
            return self._seen(network, self._loaded(self.world.photos[own]))[0]

    def _once(
        self, network: nn.Module, real: bool, batches: Callable[[], Iterator[Tensor]]
    ) -> tuple[Tensor, Tensor]:
        key = id(network), real
        if key not in self.kept_features:
            self.kept_features[key] = self._seen(network, batches())
        return self.kept_features[key]

    def _batches(self, source: Tensor) -> Iterator[Tensor]:
        """Images of latents, or rendered images as they are."""
        if source.ndim == 2 and self.rendered is not None:
            source = self.rendered.flatten(0, 1)
        for part in source.split(JUDGED):
            yield self._images(part) if source.ndim == 2 else part

    def _loaded(self, photos: Tensor) -> Iterator[Tensor]:
        for part in photos.split(JUDGED):
            yield part.to(self.device).float() / 255


@contextlib.contextmanager
def _bar(steps: int, quiet: bool) -> Iterator:
    """Steps under a progress line that is drawn, but not seen."""
    if quiet:
        yield range(steps)
        return
    with open(os.devnull, "w") as sink, tqdm(range(steps), file=sink) as bar:
        yield bar


@contextlib.contextmanager
def _gradients(modules: tuple[nn.Module, ...], wanted: bool) -> Iterator[None]:
    """Evaluation mode, weights that want gradients or not; restored on exit, gathered gradients dropped."""
    parameters = [p for module in modules for p in module.parameters()]
    before = [p.requires_grad for p in parameters]
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval().requires_grad_(wanted)
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
