"""Bits: how many a vector has room for, how many a text needs, and which of them a vector can tell apart.

    budget, uniform_token_bits      the two ends: the vector's storage, a text of arbitrary tokens
    unigram_entropy, cross_entropy  what real text needs, estimated on text held out from the estimate
    prior_bits, posterior_bits      what one text needs, without its vector and with it: -log2 p(x), -log2 p(x | e)
    quantise, codes, coordinate_entropy, packing_bits      what survives coarser storage
    nearest_distances, edit_distances, numeric_resolution  do two texts ever share a vector?
    destroyed                       the data-processing inequality at work, on pairs of texts

Chapter 1 runs most of it, chapter 5 the bits of a text given its vector.
Distances are 1 - cosine throughout: 0 for the same direction.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import TutorialError, VectorError
from .metrics import Estimate, bootstrap
from .ngrams import NgramModel, flat_ids

if TYPE_CHECKING:
    from .embedder import Embedder
    from .inverter import Inverter

STORAGE_BITS = {"float32": 32, "float16": 16, "int8": 8, "binary": 1}  # bits for one coordinate
EDITS = ("case", "adjacent swap", "random swap", "replace a word", "delete a word", "full shuffle")

# --- budgets ----------------------------------------------------------------------------------------


def budget(dimension: int, bits_per_value: int = 32) -> int:
    """Bits in one stored vector: 768 float32 coordinates are 24,576, the figure of the article."""
    if dimension < 1 or bits_per_value < 1:
        raise TutorialError(
            f"budget was given {dimension} values of {bits_per_value} bits; both must be 1 or more."
        )
    return dimension * bits_per_value


def uniform_token_bits(vocabulary_size: int) -> float:
    """Bits to name one token when all are equally likely, log2 |V|: no text needs more per token."""
    if vocabulary_size < 1:
        raise TutorialError(
            f"uniform_token_bits was given a vocabulary of {vocabulary_size} tokens; give 1 or more."
        )
    return math.log2(vocabulary_size)


def packing_bits(dimension: float, distance: float) -> float:
    """Bits of the largest code on the unit sphere in `dimension` whose words stay `distance` apart.

    A lower bound (Chabauty 1953, Shannon 1959, Wyner 1965): 1 / (area of a cap of angle t) points with
    pairwise angles of at least t exist, and that area is at most sin(t)^(dimension - 1) / 2.
    distance: 1 - cosine, in (0, 1]. Raises TutorialError outside it.
    """
    if not 0 < distance <= 1 or dimension < 2:
        raise TutorialError(
            f"packing_bits was given distance={distance} in {dimension} dimensions; "
            "give a distance (1 - cosine) in (0, 1] and at least 2 dimensions."
        )
    sine = math.sqrt(distance * (2 - distance))  # cos t = 1 - distance
    return 1 - (dimension - 1) * math.log2(sine)


def effective_dimension(embeddings: np.ndarray) -> float:
    """The number of directions the vectors use, by variance: (sum of PCA variances)^2 / sum of their squares.

    embeddings: [n, d] -> between 1 and d: the "participation ratio". In a sample its inverse comes out too large by
    about 1 / (n - 1) (exactly so for the mean squares of normal vectors), which is taken off.
    """
    x = _matrix(embeddings, "effective_dimension", rows=2)
    variances = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    inverse = (variances**2).sum() / variances.sum() ** 2 - 1 / (len(x) - 1)
    return float(1 / max(inverse, 1 / x.shape[1]))


# --- entropy of text --------------------------------------------------------------------------------


def unigram_entropy(token_ids: Sequence[Sequence[int]]) -> float:
    """Entropy of the token frequencies in bits per token, with Miller and Madow's correction (1955).

    Word order counts for nothing here, so real text needs fewer bits than this; `cross_entropy` says
    how many fewer. Raises TutorialError when there are no tokens.
    """
    return float(_entropy(np.unique(flat_ids(token_ids, "unigram_entropy"), return_counts=True)[1]))


def cross_entropy(
    train_ids: Sequence[Sequence[int]],
    held_out_ids: Sequence[Sequence[int]],
    vocabulary_size: int,
    *,
    order: int = 3,
    seed: int = 0,
) -> Estimate:
    """Bits per token that held-out text costs under an n-gram model fitted to other text.

    An upper bound on the entropy of such text (Shannon 1951): a better model would need fewer bits.
    Each text is taken alone, with nothing before its first token. The interval is a bootstrap over held-out
    texts, and n counts them. Raises TutorialError for no tokens or ids outside the vocabulary.
    """
    flat_ids(held_out_ids, "cross_entropy")
    model = NgramModel(train_ids, vocabulary_size, order)
    rows = [
        (-model.log2_probabilities(ids).sum(), len(ids)) for ids in held_out_ids if len(ids)
    ]  # bits, tokens

    def ratio(pairs: np.ndarray, axis: int) -> np.ndarray:
        totals = pairs.sum(axis=axis)
        return totals[..., 0] / totals[..., 1]

    return bootstrap(np.array(rows), statistic=ratio, seed=seed)


def prior_bits(model: NgramModel, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
    """-log2 p(x) of each text of known length, for someone who has no vector: n texts -> [n] float64.

    Its mean over held-out texts bounds their entropy H(X) from above (`cross_entropy`).
    """
    return np.array([-model.log2_probabilities(ids).sum() for ids in token_ids])


def posterior_bits(
    inverter: Inverter,
    embeddings: np.ndarray,
    token_ids: Sequence[Sequence[int]],
    vocabulary_size: int,
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """-log2 p(x | e) of each text of known length under the inverter: [n, d], n texts -> [n] float64.

    Its mean bounds H(X | E) from above, for whatever vectors are given: the text's own or what is left of them. All
    probabilities are of pieces, the end mark left out, so that they compare with `prior_bits`; a piece that the
    inverter cannot write has an equal part of what it gives to all unknown ones of the vocabulary. With r for the
    model of `prior_bits`,

        mean(prior - posterior) = I(X; E) + KL(p(x) || r(x)) - mean KL(p(x | e) || inverter),

    so the difference *estimates* the information the vector holds about the text. It would be a lower bound (Barber
    and Agakov 2003) if r were the true p(x); as it is not, the difference may also be too high, by what r wastes.
    Raises TutorialError when there is not one text for each vector, or a text has no pieces.
    """
    import torch

    if len(embeddings) != len(token_ids) or not all(len(ids) for ids in token_ids):
        raise TutorialError(
            f"posterior_bits was given {len(embeddings)} vectors and {len(token_ids)} texts; "
            "give one text of one piece or more for each vector."
        )
    from .modeling import T5_UNKNOWN, UNKNOWN

    target, t5 = inverter.check_vectors(embeddings), inverter.backbone
    own = inverter.config.own_vocabulary
    unknown, writable = (UNKNOWN, len(inverter.vocabulary)) if own else (T5_UNKNOWN, t5.config.vocab_size)
    share = math.log2(max(1, vocabulary_size - writable))  # pieces that the unknown's probability is divided among
    found = []
    with torch.inference_mode():
        for start in range(0, len(target), batch_size):
            part = slice(start, start + batch_size)
            labels = inverter.to_model_ids(token_ids[part])  # [b, t], with the end mark
            logits = t5(inputs_embeds=inverter.encoder_inputs(target[part]), labels=labels).logits.float()
            log2p = logits.log_softmax(-1).gather(2, labels[..., None]).squeeze(2) / math.log(2)  # [b, t]
            log2p = log2p - share * (labels == unknown)
            content = (labels != inverter.pad) & (labels != inverter.end)
            found.append(-(log2p * content).sum(1).double().cpu().numpy())
    return np.concatenate(found)


# --- coarser storage --------------------------------------------------------------------------------


def codes(embeddings: np.ndarray, storage: str, calibration: np.ndarray | None = None) -> np.ndarray:
    """What a store would keep: [n, d] float32 or float16, int8 (256 equal steps) or bool (the sign).

    calibration: [m, d] vectors whose largest |coordinate| sets int8's range, the same for all coordinates
    (the embeddings themselves without it); values beyond the range are clipped, as vector stores do.
    """
    x = _matrix(embeddings, "codes")
    if storage not in STORAGE_BITS:
        raise TutorialError(f"codes was given storage={storage!r}; choose one of {', '.join(STORAGE_BITS)}.")
    if storage == "binary":
        return x > 0
    if storage == "int8":
        return np.clip(np.rint(x / _step(x, calibration)), -127, 127).astype(np.int8)
    return x.astype(storage)


def quantise(embeddings: np.ndarray, storage: str, calibration: np.ndarray | None = None) -> np.ndarray:
    """The float32 vectors that come back out of such a store: [n, d] -> [n, d]; see `codes`."""
    kept = codes(embeddings, storage, calibration)
    if storage == "binary":
        return np.where(kept, 1, -1).astype(np.float32) / np.float32(math.sqrt(kept.shape[1]))
    if storage == "int8":
        return (kept * _step(_matrix(embeddings, "quantise"), calibration)).astype(np.float32)
    return kept.astype(np.float32)


def coordinate_entropy(stored: np.ndarray) -> np.ndarray:
    """Entropy of each coordinate over the texts, in bits: [n, d] codes of `codes` -> [d].

    Their sum bounds what the stored vector says about which text it was (coordinates that depend on one
    another say less). Miller and Madow's correction; an estimate from n vectors cannot exceed log2 n.
    """
    kept = np.asarray(stored)
    if kept.ndim != 2 or not kept.size:
        raise VectorError(
            f"coordinate_entropy was given an array of shape {list(kept.shape)}; give codes [n, d]."
        )
    return np.array([_entropy(np.unique(column, return_counts=True)[1]) for column in kept.T])


def distinct(stored: np.ndarray) -> int:
    """How many different rows an array [n, d] has: n when no two texts share a code."""
    return len(np.unique(np.ascontiguousarray(stored), axis=0))


# --- collisions -------------------------------------------------------------------------------------


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 - cosine of each row of `a` with the same row of `b`: [n, d], [n, d] -> [n] float64.

    Computed as half the squared distance of the unit vectors, in float64: subtracting a cosine from 1
    loses everything below 1e-7, which is where the interesting part of chapter 1 lies.
    """
    x, y = _unit(a, "distances"), _unit(b, "distances")
    if x.shape != y.shape:
        raise VectorError(
            f"distances was given shapes {list(x.shape)} and {list(y.shape)}; give two of the same shape."
        )
    return 0.5 * ((x - y) ** 2).sum(axis=1)


