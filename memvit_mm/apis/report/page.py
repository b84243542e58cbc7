"""write_report: predictions of one video as a page that any browser opens."""

import base64
import hashlib
import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from memvit_mm.apis.models.results import Prediction
from memvit_mm.io.whole_file import write_bytes

from .data import pack_predictions
from .media import FALLBACK, PICTURES, KeyFrame, pack_clip, pack_frames

PathLike = Union[str, os.PathLike]

PAGE = Path(__file__).with_name('report_page')
# In this order they are one script: each uses those before it.
SCRIPTS = ('data.js', 'player.js', 'timeline.js', 'tables.js', 'main.js')


def write_report(
    path: PathLike,
    predictions: Sequence[Prediction],
    video: Mapping[str, Any],
    without_memory: Optional[Sequence[Prediction]] = None,
    keyframes: Sequence[KeyFrame] = (),
    title: Optional[str] = None,
    memory_seconds: Optional[float] = None,
    clip_seconds: Optional[float] = None,
    clip_file: Optional[PathLike] = None,
) -> Path:
    """Write a page of HTML that shows what a model sees in a video, and when.

    The page is one file that needs no network: pictures (or the video), a timeline of
    the classes with memory and without, the people and what they do, every value under
    the pointer. Nothing in it is lost but digits: scores are kept to 4 decimals.

    Files stay small. Scores of an hour (3600 clips of 80 classes, with memory and
    without) take about 1 MB. Pictures get at most 9 MB, which are 12 MB of the page
    (base64): where there are more of them, they are scaled down to 640 pixels and, if
    need be, evenly thinned out.

    Args:
        path: The page, such as ``report.html``. It is complete or not there at all.
            Folders on the way to it are made.
        predictions (sequence[Prediction]): Of one video, all of one kind.
        video (Mapping): ``name`` (str), ``size`` (width and height in pixels, of the
            frames that boxes are in), ``fps``, ``duration`` (seconds); whatever else is
            in it is shown beside them. All but ``size``, of people, may be missing.
        without_memory (sequence[Prediction], optional): What the same model says about
            the same clips without memory. By default the ``without_memory`` of the
            predictions, where they have one.
        keyframes (sequence[KeyFrame]): Pictures of the video.
        title (str, optional): The page's heading.
        memory_seconds (float, optional): How far back memory reaches.
        clip_seconds (float, optional): How long a clip is. By default as of the
            predictions.
        clip_file (optional): The video, with nothing drawn into it. If it is of at most
            9 MB and of a kind that browsers play (``.webm``, or H.264 in ``.mp4``), it
            is put into the page in place of pictures.

    Returns:
        Path: The page's.

    Raises:
        ValueError: If there is no prediction, or they are of several kinds or videos,
            or pictures are not JPEG, or the file cannot be written.
        FileNotFoundError: If ``clip_file`` is missing.

    Examples:
        >>> import numpy as np, os, tempfile
        >>> page = os.path.join(tempfile.mkdtemp(), 'report.html')
        >>> clips = [
        ...     Prediction('a', i, 2.0 * i + 2, 2.0 * i, 2.0 * i + 2, scores)
        ...     for i, scores in enumerate(np.float32([[0.9, 0.1], [0.2, 0.8]]))
        ... ]
        >>> write_report(page, clips, video=dict(name='a.mp4', duration=4)).name
        'report.html'
    """
    path = Path(os.path.expanduser(path))
    name = str(video.get('name') or 'video')
    content = pack_predictions(predictions, video, without_memory)
    clip = None if clip_file is None else pack_clip(clip_file)
    content.update(
        title=title or f'Actions in {name}',
        facts=[['Video', name], *_facts(video)],
        memorySeconds=_seconds('memory_seconds', memory_seconds),
        clipSeconds=_seconds('clip_seconds', clip_seconds),
        # Browsers that do not play the video fall back on them.
        frames=pack_frames(keyframes, FALLBACK if clip else PICTURES),
        clip=clip,
    )
    write_bytes(str(path), _page(content))
    return path


def _facts(video: Mapping[str, Any]) -> list[list[str]]:
    """What the page says about the video, as pairs of a name and a text."""
    names = dict(size='Size', fps='Frames per second')
    facts = []
    for key, value in video.items():
        if key in ('name', 'duration') or value is None:
            continue
        if key == 'size':
            value = '{} × {}'.format(*value)
        elif isinstance(value, float):
            value = f'{value:g}' if value < 1e6 else f'{value:.0f}'
        name = names.get(key, str(key).replace('_', ' ').capitalize())
        facts.append([name, str(value)])
    return facts


def _seconds(name: str, value: Optional[float]) -> Optional[float]:
    if value is None:
        return None
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f'{name}={value} must be a number of seconds, 0 or more.')
    return round(float(value), 3)


def _page(content: Mapping[str, Any]) -> bytes:
    """The page with its style, script and data inside."""
    style = _read('page.css')
    code = '\n'.join(_read(name) for name in SCRIPTS)
    script = f"(() => {{\n'use strict';\n{code}\n}})();\n"
    # Ends no script element, whatever is in the names; ASCII, as file names need not
    # be text.
    data = json.dumps(content, separators=(',', ':'), allow_nan=False)
    for sign in '<>&':
        data = data.replace(sign, f'\\u{ord(sign):04x}')
    parts = dict(
        title=html.escape(content['title']),
        policy=html.escape(
            f"default-src 'none'; img-src data:; media-src blob:; base-uri 'none'; "
            f"form-action 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
        ),
        style=style,
        script=script,
        data=data,
    )
    page = re.sub(r'\{\{(\w+)\}\}', lambda found: parts[found[1]], _read('page.html'))
    return page.encode('utf-8', 'replace')


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding='utf-8')


def _hash(text: str) -> str:
    """As a content security policy names what may run: this, and nothing else."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
