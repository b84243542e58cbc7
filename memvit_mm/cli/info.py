"""``python -m memvit_mm info``: what one pastes into a bug report."""

import contextlib
import os
import platform
from importlib import metadata, util
from pathlib import Path

import memvit_mm

# Packages as they are called, and the names under which they are installed.
PACKAGES = {
    'torch': ['torch'],
    'mmengine': ['mmengine'],
    'mmcv': ['mmcv', 'mmcv-lite'],
    'mmdet': ['mmdet'],
    'mmaction2': ['mmaction2'],
    'decord': ['decord'],
    'OpenCV': [
        'opencv-python',
        'opencv-python-headless',
        'opencv-contrib-python',
        'opencv-contrib-python-headless',
    ],
    'numpy': ['numpy'],
    'onnxruntime': ['onnxruntime', 'onnxruntime-gpu'],
}
NONE = 'not installed'


def show_info() -> None:
    """Print :func:`collect_info`, a line for each fact."""
    facts = collect_info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f'{name:{width}}  {value}')


def collect_info() -> dict[str, str]:
    """Versions, the machine, and which ways were chosen here.

    It works where packages of the stack are not installed, too, and names them. Where
    one is installed and cannot be imported, the error that ``import memvit_mm`` gives
    is what to paste.

    Returns:
        dict[str, str]: Facts by name.
    """
    facts = {
        'memvit_mm': f'{memvit_mm.__version__}, {Path(memvit_mm.__file__).parent}',
        'Python': f'{platform.python_version()}, {platform.python_implementation()}',
        'OS': platform.platform(),
        'Processor': f'{_processor()}, {os.cpu_count()} cores',
    }
    facts.update({name: _versions(names) for name, names in PACKAGES.items()})
    missing = [name for name in memvit_mm.STACK if util.find_spec(name) is None]
    facts['Devices'] = 'not known without torch' if 'torch' in missing else _devices()
    facts['Videos are read by'] = _reader()
    if missing:
        used = f'none: nothing is registered, since {", ".join(missing)} is {NONE}'
        return dict(facts, Operators=used)
    from memvit_mm import compat, mmcv_ops

    kind = mmcv_ops.describe()
    ours = "mmcv's own, compiled" if kind == 'compiled' else f"memvit_mm's, {kind}"
    facts['Operators'] = ours
    facts['Fixes by compat'] = ', '.join(compat.applied()) or 'none'
    return facts


def _versions(names: list[str]) -> str:
    found = []
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f'{metadata.version(name)} ({name})')
    # Named where the same module may come from several packages.
    return ', '.join(found if names[1:] else [one.split()[0] for one in found]) or NONE


def _processor() -> str:
    """The processor's name as Linux has it, else what Python knows."""
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def _devices() -> str:
    try:
        import torch
    except Exception as error:  # what is wrong is what is asked for
        return f'not known: torch cannot be imported ({error})'
    threads = f'CPU with {torch.get_num_threads()} threads'
    if not torch.cuda.is_available():
        return f'{threads}; no GPU that torch can use'
    gpus = []
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        gpus.append(f'cuda:{number} {facts.name}, {facts.total_memory / 2**30:.0f} GiB')
    return '; '.join([*gpus, f'CUDA {torch.version.cuda}', threads])


def _reader() -> str:
    if util.find_spec('decord') is not None:
        return 'OpenCV, checked against decord'
    return 'OpenCV' if util.find_spec('cv2') is not None else NONE
