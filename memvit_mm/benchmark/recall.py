"""Recall by delay: which of the earlier clips a model learns to remember."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmaction.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from .recall_streams import COLOURS, FRAMES, LONGEST, PEOPLE, SIZE, Clips, RecallStreams

FINE = dict(type='pool', ages=(2, 4), stride=(4, 2, 2))
COARSE = dict(type='pool', ages=(1, 3, *range(5, LONGEST + 1)), tokens=2)
SCHEDULES: dict[str, dict[str, Any]] = {
    'none': dict(memory_layers=()),
    'published': dict(memory_length=2, memory_gap=2),
    'long': dict(memory_levels=[FINE, COARSE]),
}
"""Arguments of the backbone, by name."""

CHANNELS = 48
# Streams that are read side by side in training; one in eight is plain.
PLAIN, CROWDED = 8, 56
# Questions come after few clips first. Parts of the training at which delays begin and
# end to grow.
FIRST_DELAYS, GROWTH = 6, (0.45, 0.7)
# Whom to ask the memory for is found at this rate, not at twice as high a one.
LEARNING_RATE = 1e-3
PRETRAINING_STEPS = 100


@dataclass
class Recall:
    """What share of the questions one model answered rightly, by delay."""

    plain: list[float]
    """After 1, 2, … clips, all of whose people showed no colour."""
    distractors: list[float]
    """After 1, 2, … clips, of streams in which up to 7 others showed a colour, too."""
    questions: int
    """The fewest questions behind one of these figures."""
    seconds: float
    """Processor time of training and measuring."""


def build_recognizer(
    schedule: dict[str, Any], num_classes: int = len(COLOURS)
) -> nn.Module:
    """A small :class:`MemoryRecognizer3D` for clips of :class:`RecallStreams`.

    4 layers of 48 channels, of which layers 0 and 2 have memory.

    Args:
        schedule (dict): Arguments of its :class:`MeMViT`, such as those in
            ``SCHEDULES``.
    """
    init_default_scope('mmaction')
    arch = dict(embed_dims=CHANNELS, num_layers=4, num_heads=2, downscale_indices=[])
    backbone = dict(
        type='MeMViT',
        arch=arch,
        spatial_size=SIZE,
        temporal_size=FRAMES,
        # A patch is a pattern, or what is beside it.
        patch_cfg=dict(kernel_size=(1, 8, 8), stride=(1, 8, 8), padding=0),
        pool_kernel=(1, 1, 1),
        adaptive_kv_stride=(1, 1, 1),
        # As in the demo's config: layers this narrow need a larger start.
        init_cfg=[
            dict(type='Xavier', layer=['Linear', 'Conv3d'], distribution='uniform'),
            dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
        ],
        with_cls_token=False,
        output_cls_token=False,
        # Whom to ask the memory for is found by likeness.
        keys_as_queries=True,
        **schedule,
    )
    head = dict(
        type='MViTHead',
        num_classes=num_classes,
        with_cls_token=False,
        in_channels=CHANNELS,
        dropout_ratio=0.0,
    )
    model = MODELS.build(
        ConfigDict(
            type='MemoryRecognizer3D',
            backbone=backbone,
            cls_head=head,
            memory=dict(type='ClipMemory', max_streams=4 * (PLAIN + CROWDED)),
        )
    )
    model.init_weights()
    return model


class Trainer:
    """Trains a model on streams, one clip of each per step.

    Args:
        model (nn.Module): Of :func:`build_recognizer`.
        steps (int): Length of the training, for the learning rate.
    """

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model = model.train()
        # Where to look in the memory is what takes longest to learn.
        where = [p for name, p in model.named_parameters() if 'rel_pos' in name]
        other = [p for name, p in model.named_parameters() if 'rel_pos' not in name]
        self.recall = 0.0
        """Share of the latest questions that were answered rightly."""
        self.optimizer = torch.optim.AdamW(
            [
                dict(params=other, lr=LEARNING_RATE),
                dict(params=where, lr=5 * LEARNING_RATE),
            ],
            weight_decay=0.01,
            fused=True,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: min((step + 1) / 50, 1, (steps - step) / (0.3 * steps)),
        )

    def step(self, clips: Clips, labelled: Tensor) -> None:
        """Read one clip of each stream, and learn from those that are labelled.

        The others are read without gradient: none would reach them, since what is
        remembered is detached.

        Args:
            clips (Clips): The streams' next clips.
            labelled (Tensor): bool, [B].
        """
        rows = (~labelled).nonzero().flatten().tolist()
        if rows:
            with torch.no_grad():
                self.model(*_pick(clips, rows), mode='tensor')
        rows = labelled.nonzero().flatten().tolist()
        if rows:
            inputs, samples = _pick(clips, rows)
            scores = self.model(inputs, samples, mode='tensor', stage='head')
            self.learn(nn.functional.cross_entropy(scores, clips.colours[rows]))
            asked = clips.delays[rows] > 0
            if asked.any():
                hits = (scores.argmax(dim=1) == clips.colours[rows])[asked].float()
                self.recall += 0.1 * (hits.mean().item() - self.recall)
        else:
            # Nothing to learn from; a step without gradient changes nothing.
            self.optimizer.zero_grad()
            self.optimizer.step()
            self.scheduler.step()

    def learn(self, loss: Tensor) -> None:
        """One step down."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()


