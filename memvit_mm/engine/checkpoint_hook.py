"""MemoryCheckpointHook: checkpoints from which an interrupted run continues exactly."""

import os.path as osp
from collections import deque
from typing import Any, Optional

import torch
from mmaction.registry import HOOKS
from mmengine.dist import (
    gather_object,
    get_rank,
    get_world_size,
    is_distributed,
    is_main_process,
)
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, IterTimerHook
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.lr_scheduler import ReduceOnPlateauLR
from mmengine.optim.scheduler.momentum_scheduler import ReduceOnPlateauMomentum
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmengine.utils import apply_to

from memvit_mm.datasets.sampling.sampler import SequentialClipSampler, Start
from memvit_mm.io.whole_file import remove_partial, write_bytes
from memvit_mm.structures import Stream

from .memory_reset_hook import memory_of
from .random_state import random_state, set_random_state

KEY = 'run_state'


@HOOKS.register_module()
class MemoryCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` for runs that may be killed at any time.

    Besides weights, optimizer, schedulers and log, a checkpoint holds the position in
    the epoch (see ``SequentialClipSampler.position``), the random state of every
    process, the counts of ``EarlyStoppingHook`` and, within a gradient accumulation,
    the gradients. ``--resume`` continues in the middle of an epoch, with the next clip.
    With ``save_memory`` the checkpoint holds the memory, too, and the losses that
    follow are bit for bit those of a run that was not interrupted (on the same number
    of processes; on a GPU as far as its kernels are deterministic).

    A lane is one row of the batches of one process, see ``SequentialClipSampler``. With
    another number of lanes (processes times batch size) the remaining clips of the
    epoch are dealt to the new lanes, every stream starts with an empty memory, and the
    schedules are placed at the same part of the run.

    Validation does not change the random numbers of training, so that a run gives the
    same losses with and without it. A validation that was interrupted is repeated.

    On a local disk a file is complete or not there, and a checkpoint is removed only
    after the one that replaces it is complete.

    Args:
        save_memory (bool): Put the memory into the checkpoint: all streams that are
            remembered, at most ``max_streams`` of the ``ClipMemory`` per process. The
            log tells how much that is. Defaults to False: after ``--resume`` memory
            fills again within as many clips as the oldest one that a layer reads.
        **kwargs: As ``CheckpointHook``; ``by_epoch=False, interval=500`` saves every
            500 iterations.

    Examples:
        In a config::

            default_hooks = dict(checkpoint=dict(
                type='MemoryCheckpointHook', by_epoch=False, interval=500,
                max_keep_ckpts=2, save_memory=True))
    """

    def __init__(self, *args: Any, save_memory: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_memory = save_memory
        self._is_local = '://' not in str(self.out_dir or '')
        if self._is_local and self.file_client_args is None:
            self.backend_args = self.backend_args or dict(backend='atomic_local')
        self._resumed: Optional[dict] = None
        self._to_save: Optional[dict] = None
        self._start: Optional[Start] = None
        self._epoch, self._done = 0, 0
        self._random: Optional[dict] = None
        self._validation_due = False

    # ------------------------------------------------------------------- resuming

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take what was saved beside the weights, if the run is resumed."""
        state = checkpoint.pop(KEY, {})
        if not runner._resume:
            return
        # mmengine has put all ranks' tensors on this one's GPU.
        ranks = state.get('ranks', ())
        if len(ranks) == get_world_size():
            ranks = [r if n == get_rank() else {} for n, r in enumerate(ranks)]
        self._resumed = _to_cpu({**state, 'ranks': ranks} if ranks else state)

    def before_train(self, runner: Runner) -> None:
        """Go to the place in the epoch where the checkpoint was written."""
        super().before_train(runner)
        self.keep_ckpt_ids = deque(getattr(self, 'keep_ckpt_ids', ()))
        if is_main_process() and self._is_local:
            remove_partial(self.out_dir)
        # The seed that a dataloader draws when it begins must not be one of the
        # model's random numbers.
        runner.train_dataloader.generator = torch.Generator().manual_seed(0)
        # State is gathered through RAM, so that NCCL needs no copy of it on the GPUs;
        # connected now rather than at the first checkpoint, hours later.
        self._group = (
            torch.distributed.new_group(backend='gloo') if is_distributed() else None
        )
        if self._resumed is not None:
            self._go_on(runner, self._resumed)

    def _go_on(self, runner: Runner, state: dict) -> None:
        loop, sampler = runner.train_loop, self._sampler(runner)
        steps, position = len(runner.train_dataloader), state.get('position')
        for hook, known in zip(_stoppers(runner), state.get('early_stopping', ())):
            hook.best_score, hook.wait_count = known
        self._validation_due = bool(state.get('validation_due'))
        why = (
            'the checkpoint does not say where it is in its epoch, which '
            'MemoryCheckpointHook notes with SequentialClipSampler'
        )
        if sampler is not None and position is not None:
            try:
                self._start = sampler.start_from(position)
            except ValueError as error:
                why = str(error)
        if self._start is None:
            if position is not None or 'ranks' not in state:
                self._resumed = None
            if isinstance(loop, IterBasedTrainLoop):
                # mmengine reads everything up to here once more, to skip it.
                self._epoch, self._done = divmod(loop.iter, steps)
            elif loop.iter != loop.epoch * steps:
                runner.logger.warning(f'The epoch begins again: {why}.')
                _move_to(runner, loop.epoch, 0)
            return
        self._epoch, self._done = self._start.epoch, self._start.done
        lanes = position['played'][-1][0]
        if lanes != sampler.lanes:
            runner.logger.warning(
                f'The checkpoint was written with {lanes} lanes '
                f'({len(state["ranks"])} processes), this run has {sampler.lanes} '
                f'({get_world_size()} processes): all streams start with an empty '
                f'memory, and the clips that are left of epoch {self._epoch + 1} are '
                'dealt anew. Weights, optimizer and averages are as they were, the '
                'schedules (of the learning rate that the run began with) at the same '
                'part of the run; gradients that waited for the rest of an '
                'accumulation are dropped.'
            )
            if isinstance(loop, EpochBasedTrainLoop):
                _move_to(runner, self._epoch, self._done)
            self._resumed = {**state, 'lanes_changed': True}
        if isinstance(loop, EpochBasedTrainLoop):
            # The loop counts an epoch's batches from 0.
            first, run_iter = self._done, loop.run_iter
            loop.run_iter = lambda idx, data_batch: run_iter(first + idx, data_batch)
        elif isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _GoingOn(loop, self._epoch)

    def _take_up(self, runner: Runner) -> None:
        """Put back random state, memory and gradients, just before they are used."""
        state, self._resumed = self._resumed, None
        if state is None:
            return
        ranks, model, sampler = state['ranks'], runner.model, self._sampler(runner)
        mine = ranks[get_rank() % len(ranks)]
        # With more processes than before, two must not draw the same numbers.
        if get_rank() < len(ranks):
            set_random_state(mine['random'])
        if state.get('lanes_changed'):
            return
        # Those of other ranks are here only if the number of processes has changed.
        ranks = [rank for rank in ranks if rank]
        if mine['gradients'] is not None:
            # One step of all processes applies the mean.
            gradients = zip(*(rank['gradients'] for rank in ranks))
            for parameter, each in zip(model.parameters(), gradients):
                if all(gradient is not None for gradient in each):
                    mean = torch.stack(each).mean(0)
                    parameter.grad = mean.to(parameter.device)
        memory = memory_of(runner)
        if memory is None:
            return
        if mine['memory'] is not None:
            # As many lanes, perhaps on other processes: each takes those of its lanes.
            entries = [entry for rank in ranks for entry in rank['memory']['streams']]
            if len(state['ranks']) != get_world_size():
                entries = [
                    e for e in entries if sampler.is_ours(Stream(*e['stream']).run)
                ]
            memory.load_state_dict(dict(streams=entries))
        elif self._done:
            runner.logger.info(
                'The checkpoint has no memory (save_memory=False): all streams start '
                'with an empty one.'
            )

    # ------------------------------------------------------------------- counting

    @staticmethod
    def _sampler(runner: Runner) -> Optional[SequentialClipSampler]:
        sampler = runner.train_dataloader.batch_sampler
        return sampler if isinstance(sampler, SequentialClipSampler) else None

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin to count the batches of an epoch; validate what was to be."""
        if self._validation_due:
            # The run died after this checkpoint and before its validation was over.
            self._validation_due = False
            runner.val_loop.run()
            runner.model.train()
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and (
            self._start is None or self._start.epoch != runner.epoch
        ):
            self._start, self._epoch, self._done = None, runner.epoch, 0

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Take up the state of a resumed run."""
        self._take_up(runner)

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Count, and save where it is due."""
        if self._sampler(runner) and self._done >= len(runner.train_dataloader):
            # IterBasedTrainLoop goes from epoch to epoch of the data by itself.
            self._start, self._epoch, self._done = None, self._epoch + 1, 0
        self._done += 1
        super().after_train_iter(runner, *args, **kwargs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Save where it is due."""
        self._take_up(runner)
        runner.train_loop.__dict__.pop('run_iter', None)
        super().after_train_epoch(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Put training's random state away."""
        self._random = random_state()

    def after_val_epoch(self, runner: Runner, metrics: Any = None) -> None:
        """Take training's random state back; save the best."""
        if self._random is not None:
            set_random_state(self._random)
        super().after_val_epoch(runner, metrics)
        self._random = None

    # --------------------------------------------------------------------- saving

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save, on all ranks, and then remove what is outdated."""
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)

        self._to_save = self._run_state(runner, meta)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._to_save = None
        if is_main_process():
            # find_latest_checkpoint of mmengine reads this file.
            last = osp.join(runner.work_dir, 'last_checkpoint')
            write_bytes(last, self.last_ckpt.encode())
        while 0 < self.max_keep_ckpts < len(self.keep_ckpt_ids):
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self._remove(self.file_backend.join_path(self.out_dir, name))

    def _remove(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: Any) -> None:
        """As ``CheckpointHook``; the previous best goes when the new one is there."""
        if not self.save_best:
            return
        several = len(self.key_indicators) > 1
        paths = self.best_ckpt_path_dict if several else vars(self)
        names = self.key_indicators if several else ['best_ckpt_path']
        previous = {name: paths[name] for name in names}
        # What mmengine does not know of it does not remove.
        paths.update(dict.fromkeys(names))
        super()._save_best_checkpoint(runner, metrics)
        for name, path in previous.items():
            if paths[name] is None:
                paths[name] = path
            elif path is not None and path != paths[name]:
                self._remove(path)

    def _run_state(self, runner: Runner, meta: dict) -> Optional[dict]:
        """What belongs to a checkpoint on rank 0, None on the others."""
        memory = memory_of(runner) if self.save_memory else None
        epoch, done, start = self._epoch, self._done, self._start
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and meta['epoch'] > epoch:
            epoch, done, start = meta['epoch'], 0, None
        remembered = None
        if memory is not None:
            # A new epoch begins with nothing remembered. A better validation saves once
            # more while training's memory is set aside.
            remembered = dict(streams=[])
            if done:
                remembered = _to_cpu(memory.state_dict(set_aside=True))
        wrapper, gradients = runner.optim_wrapper, None
        if isinstance(wrapper, OptimWrapper) and not wrapper.should_update():
            # They wait for the rest of an accumulation.
            gradients = _to_cpu([p.grad for p in runner.model.parameters()])
        mine = dict(random=random_state(), memory=remembered, gradients=gradients)
        ranks = gather_object(mine, group=self._group)
        if ranks is None:
            return None
        if memory is not None:
            sizes: list[int] = []
            streams = [s for rank in ranks for s in rank['memory']['streams']]
            apply_to(streams, torch.is_tensor, lambda x: sizes.append(x.nbytes))
            runner.logger.info(
                f'The memory of {len(streams)} streams is in the checkpoint, '
                f'{sum(sizes) / 2**20:.1f} MiB.'
            )
        sampler = self._sampler(runner)
        return dict(
            position=sampler.position(done, epoch, start) if sampler else None,
            ranks=ranks,
            early_stopping=[
                [hook.best_score, hook.wait_count] for hook in _stoppers(runner)
            ],
            validation_due=self._random is None and _validates_next(runner, meta),
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the run's state into the checkpoint."""
        if self._to_save is not None:
            checkpoint[KEY] = self._to_save


class _GoingOn(_InfiniteDataloaderIterator):
    """The batches of a resumed ``IterBasedTrainLoop``.

    The loop asks for all that was trained on once more, to skip it. Those are free.
    """

    def __init__(self, loop: IterBasedTrainLoop, epoch: int) -> None:
        super().__init__(loop.dataloader)
        self._epoch = epoch
        self._free = loop.iter

    def __next__(self) -> Any:
        if self._free:
            self._free -= 1
            return None
        return super().__next__()


def _move_to(runner: Runner, epoch: int, done: int) -> None:
    """Put the loop, and what counts iterations, at some batch of an epoch."""
    loop = runner.train_loop
    loop._iter = epoch * len(runner.train_dataloader) + done
    runner.optim_wrapper.initialize_count_status(
        runner.model, loop.iter, loop.max_iters
    )
    for hook in runner.hooks:
        if isinstance(hook, IterTimerHook):
            # It divides by the iterations since then.
            hook.start_iter = loop.iter
    _place_schedules(runner)


def _validates_next(runner: Runner, meta: dict) -> bool:
    """Whether the loop validates right after it has saved."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    now, last = meta['epoch'], loop.max_epochs
    if isinstance(loop, IterBasedTrainLoop):
        now, last = meta['iter'], loop.max_iters
    elif now == runner.epoch:
        return False  # in mid-epoch
    return now >= loop.val_begin and (now % loop.val_interval == 0 or now == last)


def _stoppers(runner: Runner) -> list[EarlyStoppingHook]:
    return [hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook)]


def _to_cpu(state: Any) -> Any:
    return apply_to(state, torch.is_tensor, torch.Tensor.cpu)


def _place_schedules(runner: Runner) -> None:
    """Build the schedules anew and step them to the run's present iteration.

    Those that count iterations reach their end with the last epoch again, as if the
    run had had its present number of processes from the start. Schedules that follow a
    metric, and those of several optimizers, stay as they are.
    """
    configs, wrapper = runner.cfg.get('param_scheduler'), runner.optim_wrapper
    if not configs or not isinstance(wrapper, OptimWrapper):
        return
    plateau = (ReduceOnPlateauLR, ReduceOnPlateauMomentum)
    if any(isinstance(scheduler, plateau) for scheduler in runner.param_schedulers):
        return
    for group in wrapper.param_groups:
        for key in [key for key in group if key.startswith('initial_')]:
            group[key[len('initial_') :]] = group[key]
    runner.param_schedulers = runner.build_param_scheduler(configs)
    epoch_length = len(runner.train_dataloader)
    for iteration in range(1, runner.train_loop.iter + 1):
        for scheduler in runner.param_schedulers:
            if not scheduler.by_epoch or iteration % epoch_length == 0:
                # What mmengine warns of: a schedule that steps before its optimizer.
                wrapper.optimizer._global_step = scheduler._global_step + 1
                scheduler.step()
