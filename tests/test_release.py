"""What scripts/release.py finds before anything is uploaded; that all of it is well is for ``make release-check`` to say."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    """The script, by its path: scripts/ is no package."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts/release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_sdist_with_a_file_too_many_or_too_few_is_not_ready(release: ModuleType, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in sorted(release.IN_SDIST - {"LICENSE"} | {"id_rsa"}):
            archive.addfile(tarfile.TarInfo(f"a-1/{name}"), io.BytesIO())
    with pytest.raises(release.Failed, match=r"has \['id_rsa'\] too many and lacks \['LICENSE'\]"):
        release.check_sdist(tmp_path / "a.tar.gz")


def test_a_program_that_fails_is_told_with_all_that_it_has_said(release: ModuleType) -> None:
    with pytest.raises(release.Failed, match=r"(?s)-c .*\nout\nwhy$"):
        release.run([sys.executable, "-c", "import sys; print('out'); sys.exit('why')"])


def test_every_extra_is_tried_out_but_the_server(release: ModuleType, tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        metadata = "Metadata-Version: 2.4\nProvides-Extra: smtp\nProvides-Extra: server\nProvides-Extra: gate\n"
        archive.writestr(f"{release.NAME}-{release.__version__}.dist-info/METADATA", metadata)
    assert release.extras_of(wheel) == ["gate", "smtp"]


def test_nothing_is_uploaded_or_tagged_by_itself(release: ModuleType) -> None:
    todo = "\n".join(release.still_to_do())
    assert f"git tag -s v{release.__version__}" in todo
    assert "twine upload dist/*" in todo
    calls = [line for line in (ROOT / "scripts/release.py").read_text().splitlines() if "run([" in line]
    assert calls
    assert [line for line in calls if "upload" in line or '"tag"' in line or '"push"' in line] == []
