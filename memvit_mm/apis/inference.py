"""Recognizers on whole videos: MMAction2's functions and inferencer, with more."""

import os.path as osp
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from mmaction.apis import ActionRecogInferencer
from mmaction.apis import inference_recognizer as mmaction_inference
from mmaction.registry import INFERENCERS
from mmaction.structures import ActionDataSample
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import nn

from memvit_mm.datasets.clip_recipe import test_dataset
from memvit_mm.video.video_file import check_choice

from .models.classes import Labels, classes_of
from .models.load_model import ConfigLike, init_model, load_config
from .whole_video import FORMATS, WholeVideo, WholeVideoPipeline


def init_recognizer(
    config: ConfigLike,
    checkpoint: Optional[str] = None,
    device: Union[str, torch.device, None] = None,
) -> nn.Module:
    """Build a recognizer, from a config in any directory and weights that must fit.

    Args:
        config (str | Path | Config): A file, one of this package's configs by name
            (``'memvit_epic_cls.py'``), or a config.
        checkpoint (str, optional): Path or address of the weights. Random without.
        device (str | torch.device, optional): By default a GPU if there is one.

    Raises:
        ValueError, FileNotFoundError: If the config or the checkpoint is missing, is
            something else, or they do not fit each other.

    Examples:
        >>> model = init_recognizer('memvit_demo_epic_cls.py', device='cpu')
        >>> type(model).__name__
        'MemoryRecognizer3D'
    """
    return init_model('recognizer', config, checkpoint, device)


def inference_recognizer(
    model: nn.Module,
    video: Union[str, Path, np.ndarray, dict],
    test_pipeline: Union[Callable, Sequence[dict], None] = None,
    fps: float = 30.0,
    on_bad_clip: str = 'stop',
) -> ActionDataSample:
    """Recognize what happens in a video, clip by clip, beginning with an empty memory.

    MMAction2's function of this name does the same for these models; this one takes
    more kinds of videos and pipelines, and any recognizer.

    Args:
        model (nn.Module): From ``init_recognizer``.
        video (str | Path | np.ndarray | dict): A file, a folder of frames
            (``img_00001.jpg``, ...), an array ``[T, H, W, 3]`` uint8 RGB, or what the
            pipeline takes, such as ``dict(frame_dir=..., filename_tmpl=...)``.
        test_pipeline (callable | sequence[dict], optional): Instead of the config's.
        fps (float): Frames per second of a folder or an array. Defaults to 30.
        on_bad_clip (str): ``'stop'`` where frames cannot be decoded, or ``'skip'`` the
            clips that need them, with a warning. Defaults to 'stop'.

    Returns:
        ActionDataSample: The video's result, see
        :meth:`memvit_mm.apis.whole_video.WholeVideo.play`; ``clip_scores`` and
        ``clip_times`` keep those of its clips. A pipeline that reads one clip of a
        video (MMAction2's ``SampleFrames``) gives that clip's.

    Raises:
        ValueError, FileNotFoundError: If there is no such video, or it is damaged or
            too short.
    """
    cfg = getattr(model, 'cfg', None) or {}
    if test_pipeline is None:
        test_pipeline = cfg.get('test_pipeline') or test_dataset(cfg).get('pipeline')
    if test_pipeline is None:
        raise ValueError(
            'The model has no cfg that says how it is tested (it has no test_pipeline '
            'and no test_dataloader.dataset.pipeline): make it with init_recognizer, '
            'or give test_pipeline.'
        )
    init_default_scope(cfg.get('default_scope', 'mmaction'))
    if isinstance(test_pipeline, Compose):
        test_pipeline = test_pipeline.transforms
    elif callable(test_pipeline):
        test_pipeline = [test_pipeline]
    pipeline = WholeVideoPipeline(test_pipeline, fps, on_bad_clip)
    if pipeline.reads_whole_videos:
        return WholeVideo(pipeline, video).play(model)
    if isinstance(video, (str, Path)) and not osp.exists(video):
        raise FileNotFoundError(f'Video {video} does not exist: check its path.')
    video = str(video) if isinstance(video, Path) else video
    return mmaction_inference(model, video, pipeline)


