"""Runners: what a predictor asks of a model, in PyTorch or exported to ONNX."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import Tensor, nn

from memvit_mm.apis.models.classes import (
    Classes,
    Labels,
    classes_of,
    find_names,
    name_classes,
)
from memvit_mm.deploy.model import Kept, OnnxModel

Model = Union[nn.Module, OnnxModel]


class TorchRunner:
    """A recognizer or detector in PyTorch.

    Args:
        model (nn.Module): It is put into evaluation mode.
    """

    saved_as = 'clips'
    """What an entry of a saved memory has that was made by a model of this kind."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.name = type(model).__name__
        self.cfg = getattr(model, 'cfg', None)
        self.detects = hasattr(model, 'roi_head')
        self.memory = getattr(model, 'memory', None)

    @property
    def num_classes(self) -> int:
        """Of a detector: columns of the scores."""
        return self.model.roi_head.bbox_head.num_classes

    @property
    def memory_steps(self) -> int:
        """Clips that a layer of the model looks back at most; 0 without a memory."""
        modules = () if self.memory is None else self.model.modules()
        ages = (age for module in modules for age in getattr(module, 'ages', ()))
        return max(ages, default=0)

    def classes(self, cfg: Config, labels: Labels) -> Classes:
        """See :func:`classes_of`."""
        return classes_of(self.model, cfg, labels)

    def check_room(self, count: int) -> None:
        """Refuse more streams at once than the memory has room for."""
        if getattr(self.model, 'remembers', False):
            self.memory.check_room(count)

    def plain(self, entries: list[dict]) -> list[dict]:
        """Entries of the memory as plain values and tensors, which they are."""
        return entries

    def run(self, data: Sequence[dict]) -> list[Any]:
        """What the model answers to prepared clips, on the CPU."""
        if self.model.training:
            self.model.eval()
        with torch.no_grad():
            found = self.model.test_step(pseudo_collate(list(data)))
        return [sample.cpu() for sample in found]


class OnnxRunner:
    """A recognizer or detector that was exported to ONNX.

    Args:
        model (OnnxModel): With its memory.
    """

    saved_as = 'memory'
    cfg = None

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.name = model.path
        self.detects = model.detects
        self.num_classes = model.num_classes
        self.memory = OnnxMemory(model) if model.horizon else None
        self.memory_steps = model.horizon

    def classes(self, cfg: Config, labels: Labels) -> Classes:
        """The names that are given, else those of the file, else the config's."""
        kinds = self.model.about['classes']
        found = {kind['kind']: kind['names'] for kind in kinds if kind['names']}
        if labels is not None or not found:
            found = find_names(labels, cfg)
        return name_classes(
            {kind['kind']: kind['count'] for kind in kinds},
            found,
            given=labels is not None,
            reserved=self.model.about['reserved'],
        )

    def check_room(self, count: int) -> None:
        """There is room for any number."""

    def plain(self, entries: list[dict]) -> list[dict]:
        """Entries of the memory as plain values and tensors."""
        return [] if self.memory is None else self.memory.plain(entries)

    def run(self, data: Sequence[dict]) -> list[Any]:
        """What the model answers to prepared clips, as the heads' ``predict``."""
        samples = [one['data_samples'] for one in data]
        rows = []
        for one, sample in zip(data, samples):
            clips = one['inputs'].numpy()
            clips = clips if clips.ndim == 5 else clips[None]
            rows += [
                (View(sample.video_id, view), sample.timestamp, clip)
                for view, clip in enumerate(clips)
            ]
        boxes = None
        if self.detects:
            boxes = [sample.proposals.bboxes.numpy() for sample in samples]
        scores = self.model.run(*zip(*rows), boxes)
        if self.detects:
            for sample, found in zip(samples, scores):
                height, width = sample.img_shape
                places = sample.proposals.bboxes / torch.tensor([width, height] * 2)
                found = InstanceData(bboxes=places, scores=torch.from_numpy(found))
                sample.pred_instances = found
            return samples
        # (samples * views, classes) -> (samples, views, classes)
        views = np.stack(scores).reshape(len(samples), -1, self.num_classes)
        for sample, found in zip(samples, torch.from_numpy(views)):
            self._recognized(sample, found)
        return samples

    def _recognized(self, sample: Any, scores: Tensor) -> None:
        """Put scores [views, classes] into a sample."""
        sizes = [kind['count'] for kind in self.model.about['classes']]
        if len(sizes) == 1:
            scores = scores.mean(dim=0)
            sample.set_pred_score(scores).set_pred_label(scores.argmax())
            return
        parts = scores.split(sizes, dim=-1)
        if self.model.about['average_views'] == 'score':
            # Logits are logarithms of probabilities but for a term common to all.
            parts = [logarithm(part).mean(dim=0).log_softmax(dim=-1) for part in parts]
        else:
            parts = [logarithm(part.mean(dim=0)) for part in parts]
        for name, part in zip(('verb_logits', 'noun_logits'), parts):
            sample.set_field(part, name, dtype=Tensor)
        sample.set_pred_score(torch.cat([part.softmax(dim=0) for part in parts]))
        sample.set_pred_label(torch.stack([part.argmax() for part in parts]))


