"""Where this package's configs and tools are, in a checkout or installed."""

from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent


def get_config_path(name: str) -> str:
    """Absolute path of one of this package's configs.

    Args:
        name (str): The config's path below ``configs/``, with or without
            ``.py``: ``'memvit_ava.py'``, ``'_base_/default_runtime.py'``.

    Returns:
        str: The path in the checkout if the package is imported from one, else
        in the installed package.

    Raises:
        ValueError: If there is no such config; the message names those there are.
    """
    return _find('configs', name, ('.py',))


def get_tool_path(name: str) -> str:
    """Absolute path of one of this package's tools, such as ``'train.py'``.

    Args:
        name (str): The tool's path below ``tools/``, such as
            ``'data/check_dataset.py'``; the folder and ``.py`` may be left out.

    Returns:
        str: The path in the checkout if the package is imported from one, else
        in the installed package.

    Raises:
        ValueError: If there is no such tool; the message names those there are.
    """
    return _find('tools', name, ('.py', '.sh'))


def _find(folder: str, name: str, suffixes: tuple) -> str:
    root = _root(folder)
    for candidate in (name, f'{name}.py'):
        for path in (root / candidate, *root.glob(f'*/{candidate}')):
            if path.is_file() and root in path.resolve().parents:
                return str(path.resolve())
    # Bases and helpers start with an underscore: they are no answer to a typo.
    there = sorted(
        str(path.relative_to(root))
        for path in root.rglob('*')
        if path.suffix in suffixes
        and not any(part.startswith('_') for part in path.relative_to(root).parts)
    )
    raise ValueError(
        f'There is no {name!r} among the {folder} of memvit_mm; '
        f'there are: {", ".join(there) or "none"}.'
    )


def _root(folder: str) -> Path:
    checkout = PACKAGE_DIR.parent
    if (checkout / 'setup.py').is_file() and (checkout / folder).is_dir():
        return checkout / folder
    return PACKAGE_DIR / '.mim' / folder
