"""Defences for stored vectors, their price in search, and what counts as leaked (chapter 4).

defences    GaussianNoise, Quantise (Int8, Binary), ProductQuantisation, Truncate, PCATruncate, SecretRotation,
            SecretAffine; Alignment, the adaptive attacker
retrieval   retrieval_task, score_retrieval: recall@10 and nDCG@10
price       price_defences, price_figure: leakage against retrieval, every defence a curve
pii         names_recovered, pii_recovered, find_pii, mask
"""

from .defences import (
    Alignment,
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
from .pii import Finding, NameScores, find_pii, mask, name_hits, names_recovered, pii_hits, pii_recovered
from .price import Point, Task, price_defences, price_figure
from .retrieval import RetrievalScores, RetrievalTask, retrieval_task, score_retrieval

__all__ = [
    "Alignment",
    "Binary",
    "Defence",
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
