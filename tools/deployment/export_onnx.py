"""Write a model with its memory as one ONNX file, which runs without PyTorch.

python tools/deployment/export_onnx.py configs/memvit_ava.py K.pth --out model.onnx

memvit_mm.deploy.OnnxModel runs it, and so does stream_video.py --onnx model.onnx.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import import_package, require_checkpoint, run


def parse_args():
    parser = argparse.ArgumentParser(
        description='Export a recognizer or an action detector, with its memory',
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=__doc__.split('\n\n', 1)[1],
    )
    add = parser.add_argument
    add('config', help="the model's config, or the name of one of ours")
    add('checkpoint', help='its weights')
    add('--out', required=True, help='the file to write (.onnx)')
    add(
        '--shape',
        nargs=3,
        type=int,
        metavar=('T', 'H', 'W'),
        help='frames, height and width of a clip as the test pipeline makes it '
        '(by default what the backbone is made for)',
    )
    add(
        '--dynamic-batch',
        action='store_true',
        help='take clips of any number of streams at once, not of one',
    )
    add('--half', action='store_true', help='float16: half the size, for a GPU')
    add(
        '--label-map',
        nargs='+',
        metavar='FILE',
        help='names of the classes (.pbtxt, .csv, .txt); two files: verbs and nouns',
    )
    args = parser.parse_args()
    if args.label_map and len(args.label_map) > 2:
        parser.error('--label-map takes one file, or two: of verbs and of nouns')
    return args


def main():
    args = parse_args()
    import_package()
    from memvit_mm.apis.models.classes import classes_of
    from memvit_mm.apis.models.load_model import build_model, load_config
    from memvit_mm.deploy.export import check_packages, export_onnx
    from memvit_mm.io.output_files import check_output

    out = check_output('model', args.out)
    check_packages()
    require_checkpoint(args.checkpoint)
    cfg = load_config(args.config)
    model = build_model(cfg, args.checkpoint, 'cpu')
    labels = args.label_map
    if labels:
        labels = dict(zip(('verbs', 'nouns'), labels)) if labels[1:] else labels[0]
    classes = classes_of(model, cfg, labels)
    about = export_onnx(
        model,
        out,
        args.shape,
        args.dynamic_batch,
        args.half,
        classes.names if classes.known else None,
        classes.reserved,
    )
    memory = about['memory']
    print(
        f'Wrote {out}: {os.path.getsize(out) / 1e6:.1f} MB, clips '
        f'{about["clip"]["shape"]} (channels, frames, height, width), a memory of '
        f'{memory["horizon"]} clips in {len(memory["inputs"])} tensors.'
    )


if __name__ == '__main__':
    run(main)
