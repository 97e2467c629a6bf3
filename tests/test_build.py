"""The runner on a throwaway book: one tiny chapter, executed for real, in a folder of its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from tutorial_lib import build, cli, notebooks, verify
from tutorial_lib.book import Book
from tutorial_lib.errors import ClaimError, TutorialError

pytest.importorskip("jupytext", reason="the runner needs the extra 'book'")
pytest.importorskip("papermill", reason="the runner needs the extra 'book'")

CHAPTER = """---
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# A tiny chapter

Before the code: {report}`mean`, and {report}`mean.n` values.

```{code-cell} ipython3
:tags: [parameters]

profile = "cpu"  # smoke, cpu, gpu or paper
n = 3  # values; "é" checks that columns are bytes
```

```{code-cell} ipython3
import sys

from tqdm import tqdm

from tutorial_lib.claims import report
from tutorial_lib.metrics import Estimate

for _ in tqdm(range(n), disable=False):
    print("step", flush=True)
print(profile, n)
```

```{code-cell} ipython3
report("mean", Estimate(10.0 * n, 10.0 * n - 1, 10.0 * n + 1, n), fmt=".1f")
report("word", "vector")
```

The mean is {report}`mean`; the paper has {paper}`mean`.
"""
CLAIMS = """claims:
  mean:
    {chapter: 01_tiny, what: mean, ours: {cpu: {value: 40, tolerance: 1}}, paper: {value: 97.3, source: T1}}
  word: {chapter: 01_tiny, what: word, ours: {cpu: {value: vector}}}
order: [mean > 5]
"""
PROFILES = """published: cpu
common: {cpu: {}, smoke: {}}
chapters:
  01_tiny: {minutes: {cpu: 1}, cpu: {n: 4}, smoke: {n: 1}}
