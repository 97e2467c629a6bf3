"""Chapters as notebooks: text source -> notebook to execute -> notebook to publish.

    read_source      book/NN_name.md as a notebook: Colab cell, parameters written in, stable cell ids
    execute          run it with papermill in a fresh kernel
    tidy             outputs without anything that changes from run to run
    publish          source cells + outputs + numbers in the prose

Chapters are written in MyST Markdown (jupytext); no notebook is edited by hand.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from .claims import Claim, Reported
from .errors import TutorialError
from .prose import fill

_COLAB_CELL = """import sys

if "google.colab" in sys.modules:  # Colab brings torch and numpy, which stay as they are: pip adds what is missing
    from importlib.metadata import version
    from pathlib import Path

    Path("constraints.txt").write_text("".join(f"{{name}}=={{version(name)}}\\n" for name in ("torch", "numpy")))
    %pip install --quiet --constraint constraints.txt "tutorial-lib[chapters] @ git+{url}\""""

# Settings of the kernel that make two runs on one machine give the same bytes.
_KERNEL = {
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_PROGRESS = re.compile(r"\d+%\|.*\||\|\s*\d+/\d+ \[|it/s|s/it|\d+it \[")
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def is_chapter(path: Path) -> bool:
    """True for a Markdown page that is executed: its header names a kernel."""
    text = path.read_text(encoding="utf-8")
    header = re.match(r"---\n(.*?)\n---\n", text, re.S)
    return bool(header and re.search(r"^kernelspec:", header.group(1), re.M))


def read_source(path: Path, parameters: Mapping[str, Any], repository: str) -> NotebookNode:
    """A chapter's source as the notebook that is executed and published, without outputs.

    parameters: values written into the cell tagged `parameters`, in place of the literals there.
    Raises TutorialError for a parameter the chapter does not have.
    """
    import jupytext

    source = jupytext.read(path)
    notebook = nbformat.v4.new_notebook(
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "accelerator": "GPU",  # Colab then offers one; every chapter runs without
            "colab": {"provenance": []},
        }
    )
    cells = [cell for cell in source.cells if cell.source.strip()]
    first = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    colab = nbformat.v4.new_code_cell(
        _COLAB_CELL.format(url=repository), metadata={"tags": ["colab", "remove-cell"]}
    )
    cells.insert(first, colab)
    notebook.cells = cells
    _write_parameters(notebook, parameters, path.stem)
    seen: dict[str, int] = {}
    for cell in cells:
        # from the content, so that a new paragraph does not rename every cell below it
        digest = hashlib.sha256((cell.cell_type + cell.source).encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            cell.execution_count, cell.outputs = None, []
    return notebook


def _write_parameters(notebook: NotebookNode, parameters: Mapping[str, Any], stem: str) -> None:
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise TutorialError(f"{stem} has {len(cells)} cells tagged 'parameters'; give it exactly one.")
    lines = cells[0].source.splitlines()
    found = {}
    for node in ast.parse(cells[0].source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
        if (
            isinstance(target, ast.Name)
            and isinstance(node, ast.Assign)
            and node.value.end_lineno == node.lineno
        ):
            found[target.id] = node.value
    unknown = sorted(set(parameters) - set(found))
    if unknown:
        raise TutorialError(
            f"{stem} has no parameter '{unknown[0]}'; "
            f"its cell tagged 'parameters' assigns {', '.join(found)}."
        )
    for name, value in parameters.items():
        node = found[name]
        if ast.literal_eval(node) != value:
            # ast counts UTF-8 bytes
            line = lines[node.lineno - 1].encode()
            lines[node.lineno - 1] = (
                line[: node.col_offset] + repr(value).encode() + line[node.end_col_offset :]
            ).decode()
    cells[0].source = "\n".join(lines)


def code_hash(notebook: NotebookNode) -> str:
    """sha256 of what decides a chapter's outputs in the notebook itself: its code cells, in order."""
    return hashlib.sha256(json.dumps(code_of(notebook)).encode()).hexdigest()


def code_of(notebook: NotebookNode) -> list[str]:
    """A chapter's code cells, in order."""
    # without Colab's cell, so that a fork with another address need not execute everything again
    return [cell.source for cell in notebook.cells if cell.cell_type == "code" and not _is_colab(cell)]


def outputs_hash(notebook: NotebookNode) -> str:
    """sha256 of a notebook's outputs, to notice one that was edited by hand."""
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def execute(
    notebook: NotebookNode, scratch: Path, cwd: Path, *, offline: bool, timeout: int = 1800
) -> NotebookNode:
    """Run a notebook in a fresh kernel and return it with raw outputs.

    scratch: where papermill writes; after an error the notebook stays there to be looked at.
    timeout: seconds for one cell. Raises TutorialError naming the cell and the error, or saying that the
    kernel died or a cell took too long.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    with _environment(_KERNEL | (_OFFLINE if offline else {})):
        try:
            return papermill.execute_notebook(
                copy.deepcopy(notebook),
                scratch,
                kernel_name="python3",
                cwd=str(cwd),
                execution_timeout=timeout,
                progress_bar=False,
                log_output=False,
                # the kernel's own remarks on its transport are no concern of the reader's
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            raise TutorialError(
                f"{scratch.stem} stopped at its code cell {error.exec_count} with {error.ename}: "
                f"{error.evalue} (the notebook so far: {scratch}):\n{error.source}"
            ) from error
        except DeadKernelError as error:
            raise TutorialError(
                f"the kernel of {scratch.stem} died, most often because memory ran out; free some and run it again "
                f"(the notebook so far: {scratch})."
            ) from error
        except CellTimeoutError as error:
            raise TutorialError(
                f"a cell of {scratch.stem} took more than {timeout} seconds (the notebook so far: {scratch})."
            ) from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)  # a kernel inherits the environment of the process that starts it
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def tidy(notebook: NotebookNode, stem: str) -> None:
    """Make outputs the same from run to run, in place: streams joined, progress bars and widgets dropped.

    Raises TutorialError for what would differ on the next run or spoil the page: a warning on stderr, a
    memory address.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "scrolled", "collapsed"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        records = [output for output in cell.outputs if "scrapbook" in output.get("metadata", {})]
        for output in cell.outputs:
            if output in records:
                continue  # they show nothing: put last, they do not cut the printed lines into pieces
            if output.output_type == "stream" and output.name == "stderr":
                _refuse_warnings(output.text, cell, stem)
                continue
            data = output.get("data", {})
            if any("widget-view" in mime for mime in data):
                continue
            if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text  # the kernel splits a stream where it pleases
            else:
                outputs.append(output)
        for output in outputs:
            shown = output.get("text", "") + "".join(
                value for mime, value in output.get("data", {}).items() if mime.startswith("text/")
            )
            if _ADDRESS.search(shown):
                raise TutorialError(
                    f"{stem} prints a memory address ({_around(_ADDRESS, shown)}), which changes with every "
                    f"run; print something else, or end the line with ';', in the cell:\n{cell.source}"
                )
        cell.outputs = outputs + records


def _refuse_warnings(text: str, cell: NotebookNode, stem: str) -> None:
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip() and not _PROGRESS.search(line)]
    if lines and not _is_colab(cell):
        raise TutorialError(
            f"{stem} writes to stderr ({lines[0][:200]!r}), which would stand on the page; "
            f"mend what it warns about, or silence it where it is harmless, in the cell:\n{cell.source}"
        )


def _around(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    assert match
    return text[max(0, match.start() - 40) : match.end()].strip()


def _is_colab(cell: NotebookNode) -> bool:
    return "colab" in cell.metadata.get("tags", [])


def publish(
    source: NotebookNode,
    executed: NotebookNode,
    numbers: Mapping[str, Reported],
    claims: Mapping[str, Claim],
) -> NotebookNode:
    """The notebook a reader sees: the source's cells, the executed one's outputs, numbers in the prose.

    Raises TutorialError when the code of the two differs.
    """
    notebook = copy.deepcopy(source)
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if len(ran) != len(code) or code_of(executed) != code_of(notebook):
        raise TutorialError("the code of the chapter changed since it was executed; execute it again.")
    for cell, done in zip(code, ran, strict=True):
        cell.outputs = copy.deepcopy(done.outputs)
        cell.execution_count = done.execution_count
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = fill(cell.source, numbers, claims)
    nbformat.validate(notebook)
    return notebook


def dumps(notebook: NotebookNode) -> str:
    """The bytes of a notebook file: sorted keys, one space of indent, a newline at the end."""
    return (
        json.dumps(
            nbformat.v4.rwbase.split_lines(copy.deepcopy(notebook)),
            indent=1,
            sort_keys=True,
            ensure_ascii=False,
        )
        + "\n"
    )


def read(path: Path) -> NotebookNode:
    """An executed notebook. Raises TutorialError when it is missing or is no notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise TutorialError(f"{path.name} has not been executed yet; run 'tutorial-lib book'.") from None
    except OSError as error:
        raise TutorialError(f"{path.name} could not be read ({error}).") from error
    except Exception as error:  # nbformat raises whatever the first thing it does not expect meets
        raise TutorialError(
            f"{path.name} is not a notebook; delete it and run 'tutorial-lib book'."
        ) from error
