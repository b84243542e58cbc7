"""Export: a model and its memory as one ONNX file."""

import gc
import json
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from mmengine.utils import digit_version
from torch import Tensor, nn

from memvit_mm.io.whole_file import write_bytes
from memvit_mm.models import MemoryFastRCNN, MemoryRecognizer3D
from memvit_mm.models.heads import ActorMemoryHead
from memvit_mm.version import __version__

from .file_format import FORMAT, KEY
from .graph import Graph, exportable

# torch.onnx.ops is there from this one on.
TORCH = '2.8'
# GELU is an operator from this one on; onnxruntime 1.17 has it.
OPSET = 20
IR = 9
PACKAGES = ('onnx', 'onnxscript')
# Bytes of a tensor that is computed when the file is made.
FOLDED = 2**24


def export_onnx(
    model: nn.Module,
    path: str,
    shape: Optional[Sequence[int]] = None,
    dynamic_batch: bool = False,
    half: bool = False,
    names: Optional[Mapping[str, Sequence[str]]] = None,
    reserved: bool = False,
) -> dict[str, Any]:
    """Write a model with its memory as one ONNX file, by ``torch.export``.

    :class:`OnnxModel` runs it. Inputs are ``clip`` [B, C, T, H, W], normalized; of
    detectors ``boxes`` [B, N, 5] (x1, y1, x2, y2 in pixels of the clip and a score,
    which is not used) and ``count`` [B], how many of the N there are; and with a
    memory ``valid`` [B, horizon], whether there is a clip 1, 2, ... steps back, and the
    memory itself. Outputs are ``scores`` as ``predict`` gives them, [B, classes] or
    [B, N, classes], and ``next.valid`` and ``next.*``, which are the inputs of the
    next clip. All that is needed to run it is in the file's metadata.

    Args:
        model (nn.Module): A :class:`MemoryRecognizer3D` or :class:`MemoryFastRCNN`.
        path (str): The file.
        shape (sequence[int], optional): T, H, W of a clip in frames and pixels. By
            default what the backbone is made for.
        dynamic_batch (bool): Clips of any number of streams at once, not one.
        half (bool): Weights, memory and clips in float16.
        names (mapping, optional): Names of the 'actions', or of 'verbs' and 'nouns'.
        reserved (bool): Whether class 0 of the actions is no class.

    Returns:
        dict: The metadata.

    Raises:
        ValueError: If the model cannot be exported; the message says which module, and
            why.
        ImportError: If onnx or onnxscript is missing, or torch is too old.
    """
    check_packages()
    _check_model(model)
    shape = _clip_shape(model, shape)
    dtype = torch.float16 if half else torch.float32
    # One size of batch would be taken for the only one, of 0 and 1 in any case.
    batch = 2 if dynamic_batch else 1
    clip = torch.zeros(batch, 3, *shape, dtype=dtype)
    graph = Graph(exportable(model).to(dtype), clip)
    detects = hasattr(model, 'roi_head')
    inputs, axes = dict(clip=clip), dict(clip={})
    if detects:
        boxes = torch.tensor([0.0, 0.0, *shape[:0:-1], 1.0]).repeat(batch, 2, 1)
        inputs.update(boxes=boxes, count=torch.full((batch,), 2))
        axes.update(boxes={1: torch.export.Dim('people', max=2**16)}, count={})
    contents = [torch.zeros(batch, *r.shape, dtype=dtype) for r in graph.registers]
    if graph.registers:
        inputs['valid'] = torch.ones(batch, graph.horizon, dtype=torch.bool)
        axes['valid'] = {}
    rest = [{} for _ in contents]
    if dynamic_batch:
        for axis in (*axes.values(), *rest):
            axis[0] = torch.export.Dim('batch', max=2**16)
    order = ('clip', 'boxes', 'count', 'valid')
    program = _exported(
        graph,
        (*(inputs.get(name) for name in order), contents),
        (*(axes.get(name) for name in order), rest),
    )
    memory = [register.name for register in graph.registers]
    outputs = ['scores']
    if graph.registers:
        outputs += ['next.valid', *(f'next.{name}' for name in memory)]
    made = _converted(program, [*inputs, *memory], outputs)
    about = _about(model, graph, clip, dynamic_batch, names, reserved)
    made.model.metadata_props[KEY] = json.dumps(about)
    proto = made.model_proto
    # Of the exporter's newer one onnxruntime 1.17 knows nothing, and nothing is used.
    proto.ir_version = min(proto.ir_version, IR)
    # Shapes of what is in between, which onnxruntime infers itself; its quantisation
    # would contradict those of the weights that it turns.
    del proto.graph.value_info[:]
    write_bytes(path, proto.SerializeToString())
    return about


