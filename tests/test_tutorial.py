"""docs/tutorial.ipynb runs, on a CPU and in less than three minutes, and says so."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

CLAIMS = (
    'memory level 0: pool, clips 2, 4 back',
    '10 s: 215808 bytes of the clips at 7 8 9 10 s',
    'layer2   (37, 48)',
    'ClipMemory(streams=2',
)


@pytest.fixture(scope='module')
def path(checkout):
    return checkout / 'docs' / 'tutorial.ipynb'


def printed(notebook) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    # No errors, no warnings, and the figures.
    kinds = {output.get('name', output.output_type) for output in outputs}
    assert kinds == {'stdout', 'display_data'}, kinds
    return ''.join(output.get('text', '') for output in outputs)


def told(cell) -> list:
    """What a cell prints: its words, and its numbers with decimals to one digit."""
    text = ''.join(output.get('text', '') for output in cell.get('outputs', []))
    parts = re.split(r'(-?\d+\.\d+)|\s+', text)
    return [round(float(p), 1) if re.search(r'\d\.\d', p) else p for p in parts if p]


def test_as_it_was_committed(path):
    text = printed(nbformat.read(path, as_version=4))
    assert all(claim in text for claim in CLAIMS), text
    assert path.stat().st_size < 300_000


def test_every_cell_runs(path, tmp_path, monkeypatch):
    """Its own assertions are about what the model says with memory and without."""
    # Said by mmengine about itself where setuptools still has it.
    monkeypatch.setenv('PYTHONWARNINGS', 'ignore:pkg_resources is deprecated')
    notebook = nbformat.read(path, as_version=4)
    committed = [told(cell) for cell in notebook.cells]
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            cell.update(outputs=[], execution_count=None)
    where = dict(metadata=dict(path=str(tmp_path)))
    NotebookClient(notebook, timeout=180, resources=where).execute()
    text = printed(notebook)
    assert all(claim in text for claim in CLAIMS), text
    assert text.count('lift_red 0.') == 3, text
    assert [told(cell) for cell in notebook.cells] == committed
