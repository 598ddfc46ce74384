"""Which operations of a program its result needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from lightning_vivit.problem.tape.effects import effects_of
from lightning_vivit.problem.tape.program import Hole, Operation, Program, Slot, slots_in


def sliced(program: Program, result: Any = None) -> Program:
    """The part of a program that computes a result.

    Slots that may share memory form a group; an operation that writes to one of a group is needed
    as soon as one of the group is. What may share memory is told by the operations' names, so that
    too much may be kept, but nothing is missed.

    Args:
        program: The whole.
        result: What is wanted, nested slots; None for all that the program returns.

    Returns:
        A program with fewer operations and inputs, the holes that matter to it, and what each
        operation releases.
    """
    result = program.result if result is None else result
    groups = _Groups(program)
    needed = set(slots_in(result))
    groups_needed = {groups.of(slot) for slot in needed}
    kept: list[Operation] = []
    released: list[tuple[Slot, ...]] = []
    for operation in reversed(program.operations):
        if not _is_needed(operation, needed, groups, groups_needed):
            continue
        touched = dict.fromkeys(_slots(operation))
        released.append(tuple(slot for slot in touched if slot not in needed))
        needed.update(touched)
        groups_needed.update(groups.of(slot) for slot in touched)
        kept.append(operation)
    written = {groups.of(slot) for each in kept for slot in _written(each)}
    inputs = {slot: each for slot, each in program.inputs.items() if slot in needed}
    return replace(
        program,
        operations=tuple(reversed(kept)),
        inputs=inputs,
        result=result,
        holes=tuple(hole for hole in program.holes if _matters(hole, needed)),
        released=tuple(reversed(released)),
        written=frozenset(slot for slot in inputs if groups.of(slot) in written),
    )


def _matters(hole: Hole, needed: set[Slot]) -> bool:
    return hole.slot is None or hole.slot in needed


def _is_needed(
    operation: Operation, needed: set[Slot], groups: _Groups, groups_needed: set[int]
) -> bool:
    if any(slot in needed for slot in slots_in(operation.outputs)):
        return True
    return any(groups.of(slot) in groups_needed for slot in _written(operation))


def _slots(operation: Operation) -> Iterator[Slot]:
    yield from slots_in(operation.args)
    yield from slots_in(operation.kwargs)
    yield from slots_in(operation.outputs)


def _written(operation: Operation) -> Iterator[Slot]:
    function, args, kwargs = operation[:3]
    effects = effects_of(function)
    if effects.in_place or effects.writes or kwargs:
        yield from slots_in(effects.written(function, args, kwargs))


class _Groups:
    """Slots that may share memory, by union and find."""

    def __init__(self, program: Program) -> None:
        self._parent = list(range(program.size))
        for operation in program.operations:
            aliases = effects_of(operation.function).aliases
            if aliases != 0:
                args = operation.args if aliases < 0 else operation.args[:aliases]
                sources: Iterable[Slot] = slots_in([args, operation.kwargs])
                self._join([*sources, *slots_in(operation.outputs)])

    def of(self, slot: int) -> int:
        """The group of a slot."""
        parent = self._parent
        while parent[slot] != slot:
            parent[slot] = parent[parent[slot]]
            slot = parent[slot]
        return slot

    def _join(self, slots: list[Slot]) -> None:
        for slot in slots[1:]:
            self._parent[self.of(slot)] = self.of(slots[0])
