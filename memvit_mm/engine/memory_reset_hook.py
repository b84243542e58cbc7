"""MemoryResetHook: empty the memory where a pass over the data starts."""

from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


@HOOKS.register_module()
class MemoryResetHook(Hook):
    """Start every pass with an empty memory; keep training and validation apart.

    A training epoch and a test begin empty. Validation, which mmengine runs on the
    same module in the middle of training, gets an empty memory of its own; afterwards
    training goes on with what it remembered.

    Raises:
        TypeError: Before the run, if the model has no memory to reset.
    """

    priority = 'NORMAL'

    def _memory(self, runner: Runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        return model.memory

    def before_run(self, runner: Runner) -> None:
        """Check that there is a memory."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not hasattr(model, 'memory'):
            raise TypeError(
                f'MemoryResetHook found no memory in {type(model).__name__}: use '
                'MemoryRecognizer3D or MemoryFastRCNN, or remove the hook.'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin an epoch with nothing remembered."""
        self._memory(runner).reset()

    def before_val(self, runner: Runner) -> None:
        """Put the training memory away."""
        self._memory(runner).set_aside()

    def after_val(self, runner: Runner) -> None:
        """Take the training memory back."""
        self._memory(runner).restore()

    def before_test(self, runner: Runner) -> None:
        """Begin a test with nothing remembered."""
        self._memory(runner).reset()

    def after_test(self, runner: Runner) -> None:
        """Free the memory."""
        self._memory(runner).reset()
