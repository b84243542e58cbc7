"""FiniteLossHook: stop at a loss that is not finite, and name the clips."""

import math
from typing import Any

import torch
from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from memvit_mm.structures import is_skipped, samples_of


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop the run at the first loss that is nan or infinite.

    The message names the videos and times of that batch, on the process that had it.
    No checkpoint is written from then on: this hook comes before those that save, and
    on the other processes, which such a loss reaches with the gradients, weights that
    are not finite are not saved.

    Losses are checked before they are scaled for float16. Gradients that are not finite
    are left to the gradient scaler.

    Reads the losses from the GPU in each iteration, right after mmengine did.

    Raises:
        ValueError: If a loss, or a weight to be saved, is not finite.
    """

    # After the loss is logged, before anything is made of it.
    priority = 'HIGH'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Check the losses of this iteration."""
        values = _not_finite(outputs) if isinstance(outputs, dict) else {}
        if not values:
            return
        # 'loss' is the sum of the others.
        parts = {name: value for name, value in values.items() if name != 'loss'}
        named = ', '.join(f'{key}={value}' for key, value in (parts or values).items())
        raise ValueError(
            f'The loss is not finite at iteration {runner.iter + 1} ({named}), in the '
            f'batch of {clips_of(data_batch)}: nothing was saved since; look at these '
            'clips, or go on from the last checkpoint (--resume) with a lower learning '
            'rate or optim_wrapper.clip_grad.'
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save weights that are not finite."""
        iteration = checkpoint.get('meta', {}).get('iter', runner.iter)
        for name, parameter in runner.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ValueError(
                    f'{name} is not finite after iteration {iteration}, so no '
                    'checkpoint is written: go on from the last one (--resume) with a '
                    'lower learning rate or optim_wrapper.clip_grad; if the loss of '
                    'another process was not finite, that one names the clips.'
                )


def _not_finite(losses: dict) -> dict[str, float]:
    """The losses that are nan or infinite."""
    numbers = {
        name: float(torch.as_tensor(value).detach().float().mean())
        for name, value in losses.items()
        if 'loss' in name and isinstance(value, (int, float, torch.Tensor))
    }
    return {name: value for name, value in numbers.items() if not math.isfinite(value)}


def clips_of(data_batch: Any) -> str:
    """Name the clips of a batch, as far as their data samples do.

    Examples:
        >>> from mmaction.structures import ActionDataSample
        >>> samples = [ActionDataSample(metainfo=dict(video_id='a', timestamp=t))
        ...            for t in (902, 903)]
        >>> clips_of(dict(data_samples=samples))
        "video 'a' at 902, video 'a' at 903"
    """
    words = []
    for number, sample in enumerate(samples_of(data_batch)):
        meta = getattr(sample, 'metainfo', {})
        if is_skipped(sample):
            continue
        if 'video_id' in meta:
            time = f' at {meta["timestamp"]}' if 'timestamp' in meta else ''
            words.append(f'video {meta["video_id"]!r}{time}')
        else:
            words.append(f'sample {meta.get("sample_idx", f"{number} of the batch")}')
    return ', '.join(words) or 'clips that it does not name'
