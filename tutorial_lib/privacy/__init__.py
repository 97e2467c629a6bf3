"""Defences for stored vectors, their price in search, and what counts as leaked (chapter 4).

defences    GaussianNoise, Quantise (Int8, Binary), ProductQuantisation, Truncate, PCATruncate, SecretRotation,
            SecretAffine
adaptive    adapt, WayBack, CellMeans, Alignment, DefendedEmbedder: attackers who prepare for a defence
retrieval   retrieval_task, beir_task, score_retrieval: recall@10 and nDCG@10
price       price_defences, price_figure: leakage against retrieval, every defence a curve
pii         names_recovered, facts_recovered, pii_recovered, find_pii, mask
"""

from .adaptive import Alignment, CellMeans, DefendedEmbedder, WayBack, adapt
from .defences import (
    Binary,
    Defence,
    GaussianNoise,
    Int8,
    PCATruncate,
    ProductQuantisation,
    Quantise,
    SecretAffine,
    SecretRotation,
    Truncate,
    unit,
)
from .pii import (
    Finding,
    NameScores,
    facts_recovered,
    find_pii,
    mask,
    name_hits,
    names_recovered,
    pii_hits,
    pii_recovered,
)
from .price import Point, Task, price_defences, price_figure
from .retrieval import RetrievalScores, RetrievalTask, beir_task, retrieval_task, score_retrieval

__all__ = [
    "Alignment",
    "Binary",
    "CellMeans",
    "Defence",
    "DefendedEmbedder",
    "Finding",
    "GaussianNoise",
    "Int8",
    "NameScores",
    "PCATruncate",
    "Point",
    "ProductQuantisation",
    "Quantise",
    "RetrievalScores",
    "RetrievalTask",
    "SecretAffine",
    "SecretRotation",
    "Task",
    "Truncate",
    "WayBack",
    "adapt",
    "beir_task",
    "facts_recovered",
    "find_pii",
    "mask",
    "name_hits",
    "names_recovered",
    "pii_hits",
    "pii_recovered",
    "price_defences",
    "price_figure",
    "retrieval_task",
    "score_retrieval",
    "unit",
]