def nearest_distances(embeddings: np.ndarray, *, others: np.ndarray | None = None) -> np.ndarray:
    """Distance of each vector to the nearest one of another text: [n, d] -> [n] float64.

    Without `others` [m, d], among the rows themselves (never a row with itself, so n >= 2).
    """
    x = _unit(embeddings, "nearest_distances", rows=1 if others is not None else 2)
    y = x if others is None else _unit(others, "nearest_distances")
    # float32 is enough to find the nearest; its distance is then computed in float64
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    found = np.empty(len(x))
    rows = max(1, 10_000_000 // len(y))  # cosines held at once: at most 40 MB
    for start in range(0, len(x), rows):
        similar = x32[start : start + rows] @ y32.T  # [rows, d] @ [d, m] -> [rows, m]
        if others is None:
            here = np.arange(len(similar))
            similar[here, start + here] = -2
        found[start : start + rows] = distances(x[start : start + rows], y[similar.argmax(axis=1)])
    return found


def random_pair_distances(embeddings: np.ndarray, *, pairs: int = 2000, seed: int = 0) -> np.ndarray:
    """Distances of `pairs` random pairs of different rows: [n, d] -> [pairs] float64."""
    x = _matrix(embeddings, "random_pair_distances", rows=2)
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(x), size=pairs)
    second = (first + rng.integers(1, len(x), size=pairs)) % len(x)
    return distances(x[first], x[second])


