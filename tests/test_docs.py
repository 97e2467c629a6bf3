"""The repository as its readers meet it: commands exist, links lead somewhere, one address."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import tomllib
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import yaml

from tutorial_lib import cards, verify
from tutorial_lib.book import Book
from tutorial_lib.cli_train import add_train, training_config

ROOT = Path(__file__).resolve().parents[1]
BOOK = Book(ROOT)
PAGES = [*BOOK.pages, *BOOK.sources.values()]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def tracked() -> list[Path]:
    """The files git knows; outside a clone (an sdist) there is nothing to ask."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        pytest.skip("not a git clone")
    return [ROOT / name for name in found.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("path", [*PAGES, ROOT / ".ci" / "run", *WORKFLOWS], ids=lambda path: path.name)
def test_commands_that_are_promised_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = re.findall(r"(?m)(?:`|^|- run: |&& )make ([a-z]+)", text)
    assert set(commands) <= targets(), f"{path.name} promises a command the Makefile does not have"


def test_the_makefile_offers_what_help_lists() -> None:
    assert {"help", "book", "test", "smoke", "clean", "serve", "check", "html", "lint"} <= targets()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_internal_links_resolve(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            continue
        assert (path.parent / target.split("#")[0]).exists(), f"{path.name} links to {target}"


def test_every_page_is_in_the_table_of_contents() -> None:
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"(?:file|root): (\S+)", toc))
    for entry in listed:
        assert (ROOT / entry).exists() or (ROOT / f"{entry}.md").exists(), f"_toc.yml lists {entry}"
    for page in BOOK.pages:
        if page.parent.name == "book":
            assert f"book/{page.stem}" in listed, f"{page.name} is in no table of contents"
    for stem in BOOK.sources:
        assert f"book/{stem}.ipynb" in listed, f"_toc.yml must list book/{stem}.ipynb, with the extension"


def test_one_line_holds_the_address_of_the_repository() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["repository"]["url"] == BOOK.repository
    assert PROJECT["project"]["urls"]["Repository"] == BOOK.repository
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["repository-code"] == BOOK.repository
    # elsewhere it stands only where the build writes it
    slug = BOOK.repository.removeprefix("https://github.com/")
    written = {"_config.yml", "pyproject.toml", "CITATION.cff", "README.md", "index.md"}
    for path in tracked():
        if path.suffix in (".py", ".md", ".yml", ".toml", ".cff") and path.name not in written:
            assert slug not in path.read_text(encoding="utf-8"), (
                f"{path.name} repeats the repository's address"
            )


def test_package_and_citation_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"


def test_every_dependency_has_a_reason_and_the_lock_has_no_local_paths() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    entries = re.findall(
        r'^  "[\w.\[\]-]+.*$', text.split("[project.scripts]")[0].split("dependencies = [")[1], re.M
    )
    assert len(entries) > 20
    assert [entry for entry in entries if "# " not in entry] == []
    lock = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.findall(r"^(?!#)(?!\S+==\S+$).*$", lock.strip(), re.M) == []
    assert "+cpu" not in re.sub(r"^#.*$", "", lock, flags=re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_published_notebooks_suit_colab(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "google.colab" in code[0].source
    assert BOOK.repository in code[0].source
    assert notebook.metadata.accelerator == "GPU"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in code:
        assert cell.execution_count, f"{path.name} was not executed to the end"
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_figures_have_a_caption_and_a_text_for_those_who_do_not_see_them(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        pictures = [out for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
        if pictures:
            figure = cell.metadata.get("mystnb", {})
            html = any("<figcaption" in str(out.data.get("text/html", "")) for out in pictures)
            assert html or (figure.get("image", {}).get("alt") and figure.get("figure", {}).get("caption")), (
                cell.source
            )


def test_the_book_says_what_its_notebooks_found() -> None:
    problems, _ = verify.check(BOOK)
    assert problems == []


def test_workflows_are_valid_and_name_a_time_limit() -> None:
    for path in WORKFLOWS:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert content["permissions"]["contents"] == "read"
        for name, job in content["jobs"].items():
            most = 350 if path.stem == "weekly" and name in ("full", "colab") else 90  # these compute the whole book
            assert name == "tell" or job["timeout-minutes"] <= most
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -eo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_no_line_of_a_page_begins_with_a_marker() -> None:
    """Markdown takes such a line for a block of HTML, and the sentence falls apart into paragraphs."""
    pages = [ROOT / "README.md", *(ROOT / "book").glob("*.md")]
    broken = [f"{page.name}:{n}" for page in pages for n, line in enumerate(page.read_text("utf-8").splitlines(), 1)
              if line.startswith("<!--report")]  # fmt: skip
    assert broken == []


CARDS = sorted((ROOT / "tutorial_lib" / "weights").rglob("README.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_the_command_in_a_card_is_one(card: Path) -> None:
    commands = re.findall(r"^tutorial-lib train .*$", card.read_text(encoding="utf-8"), re.M)
    run = json.loads((card.parent / "training.json").read_text(encoding="utf-8"))
    runs = [*run.get("before", []), run]  # what it went on from, and itself
    parser = argparse.ArgumentParser()
    add_train(parser.add_subparsers())
    aside = {"output", "segment_minutes", "checkpoint_minutes", "layers", "width", "num_pseudo_tokens"}
    for command, known in zip(commands, runs, strict=True):
        config = training_config(parser.parse_args(shlex.split(command)[1:]))
        made = json.loads(json.dumps(asdict(config)))
        left_out = aside | (cards.CORRECTOR_ONLY if config.kind == "inverter" else set())
        assert {key: made[key] for key in known["settings"] if key not in left_out} == {
            key: value for key, value in known["settings"].items() if key not in left_out
        }
    assert cards.command(run) == commands[-1]


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.parent.name)
def test_a_card_can_be_written_again_with_all_its_scores(card: Path, tmp_path: Path) -> None:
    """New scores join those of scores.json: without it, `evaluate --card` would replace what the card shows."""
    for path in card.parent.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / card.name).unlink()
    assert cards.write_card(tmp_path).read_text(encoding="utf-8") == card.read_text(encoding="utf-8")


def test_what_is_measured_of_weights_later_changes_no_chapter(tmp_path: Path) -> None:
    folder = tmp_path / "tutorial_lib" / "weights" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"1")
    before = Book(tmp_path).weights_hash
    for name in ("README.md", "scores.json"):
        (folder / name).write_text("measured")
    assert Book(tmp_path).weights_hash == before
    (folder / "model.safetensors").write_bytes(b"2")
    assert Book(tmp_path).weights_hash != before
