"""PersonDetector: boxes of the people in frames, by any detector of mmdet."""

import os
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from torch import nn

from .load_detector import (
    build_detector,
    check_model,
    find_person,
    frame_pipeline,
    scope_of,
)


class PersonDetector:
    """Finds people in frames with an mmdet detector, of any config and checkpoint.

    It can be ``boxes=...`` of :class:`VideoStream` and :class:`MultiStream`, and
    ``det_model=...`` of :func:`inference_stdet`; it is called with one frame at a time
    then. :meth:`detect` takes many.

    Nothing is downloaded: weights that the config would start training from
    (``init_cfg=dict(type='Pretrained', ...)``) are left out, the checkpoint has all.

    Args:
        config (str | Path | Config | nn.Module): The detector's: a file,
            ``'mmdet::...'`` for one of those that mmdet is installed with, or a config.
            Or a detector that is built already, as ``mmdet.apis.init_detector``
            returns it.
        checkpoint (str | Path, optional): Its weights, of which every one must be there
            and fit. Random without.
        device (str | torch.device, optional): By default a GPU if there is one; that of
            a model that is built already.
        score_thr (float): Least score of a person. Defaults to 0.5.
        person (str | int): The name of the class that is a person, in capitals or not,
            or its number. Names are those of the checkpoint's ``dataset_meta``, else
            of the config's test dataset. Defaults to 'person'.
        track (bool): Whether streams that it serves number the people, with
            :class:`IoUTracker`. Defaults to True.
        batch_size (int): Frames that run together in :meth:`detect`. Defaults to 8.
        one_by_one (bool, optional): Run them one by one, so that a frame's boxes are
            the same to the bit whatever runs beside it. By default on a CPU, where
            running together saves next to nothing.

    Raises:
        ValueError, FileNotFoundError: If config or checkpoint are missing or do not fit
            each other, or there is no class for people.

    Examples:
        >>> config = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
        >>> people = PersonDetector(config, device='cpu')
        >>> people(np.zeros((48, 64, 3), np.uint8)).shape[1]
        5
    """

    def __init__(
        self,
        config: Union[str, os.PathLike, Config, nn.Module],
        checkpoint: Union[str, os.PathLike, None] = None,
        device: Union[str, torch.device, None] = None,
        score_thr: float = 0.5,
        person: Union[str, int] = 'person',
        track: bool = True,
        batch_size: int = 8,
        one_by_one: Optional[bool] = None,
    ) -> None:
        if not score_thr >= 0:
            raise ValueError(f'score_thr={score_thr} must be at least 0.')
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size} must be at least 1 frame.')
        if isinstance(config, nn.Module):
            if checkpoint is not None:
                raise ValueError(
                    f'checkpoint={checkpoint} was given with a '
                    f'{type(config).__name__}, which has its weights: leave '
                    'checkpoint out, or give a config.'
                )
            self.model = check_model(config)
            if device is not None:
                self.model.to(device)
        else:
            self.model = build_detector(config, checkpoint, device)
        self.model.eval()
        self.score_thr = float(np.float32(score_thr))
        self.person = find_person(self.model, person)
        """The number of the class that is a person."""
        self.track = track
        self.batch_size = batch_size
        on_cpu = self.device.type == 'cpu'
        self.one_by_one = on_cpu if one_by_one is None else one_by_one
        with scope_of(self.model.cfg):
            self.pipeline = Compose(frame_pipeline(self.model.cfg))

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return next(self.model.parameters()).device

    def __call__(self, image: np.ndarray, time: float = 0.0) -> np.ndarray:
        """The people in one frame.

        Args:
            image (np.ndarray): ``[H, W, 3]`` uint8, RGB.
            time (float): Not used: streams say it to whoever finds their people.

        Returns:
            np.ndarray: float32 ``[people, 5]``: x1, y1, x2, y2 in pixels, inside the
            frame, and score, best first.
        """
        return self.detect([image])[0]

    def detect(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The people in each of many frames, ``batch_size`` at a time.

        Frames of different sizes do not run together: none is padded for another.

        Args:
            images (sequence[np.ndarray]): ``[H, W, 3]`` uint8, RGB each.

        Returns:
            list[np.ndarray]: As of :meth:`__call__`, one for each frame.
        """
        for number, image in enumerate(images):
            shape = getattr(image, 'shape', type(image).__name__)
            dtype = getattr(image, 'dtype', None)
            if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
                told = shape if dtype is None else f'{shape} {dtype}'
                raise ValueError(
                    f'Frame {number} is {told}: give an array [H, W, 3] of uint8, RGB.'
                )
        found: list = [None] * len(images)
        size = 1 if self.one_by_one else self.batch_size
        shapes = [image.shape for image in images]
        for shape in dict.fromkeys(shapes):
            rows = [row for row, other in enumerate(shapes) if other == shape]
            for begin in range(0, len(rows), size):
                batch = rows[begin : begin + size]
                for row, boxes in zip(batch, self._run([images[n] for n in batch])):
                    found[row] = boxes
        return found

    def _run(self, images: list[np.ndarray]) -> list[np.ndarray]:
        # [H, W, RGB] -> [H, W, BGR], as mmdet reads pictures
        data = [
            self.pipeline(dict(img=np.ascontiguousarray(image[..., ::-1]), img_id=0))
            for image in images
        ]
        with torch.no_grad():
            samples = self.model.test_step(pseudo_collate(data))
        return [self._people(*pair) for pair in zip(samples, images)]

    def _people(self, sample: Any, image: np.ndarray) -> np.ndarray:
        found = getattr(sample, 'pred_instances', None)
        if found is None or 'bboxes' not in found:
            raise ValueError(
                f'{type(self.model).__name__} predicts no boxes '
                '(pred_instances.bboxes): give a model for object detection or '
                'instance segmentation.'
            )
        bboxes = getattr(found.bboxes, 'tensor', found.bboxes)
        keep = (found.labels == self.person) & (found.scores >= self.score_thr)
        boxes = bboxes[keep].float().cpu().numpy()
        scores = found.scores[keep].float().cpu().numpy()
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, [width, height, width, height])
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        boxes = np.column_stack([boxes, scores])[inside].astype(np.float32)
        return boxes[np.argsort(-boxes[:, 4], kind='stable')]
