from collections.abc import Callable
from pathlib import Path

import pytest

from pyg_c2f.datasets.registry import PUBLISHED


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps requests to local servers from going through a proxy."""
    monkeypatch.setenv('no_proxy', '*')


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published data sets cannot be downloaded."""
    for cls in PUBLISHED.values():
        monkeypatch.setattr(cls, 'base_url', f'http://127.0.0.1:1/{cls.folder}')


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """Writes files of a data set under ``tmp_path`` and returns that root."""

    def write(name: str, files: dict[str, str | bytes]) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            raw = content.encode() if isinstance(content, str) else content
            (folder / file).write_bytes(raw)
        return tmp_path

    return write