def _pick(clips: Clips, rows: Sequence[int]) -> tuple[Tensor, list]:
    return clips.inputs[rows], [clips.samples[row] for row in rows]


def train(
    model: nn.Module, steps: int, seed: int, labelled_cues: bool = True
) -> nn.Module:
    """Train on streams, with and without distractors, read clip by clip.

    Args:
        model (nn.Module): Of :func:`build_recognizer`.
        steps (int): Clips of each of 64 streams.
        seed (int): Of the streams.
        labelled_cues (bool): Whether clips in which a colour is shown are labelled with
            it, as well as those in which it is asked for.
    """
    trainer = Trainer(model, steps)
    streams = RecallStreams(PLAIN, CROWDED, seed)
    longest = float(FIRST_DELAYS)
    for step in range(steps):
        begin, end = GROWTH
        # Once nearly all questions are answered, or else by and by.
        if trainer.recall > 0.9:
            longest = min(longest * 1.02, LONGEST)
        grown = min(max((step / steps - begin) / (end - begin), 0), 1)
        late = FIRST_DELAYS * (LONGEST / FIRST_DELAYS) ** grown
        streams.longest = round(max(longest, late))
        clips = streams.next_clips()
        asked = clips.delays > 0
        trainer.step(clips, clips.colours >= 0 if labelled_cues else asked)
    model.reset_memory()
    return model


def pretrain(schedule: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Weights of a backbone that was trained on single clips, without memory.

    Their labels say who it is, with which colour: 32 classes. They are of other streams
    than those of :func:`train`.
    """
    model = build_recognizer(schedule, num_classes=PEOPLE * len(COLOURS))
    trainer = Trainer(model, PRETRAINING_STEPS)
    streams = RecallStreams(0, 0, seed + 1_000_000)
    for _ in range(PRETRAINING_STEPS):
        inputs, people, colours = streams.draw_cues(PLAIN + CROWDED)
        scores = model(inputs, stage='head')
        label = people * len(COLOURS) + colours
        trainer.learn(nn.functional.cross_entropy(scores, label))
    return model.backbone.state_dict()


def ask(model: nn.Module, seed: int, steps: int, crowded: bool) -> tuple:
    """Ask on streams that the model has not seen.

    Returns:
        tuple[Tensor, Tensor]: By delay, right answers and questions: [32] each.
    """
    model.eval()
    rows = PLAIN + CROWDED
    streams = RecallStreams(
        0 if crowded else rows, rows if crowded else 0, seed + 2_000_000, 'test '
    )
    right, asked = torch.zeros(LONGEST + 1), torch.zeros(LONGEST + 1)
    for _ in range(steps):
        clips = streams.next_clips()
        with torch.no_grad():
            scores = model(clips.inputs, clips.samples, mode='tensor', stage='head')
        hits = (scores.argmax(dim=1) == clips.colours).float()
        right.index_add_(0, clips.delays, hits)
        asked.index_add_(0, clips.delays, torch.ones_like(hits))
    model.reset_memory()
    return right[1:], asked[1:]


def measure_recall(
    schedule: str,
    seed: int,
    steps: int,
    labelled_cues: bool = True,
    pretrained: bool = False,
    test_steps: int = 448,
) -> Recall:
    """Train one small model and ask it what it has seen.

    Args:
        schedule (str): One of ``SCHEDULES``.
        seed (int): Of weights and streams.
        steps (int): Of the training.
        labelled_cues (bool): As in :func:`train`.
        pretrained (bool): Start with :func:`pretrain`.
        test_steps (int): Clips of each of 64 streams that are asked, of each kind.
    """
    begin = time.process_time()
    torch.manual_seed(seed)
    model = build_recognizer(SCHEDULES[schedule])
    if pretrained:
        model.backbone.load_state_dict(pretrain(SCHEDULES[schedule], seed))
    train(model, steps, seed, labelled_cues)
    found, fewest = [], []
    for crowded in (False, True):
        right, asked = ask(model, seed, test_steps, crowded)
        found.append((right / asked.clamp(min=1)).tolist())
        fewest.append(int(asked.min()))
    return Recall(*found, min(fewest), time.process_time() - begin)
