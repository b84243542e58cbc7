"""MemoryResetHook: empty the memory at the start of an epoch, validation or test."""

from typing import Any, Optional

from mmaction.registry import HOOKS
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DistributedSampler

from memvit_mm.datasets import SequentialClipSampler
from memvit_mm.models import ClipMemory


@HOOKS.register_module()
class MemoryResetHook(Hook):
    """Start every epoch with an empty memory; separate training and validation.

    A training epoch and a test begin empty. Validation, which mmengine runs on the
    same module in the middle of training, gets an empty memory of its own; afterwards
    training goes on with what it remembered.

    Before the run it checks for settings that would fill the memory with the wrong
    clips without any error. With several processes each video must be read by one
    process, as :class:`SequentialClipSampler` does. The samplers of mmengine and torch
    give every n-th clip to a process and are refused; other samplers cause a warning.
    Blending mixes the clips of two videos in one row of the batch, and is refused.

    Args:
        every_clip (bool): Empty the memory before every step of validation and test,
            to measure what memory contributes: `tools/test.py ... --cfg-options
            custom_hooks.0.every_clip=True`. Defaults to False.

    Raises:
        TypeError: Before the run, if the model has no memory to reset.
        ValueError: Before the run, if its memory would hold the wrong clips.
    """

    def __init__(self, every_clip: bool = False) -> None:
        self.every_clip = every_clip

    @staticmethod
    def _memory(runner: Runner) -> ClipMemory:
        memory = memory_of(runner)
        if memory is None:
            raise TypeError(
                f'MemoryResetHook found no memory in {type(unwrapped(runner)).__name__}'
                ': use MemoryRecognizer3D or MemoryFastRCNN, or remove the hook.'
            )
        return memory

    def before_run(self, runner: Runner) -> None:
        """Check that the model has a memory, and how the data is read."""
        self._memory(runner)
        model = unwrapped(runner)
        if not getattr(model, 'remembers', True):
            return
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop')
            loader = getattr(loop, 'dataloader', None)
            # MMAction2's MultiLoaderEpochBasedTrainLoop has several.
            loaders = getattr(
                loop, 'multi_loaders', [loader] if loader is not None else []
            )
            for one in loaders if get_world_size() > 1 else ():
                _check_sampler(runner, f'{name}_dataloader', one)
            if loader is not None and name == 'train':
                refuse_blending(
                    model, 'a row of the memory would hold the clips of two videos'
                )

    def before_train_epoch(self, runner: Runner) -> None:
        """Start an epoch with an empty memory."""
        self._memory(runner).reset()

    def before_val(self, runner: Runner) -> None:
        """Set the memory of the training aside."""
        self._memory(runner).set_aside()

    def after_val(self, runner: Runner) -> None:
        """Restore the memory of the training."""
        self._memory(runner).restore()

    def before_val_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Empty the memory before every clip, if ``every_clip`` is set."""
        if self.every_clip:
            self._memory(runner).reset()

    before_test_iter = before_val_iter

    def before_test(self, runner: Runner) -> None:
        """Start a test with an empty memory."""
        self._memory(runner).reset()

    def after_test(self, runner: Runner) -> None:
        """Free the memory."""
        self._memory(runner).reset()


def unwrapped(runner: Runner) -> Any:
    """The model of a runner, without the wrapper for distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def memory_of(runner: Runner) -> Optional[ClipMemory]:
    """The memory of a runner's model, or None if it has none."""
    memory = getattr(unwrapped(runner), 'memory', None)
    return memory if isinstance(memory, ClipMemory) else None


def refuse_blending(model: Any, why: str) -> None:
    """Refuse a model whose data preprocessor mixes the clips of a batch.

    Args:
        model (BaseModel): Any.
        why (str): What would go wrong.

    Raises:
        ValueError: If it has MixupBlending, CutmixBlending or the like.
    """
    blending = getattr(model.data_preprocessor, 'blending', None)
    if blending is not None:
        raise ValueError(
            f'{type(blending).__name__} blends the clips of a batch, and {why}: remove '
            'its blending from model.data_preprocessor.'
        )


def _check_sampler(runner: Runner, key: str, loader: Any) -> None:
    """Refuse samplers that spread a video over processes; warn of unknown ones."""
    batch_sampler = loader.batch_sampler
    if isinstance(batch_sampler, SequentialClipSampler):
        return
    sampler = getattr(batch_sampler, 'sampler', loader.sampler)
    shuffle = key.startswith('train')
    remedy = (
        f"set {key}.batch_sampler=dict(type='SequentialClipSampler', "
        f'shuffle={shuffle}).'
    )
    plain = batch_sampler is None or type(batch_sampler) is BatchSampler
    if plain and type(sampler) in (DefaultSampler, InfiniteSampler, DistributedSampler):
        raise ValueError(
            f'{key}: {type(sampler).__name__} spreads the clips of a video over the '
            f'{get_world_size()} processes, so that memory would hold the wrong clips: '
            f'{remedy}'
        )
    runner.logger.warning(
        f'{key}: whether {type(batch_sampler).__name__} gives all clips of a video to '
        f'one of the {get_world_size()} processes, in time order, as memory needs '
        f'them, is not known; if it does not, {remedy}'
    )
