"""AVA for models with memory: streams without holes, from frames or videos."""

import inspect
import os.path as osp
from collections.abc import Iterable, Sequence
from typing import Any, Optional

import numpy as np
from mmaction.datasets import AVADataset
from mmaction.datasets.base import BaseActionDataset
from mmaction.registry import DATASETS
from mmengine.logging import MMLogger

from memvit_mm.datasets.bad_clip_mixin import BadClipMixin
from memvit_mm.datasets.media import MediaMixin
from memvit_mm.datasets.sampling.stream_keys import StreamKeysMixin, with_stream

from .files import (
    Keyframe,
    first_label,
    read_annotations,
    read_exclusions,
    read_proposals,
)

VIDEO_EXTS = ('.mp4', '.mkv', '.webm', '.avi', '.mov', '.m4v', '.mpg', '.mpeg')


@DATASETS.register_module()
class MemoryAVADataset(StreamKeysMixin, BadClipMixin, MediaMixin, AVADataset):
    """MMAction2's ``AVADataset`` with all keyframes, strict boxes and plain errors.

    Same files, layout and samples, with these differences:

    - ``keyframes='detected'``: the samples are all keyframes with a detected person,
      whether annotated or not, so that a video's stream has no holes where nobody was
      annotated. Those without ground truth get ``gt_bboxes`` ``[0, 4]``,
      ``gt_labels`` ``[0, num_classes]`` and ``entity_ids`` ``[0]``. In training,
      keyframes with ground truth and no detection are samples, too.
    - The score threshold holds. MMAction2 keeps the best box of a keyframe in which
      none reaches it (``keep_best_proposal=True`` does too), and invents a box as
      large as the frame where the file has none. Here such a keyframe has
      ``proposals`` ``[0, 4]``.
    - Videos are found under their extension, and a missing one is reported before the
      run, not in the middle of it. Of a folder of frames the number is looked up, so
      that the last clips of a short video do not ask for frames it has not.
    - Proposals travel with their sample, in memory that workers share; the file is
      read by an unpickler that runs no code.
    - Files are read in linear time: AVA's 837,318 training lines in seconds.

    Args:
        *args: As ``AVADataset``, in its order. Two differ: ``start_index`` defaults to
            1 for frames and 0 for videos; of videos, ``<img>/<video>`` or
            ``<img>/<video><video_ext>`` is read, where ``<img>`` is
            ``data_prefix['img']``. ``fps=1`` means that timestamps count frames, as in
            MultiSports, where labels count from 0, too.
        keyframes (str, optional): ``'annotated'``, those in ``ann_file`` as in
            MMAction2, or ``'detected'``, those of the same videos with a person box in
            ``proposal_file`` that reaches the threshold and, in training, also those
            in ``ann_file``. Defaults to ``'detected'`` in ``test_mode`` if there is a
            ``proposal_file``, else ``'annotated'``.
        video_ext (str): Extension of the videos; where there is no such file, the
            others that are usual are tried.
        keep_best_proposal (bool): Keep the best box where none reaches the threshold.
        check_files (bool): Look up videos and frames at the start, for local paths.
            Where some are missing, that is an error; where all are, one that
            ``SequentialClipSampler`` raises, so that annotations can be looked at.
        on_bad_clip (str): ``'stop'`` the run at a clip that cannot be read, or
            ``'skip'`` it: its stream goes on as if it had not been there. See
            :class:`BadClipMixin`. Videos that are missing at the start are told.
        keyframe_range (Sequence[int], optional): First and last second of keyframes;
            others are left out. AVA's is ``(902, 1798)``. Defaults to no limit.
        **kwargs: As mmengine's ``BaseDataset``.

    A sample has, besides what MMAction2's has, ``video_id`` (str), ``timestamp``
    (int, seconds), ``img_key`` (``'video,0902'``) and ``stream``. Boxes are
    fractions of the frame until it is decoded, then pixels. With proposals it has
    ``whole_frame_boxes``, too: ``gt_bboxes`` and ``proposals`` as fractions of the
    frame, which no transform changes. With these among the ``meta_keys`` of
    ``PackActionInputs``, :class:`MemoryAVARoIHead` matches people with their ground
    truth, and reports them, as they were detected, whatever a crop left of them.

    Raises:
        ValueError, FileNotFoundError: In one sentence that names the file and line, for
            what is missing, unreadable or of another format.
    """

    no_media: Optional[str] = None
    """Why no video can be read, where none is on disk."""

    def __init__(
        self,
        *args: Any,
        keyframes: Optional[str] = None,
        video_ext: str = '.mp4',
        keep_best_proposal: bool = False,
        check_files: bool = True,
        keyframe_range: Optional[Sequence[int]] = None,
        **kwargs: Any,
    ) -> None:
        options = inspect.signature(AVADataset).bind(*args, **kwargs).arguments
        options.update(options.pop('kwargs', {}))
        if keyframes not in (None, 'annotated', 'detected'):
            raise ValueError(
                f"keyframes must be 'annotated' or 'detected', got {keyframes!r}."
            )
        proposal_file = options.pop('proposal_file', None)
        if keyframes == 'detected' and proposal_file is None:
            raise ValueError(
                "keyframes='detected' needs a proposal_file: name it, or set "
                "keyframes='annotated'."
            )
        threshold = options.get('person_det_score_thr', 0.9)
        if not 0 <= threshold <= 1:
            raise ValueError(
                f'person_det_score_thr must be between 0 and 1, got {threshold}.'
            )
        if keyframe_range is not None and (
            len(keyframe_range) != 2 or keyframe_range[0] > keyframe_range[1]
        ):
            raise ValueError(
                'keyframe_range must be the first and the last second, such as '
                f'(902, 1798), got {keyframe_range!r}.'
            )
        if options.get('custom_classes') is not None and not options.get('label_file'):
            raise ValueError(
                'custom_classes needs the label_file that they are chosen from.'
            )
        if keyframes is None:
            detected = options.get('test_mode') and proposal_file is not None
            keyframes = 'detected' if detected else 'annotated'
        if options.get('start_index') is None:
            options['start_index'] = 1 if options.get('use_frames', True) else 0
        self.keyframes = keyframes
        self.keyframe_range = keyframe_range
        self.video_ext = video_ext
        self.keep_best_proposal = keep_best_proposal
        self.check_files = check_files
        self._proposals_path = proposal_file
        # Proposals are merged into the samples; AVADataset would load them once more.
        super().__init__(**options)
        self.proposal_file = proposal_file

    def load_data_list(self) -> list[dict]:
        """Merge annotations and proposals into one record per keyframe."""
        videos, annotations = read_annotations(
            self.ann_file,
            self.num_classes,
            self.custom_classes,
            first_label(self._FPS, self.multilabel),
        )
        proposals = None
        if self._proposals_path is not None:
            proposals = read_proposals(self._proposals_path, dtype=None)
            self._check_keys(annotations, proposals)
            proposals = {
                keyframe: self._above_threshold(boxes)
                for keyframe, boxes in proposals.items()
            }
        if self.keyframes == 'detected':
            place = {video: number for number, video in enumerate(videos)}
            people = {
                key
                for key, boxes in proposals.items()
                if len(boxes) and key[0] in place
            }
            if not self.test_mode:
                people.update(annotations)
            chosen: Sequence[Keyframe] = sorted(
                people, key=lambda key: (place[key[0]], key[1])
            )
        else:
            chosen = list(annotations)
        excluded = read_exclusions(self.exclude_file)
        kept = [keyframe for keyframe in chosen if keyframe not in excluded]
        if self.keyframe_range is not None:
            first, last = self.keyframe_range
            kept = [keyframe for keyframe in kept if first <= keyframe[1] <= last]
        MMLogger.get_current_instance().info(
            f'{len(kept)} out of {len(chosen)} frames are valid.'
        )
        if not kept:
            raise ValueError(
                f'{self.ann_file} leaves no keyframe: {len(annotations)} annotated, '
                f'keyframes={self.keyframes!r} chooses {len(chosen)}, and all of these '
                'are excluded; check exclude_file, custom_classes, '
                f'keyframe_range={self.keyframe_range} and '
                f'person_det_score_thr={self.person_det_score_thr}.'
            )
        sources = self.find_media(dict.fromkeys(video for video, _ in kept))
        return [
            self._record(keyframe, annotations, proposals, sources[keyframe[0]])
            for keyframe in kept
        ]

    def stream_keys(self) -> tuple[list[str], np.ndarray]:
        """As :class:`StreamKeysMixin`'s; a run that could read nothing ends here."""
        keys = super().stream_keys()
        if self.no_media is not None:
            raise FileNotFoundError(self.no_media)
        return keys

    def filter_data(self) -> list[dict]:
        """Nothing is left to filter: ``load_data_list`` knows the excluded ones."""
        return self.data_list

    def get_data_info(self, idx: int) -> dict:
        """A sample's dict, as the pipeline gets it."""
        # AVADataset's would look for proposals in a table of its own.
        info = with_stream(BaseActionDataset.get_data_info(self, idx))
        info['filename_tmpl'] = self.filename_tmpl
        info['timestamp_start'] = self.timestamp_start
        info['timestamp_end'] = self.timestamp_end
        info.update(info.pop('ann'))
        if 'proposals' in info:
            info['whole_frame_boxes'] = {
                key: info[key].copy() for key in ('gt_bboxes', 'proposals')
            }
        return info

    def _check_keys(self, annotations: dict, proposals: dict) -> None:
        if annotations and not any(key in proposals for key in annotations):
            video, second = next(iter(annotations))
            found = ', '.join(f'{v},{t:04d}' for v, t in list(proposals)[:3])
            raise ValueError(
                f'Proposal file {self._proposals_path} has boxes for none of the '
                f'keyframes in {self.ann_file}: found keys such as {found or "none"}, '
                f'expected such as {video},{second:04d}; check that both are of the '
                'same split and count seconds alike.'
            )

    def _above_threshold(self, boxes: np.ndarray) -> np.ndarray:
        """The boxes ``[n, 5]`` to be used."""
        # A plain number, which numpy compares in the precision of the scores.
        threshold = float(self.person_det_score_thr)
        if self.keep_best_proposal and len(boxes):
            threshold = min(threshold, boxes[:, 4].max())
        return boxes[boxes[:, 4] >= threshold][: self.num_max_proposals]

    def _record(
        self,
        keyframe: Keyframe,
        annotations: dict,
        proposals: Optional[dict],
        source: dict,
    ) -> dict:
        video, second = keyframe
        record = dict(
            source,
            video_id=video,
            timestamp=second,
            img_key=f'{video},{second:04d}',
            fps=self._FPS,
            ann=self._annotation(annotations.get(keyframe, {})),
        )
        if proposals is not None:
            boxes = proposals.get(keyframe, np.zeros((0, 5), dtype=np.float32))
            record['proposals'] = np.ascontiguousarray(boxes[:, :4])
            record['scores'] = np.ascontiguousarray(boxes[:, 4])
        return record

    def _annotation(self, boxes: dict[tuple, tuple[int, list[int]]]) -> dict:
        """A keyframe's ground truth, in the form of ``AVADataset``."""
        people = np.array([person for person, _ in boxes.values()], dtype=np.int64)
        if self.multilabel:
            labels = np.zeros((len(boxes), self.num_classes), dtype=np.float32)
            for row, (_, of_box) in enumerate(boxes.values()):
                labels[row, of_box] = 1.0
        else:
            labels = np.array([of_box for _, of_box in boxes.values()], dtype=np.int64)
            labels = labels if len(boxes) else labels.reshape(0, 1)
        return dict(
            gt_bboxes=np.array(list(boxes), dtype=np.float64).reshape(-1, 4),
            gt_labels=labels,
            entity_ids=people,
        )

    def find_media(self, videos: Iterable[str]) -> dict[str, dict]:
        """Look the videos up, unless ``check_files`` is off or they are not local.

        Args:
            videos (Iterable[str]): Their ids.

        Returns:
            dict[str, dict]: What the pipeline needs to open each of them.

        Raises:
            FileNotFoundError: If some are missing and that is an error. Where all are,
                ``no_media`` says so afterwards.
        """
        prefix = self.data_prefix.get('img') or ''
        check = self.check_files and '://' not in prefix
        found, missing = {}, []
        for video in videos:
            path = osp.join(prefix, video)
            if self.use_frames:
                total = self._num_frames(path) if check else self._span
                found[video] = dict(
                    frame_dir=path, shot_info=(0, total), total_frames=total
                )
                if total == 0:
                    missing.append(self.frame_path(path, 0))
            else:
                name = video_file(path, self.video_ext, check)
                found[video] = dict(filename=name, shot_info=None)
                if check and not osp.isfile(name):
                    missing.append(name)
        if missing:
            kind = 'frames' if self.use_frames else 'videos'
            option = 'filename_tmpl' if self.use_frames else 'video_ext'
            sentence = (
                f'{len(missing)} of {len(found)} {kind} do not exist, the first is '
                f'{missing[0]}: check data_prefix, {option} and use_frames='
                f'{self.use_frames}, or take the videos out of {self.ann_file}.'
            )
            # 'skip' with nothing to read, or 'stop' that would come in mid-run.
            if (len(missing) == len(found)) == (self.on_bad_clip == 'skip'):
                raise FileNotFoundError(sentence)
            if self.on_bad_clip == 'stop':
                # As AVADataset, for who only looks; stream_keys stops a run.
                self.no_media = sentence
                for source in found.values() if self.use_frames else ():
                    source.update(shot_info=(0, self._span), total_frames=self._span)
            MMLogger.get_current_instance().warning(sentence)
        return found

    @property
    def _span(self) -> int:
        """Frames of a video, as MMAction2 assumes."""
        return (self.timestamp_end - self.timestamp_start) * self._FPS

    def _num_frames(self, folder: str) -> int:
        """Frames in a folder, at most the expected number."""
        if self.modality != 'RGB':
            return self._span if osp.isdir(folder) else 0
        if osp.exists(self.frame_path(folder, self._span - 1)):
            return self._span
        return min(self.count_frames(folder), self._span)


def video_file(path: str, video_ext: str = '.mp4', check: bool = True) -> str:
    """The file of a video: the one named so, or under an extension that is usual.

    Args:
        path (str): Folder and video id, which may end in the extension.
        video_ext (str): The extension that is tried first.
        check (bool): Look for the file. Without, or where there is none, the name that
            is expected.
    """
    if check:
        for ext in ('', video_ext, *VIDEO_EXTS):
            if osp.isfile(path + ext):
                return path + ext
    named = osp.splitext(path)[1].lower() in VIDEO_EXTS
    return path if named else path + video_ext
