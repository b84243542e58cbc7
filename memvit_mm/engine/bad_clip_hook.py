"""BadClipHook: report at the end of an epoch which clips could not be read."""

from typing import Any, Optional

from mmaction.registry import HOOKS
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from memvit_mm.models.memory.remember import MemoryOwner
from memvit_mm.structures import is_skipped, samples_of

from .memory_reset_hook import refuse_blending, unwrapped


@HOOKS.register_module()
class BadClipHook(Hook):
    """Count the clips that ``on_bad_clip='skip'`` left out, and name their files.

    At the end of every training epoch, validation and test one warning says, over all
    processes, how many clips of how many were left out, and for each file why, and at
    which seconds. An iteration-based training says so before each validation, too.

    Later hooks get batches without the rows that were left out, so that inputs and
    predictions match.

    Raises:
        ValueError: Before the run, if the model does not leave out such rows; after a
            validation or test in which no clip could be read.
    """

    # Before those that look at inputs and predictions together.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._seen = 0
        self._skipped: list[tuple[str, Any, str]] = []  # file, time, why

    def before_run(self, runner: Runner) -> None:
        """Check that the model and its data preprocessor can leave out clips."""
        model = unwrapped(runner)
        datasets = _datasets(runner)
        if all(getattr(d, 'on_bad_clip', 'stop') != 'skip' for d in datasets):
            return
        if not isinstance(model, MemoryOwner):
            raise ValueError(
                f"on_bad_clip='skip' in the dataset needs MemoryRecognizer3D or "
                'MemoryFastRCNN, which leave such clips out; '
                f"{type(model).__name__} does not: set on_bad_clip='stop'."
            )
        refuse_blending(
            model, "on_bad_clip='skip' leaves out those that could not be read too late"
        )

    def after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Record the clips that were left out, and remove them from the batch."""
        samples = samples_of(data_batch)
        self._seen += len(samples)
        keep = [row for row, s in enumerate(samples) if not is_skipped(s)]
        if len(keep) == len(samples):
            return
        for sample in filter(is_skipped, samples):
            meta = sample.metainfo
            why = meta['skipped']
            time = meta.get('timestamp')
            self._skipped.append((meta.get('skipped_file') or why, time, why))
        for key, value in data_batch.items():
            if isinstance(value, (list, tuple)) and len(value) == len(samples):
                data_batch[key] = [value[row] for row in keep]

    after_train_iter = after_val_iter = after_test_iter = after_iter

    def after_train_epoch(self, runner: Runner) -> None:
        """Report on the training epoch, or on a training without epochs."""
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        epoch = f'training epoch {runner.epoch + 1}'
        self._report(runner, epoch if by_epoch else 'training')

    def before_val_epoch(self, runner: Runner) -> None:
        """Report on the iterations so far of a training without epochs."""
        self._report(runner, f'training up to iteration {runner.iter}')

    def after_val_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        """Report on the validation."""
        self._report(runner, 'validation', is_needed=True)

    def after_test_epoch(self, runner: Runner, metrics: Optional[dict] = None) -> None:
        """Report on the test."""
        self._report(runner, 'test', is_needed=True)

    def _report(self, runner: Runner, when: str, is_needed: bool = False) -> None:
        """Log what all processes left out, and reset the counts."""
        parts = all_gather_object((self._seen, self._skipped))
        self._seen, self._skipped = 0, []
        seen = sum(part[0] for part in parts)
        skipped = [clip for part in parts for clip in part[1]]
        if not skipped:
            return
        if is_needed and len(skipped) == seen:
            raise ValueError(
                f'None of the {seen} clips of {when} could be read; the first: '
                f'{skipped[0][2]}'
            )
        if is_main_process():
            runner.logger.warning(
                f'{len(skipped)} of {seen} clips of {when} were left out, since they '
                f"could not be read (on_bad_clip='skip'):\n{summary(skipped)}"
            )


def summary(skipped: list[tuple[str, Any, str]]) -> str:
    """A line per file: how many of its clips were left out, when they are, and why.

    Args:
        skipped (list[tuple]): File, time and reason of each clip.

    Examples:
        >>> print(summary([('b.mp4', 9, 'Bad (9).'), ('a.mp4', 4, 'Bad (4).'),
        ...                ('b.mp4', 8, 'Bad (8).')]))
        a.mp4: 1 clip, at 4: Bad (4).
        b.mp4: 2 clips, at 8, 9; the first: Bad (8).
    """
    files: dict[str, list] = {}
    for file, time, why in skipped:
        files.setdefault(file, []).append((time, why))
    lines = []
    for file, clips in sorted(files.items()):
        numbers = all(isinstance(time, (int, float)) for time, _ in clips)
        clips.sort(key=lambda clip: clip[0] if numbers else str(clip[0]))
        times = [str(time) for time, _ in clips]
        if len(times) > 20:
            times[18:-1] = ['...']
        count, first = '1 clip', ''
        if len(clips) > 1:
            count, first = f'{len(clips)} clips', '; the first'
        lines.append(f'{file}: {count}, at {", ".join(times)}{first}: {clips[0][1]}')
    return '\n'.join(lines)


def _datasets(runner: Runner) -> list:
    """The datasets of the loops that are built, and those inside them."""
    loops = (runner._train_loop, runner._val_loop, runner._test_loop)
    found = [
        getattr(getattr(loop, 'dataloader', None), 'dataset', None) for loop in loops
    ]
    for dataset in found:  # which grows
        found += getattr(dataset, 'datasets', ())
        if hasattr(dataset, 'dataset'):
            found.append(dataset.dataset)
    return found