def minimal_edits(text: str, *, vocabulary: Sequence[str], seed: int = 0) -> dict[str, str]:
    """The smallest changes to a text, by name (see EDITS); an edit the text is too short for is left out.

    vocabulary: words to draw a replacement from. Every edited text differs from the original; "case"
    turns it into capitals, which an uncased embedder cannot see.
    """
    words = text.split()
    if not words:
        raise TutorialError("minimal_edits was given an empty text; give one with at least one word.")
    rng = np.random.default_rng(seed)
    edits: dict[str, list[str]] = {"case": [word.upper() for word in words]}
    pairs = [(i, j) for i in range(len(words)) for j in range(i + 1, len(words)) if words[i] != words[j]]
    adjacent = [(i, j) for i, j in pairs if j == i + 1]
    for name, choices in (("adjacent swap", adjacent), ("random swap", pairs)):
        if choices:
            i, j = choices[rng.integers(len(choices))]
            edits[name] = words[:i] + [words[j]] + words[i + 1 : j] + [words[i]] + words[j + 1 :]
    at = int(rng.integers(len(words)))
    if other := sorted(set(vocabulary) - {words[at]}):
        edits["replace a word"] = words[:at] + [other[rng.integers(len(other))]] + words[at + 1 :]
    if len(words) > 1:
        edits["delete a word"] = words[:at] + words[at + 1 :]
    if pairs:
        shuffled = words
        while shuffled == words:  # ends: at least two words differ
            shuffled = [words[i] for i in rng.permutation(len(words))]
        edits["full shuffle"] = shuffled
    return {name: " ".join(edits[name]) for name in EDITS if name in edits and " ".join(edits[name]) != text}


