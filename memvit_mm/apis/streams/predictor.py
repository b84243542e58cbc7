"""Predictor: a model with its test pipeline, which the streams of a model share."""

import copy
import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple, Optional, Union
from weakref import WeakKeyDictionary

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from memvit_mm.apis.models.classes import Labels
from memvit_mm.apis.models.load_model import load_config
from memvit_mm.apis.models.results import EpicPrediction, PeoplePrediction, Prediction
from memvit_mm.apis.people.boxes import BoxSource, PersonBoxes, box_source
from memvit_mm.datasets.clip_recipe import read_recipe

from .clip_buffer import Clip
from .runners import Model, runner_of

# One for each model, held while it runs or its memory changes, in whatever thread.
_locks: WeakKeyDictionary = WeakKeyDictionary()
_locks_lock = threading.Lock()


class PreparedClip(NamedTuple):
    """A clip as the model takes it."""

    about: dict[str, Any]
    """``stream``, ``number``, and ``time``, ``start`` and ``end`` in seconds, as in its
    :class:`Prediction`."""
    data: dict
    """``inputs`` ``[views, C, T, H, W]`` uint8 and ``data_samples``."""
    people: Optional[PersonBoxes]


class Predictor:
    """A model with its config's test pipeline.

    Args:
        model (nn.Module | OnnxModel): A recognizer or detector, as ``init_recognizer``
            gives it, which is put into evaluation mode; or what was exported of one.
        cfg (Config | str, optional): Its config. Defaults to ``model.cfg``; an
            ``OnnxModel`` has none.
        boxes (callable | Mapping | str, optional): Where people are, for detectors, see
            :class:`VideoStream`.
        labels (optional): Names of the classes, see :class:`VideoStream`.
        sampler (dict, optional): See :func:`read_recipe`.

    Raises:
        ValueError: If there is no config, or a detector has no boxes.
    """

    def __init__(
        self,
        model: Model,
        cfg: Union[Config, str, None] = None,
        boxes: Optional[BoxSource] = None,
        labels: Labels = None,
        sampler: Optional[dict] = None,
    ) -> None:
        self.runner = runner_of(model)
        cfg = cfg if cfg is not None else self.runner.cfg
        if cfg is None:
            raise ValueError(
                'The model has no config (model.cfg), which says how frames become '
                'clips: build it with mmaction.apis.init_recognizer, or give cfg=....'
            )
        if not hasattr(cfg, 'get'):
            cfg = load_config(cfg)
        self.model = model
        self.cfg = cfg
        self.detects = self.runner.detects
        if self.detects and boxes is None:
            raise ValueError(
                f'{self.runner.name} classifies people in boxes: give boxes=..., a '
                'function of a frame [H, W, 3] and its time in seconds that returns '
                'boxes [people, 4] in pixels, or a proposal file.'
            )
        if not self.detects and boxes is not None:
            raise ValueError(
                f'{self.runner.name} classifies whole clips: leave boxes=... out.'
            )
        init_default_scope(cfg.get('default_scope') or 'mmaction')
        self.recipe = read_recipe(cfg, sampler)
        self.boxes = box_source(boxes, cfg)
        with _locks_lock:
            self._lock = _locks.setdefault(model, threading.RLock())
        # MMAction2's Resize keeps what it does on itself: one for each thread.
        self._of_thread = threading.local()
        self.classes = self.runner.classes(cfg, labels)

    # ------------------------------------------------------------------- the memory

    @property
    def memory(self) -> Any:
        """The model's ``ClipMemory`` or ``OnnxMemory``, None where it has none."""
        return self.runner.memory

    @property
    def memory_steps(self) -> int:
        """Clips that a layer of the model looks back at most; 0 without a memory."""
        return self.runner.memory_steps

    def begin(self, stream: Hashable, owner: Any) -> None:
        """A stream begins, with an empty memory.

        Raises:
            ValueError: If its name cannot be one.
        """
        try:
            hash(stream)
        except TypeError:
            raise ValueError(
                f'name={stream!r} cannot name a stream: give a string or a number.'
            ) from None
        self.forget(stream)
        if self.memory is not None:
            self.memory.open(stream, owner)

    def check_owner(self, stream: Hashable, owner: Any) -> None:
        """Refuse a stream whose memory another one of its name took over.

        Raises:
            ValueError: If that happened.
        """
        if self.memory is not None and self.memory.owner(stream) is not owner:
            raise ValueError(
                f'Another stream of the name {stream!r} began with this model, and its '
                'memory is kept under the name: give each one a name of its own.'
            )

    def forget(self, stream: Hashable) -> None:
        """Drop what is remembered of a stream."""
        if self.memory is not None:
            with self._lock:
                self.memory.reset(stream)

    def remembered(self, *streams: Hashable) -> list[dict]:
        """What is remembered of some streams; :meth:`plain` is to be saved."""
        if self.memory is None:
            return []
        with self._lock:
            entries = self.memory.state_dict()['streams']
        return [e for e in entries if e['stream'][0] in streams]

    def plain(self, entries: list[dict]) -> list[dict]:
        """What :meth:`remembered` gave as plain values and tensors."""
        return self.runner.plain(entries)

    def remember(self, entries: list[dict], *streams: Hashable) -> None:
        """Take back what :meth:`remembered` gave, plain or not, of some streams and no
        others.

        Args:
            entries (list[dict]): Of these streams, and maybe of others.
            *streams: Their names; what is remembered of others is left as it is.

        Raises:
            ValueError: If they are of a model in ONNX and this one is in PyTorch, or
                the other way round.
        """
        if self.memory is None:
            return
        entries = [e for e in entries if e['stream'][0] in streams]
        if any(self.runner.saved_as not in entry for entry in entries):
            raise ValueError(
                'The state was saved with a model of another kind, PyTorch or ONNX: go '
                'on with one of that kind, or begin anew.'
            )
        with self._lock:
            others = self.memory.state_dict()['streams']
            others = [e for e in others if e['stream'][0] not in streams]
            self.memory.load_state_dict(dict(streams=others + entries))

    # -------------------------------------------------------------------- the clips

    def prepare(
        self,
        stream: Hashable,
        clip: Clip,
        fps: float,
        origin: float = 0.0,
        video: Optional[str] = None,
    ) -> PreparedClip:
        """Find the people in a clip and run the rest of the test pipeline on it.

        Args:
            stream (Hashable): The stream's name.
            clip (Clip): Complete.
            fps (float): Of the stream.
            origin (float): Time of the stream's first frame, in seconds.
            video (str, optional): Its name in proposals. Defaults to ``stream``.
        """
        key = len(clip.images) // 2 if self.recipe.centered else -1
        time, video = origin + clip.time, stream if video is None else video
        results = dict(
            clip.sampled,
            imgs=list(clip.images),
            original_shape=clip.images[0].shape[:2],
            img_shape=clip.images[0].shape[:2],
            video_id=stream,
            timestamp=clip.time,
            img_key=f'{video},{clip.time:g}',
        )
        people = None
        if self.boxes is not None:
            find_time = clip.time if hasattr(self.boxes, 'table') else time
            people = self.boxes(clip.images[key], video, find_time)
            classes = self.runner.num_classes
            results.update(
                gt_bboxes=np.zeros((0, 4), dtype=np.float32),
                gt_labels=np.zeros((0, classes), dtype=np.float32),
                proposals=people.boxes,
                scores=people.scores,
            )
        for transform in self._transforms():
            results = transform(results)
        results['data_samples'].set_metainfo(dict(video_id=stream, timestamp=clip.time))
        about = dict(
            stream=stream,
            number=clip.number,
            time=time,
            start=origin + int(clip.frame_inds[0]) / fps,
            end=origin + int(clip.frame_inds[-1]) / fps,
        )
        return PreparedClip(about, results, people)

    def _transforms(self) -> Iterable[Any]:
        """The pipeline of this thread."""
        mine = self._of_thread
        if not hasattr(mine, 'transforms'):
            mine.transforms = copy.deepcopy(self.recipe.transforms)
        return mine.transforms

    def predict(self, clips: Sequence[PreparedClip]) -> list[Prediction]:
        """What the model says about some clips, of any streams, in one batch."""
        samples = [clip.data['data_samples'] for clip in clips]
        # MMAction2's detectors fail where nobody is, and have nothing to remember.
        rows = [
            row
            for row, clip in enumerate(clips)
            if self.memory is not None or clip.people is None or len(clip.people.boxes)
        ]
        if rows:
            with self._lock:
                found = self.runner.run([clips[row].data for row in rows])
            for row, sample in zip(rows, found):
                samples[row] = sample
        return [self._result(*pair) for pair in zip(clips, samples)]

    def _result(self, clip: PreparedClip, sample: Any) -> Prediction:
        names = self.classes.names
        about = dict(clip.about, names=names.get('actions'), data_sample=sample)
        if self.detects:
            scores = np.zeros((0, self.runner.num_classes), 'f4')
            if 'pred_instances' in sample:
                scores = sample.pred_instances.scores.float().numpy()
            return PeoplePrediction(
                **about,
                scores=scores,
                boxes=clip.people.boxes,
                box_scores=clip.people.scores,
                track_ids=clip.people.track_ids,
                reserved=self.classes.reserved,
            )
        scores = sample.pred_score.float().numpy()
        # A head that averages no views has a row for each.
        scores = scores.mean(axis=0) if scores.ndim == 2 else scores
        if 'verb_logits' not in sample:
            return Prediction(**about, scores=scores)
        verbs = len(sample.verb_logits)
        return EpicPrediction(
            **about,
            scores=scores,
            verb_scores=scores[:verbs],
            noun_scores=scores[verbs:],
            verbs=names.get('verbs'),
            nouns=names.get('nouns'),
        )


def predictor_of(model: Union[Model, Predictor], **options: Any) -> Predictor:
    """A model's predictor, or what is one already.

    Raises:
        ValueError: As :class:`Predictor`, or if a predictor comes with options of it.
    """
    if not isinstance(model, Predictor):
        return Predictor(model, **options)
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f'{given[0]}=... belongs to the {type(model).__name__}: give it there.'
        )
    return model
