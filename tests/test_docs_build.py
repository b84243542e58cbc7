"""The pages of docs/ are built by Sphinx without a warning."""

import subprocess
import sys

import pytest


@pytest.fixture(scope='module')
def pages(checkout, tmp_path_factory):
    """The folder of the built pages."""
    # The notebook's pictures are put beside this folder.
    out = tmp_path_factory.mktemp('docs') / 'html'
    command = ['-W', '--keep-going', '-q', '-b', 'html', checkout / 'docs', out]
    # Not `-m sphinx` in the checkout, which would document it instead of what is
    # installed.
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', *map(str, command)],
        cwd=out.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there(pages, checkout):
    for page in (checkout / 'docs').rglob('*.*'):
        here = not {'_build', 'jupyter_execute'} & set(page.parts)
        if here and page.suffix in ('.md', '.rst', '.ipynb'):
            built = page.relative_to(checkout / 'docs').with_suffix('.html')
            assert (pages / built).is_file(), built


def test_docstrings_are_in_the_api_pages(pages):
    for page, part in (
        ('models', 'memvit_mm.models.MeMViT'),
        ('memory', 'memvit_mm.models.ClipMemory.reset'),
        ('apis', 'memvit_mm.apis.VideoStream.feed'),
        ('deploy', 'memvit_mm.deploy.OnnxModel.run'),
    ):
        assert f'id="{part}"' in (pages / 'api' / f'{page}.html').read_text()
