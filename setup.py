"""Packaging: the package, with configs/ and tools/ inside it as `.mim`."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'memvit_mm'
# What is copied, and what makes sense in a checkout only.
MIM_FOLDERS = {'configs': ('.py', '.md', '.yml'), 'tools': ('.py', '.sh')}
CHECKOUT_ONLY = ('setup_env.sh', 'quickstart.sh', 'quickstart.py', 'run_tests.sh')
# All of mmcv's Python code without its compiled operators, which no wheel has;
# memvit_mm/mmcv_ops.py has those that are needed. A full mmcv of the same version goes
# on working below it: the wheels differ in the compiled file alone.
REQUIRES = [
    'torch>=2.4',
    'mmengine>=0.10.3,<1.0.0',
    'mmcv-lite>=2.1.0,<2.2.0',
    'mmdet>=3.1.0,<3.4.0',
    'mmaction2>=1.2.0,<1.3.0',
    'decord',
    'numpy',
    'scipy',
    # What MMAction2 imports and does not declare.
    'importlib_metadata',
]
# To run exported models, and to make them.
ONNX = ['numpy', 'onnxruntime>=1.17']
EXPORT = [*ONNX, 'onnx', 'onnxscript']
# To build docs/, and to run the notebook in it.
DOCS = [
    line
    for line in (ROOT / 'docs/requirements.txt').read_text('utf-8').splitlines()
    if not line.startswith('#')
]
TESTS = ['pytest', 'pytest-xdist', 'playwright', 'import-linter', *EXPORT, *DOCS]


class BuildWithMim(build_py):
    """`build_py` that adds `.mim/configs` and `.mim/tools`, as MMAction2 has them.

    A normal build copies them into the build folder, never into the checkout. An
    editable install links them instead, so that edits count at once.
    """

    def run(self):
        if not self.editable_mode:
            # pip builds in the checkout: a file deleted since the last build would
            # otherwise be packed again.
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()
        for folder, suffixes in MIM_FOLDERS.items():
            if (ROOT / folder).is_dir():
                if self.editable_mode:
                    self.link(folder)
                else:
                    self.copy(folder, suffixes)

    def link(self, folder):
        link = ROOT / PACKAGE / '.mim' / folder
        link.parent.mkdir(exist_ok=True)
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(os.path.join('..', '..', folder), target_is_directory=True)

    def copy(self, folder, suffixes):
        target = Path(self.build_lib) / PACKAGE / '.mim'
        for source in sorted((ROOT / folder).rglob('*')):
            wanted = source.suffix in suffixes and source.name not in CHECKOUT_ONLY
            if wanted and '__pycache__' not in source.parts:
                copy = target / source.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, copy)


def version():
    text = (ROOT / PACKAGE / 'version.py').read_text(encoding='utf-8')
    return re.search(r"^__version__ = '(.+)'", text, re.MULTILINE).group(1)


def long_description():
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


setup(
    name=PACKAGE,
    version=version(),
    description='Memory-augmented video transformers (MeMViT) for MMAction2',
    long_description=long_description(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['apis/report/report_page/*', 'demo/memvit_demo.pth']},
    python_requires='>=3.9',
    install_requires=REQUIRES,
    extras_require={'onnx': ONNX, 'export': EXPORT, 'tests': TESTS},
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
