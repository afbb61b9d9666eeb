"""Several workloads side by side: merged by arrival, told apart by tenant."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import InputError
from sim.workload.content import Content, in_part
from sim.workload.programs import TASK_STREAMS, ProgramPlans
from sim.workload.requests import MOST_TENANTS, Contents, Traffic
from sim.workload.sessions import SessionPlans

Integers = NDArray[np.int64]

PROGRAM_STREAMS = 2**48
"""Texts of the programs of a mix are in streams from here on, beyond those of other parts."""


@dataclass(frozen=True)
class MixedContents:
    """Contents of several workloads, each in streams of its own."""

    parts: Sequence[Contents | None]
    part: NDArray[np.int16]
    """Part of each row."""
    row: Integers
    """Row in its part."""

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.part)

    def __getitem__(self, row: int, /) -> Content | None:
        """Return the content of a row."""
        part = int(self.part[row])
        contents = self.parts[part]
        content = None if contents is None else contents[int(self.row[row])]
        return None if content is None else in_part(content, part)


def mixed(parts: Mapping[str, Traffic]) -> Traffic:
    """Merge workloads that run at the same time.

    Parameters
    ----------
    parts : mapping of str to Traffic
        By the name of the tenant. A part that has tenants of its own keeps them, as
        ``part/tenant``.

    Returns
    -------
    Traffic
        All requests in order of arrival; at one moment in order of the parts.

    Raises
    ------
    InputError
        There is no part, or one of them is a closed loop of requests: they have no arrivals.
        Programs may be asked by clients, as they start by themselves.
    """
    if not parts:
        raise InputError("a mix needs at least one part")
    closed = [name for name, part in parts.items() if part.clients and not part.programs]
    if closed:
        raise InputError(
            f"part {closed[0]!r} of the mix is a closed loop, which cannot be merged by arrival; "
            "make it a workload of sessions, each of which waits for its answers"
        )
    names = [_tenant_names(name, part) for name, part in parts.items()]
    flat = tuple(tenant for part_names in names for tenant in part_names)
    if len(flat) > MOST_TENANTS:
        raise InputError(
            f"{len(flat)} tenants in the mix; at most {MOST_TENANTS} can be told apart"
        )
    offsets = np.append(0, np.cumsum([len(part_names) for part_names in names])).tolist()
    notes = tuple(f"{name}: {note}" for name, part in parts.items() for note in part.notes)
    return replace(_merged(list(parts.values()), flat, offsets[:-1]), notes=notes)


def _tenant_names(name: str, part: Traffic) -> tuple[str, ...]:
    if len(part.tenant_names) == 1:
        return (name,)
    return tuple(f"{name}/{tenant}" for tenant in part.tenant_names)


def _merged(parts: list[Traffic], names: tuple[str, ...], offsets: list[int]) -> Traffic:
    arrival_s = np.concatenate([_arrivals(part) for part in parts])
    order = np.argsort(arrival_s, kind="stable")
    sizes = [len(part) for part in parts]
    part_of = np.repeat(np.arange(len(parts), dtype=np.int16), sizes)[order]
    row_of = np.concatenate([np.arange(size) for size in sizes])[order]
    tenants = [_filled(part.tenant, len(part), 0, np.int16) for part in parts]
    tenant = np.concatenate(
        [column + np.int16(offset) for column, offset in zip(tenants, offsets, strict=True)]
    )[order]
    contents = [part.contents for part in parts]
    return Traffic(
        input_tokens=np.concatenate([part.input_tokens for part in parts])[order],
        output_tokens=np.concatenate([part.output_tokens for part in parts])[order],
        arrival_s=arrival_s[order],
        tenant_names=names,
        tenant=tenant,
        priority=_column(parts, "priority", 0, np.int16, order),
        max_tokens=_column(parts, "max_tokens", 0, np.int32, order),
        encode_tokens=_column(parts, "encode_tokens", 0, np.int32, order),
        session=_session_numbers(parts, order),
        turn=_column(parts, "turn", 0, np.int32, order),
        contents=None
        if all(one is None for one in contents)
        else MixedContents(contents, part_of, row_of),
        sessions=_merged_sessions(parts, offsets),
        programs=tuple(_numbered_programs(parts, offsets)),
    )


def _numbered_programs(parts: list[Traffic], offsets: list[int]) -> Iterator[ProgramPlans]:
    """Give the programs of all parts numbers that follow each other, and texts of their own."""
    number = 0
    for place, part in enumerate(parts):
        for plans in part.programs:
            yield replace(
                plans,
                first_stream=PROGRAM_STREAMS + number * TASK_STREAMS,
                first_number=number,
                tenant=offsets[place] + plans.tenant,
                part=place,
            )
            number += len(plans)


def _arrivals(part: Traffic) -> NDArray[np.float64]:
    return np.zeros(0) if part.arrival_s is None else part.arrival_s


def _filled(column: Any, count: int, default: int, kind: type[Any]) -> Any:
    return np.full(count, default, dtype=kind) if column is None else column


def _column(parts: list[Traffic], name: str, default: int, kind: type[Any], order: Integers) -> Any:
    columns = [getattr(part, name) for part in parts]
    if all(column is None for column in columns):
        return None
    filled = [
        _filled(column, len(part), default, kind)
        for column, part in zip(columns, parts, strict=True)
    ]
    return np.concatenate(filled)[order]


def _session_numbers(parts: list[Traffic], order: Integers) -> NDArray[np.int32] | None:
    """Give the recorded sessions of all parts numbers that follow each other."""
    if all(part.session is None for part in parts):
        return None
    offset, columns = 0, []
    for part in parts:
        column = _filled(part.session, len(part), -1, np.int32)
        columns.append(np.where(column >= 0, column + offset, -1))
        offset += int(column.max(initial=-1)) + 1
    return np.concatenate(columns)[order].astype(np.int32)


def _merged_sessions(parts: list[Traffic], offsets: list[int]) -> SessionPlans | None:
    """Merge the sessions of all parts by start."""
    present = [(i, part.sessions) for i, part in enumerate(parts) if part.sessions is not None]
    if not present:
        return None
    start_s = np.concatenate([plans.start_s for _, plans in present])
    order = np.argsort(start_s, kind="stable")
    numbers = np.concatenate([np.arange(len(plans)) for _, plans in present])[order]
    part_of = np.repeat(
        np.array([i for i, _ in present], dtype=np.int16), [len(plans) for _, plans in present]
    )
    tenant = np.concatenate(
        [
            _filled(plans.tenant, len(plans), 0, np.int16) + np.int16(offsets[i])
            for i, plans in present
        ]
    )
    joined = _concatenated([plans for _, plans in present]).take(order, start_s[order])
    system = [0] * len(parts)
    for i, plans in present:
        system[i] = plans.system_tokens
    return SessionPlans(
        start_s=joined.start_s,
        first_turn=joined.first_turn,
        input_tokens=joined.input_tokens,
        output_tokens=joined.output_tokens,
        wait_s=joined.wait_s,
        position=joined.position,
        contents=joined.contents,
        tenant=tenant[order],
        part=part_of[order],
        number_in_part=numbers,
        system_tokens_of_part=tuple(system),
    )


def _concatenated(plans: list[SessionPlans]) -> SessionPlans:
    """Put sessions one after the other, in no order of start."""
    lengths = np.concatenate([np.diff(one.first_turn) for one in plans])
    contents = None
    if any(one.contents is not None for one in plans):
        contents = [
            content
            for one in plans
            for content in (one.contents if one.contents is not None else [()] * one.turns)
        ]
    return SessionPlans(
        start_s=np.concatenate([one.start_s for one in plans]),
        first_turn=np.append(0, np.cumsum(lengths)).astype(np.int64),
        input_tokens=np.concatenate([one.input_tokens for one in plans]),
        output_tokens=np.concatenate([one.output_tokens for one in plans]),
        wait_s=np.concatenate([one.wait_s for one in plans]),
        position=np.concatenate([_filled(one.position, one.turns, 0, np.int64) for one in plans]),
        contents=contents,
    )
