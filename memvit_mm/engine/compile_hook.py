"""CompileHook: the backbone through torch.compile."""

from typing import Any

from mmaction.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


@HOOKS.register_module()
class CompileHook(Hook):
    """Compile the backbone before a run; ``--compile`` of the tools adds it.

    A backbone with memory is a function of tensors, and one graph however full the
    memory is. What is around it, which streams and people there are, stays Python; so
    ``compile`` of mmengine, which takes a whole step, is not the way. Weights keep
    their names.

    Args:
        **options: Of ``torch.compile``, such as ``mode='reduce-overhead'``, which on a
            GPU replays a CUDA graph.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def before_run(self, runner: Runner) -> None:
        """Compile it, when it is first called."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.backbone.compile(**self.options)
        runner.logger.info(
            'The backbone is compiled when it is called first, and again for frames of '
            'another size: that takes a minute each.'
        )
