"""Defines the indexes of the tables. Only migrations and tests import this module.

The definitions are not in `tables`, because the definition of a partial index makes SQLAlchemy import its PostgreSQL
dialect. A command such as `smith status` would spend a tenth of its time on this import. Statements do not need the
definitions of the indexes.

Each change of an index needs a migration. A test compares the indexes with the migrations.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, MetaData, text

from executor.database.tables import all_tables
from executor.database.tables.audit import AuditEntry
from executor.database.tables.jobs import Job, JobEvent, ManualRun, Run
from executor.database.tables.mappings import Mapping, SecretReference


def _partial_index(name: str, *columns: Any, only: str, unique: bool = False) -> None:
    """Add an index that contains only the rows that meet the condition `only`."""
    Index(name, *columns, unique=unique, sqlite_where=text(only), postgresql_where=text(only))


_partial_index("ix_jobs_one_processing_per_service", Job.service_id, unique=True, only="status = 'processing'")
# `core_created_at` is the time at which FulcrumCore created the job.
_partial_index("ix_jobs_to_claim", text("priority DESC"), Job.core_created_at, Job.id, only="status = 'pending'")
# A job's tenant is the customer (consumer in FulcrumCore) who uses the job's service.
#
# On SQLite, Alembic cannot copy an index with an expression such as `coalesce`: a migration that rebuilds the table
# `jobs` must create the following index again.
_partial_index(
    "ix_jobs_to_claim_of_tenant",
    text("priority DESC"),
    text("coalesce(tenant_id, '')"),
    Job.core_created_at,
    Job.id,
    only="status = 'pending'",
)
# If the report state is 'due', FulcrumCore has not acknowledged the job's result. If it is 'claimed_elsewhere', another
# installation, which has another database, has claimed the job at FulcrumCore.
_partial_index("ix_jobs_to_report", Job.finished_at, only="report_state = 'due'")
_partial_index("ix_jobs_claimed_elsewhere", Job.finished_at, only="report_state = 'claimed_elsewhere'")
_partial_index("ix_jobs_ended", Job.finished_at, Job.status, only="status IN ('completed', 'failed')")
Index("ix_jobs_service", Job.service_id)
Index("ix_runs_job", Run.job_id)
Index("ix_runs_started", Run.started_at)
Index("ix_job_events_job", JobEvent.job_id)
# A manual run is a playbook run that an operator started with a command. It is open until it ends.
_partial_index("ix_manual_runs_one_open_per_service", ManualRun.service_id, unique=True, only="ended_at IS NULL")
Index("ix_manual_runs_started", ManualRun.started_at)
_partial_index("ix_mappings_one_per_service", Mapping.service_id, unique=True, only="state != 'deleted'")
_partial_index("ix_mappings_one_per_vmid", Mapping.cluster, Mapping.vmid, unique=True, only="state != 'deleted'")
_partial_index("ix_mappings_deleted", Mapping.deleted_at, only="state = 'deleted'")
_partial_index("ix_mappings_tenant", Mapping.tenant_id, only="state != 'deleted'")
# The note of a deleted mapping begins with this text if volumes of the deleted VM may still exist.
_partial_index(
    "ix_mappings_volumes_left",
    Mapping.cluster,
    Mapping.vmid,
    only="state = 'deleted' AND substr(note, 1, 14) = 'VOLUMES_LEFT: '",
)
# A row of the table `secret_references` says which service may use one secret of FulcrumCore's vault.
Index("ix_secret_references_service", SecretReference.service_id)
Index("ix_audit_subject", AuditEntry.subject_kind, AuditEntry.subject_id)

#: The object `all_tables.METADATA`, to which this module has added the indexes.
METADATA: MetaData = all_tables.METADATA
