"""BadClipMixin: datasets that stop at a clip that cannot be read, or go on without."""

import os.path as osp
from typing import Any, Optional

import cv2
import numpy as np
import torch
from mmaction.datasets import transforms as mm
from mmaction.structures import ActionDataSample
from mmengine.dataset import Compose

from memvit_mm.structures import BadClipError, MissingClipError

from .transforms.clips import seeded

# MMAction2's transforms that read files. What they raise is about a file, ...
READERS = (
    mm.DecordInit,
    mm.DecordDecode,
    mm.ImageDecode,
    mm.OpenCVInit,
    mm.OpenCVDecode,
    mm.PIMSInit,
    mm.PIMSDecode,
    mm.PyAVInit,
    mm.PyAVDecode,
    mm.RawFrameDecode,
)
# ... except for these, which tell of a wrong config or program.
NOT_ABOUT_A_FILE = (
    AssertionError,
    AttributeError,
    ImportError,
    KeyError,
    MemoryError,
    NameError,
    NotImplementedError,
    TypeError,
)
# How many clips, spread over the dataset, must fail before it is given up.
TRIES = 500


class BadClipMixin:
    """Mixin of mmengine's ``BaseDataset`` for clips that cannot be read.

    By default such a clip stops the run with one sentence that names the file, the
    second and the sample. With ``on_bad_clip='skip'`` a sample takes its place that
    says so: its metainfo has ``skipped``, that sentence, and ``skipped_file``.
    :class:`MemoryRecognizer3D` and :class:`MemoryFastRCNN` leave such a row out before
    they look at anything, so memory, loss and predictions are as if the clip had never
    been in its stream; ``BadClipHook`` logs how many there were.

    A clip is bad if its file does not exist, does not open, does not decode, or has
    not the clip's frames. What augmentation or packing raises always stops the run.

    What a decoder does not report cannot be known: ffmpeg (decord) conceals some of the
    damage in H.264, and after lost bytes in AVI and MKV files it gives other frames.

    Args:
        on_bad_clip (str): ``'stop'`` or ``'skip'``.

    Raises:
        ValueError: If ``on_bad_clip`` is something else, or no clip can be read.
    """

    def __init__(self, *args: Any, on_bad_clip: str = 'stop', **kwargs: Any) -> None:
        if on_bad_clip not in ('stop', 'skip'):
            raise ValueError(
                f"on_bad_clip must be 'stop' or 'skip', got {on_bad_clip!r}."
            )
        self.on_bad_clip = on_bad_clip
        self._readable: Optional[dict] = None
        super().__init__(*args, **kwargs)

    def prepare_data(self, idx: int) -> Optional[dict]:
        """A sample through the pipeline, or what stands in for it."""
        info = self.get_data_info(idx)
        try:
            return self._read(info)
        except BadClipError as error:
            bad = error
        reason = f'{str(bad).rstrip(".")} ({clip_of(info)}'
        if self.on_bad_clip == 'stop':
            raise type(bad)(
                f"{reason}; on_bad_clip='skip' in the dataset goes on without it)."
            ) from bad
        return self._stand_in(info, f'{reason}).')

    def _read(self, info: dict) -> Optional[dict]:
        """The pipeline, with what goes wrong in reading told from the rest."""
        if not isinstance(self.pipeline, Compose):
            return self.pipeline(info)
        for transform in self.pipeline.transforms:
            try:
                info = transform(info)
            except BadClipError:
                raise
            except NOT_ABOUT_A_FILE:
                raise
            except Exception as error:
                if not isinstance(transform, READERS):
                    raise
                raise _bad_clip(info, error) from error
            if info is None:
                return None
        return info

    def _stand_in(self, info: dict, sentence: str) -> dict:
        """A sample without truth that says which clip it stands in for."""
        like = self._any_readable_clip(sentence)
        known = like['data_samples']
        sample = ActionDataSample()
        for name in ('gt_instances', 'proposals'):
            if name in known:
                sample.set_field(known.get(name)[:0], name)
        kept = ('video_id', 'timestamp', 'sample_idx', *known.metainfo_keys())
        meta = {key: info[key] for key in dict.fromkeys(kept) if key in info}
        file = _file_of(info)
        sample.set_metainfo(dict(meta, skipped=sentence, skipped_file=file))
        return dict(inputs=_small(like['inputs']), data_samples=sample)

    def _any_readable_clip(self, sentence: str) -> dict:
        """A packed sample: proof that some clip can be read, and its shape."""
        if self._readable is None:
            places = np.linspace(0, len(self) - 1, min(len(self), TRIES))
            for index in np.unique(places.astype(int)).tolist():
                try:
                    with seeded(0):  # the draws of other clips stay as they are
                        packed = self._read(self.get_data_info(index))
                except BadClipError:
                    continue
                if packed is not None:
                    self._readable = dict(packed, inputs=_small(packed['inputs']))
                    break
            else:
                raise ValueError(
                    f'None of {len(places)} clips could be read, tried over the whole '
                    f'of {self.ann_file}; one of them: {sentence}'
                )
        return self._readable


def clip_of(info: dict) -> str:
    """A sample in words: its index, video and second."""
    words = [f'sample {info.get("sample_idx")}']
    for name, key in (('video', 'video_id'), ('second', 'timestamp')):
        if key in info:
            words.append(f'{name} {info[key]!r}')
    return ', '.join(words)


def _file_of(info: dict) -> str:
    return str(info.get('filename') or info.get('frame_dir') or '')


def _bad_clip(info: dict, error: Exception) -> BadClipError:
    """What one of MMAction2's transforms raised, with the file that it is about."""
    second = f'second {info.get("timestamp")}'
    frame = _bad_frame(info)
    if frame is not None and not osp.isfile(frame):
        return MissingClipError(
            f'Frame {frame} of {second} does not exist: extract the frames again, or '
            'leave the clip out.'
        )
    cause = next(iter(str(error).strip().splitlines()), '')
    return BadClipError(
        f'{frame or _file_of(info)} cannot be decoded at {second} '
        f'({type(error).__name__}: {cause}): it is damaged; download, encode or '
        'extract it again, or leave it out.'
    )


def _bad_frame(info: dict) -> Optional[str]:
    """The first of a clip's frames on disk that is missing or no picture."""
    folder, template = info.get('frame_dir'), info.get('filename_tmpl')
    indices = info.get('frame_inds')
    if indices is None or not folder or '://' in folder or info['modality'] != 'RGB':
        return None
    for index in dict.fromkeys(np.ravel(indices).tolist()):
        path = osp.join(folder, template.format(index + info.get('offset', 0)))
        if not osp.isfile(path) or cv2.imread(path) is None:
            return path
    return None


def _small(inputs: Any) -> Any:
    """Zeros of the same form; one pixel each, so that no other row is padded."""
    if isinstance(inputs, dict):
        return {key: _small(value) for key, value in inputs.items()}
    return torch.zeros_like(inputs[..., :1, :1])