@dataclass(frozen=True)
class EditDistances:
    """Distances between texts and their minimal edits, one array per edit that was possible."""

    distances: dict[str, np.ndarray]  # edit -> [texts it could be made in], 1 - cosine
    examples: dict[str, tuple[str, str]]  # edit -> (a text, that text edited)

    def median(self, edit: str) -> float:
        """Half of the texts are moved further than this by the edit, half less far."""
        return float(np.median(self.distances[edit]))


def edit_distances(texts: Sequence[str], embedder: Embedder, *, seed: int = 0) -> EditDistances:
    """How far each minimal edit moves the vector of each text; replacements come from the other texts.

    texts: short enough that an edited text still fits the embedder (it is cut there otherwise, and
    an edit beyond the cut would count as no change).
    """
    if not texts:
        raise TutorialError("edit_distances was given no texts; give at least one.")
    vocabulary = sorted({word for text in texts for word in text.split()})
    pairs: dict[str, list[tuple[str, str]]] = {}
    for number, text in enumerate(texts):
        for name, edited in minimal_edits(text, vocabulary=vocabulary, seed=seed + number).items():
            pairs.setdefault(name, []).append((text, edited))
    return EditDistances(
        distances={name: _pair_distances(pairs[name], embedder) for name in EDITS if name in pairs},
        examples={name: pairs[name][0] for name in EDITS if name in pairs},
    )


def numeric_resolution(
    texts: Sequence[str], embedder: Embedder, *, batch_sizes: Sequence[int] = (1, 3, 16, 64), seed: int = 0
) -> np.ndarray:
    """The noise floor: how far apart one text's own vectors lie when it is embedded in other company.

    Each text is embedded once per batch size, in another order each time; float32 sums taken in another
    order end on other last digits. -> [n] float64, the largest distance from the first embedding.
    """
    if not texts or len(batch_sizes) < 2:
        raise TutorialError(
            f"numeric_resolution was given {len(texts)} texts and {len(batch_sizes)} batch sizes; "
            "give at least one text and two sizes to compare."
        )
    rng = np.random.default_rng(seed)
    runs = []
    for size in batch_sizes:
        order = rng.permutation(len(texts))
        vectors = embedder.encode([texts[i] for i in order], batch_size=size, truncate=True)
        runs.append(vectors[np.argsort(order)])
    return np.max([distances(runs[0], run) for run in runs[1:]], axis=0)