def logarithm(scores: Tensor) -> Tensor:
    """Of probabilities, finite also where they are 0."""
    return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


class View(NamedTuple):
    """A stream of an :class:`OnnxModel` that a predictor reads."""

    video: Hashable
    view: int


class OnnxMemory:
    """An :class:`OnnxModel`'s memory with those methods of ``ClipMemory`` that streams
    use. Each view of a stream is a stream of the model; those of others, who call the
    model themselves, are left alone.

    Args:
        model (OnnxModel): Whose memory it is.
    """

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._owners = model.owners
        self.set_aside, self.restore = model.set_aside, model.restore

    def open(self, video: Hashable, owner: Any) -> None:
        """A stream begins. What is left of those whose owner is gone is forgotten."""
        self._owners[video] = owner
        for key in self._views():
            if key.video not in self._owners:
                self._model.reset(key)

    def _views(self) -> list[View]:
        return [key for key in self._model.streams if isinstance(key, View)]

    def owner(self, video: Hashable) -> Any:
        """Who opened a stream last; None where nobody did who is still there."""
        return self._owners.get(video)

    def reset(self, stream: Optional[Hashable] = None) -> None:
        """Forget everything, or a stream."""
        for key in self._views():
            if stream is None or key.video == stream:
                self._model.reset(key)

    def state_dict(self) -> dict[str, list]:
        """All streams; :meth:`plain` makes plain values of them."""
        kept = self._model.snapshot()
        return dict(
            streams=[dict(stream=tuple(k), memory=kept[k]) for k in self._views()]
        )

    def load_state_dict(self, state: dict[str, list]) -> None:
        """Replace the memory, by plain entries or not."""
        kept = self._model.snapshot()
        for key in self._views():
            del kept[key]
        for entry in state['streams']:
            memory = entry['memory']
            if not isinstance(memory, Kept):
                memory = {k: v for k, v in memory.items()}
                memory['memory'] = {k: v.numpy() for k, v in memory['memory'].items()}
                memory = self._model.kept_of(memory)
            kept[View(*entry['stream'][:2])] = memory
        self._model.load_snapshot(kept)

    def plain(self, entries: list[dict]) -> list[dict]:
        """Entries as plain values and tensors."""
        made = []
        for entry in entries:
            memory = entry['memory']
            if isinstance(memory, Kept):
                memory = self._model.plain(memory)
                memory['memory'] = {
                    name: torch.from_numpy(x) for name, x in memory['memory'].items()
                }
            made.append(dict(entry, memory=memory))
        return made


def runner_of(model: Model) -> Union[TorchRunner, OnnxRunner]:
    """The runner of a model.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(model, OnnxModel):
        return OnnxRunner(model)
    if not isinstance(model, nn.Module):
        raise ValueError(
            f'model is a {type(model).__name__}: give what init_recognizer or '
            'init_detector_model returns, or an OnnxModel.'
        )
    return TorchRunner(model)