"""


def write_book(root: Path) -> Book:
    (root / "book").mkdir(parents=True)
    (root / "tutorial_lib").mkdir()
    (root / "tutorial_lib" / "metrics.py").write_text("x = 1\n")
    (root / "tutorial_lib" / "unused.py").write_text("x = 1\n")
    (root / "_config.yml").write_text("repository: {url: https://github.com/someone/fork}\n")
    (root / "README.md").write_text(
        "Mean <!--report mean.value-->?<!--/report-->.\n<!-- generated chapters -->\n<!-- /generated -->\n"
    )
    (root / "pyproject.toml").write_text('[project.urls]\nRepository = "https://example.org/old"\n')
    files = {"01_tiny.md": CHAPTER, "claims.yml": CLAIMS, "profiles.yml": PROFILES, "about.md": "# About\n"}
    for name, text in files.items():
        (root / "book" / name).write_text(text, encoding="utf-8")
    return Book(root)


def run(root: Path, **options: object) -> list[str]:
    said: list[str] = []
    build.build_book(Book(root), html=False, echo=said.append, **options)  # type: ignore[arg-type]
    return said


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("built") / "clone"
    write_book(root)
    assert run(root) == ["01_tiny: executing (profile cpu)"]
    return root


@pytest.fixture
def clone(built: Path, tmp_path: Path) -> Path:
    """A copy of the finished book, to spoil."""
    return Path(shutil.copytree(built, tmp_path / "clone"))


def test_published_notebook_shows_what_a_reader_needs(built: Path) -> None:
    notebook = nbformat.read(built / "book" / "01_tiny.ipynb", as_version=4)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "The mean is 40.0 (95 % interval 39.0–41.0, n = 4); the paper has 97.3." in text
    assert "Before the code: 40.0" in text
    assert "{report}" not in text
    assert 'n = 4  # values; "é"' in text  # the profile's value, in the cell itself
    colab = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "git+https://github.com/someone/fork" in colab.source
    assert "remove-cell" in colab.metadata.tags
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert "step\nstep\nstep\nstep\ncpu 4\n" in [output.get("text") for output in outputs]
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert "papermill" not in notebook.metadata
    assert not any(set(cell.metadata) - {"tags"} for cell in notebook.cells)
    assert verify.check(Book(built)) == ([], [])


def test_pages_and_addresses_are_written(built: Path) -> None:
    readme = (built / "README.md").read_text()
    assert "Mean <!--report mean.value-->40.0<!--/report-->." in readme
    assert "| [A tiny chapter](book/01_tiny.ipynb) | 1 min |" in readme
    assert "github/someone/fork/blob/main/book/01_tiny.ipynb" in readme
    assert 'Repository = "https://github.com/someone/fork"' in (built / "pyproject.toml").read_text()


def test_a_rerun_gives_the_same_bytes_and_only_changes_are_executed(clone: Path) -> None:
    before = (clone / "book" / "01_tiny.ipynb").read_bytes(), (clone / "book" / "manifest.json").read_bytes()
    assert run(clone) == []
    assert run(clone, force=True) == ["01_tiny: executing (profile cpu)"]
    assert (
        (clone / "book" / "01_tiny.ipynb").read_bytes(),
        (clone / "book" / "manifest.json").read_bytes(),
    ) == before
    edit(clone / "book" / "01_tiny.md", "The mean is", "On the whole the mean is")
    assert run(clone) == []  # prose needs no kernel
    assert "On the whole" in (clone / "book" / "01_tiny.ipynb").read_text()
    assert verify.check(Book(clone)) == ([], [])


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("book/01_tiny.md", "print(profile, n)", "print(profile)"),
        ("book/profiles.yml", "n: 4", "n: 5"),
        ("tutorial_lib/metrics.py", "x = 1", "x = 2"),
    ],
)
def test_code_profile_and_library_changes_ask_for_execution(
    clone: Path, path: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def executes(*_: object, **__: object) -> None:
        raise TutorialError("would execute")

    shutil.rmtree(clone / "_build")
    edit(clone / path, old, new)
    monkeypatch.setattr(notebooks, "execute", executes)
    with pytest.raises(TutorialError, match="would execute"):
        run(clone)


def test_what_cannot_change_a_number_asks_for_nothing(clone: Path) -> None:
    (clone / "tutorial_lib" / "unused.py").write_text("x = 2\n")
    edit(clone / "tutorial_lib" / "metrics.py", "x = 1", '"""Words."""\n\nx = 1  # one')
    assert verify.check(Book(clone)) == ([], [])


def test_an_interrupted_build_goes_on_where_it_stopped(clone: Path) -> None:
    (clone / "book" / "01_tiny.ipynb").unlink()
    (clone / "book" / "manifest.json").unlink()
    assert run(clone) == []  # executed before; the run folder still has it
    assert verify.check(Book(clone)) == ([], [])


def test_outputs_edited_by_hand_are_not_taken_for_a_run(clone: Path) -> None:
    published = clone / "book" / "01_tiny.ipynb"
    before = published.read_bytes()
    edit(published, "40.0", "40.1")  # the claim allows as much
    assert run(clone) == [] and published.read_bytes() == before  # out of the run folder
    edit(published, "40.0", "40.1")
    shutil.rmtree(clone / "_build")
    assert run(clone) == ["01_tiny: executing (profile cpu)"] and published.read_bytes() == before


def test_nothing_is_published_while_a_claim_does_not_hold(clone: Path) -> None:
    before = (clone / "book" / "01_tiny.ipynb").read_bytes()
    edit(clone / "book" / "claims.yml", "value: 40", "value: 50")
    with pytest.raises(ClaimError, match=r"01_tiny reports 40\.0, but claims\.yml says 50"):
        run(clone)
    assert (clone / "book" / "01_tiny.ipynb").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "old", "new", "complaint"),
    [
        ("book/claims.yml", "value: 40", "value: 50", "claims.yml says 50"),
        ("book/01_tiny.ipynb", '"40.0"', '"40.5"', "not those of the run that published it"),
        ("book/01_tiny.ipynb", '"40.0"', '"47.0"', "reports 47.0"),
        (
            "book/01_tiny.ipynb",
            "The mean is 40.0",
            "The mean is 49.0",
            "is not what 01_tiny.md and its outputs give",
        ),
        ("book/01_tiny.md", "The mean is", "The middle is", "is not what 01_tiny.md and its outputs give"),
        ("book/01_tiny.md", "print(profile, n)", "print(n)", "execute it again"),
        ("book/01_tiny.md", "The mean is {report}`mean`", "The mean is 40.0", "'40.0' is typed by hand"),
        ("book/01_tiny.md", "The mean", ":::{note}\nThe mean", "edit only the .md"),
        ("README.md", "-->40.0<", "-->41.0<", "README.md: generated text is out of date"),
        ("README.md", "Mean <", "39.0 and <", "README.md: '39.0' is typed by hand"),
        ("pyproject.toml", "someone", "nobody", "pyproject.toml: generated text is out of date"),
        ("book/01_tiny.ipynb", "{", "[", "is not a notebook"),
    ],
)
def test_every_mutation_of_the_book_is_noticed(
    clone: Path, path: str, old: str, new: str, complaint: str
) -> None:
    edit(clone / path, old, new)
    problems, _ = verify.check(Book(clone))
    assert any(complaint in problem for problem in problems), problems


def test_a_changed_library_is_a_note_and_a_missing_notebook_a_problem(clone: Path) -> None:
    edit(clone / "tutorial_lib" / "metrics.py", "x = 1", "x = 2")
    assert verify.check(Book(clone)) == (
        [],
        ["01_tiny: the library changed since it was executed; run make book."],
    )
    (clone / "book" / "01_tiny.ipynb").unlink()
    assert "has not been executed yet" in verify.check(Book(clone))[0][0]


def test_what_changed_while_a_chapter_ran_is_not_taken_for_what_ran(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = notebooks.execute

    def execute(*args: object, **options: object) -> object:
        edit(clone / "tutorial_lib" / "metrics.py", "x = 1", "x = 2")
        return real(*args, **options)

    monkeypatch.setattr(notebooks, "execute", execute)
    run(clone, force=True)
    assert verify.check(Book(clone))[1] == ["01_tiny: the library changed since it was executed; run make book."]


def test_raw_directives_are_found(clone: Path) -> None:
    edit(clone / "book" / "01_tiny.md", "The mean is", ":::{note}\nThe mean is")
    run(clone)
    assert any("Colab would show ':::{note}' raw" in problem for problem in verify.check(Book(clone))[0])


def test_smoke_runs_elsewhere_and_keeps_its_hands_off_the_published(clone: Path) -> None:
    before = {path: path.read_bytes() for path in (clone / "book").iterdir()}
    said = run(clone, profile="smoke", chapters=["01"])
    assert said[-1] == "1 chapters ran in the profile 'smoke'; their numbers are not compared."
    assert {path: path.read_bytes() for path in (clone / "book").iterdir()} == before
    assert run(clone, profile="smoke")[0] == "01_tiny: executing (profile smoke)"  # nothing is remembered


def test_a_chapter_built_alone_is_compared_with_those_published_before(clone: Path) -> None:
    other = CHAPTER.replace('report("mean"', 'report("wider"').replace('report("word", "vector")', "")
    other = other.replace("The mean is {report}`mean`; the paper has {paper}`mean`.", "It is {report}`wider`.")
    (clone / "book" / "02_wide.md").write_text(other, encoding="utf-8")
    profile = "  02_wide: {minutes: {cpu: 1}, cpu: {n: 4}, smoke: {n: 1}}\n"
    edit(clone / "book" / "profiles.yml", "  01_tiny:", profile + "  01_tiny:")
    claim = "claims:\n  wider: {chapter: 02_wide, what: w, ours: {cpu: {value: 40, tolerance: 1}}}"
    edit(clone / "book" / "claims.yml", "claims:", claim)
    edit(clone / "book" / "claims.yml", "[mean > 5]", "[mean > 5, wider.value > mean.high, wider < 50]")
    with pytest.raises(ClaimError, match=r"order 'wider\.value > mean\.high' does not hold.*: 40 > 41"):
        run(clone, chapters=["02"])
    edit(clone / "book" / "claims.yml", "wider.value > mean.high", "wider.high > mean.low")
    assert run(clone, chapters=["02"]) == []


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("1 / 0", "stopped at its code cell .* with ZeroDivisionError: division by zero"),
        ("print(object())", "memory address"),
        ("import warnings; warnings.warn('old')", "writes to stderr"),
        ("import os; os._exit(1)", "kernel of .* died, most often because memory ran out"),
    ],
)
def test_a_chapter_that_misbehaves_is_not_published(clone: Path, cell: str, complaint: str) -> None:
    before = json.loads((clone / "book" / "manifest.json").read_text())
    edit(clone / "book" / "01_tiny.md", "print(profile, n)", cell)
    with pytest.raises(TutorialError, match=complaint):
        run(clone)
    assert json.loads((clone / "book" / "manifest.json").read_text()) == before


def test_a_cell_that_takes_too_long_is_one_sentence(tmp_path: Path) -> None:
    sleeps = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import time; time.sleep(60)")])
    with pytest.raises(TutorialError, match=r"^a cell of long took more than 1 seconds .*long\.ipynb\)\.$"):
        notebooks.execute(sleeps, tmp_path / "long.ipynb", tmp_path, offline=True, timeout=1)


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b'{"nbformat": 99}', b'{"nbformat": 3, "worksheets": 1}'])
def test_what_is_no_notebook_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "01.ipynb").write_bytes(data)
    with pytest.raises(TutorialError, match=r"^01\.ipynb is not a notebook; delete it"):
        notebooks.read(tmp_path / "01.ipynb")


def test_bad_input_is_one_clear_sentence(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(TutorialError, match="profile 'huge' does not exist; choose one of smoke, cpu"):
        run(clone, profile="huge")
    with pytest.raises(TutorialError, match="no chapter '07'; there are 01_tiny"):
        run(clone, chapters=["07"])
    edit(clone / "book" / "profiles.yml", "cpu: {n: 4}", "cpu: {m: 4}")
    with pytest.raises(
        TutorialError, match="01_tiny has no parameter 'm'; its cell tagged 'parameters' assigns profile, n"
    ):
        run(clone)
    edit(clone / "book" / "profiles.yml", "cpu: {m: 4}", "cpus: {n: 4}")
    with pytest.raises(TutorialError, match="unknown entry 'cpus'"):
        run(clone)
    with pytest.raises(TutorialError, match="not inside a clone"):
        Book.find(tmp_path / "elsewhere")
    assert Book.find(clone / "book").root == clone


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("claims.yml", b"claims:\n  mean: {chapter: 01_tiny", "claims.yml, line 2, is not valid YAML"),
        ("profiles.yml", b"published: cpu\nchapters: [", "profiles.yml, line 2, is not valid YAML"),
        ("profiles.yml", b"published: cpu\npublished: gpu\n", "profiles.yml, line 2, .*'published' stands here twice"),
        ("profiles.yml", b"published: cpu\nchapters: {01_tiny: {cpu: 3}}", "'01_tiny: cpu' is 3; it should be"),
        ("manifest.json", b'{"01_tiny":\n {', "manifest.json, line 2, is not valid JSON"),
        ("manifest.json", b"{\n\xff}", "manifest.json, line 2, is not valid JSON"),
        ("manifest.json", b"[]", "manifest.json, line 1, begins no JSON object"),
        ("manifest.json", b'{"01_tiny": 3}', "manifest.json has no object for 01_tiny"),
        ("../_config.yml", b"repository: 3", "_config.yml names no repository"),
    ],
)
def test_check_names_the_file_that_cannot_be_read(
    clone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    sentence: str,
) -> None:
    (clone / "book" / name).write_bytes(content)
    monkeypatch.chdir(clone)
    assert cli.main(["check"]) in (1, 2)
    said = capsys.readouterr()
    assert re.search(sentence, said.out + said.err)
    assert len([line for line in (said.out + said.err).splitlines() if not line.startswith("note:")]) == 1


def test_two_parameter_cells_are_refused(clone: Path) -> None:
    edit(
        clone / "book" / "01_tiny.md",
        "```{code-cell} ipython3\nimport sys",
        "```{code-cell} ipython3\n:tags: [parameters]\n\nimport sys",
    )
    with pytest.raises(TutorialError, match="has 2 cells tagged 'parameters'"):
        run(clone)


def test_render_reports_what_the_strict_build_says(clone: Path) -> None:
    edit(clone / "_config.yml", "repository:", "only_build_toc_files: true\nrepository:")
    (clone / "_toc.yml").write_text("format: jb-book\nroot: book/about\n")
    (clone / "book" / "about.md").write_text("# About\n\n[nowhere](missing.md)\n")
    with pytest.raises(TutorialError, match=r"strict and found:\n.*missing\.md"):
        build.render(Book(clone))


def test_a_fork_changes_one_line(clone: Path) -> None:
    edit(clone / "_config.yml", "someone/fork", "else/where")
    changed = {path.name for path in verify.bring_up_to_date(Book(clone))}
    assert changed == {"01_tiny.ipynb", "README.md", "pyproject.toml"}
    assert verify.check(Book(clone)) == ([], [])
    assert run(clone) == []  # another address is no reason to execute
    for name in ("book/01_tiny.ipynb", "README.md", "pyproject.toml"):
        assert "someone/fork" not in (clone / name).read_text(encoding="utf-8")


def test_records_come_last_so_that_printed_lines_stay_together(built: Path) -> None:
    notebook = nbformat.read(built / "book" / "01_tiny.ipynb", as_version=4)
    texts = [
        out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "stream"
    ]
    assert "mean = 40.0 (39.0–41.0, n = 4)\nword = vector\n" in texts


def test_a_page_that_cites_nobody_is_named_and_hinders_no_other(clone: Path) -> None:
    edit(clone / "book" / "about.md", "# About", "# About\n\n<!--report nobody-->1<!--/report-->")
    edit(clone / "README.md", "-->40.0<", "-->?<")
    assert [path.name for path in verify.bring_up_to_date(Book(clone))] == ["README.md"]
    problems, _ = verify.check(Book(clone))
    assert len(problems) == 1
    assert problems[0].startswith("about.md: {report}`nobody` is in the text, but no chapter reports")
