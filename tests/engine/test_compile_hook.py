"""CompileHook: the run is the same, but for who calls the backbone's operators."""

import torch
from small_runs import runner_of

KEEP_NONE = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


def test_a_training_with_a_compiled_backbone(tmp_path):
    weights, calls = [], []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward

    for hooks in ([], [dict(type='CompileHook', backend=backend, fullgraph=True)]):
        runner = runner_of(
            tmp_path / str(len(hooks)),
            dict(type='EpochBasedTrainLoop', max_epochs=1),
            custom_hooks=[dict(type='MemoryResetHook'), *hooks],
            **KEEP_NONE,
        )
        runner.train()
        weights.append(runner.model.state_dict())
    assert calls, 'nothing was compiled'
    assert list(weights[0]) == list(weights[1])
    torch.testing.assert_close(*weights, atol=1e-5, rtol=1e-4)
