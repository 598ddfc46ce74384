"""Rules that turn one operation's columns into factors; importing the package registers them."""

from lightning_vivit.problem.tape.operation import operation
from lightning_vivit.rules import (
    arithmetic,
    conv,
    conv_transpose,
    embedding,
    linear,
    norm,
    product,
)
from lightning_vivit.rules.dense import dense_rule
from lightning_vivit.rules.registry import Rule, Use, find_rule, register_rule, unregister_rule

__all__ = [
    "Rule",
    "Use",
    "arithmetic",
    "conv",
    "conv_transpose",
    "dense_rule",
    "embedding",
    "find_rule",
    "linear",
    "norm",
    "operation",
    "product",
    "register_rule",
    "unregister_rule",
]
