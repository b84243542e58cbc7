"""LaneWorkersHook: data loader workers that read each video in order."""

from mmaction.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.random import fork_rng

from memvit_mm.datasets.sampling.lane_loader import by_lanes


@HOOKS.register_module()
class LaneWorkersHook(Hook):
    """Give every data loader worker its own lanes, so that a frame is decoded once.

    A lane is one row of the batches of this process.

    In each loop of the runner whose dataloader has ``SequentialClipSampler`` and reads
    videos with ``VideoInit``, a :class:`LaneDataLoader` takes the dataloader's place,
    and a video is kept open for each lane. Batches stay as they are, in every respect.

    There are at most as many workers as lanes. With few lanes,
    ``VideoInit(num_threads=...)`` lets each worker decode with more threads.
    """

    def before_run(self, runner: Runner) -> None:
        """Replace the data loaders of all loops."""
        for name in ('train', 'val', 'test'):
            loop = getattr(runner, f'_{name}_loop')
            loader = getattr(loop, 'dataloader', None)
            if loader is None:
                continue
            loop.dataloader = by_lanes(loader)
            if loop.dataloader is loader:
                continue
            if hasattr(loop, 'dataloader_iterator'):
                # IterBasedTrainLoop has begun already; its seed is drawn once more.
                with fork_rng(devices=[]):
                    iterator = _InfiniteDataloaderIterator(loop.dataloader)
                loop.dataloader_iterator = iterator
            count = loop.dataloader.num_workers
            if count < loader.num_workers and is_main_process():
                runner.logger.info(
                    f'{name}_dataloader: {count} of num_workers={loader.num_workers} '
                    'workers read videos, one for each row of the batch.'
                )
