"""Students: small networks that learn from the target's answers on public images (LOMMA's augmented models).

Source: Nguyen et al., Re-thinking Model Inversion Attacks (CVPR 2023), section 4.2: KL(T || S) at temperature 1.
The squared difference of the logits is added (``logit_weight`` 0 takes it away): students that start from random
weights, without a pre-trained body, follow the target's logits better with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.errors import UserError
from lib.models import Classifier, build_classifier
from lib.runtime import frozen, generator, seed_for
from lib.store import Checkpoint

ROW_EVERY = 50
ANSWER_BATCH = 500


@dataclass(frozen=True)
class Student:
    """What determines a student, next to the target, the images and the seed.

    Attributes:
        network: its architecture (:func:`lib.models.build_classifier`).
        steps, batch: of training. learning_rate: AdamW's, one-cycle. weight_decay: AdamW's.
        logit_weight: of the mean squared difference of logits beside the KL divergence.
        mirror: whether every other image is shown mirrored.
    """

    network: dict[str, Any] = field(default_factory=dict)
    steps: int = 800
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    logit_weight: float = 0.1
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2 or not self.learning_rate > 0 or self.logit_weight < 0:
            raise UserError(
                "student: expected steps >= 1, batch >= 2, learning_rate > 0 and logit_weight >= 0, got "
                f"{self.steps}, {self.batch}, {self.learning_rate}, {self.logit_weight}; correct the setup"
            )


def distillation_loss(student: Tensor, teacher: Tensor, *, logit_weight: float) -> Tensor:
    """KL(teacher || student) + weight * mean squared logit difference: (B, C) twice to (B,)."""
    divergence = F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    return divergence + logit_weight * (student - teacher).square().mean(1)


@torch.no_grad()
def answers(target: nn.Module, images: Tensor, device: torch.device, *, mirrored: bool = False) -> Tensor:
    """(N, C) the target's logits of (N, 3, S, S) uint8 images or of their mirror images, in fp32."""
    images = images.flip(-1) if mirrored else images
    with frozen(target):
        return torch.cat(
            [target(part.to(device).float() / 255).float() for part in images.split(ANSWER_BATCH)]
        )


@torch.random.fork_rng()  # initialisation and dropout draw from the global streams
def distil(
    public: Tensor,
    target: nn.Module,
    *,
    config: Student,
    seed: int,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
    ask: Callable[[bool], Tensor] | None = None,
) -> tuple[Classifier, list[dict[str, float]]]:
    """Train one student. The target is asked once per image (and mirror image), before the training.

    Args:
        ask: the target's answers on the images (False) or their mirror images (True), for students that share them.

    Returns:
        the student in eval mode; rows ``step, loss, agreement`` (share of the batch with the target's label).
    """
    torch.manual_seed(seed_for(seed, "student", "weights"))
    student = build_classifier(config.network, target.num_classes, target.image_size).to(device).train()
    method = torch.optim.AdamW(
        student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(method, config.learning_rate, total_steps=config.steps + 1)
    ask = ask or (lambda mirrored: answers(target, public, device, mirrored=mirrored))
    teacher = [ask(mirrored) for mirrored in ((False, True) if config.mirror else (False,))]
    stream = generator(seed, "student", "batches")
    done, history = 0, []
    if checkpoint and (saved := checkpoint.load()):
        student.load_state_dict(saved["student"])
        method.load_state_dict(saved["method"])
        schedule.load_state_dict(saved["schedule"])
        stream.set_state(saved["stream"])
        done, history = saved["step"], saved["history"]
    for step in range(done, config.steps):
        if step % ROW_EVERY == 0:  # where a resumed run begins
            torch.manual_seed(seed_for(seed, "student", "dropout", step))
        index = torch.randint(len(public), (config.batch,), generator=stream)
        side = step % len(teacher)
        images = public[index].to(device).float() / 255
        images = images.flip(-1) if side else images
        wanted = teacher[side][index.to(device)]
        answered = student(images.contiguous(memory_format=torch.channels_last))
        loss = distillation_loss(answered, wanted, logit_weight=config.logit_weight).mean()
        method.zero_grad(set_to_none=True)
        loss.backward()
        method.step()
        schedule.step()
        if (step + 1) % ROW_EVERY == 0 or step + 1 == config.steps:
            agreement = (answered.argmax(1) == wanted.argmax(1)).float().mean()
            history.append({"step": step + 1, "loss": float(loss.detach()), "agreement": float(agreement)})
            if callback:
                callback(history[-1])
            if checkpoint:
                checkpoint.save(
                    {
                        "student": student.state_dict(),
                        "method": method.state_dict(),
                        "schedule": schedule.state_dict(),
                        "stream": stream.get_state(),
                        "step": step + 1,
                        "history": history,
                    }
                )
    return student.eval(), history
