"""MemoryResetHook: empty the memory where a pass over the data starts."""

from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..models import ClipMemory


@HOOKS.register_module()
class MemoryResetHook(Hook):
    """Start every pass with an empty memory; keep training and validation apart.

    A training epoch and a test begin empty. Validation, which mmengine runs on the
    same module in the middle of training, gets an empty memory of its own; afterwards
    training goes on with what it remembered.

    Args:
        every_clip (bool): Forget before every step of validation and test, to measure
            what memory is worth: `tools/test.py ... --cfg-options
            custom_hooks.0.every_clip=True`. Defaults to False.

    Raises:
        TypeError: Before the run, if the model has no memory to reset.
    """

    def __init__(self, every_clip: bool = False) -> None:
        self.every_clip = every_clip

    @staticmethod
    def _memory(runner: Runner) -> ClipMemory:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        memory = getattr(model, 'memory', None)
        if not isinstance(memory, ClipMemory):
            raise TypeError(
                f'MemoryResetHook found no memory in {type(model).__name__}: use '
                'MemoryRecognizer3D or MemoryFastRCNN, or remove the hook.'
            )
        return memory

    def before_run(self, runner: Runner) -> None:
        """Check that there is a memory."""
        self._memory(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin an epoch with nothing remembered."""
        self._memory(runner).reset()

    def before_val(self, runner: Runner) -> None:
        """Put the training memory away."""
        self._memory(runner).set_aside()

    def after_val(self, runner: Runner) -> None:
        """Take the training memory back."""
        self._memory(runner).restore()

    def before_val_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Forget before every clip, if that is asked for."""
        if self.every_clip:
            self._memory(runner).reset()

    before_test_iter = before_val_iter

    def before_test(self, runner: Runner) -> None:
        """Begin a test with nothing remembered."""
        self._memory(runner).reset()

    def after_test(self, runner: Runner) -> None:
        """Free the memory."""
        self._memory(runner).reset()
