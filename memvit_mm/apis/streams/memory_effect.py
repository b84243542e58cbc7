"""ComparingPredictor: each clip twice, with its stream's memory and without."""

from collections.abc import Sequence

from memvit_mm.apis.models.results import Prediction

from .predictor import Predictor, PreparedClip


class ComparingPredictor(Predictor):
    """A :class:`Predictor` that also says what memory is worth.

    Each clip is predicted as ever, and once more with an empty memory, as if it was the
    first of a video; that is the prediction's ``without_memory``. The stream's memory
    is not touched by it. Models without a memory are run once, and ``without_memory``
    stays None.

    Give it to a stream in the model's place::

        stream = VideoStream(ComparingPredictor(model, boxes=..., labels=...))

    Args:
        model, cfg, boxes, labels, sampler: As :class:`Predictor`.
    """

    def predict(self, clips: Sequence[PreparedClip]) -> list[Prediction]:
        """What the model says about some clips, of any streams, in two batches."""
        found = super().predict(clips)
        if not self.memory_steps:
            return found
        with self._lock:
            self.memory.set_aside()
            try:
                alone = super().predict(clips)
            finally:
                self.memory.restore()
        for prediction, other in zip(found, alone):
            prediction.without_memory = other
        return found