@INFERENCERS.register_module()
class MemViTInferencer(ActionRecogInferencer):
    """MMAction2's ``ActionRecogInferencer``, with names of what is done and when.

    Args:
        rec (str | Path | Config): A file, one of this package's configs by name, or a
            config.
        weights (str, optional): Path or address of the weights. Random without.
        device (str, optional): By default a GPU if there is one.
        labels (optional): Names of the classes: a file (``.txt`` with one a line,
            ``.pbtxt``, ``.csv``), a list, or ``dict(verbs=..., nouns=...)`` of these.
            By default those that the checkpoint or the config's files have.
        input_format (str): 'video', 'rawframes' or 'array', as in MMAction2.
        pack_cfg (dict): As ``ActionRecogInferencer``.
        scope (str): As ``ActionRecogInferencer``, whose order the arguments up to here
            have.
        top_k (int): Classes to name. Defaults to 5.

    A call takes and returns what MMAction2's does. Each of ``predictions`` has, besides
    ``pred_labels`` and ``pred_scores``: ``top``, the best classes, ``[name, score]``
    each (for EPIC-KITCHENS ``top_verbs`` and ``top_nouns``); and ``clips``, the same
    for each clip with its ``time`` in seconds. All of it can be written as JSON.

    Raises:
        ValueError, FileNotFoundError: As ``init_recognizer``, and for label files.

    Examples:
        >>> import numpy as np
        >>> recognize = MemViTInferencer(
        ...     'memvit_demo_epic_cls.py', device='cpu', input_format='array',
        ...     labels=dict(verbs=['take', 'put', 'cut', 'wash'], nouns=list('abcdef')))
        >>> video = np.zeros((150, 48, 48, 3), np.uint8)  # [T, H, W, RGB], 5 seconds
        >>> prediction = recognize(video, progress=False)['predictions'][0]
        >>> [clip['time'] for clip in prediction['clips']]
        [2.0, 4.0]
        >>> len(prediction['top_verbs'])
        4
    """

    def __init__(
        self,
        rec: ConfigLike,
        weights: Optional[str] = None,
        device: Optional[str] = None,
        labels: Labels = None,
        input_format: str = 'video',
        pack_cfg: dict = dict(),
        scope: Optional[str] = 'mmaction',
        *,
        top_k: int = 5,
    ) -> None:
        check_choice('input_format', input_format, tuple(FORMATS))
        self.top_k = top_k
        super().__init__(
            load_config(rec),
            weights,
            device,
            input_format=input_format,
            pack_cfg=pack_cfg,
            scope=scope,
        )
        self.classes = classes_of(self.model, self.cfg, labels)

    def _init_model(self, cfg: Any, weights: Optional[str], device: str) -> nn.Module:
        # Strict about the weights, and what runs is what init_recognizer returns.
        return init_recognizer(cfg, weights, device)

    def __call__(
        self, inputs: Any, *args: Any, progress: bool = True, **kwargs: Any
    ) -> dict:
        """Recognize videos; see ``ActionRecogInferencer`` for the other arguments.

        Args:
            inputs (str | Path | np.ndarray | list): One video or several.
            progress (bool): Show a bar. Defaults to True.
        """
        self.show_progress = progress
        if not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        inputs = [str(one) if isinstance(one, Path) else one for one in inputs]
        return super().__call__(inputs, *args, **kwargs)

    def pred2dict(self, data_sample: ActionDataSample) -> dict:
        """A video's result as plain values."""
        plain = super().pred2dict(data_sample)
        plain.update(self._named(data_sample.pred_score))
        if 'clip_scores' in data_sample:
            plain['clips'] = [
                dict(time=time, **self._named(scores))
                for time, scores in zip(
                    data_sample.clip_times.tolist(), data_sample.clip_scores
                )
            ]
        return plain

    def postprocess(self, preds: Any, *args: Any, **kwargs: Any) -> dict:
        """As MMAction2's; ``print_result`` prints a line per video and clip."""
        show = kwargs.pop('print_result', False)
        results = super().postprocess(preds, *args, **kwargs)
        for sample in preds if show else ():
            plain = self.pred2dict(sample)
            print(f'{sample.metainfo.get("video_id", "video")}: {_sentence(plain)}')
            for clip in plain.get('clips', ()):
                print(f'{clip["time"]:8.2f} s  {_sentence(clip)}')
        return results

    def _named(self, scores: torch.Tensor) -> dict[str, list]:
        """The best classes of scores [classes]."""
        values = scores.detach().cpu().float().numpy()
        return {
            'top' if group.kind == 'actions' else f'top_{group.kind}': [
                [name, score] for name, score in group.best(self.top_k)
            ]
            for group in self.classes.groups(values)
        }


def _sentence(plain: dict) -> str:
    """The three best classes of each kind, in one line."""
    kinds = [key for key in ('top', 'top_verbs', 'top_nouns') if key in plain]
    return ' | '.join(
        ', '.join(f'{name} {score:.2f}' for name, score in plain[kind][:3])
        for kind in kinds
    )