def _about(
    model: nn.Module,
    graph: Graph,
    clip: Tensor,
    dynamic_batch: bool,
    names: Optional[Mapping[str, Sequence[str]]],
    reserved: bool,
) -> dict[str, Any]:
    """The file's metadata, plain values; :mod:`.file_format` says what they are."""
    preprocessor, detects = model.data_preprocessor, hasattr(model, 'roi_head')
    head = model.roi_head.bbox_head if detects else model.cls_head
    mean, std = (
        [float(n) for n in getattr(preprocessor, name).flatten()]
        if hasattr(preprocessor, name)
        else [default] * clip.shape[1]
        for name, default in (('mean', 0.0), ('std', 1.0))
    )
    verbs = getattr(head, 'num_verbs', None)
    sizes = dict(actions=head.num_classes)
    if verbs:
        sizes = dict(verbs=verbs, nouns=head.num_nouns)
    return dict(
        format=FORMAT,
        version=__version__,
        task='detection' if detects else 'recognition',
        opset=OPSET,
        dynamic_batch=dynamic_batch,
        clip=dict(
            shape=list(clip.shape[1:]),
            dtype=str(clip.dtype).removeprefix('torch.'),
            mean=mean,
            std=std,
            reverse_channels=bool(getattr(preprocessor, 'to_rgb', False)),
        ),
        classes=[
            dict(kind=kind, count=count, names=list((names or {}).get(kind, ())))
            for kind, count in sizes.items()
        ],
        reserved=reserved,
        average_views=None if detects else head.average_clips,
        memory=dict(
            horizon=graph.horizon,
            inputs=[
                dict(
                    name=register.name,
                    shape=list(register.shape),
                    ages=[register.newest, register.oldest],
                )
                for register in graph.registers
            ],
            schedule={
                layer: [dict(level._asdict(), ages=list(level.ages)) for level in spec]
                for layer, spec in ((n, s.levels) for n, s in graph.specs.items())
            },
        ),
    )


def check_packages() -> None:
    """Refuse an environment that cannot export.

    Raises:
        ImportError: If onnx or onnxscript is missing, or torch is too old.
    """
    if digit_version(torch.__version__) < digit_version(TORCH):
        raise ImportError(
            f'Exporting to ONNX needs torch {TORCH} or newer, and this is '
            f'{torch.__version__}: export in an environment with a newer one; the file '
            'runs without torch.'
        )
    for name in PACKAGES:
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f'Exporting to ONNX needs {name} ({error}): pip install '
                "'memvit_mm[export]', or pip install onnx onnxscript."
            ) from None


def _check_model(model: nn.Module) -> None:
    """Refuse what is known to have no form in ONNX."""
    if not isinstance(model, (MemoryRecognizer3D, MemoryFastRCNN)):
        raise _cannot('model', model, 'only MemoryRecognizer3D and MemoryFastRCNN can')
    if isinstance(model, MemoryRecognizer3D):
        if not model.with_cls_head:
            raise _cannot('model', model, 'it has no cls_head, and so no scores')
        return
    head = model.roi_head
    if head.with_shared_head and not isinstance(head.shared_head, ActorMemoryHead):
        raise _cannot(
            'roi_head.shared_head',
            head.shared_head,
            'of the shared heads ActorMemoryHead alone can',
        )
    layer = getattr(head.bbox_roi_extractor, 'roi_layer', None)
    if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
        raise _cannot(
            'roi_head.bbox_roi_extractor.roi_layer',
            layer,
            "of the RoI layers RoIAlign with pool_mode='avg' alone can",
        )


