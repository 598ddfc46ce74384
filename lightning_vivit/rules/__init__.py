"""Rules that turn one operation's columns into factors; importing the package registers them."""

from lightning_vivit.problem.tape.operation import operation
from lightning_vivit.rules import (
    conv,
    conv_transpose,
    elementwise,
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
    "conv",
    "conv_transpose",
    "dense_rule",
    "elementwise",
    "embedding",
    "find_rule",
    "linear",
    "norm",
    "operation",
    "product",
    "register_rule",
    "unregister_rule",
]
