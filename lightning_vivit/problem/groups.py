"""Parameter groups: the diagonal blocks of the GGN that are looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from torch import nn

from lightning_vivit.errors import OptionError

GroupEntry: TypeAlias = "str | nn.Parameter"
ParamGroups: TypeAlias = "str | Sequence[Sequence[GroupEntry]] | Mapping[str, Sequence[GroupEntry]]"

_SUPPORTED = (
    "Supported: 'all' (one block), 'layer' (one per module), 'parameter' (one per parameter), a "
    "list of lists or a dict of lists of parameter names, name patterns such as 'encoder.*', "
    "module names, or parameters."
)


def resolve_groups(
    groups: ParamGroups, parameters: Mapping[str, nn.Parameter]
) -> dict[str, list[str]]:
    """Names of the parameters of each group.

    Args:
        groups: What the user gave.
        parameters: The trainable parameters by name.

    Returns:
        Group name -> parameter names. A list's groups are called ``group_0``, ``group_1``, ...

    Raises:
        OptionError: Unknown group or parameter, or a parameter in two groups.
    """
    if isinstance(groups, str):
        return _named_groups(groups, parameters)
    if isinstance(groups, Mapping):
        given = {str(name): list(entries) for name, entries in groups.items()}
    else:
        given = {f"group_{index}": _entries(entries) for index, entries in enumerate(groups)}
    if not given:
        raise OptionError(f"Got no parameter group. {_SUPPORTED}")
    resolved = {
        name: [match for entry in entries for match in _match(entry, name, parameters)]
        for name, entries in given.items()
    }
    seen: dict[str, str] = {}
    for group, names in resolved.items():
        for name in names:
            if name in seen:
                raise OptionError(
                    f"Parameter {name!r} is in the groups {seen[name]!r} and {group!r}. Groups are "
                    "diagonal blocks of one matrix: put each parameter into one group."
                )
            seen[name] = group
    return resolved


def _entries(entries: Sequence[GroupEntry]) -> list[GroupEntry]:
    if isinstance(entries, str):
        raise OptionError(f"Got the string {entries!r} as a group of a list. {_SUPPORTED}")
    return list(entries)


def _named_groups(kind: str, parameters: Mapping[str, nn.Parameter]) -> dict[str, list[str]]:
    if kind == "all":
        return {"all": list(parameters)}
    if kind == "parameter":
        return {name: [name] for name in parameters}
    if kind == "layer":
        return layers_of(parameters)
    raise OptionError(f"Unknown parameter group {kind!r}. {_SUPPORTED}")


def require_group(group: str, known: Iterable[str]) -> None:
    """Raise an OptionError unless a group is one of those that were evaluated."""
    if group not in known:
        raise OptionError(
            f"Unknown parameter group {group!r}. This evaluation has: {', '.join(known)}."
        )


def layers_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Module name -> names of its own parameters; those of the model itself are in ``root``."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layer = name.split(".parametrizations.")[0].rpartition(".")[0]
        layers.setdefault(layer or "root", []).append(name)
    return layers


def _match(entry: GroupEntry, group: str, parameters: Mapping[str, nn.Parameter]) -> Iterable[str]:
    if isinstance(entry, nn.Parameter):
        found = [name for name, parameter in parameters.items() if parameter is entry]
        label = f"a parameter of shape {tuple(entry.shape)}"
    else:
        found = [
            name
            for name in parameters
            if name == entry or name.startswith(f"{entry}.") or fnmatchcase(name, str(entry))
        ]
        label = repr(entry)
    if not found:
        some = ", ".join(list(parameters)[:8]) + (", ..." if len(parameters) > 8 else "")
        raise OptionError(
            f"Parameter group {group!r}: {label} is none of the module's trainable parameters "
            f"({some}). {_SUPPORTED}"
        )
    return found


_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile, FSDP and activation checkpointing add."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