# --- the data-processing inequality -----------------------------------------------------------------


@dataclass(frozen=True)
class Destroyed:
    """One pair of texts and whether the tokenizer, and then the embedder, can tell them apart."""

    first: str
    second: str
    change: str  # what differs between the two
    same_tokens: bool  # the network is given the same input for both
    distance: float  # 1 - cosine of the two embeddings


def destroyed(pairs: Sequence[tuple[str, str, str]], embedder: Embedder) -> list[Destroyed]:
    """What processing destroys: for each (change, first, second), are the two texts one to the embedder?

    Texts beyond the embedder's limit are cut there, deliberately: that is one of the losses to show. Equal
    tokens mean equal vectors up to `numeric_resolution`, and nothing computed from the vector can say
    which text it was: the data-processing inequality, I(text; f(e)) <= I(text; e) <= I(text; tokens).
    """
    if not pairs:
        return []
    cut = embedder.max_tokens
    firsts, seconds = embedder.token_ids([p[1] for p in pairs]), embedder.token_ids([p[2] for p in pairs])
    gaps = _pair_distances([(first, second) for _, first, second in pairs], embedder)
    return [
        Destroyed(first, second, change, list(a[:cut]) == list(b[:cut]), float(gap))
        for (change, first, second), a, b, gap in zip(pairs, firsts, seconds, gaps, strict=True)
    ]


def strip_accents(text: str) -> str:
    """The text without its combining marks, as BERT's uncased tokenizer makes it: "café" -> "cafe"."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def case_bits(text: str) -> int:
    """Bits an uncased tokenizer forgets at most: one for each letter that has a capital."""
    return sum(character.lower() != character.upper() for character in text)


# --- helpers ----------------------------------------------------------------------------------------


def _pair_distances(pairs: Sequence[tuple[str, str]], embedder: Embedder) -> np.ndarray:
    """[n] distances; both halves in one call, so that they see the same batches as far as possible."""
    flat = [text for pair in pairs for text in pair]
    vectors = embedder.encode(flat, truncate=True)  # [2n, d]
    return distances(vectors[0::2], vectors[1::2])


def _entropy(counts: np.ndarray) -> float:
    n = counts.sum()
    p = counts / n
    plug_in = -(p * np.log2(p)).sum()
    return max(0.0, float(plug_in + (len(counts) - 1) / (2 * n * math.log(2))))


def _matrix(embeddings: np.ndarray, caller: str, rows: int = 1) -> np.ndarray:
    x = np.asarray(embeddings)
    if x.ndim != 2 or len(x) < rows or not x.shape[1]:
        raise VectorError(
            f"{caller} was given an array of shape {list(x.shape)}; give [n, d] with n >= {rows}."
        )
    if not np.isfinite(x).all():
        raise VectorError(f"{caller} was given vectors with NaN or infinity; look for an overflow upstream.")
    return x


def _unit(embeddings: np.ndarray, caller: str, rows: int = 1) -> np.ndarray:
    x = _matrix(embeddings, caller, rows).astype(np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise VectorError(
            f"{caller} was given a vector of zeros, which has no direction; leave that row out."
        )
    return x / lengths


def _step(x: np.ndarray, calibration: np.ndarray | None) -> np.float32:
    """One int8 step: 127 of them reach the largest |coordinate| of the calibration vectors."""
    largest = np.abs(x if calibration is None else _matrix(calibration, "codes")).max()
    return np.float32(largest / 127) if largest else np.float32(1)
