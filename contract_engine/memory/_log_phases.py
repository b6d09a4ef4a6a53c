"""The SQL of phases: how far a tenant has moved in from its legacy store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from contract_engine.memory._effects import Statement
from contract_engine.memory._log import insert, tenant
from contract_engine.memory._tables import phases

READ_PHASE = Statement(
    "read_phase",
    lambda: sa.select(phases.c.phase, phases.c.percentage).where(phases.c.tenant == tenant),
)


def _stored_phase() -> Any:
    return insert(phases).values(
        tenant=tenant,
        phase=sa.bindparam("phase", type_=sa.Text),
        percentage=sa.bindparam("percentage", type_=sa.Float),
    )


def _begin_phase() -> Any:
    """Store the phase that a tenant begins with; where it has one, that stays."""
    stays = _stored_phase().on_conflict_do_update(index_elements=["tenant"], set_={"phase": phases.c.phase})
    return stays.returning(phases.c.phase, phases.c.percentage)


def _set_phase() -> Any:
    stored = _stored_phase()
    changed = {"phase": stored.excluded.phase, "percentage": stored.excluded.percentage, "changed_at": sa.func.now()}
    changes = stored.on_conflict_do_update(index_elements=["tenant"], set_=changed)
    return changes.returning(phases.c.phase, phases.c.percentage)


BEGIN_PHASE = Statement("begin_phase", _begin_phase)
SET_PHASE = Statement("set_phase", _set_phase)
END_PHASE = Statement("end_phase", lambda: sa.delete(phases).where(phases.c.tenant == tenant).returning(phases.c.phase))


def is_relayed(connection: sa.Connection, key: Mapping[str, str]) -> bool:
    """Whether the tenant writes to a legacy store too."""
    found = connection.execute(sa.select(phases.c.phase).where(phases.c.tenant == tenant), key)
    return found.first() is not None