def _clip_shape(model: nn.Module, shape: Optional[Sequence[int]]) -> tuple:
    shape = tuple(shape or getattr(model.backbone, 'clip_size', ()))
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f'shape={shape or None} must be frames, height and width of a clip, such '
            'as (16, 224, 224).'
        )
    return shape


def _exported(graph: Graph, args: tuple, axes: tuple) -> Any:
    """The program that torch.export makes."""
    place: list[str] = []
    with _watched(graph.model, place), torch.no_grad(), _quiet():
        try:
            return torch.export.export(graph, args, dynamic_shapes=axes, strict=False)
        except Exception as error:
            name = place[-1] if place else ''
            raise _cannot(name, graph.model.get_submodule(name), error) from error


@contextmanager
def _watched(model: nn.Module, place: list[str]) -> Iterator[None]:
    """Keep the name of the module that runs at the end of ``place``."""
    handles = []

    def enter(name):
        return lambda *_: place.append(name)

    def leave(*_):
        place.pop()

    for name, module in model.named_modules():
        if name:
            handles += [
                module.register_forward_pre_hook(enter(name)),
                module.register_forward_hook(leave),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _converted(program: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The program as an ``ONNXProgram``."""
    with torch.no_grad(), _quiet():
        try:
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            text = ''.join(traceback.format_exception(error))
            operator = re.search(r"op='([\w.]+)'", text)
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = f'ONNX has no operator for {operator[1]}' if operator else cause
            node = next(
                (
                    node
                    for node in program.graph.nodes
                    if operator
                    # The exporter's is what an operator is made of.
                    and str(node.target).split('.')[1:2]
                    == [operator[1].split('.')[1].lstrip('_')]
                ),
                None,
            )
            stack = (
                list((node.meta.get('nn_module_stack') or {}).values()) if node else []
            )
            name, kind = stack[-1] if stack else ('the model', '')
            kind = str(getattr(kind, '__name__', kind)).rsplit('.', 1)[-1]
            raise _cannot(name.removeprefix('model.'), kind, reason) from error
        _simplify(made.model)
    return made


def _simplify(model: Any) -> None:
    """Compute in a graph what depends on weights alone.

    The exporter's own ``optimize`` looks for patterns besides, which takes longer than
    all else; onnxruntime does so when it loads a file.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    optimizer.inline(model)
    optimizer.fold_constants(model, input_size_limit=FOLDED, output_size_limit=FOLDED)
    for node in model.graph:
        # The exporter makes up a bias of another shape where a convolution has none.
        if node.op_type == 'Conv' and len(node.inputs) == 3:
            shape = node.inputs[2].shape
            if shape is not None and len(shape) != 1:
                node.replace_input_with(2, None)
    optimizer.remove_unused_nodes(model)
    for simplify in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        # Traces of this machine's files.
        common.ClearMetadataAndDocStringPass(),
    ):
        simplify(model)


def _cannot(name: str, module: Any, reason: Any) -> ValueError:
    if isinstance(reason, BaseException):
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        reason = lines[0]
    kind = module if isinstance(module, str) else type(module).__name__
    return ValueError(
        f'The model cannot be exported to ONNX: {name or "model"} ({kind}): '
        f'{str(reason).rstrip(".")}.'
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter logs about itself, and without garbage collection: it
    makes many objects and hardly any garbage, and is a quarter quicker like this."""
    names = ('torch.onnx', 'torch.__trace', 'onnxscript', 'onnx_ir')
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        if collects:
            gc.enable()
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
