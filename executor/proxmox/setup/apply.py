"""Makes the changes in Proxmox that `smith init` has planned, one request after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from executor.errors import JobError
from executor.proxmox.rows import as_object, as_text
from executor.proxmox.setup.admin_session import AdminSession
from executor.proxmox.setup.plan import Change, ChangeKind
from executor.shared.error_codes import ErrorCode


def apply_changes(
    session: AdminSession,
    changes: Iterable[Change],
    *,
    record_token_creation: Callable[[], object],
    store_secret: Callable[[str], object],
) -> Iterator[Change]:
    """Make the changes, and yield each change after it was made. If a change fails, earlier changes are not undone.

    Proxmox sends the secret of a new token only once, so `store_secret` is called with the secret before the change is
    yielded. `record_token_creation` is called before a token is created. It stores the comment of the token. If
    `smith init` is interrupted, its next call recognizes the token by this comment and replaces it. Raises JobError if
    a change fails.
    """
    for change in changes:
        is_new_token = change.kind is ChangeKind.TOKEN and change.method == "POST"
        if is_new_token:
            record_token_creation()
        answer = session.send_change(change.method, change.path, change.body)
        if is_new_token:
            secret = as_text(as_object(answer).get("value"))
            if not secret:
                raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer does not contain the secret of the new token")
            store_secret(secret)
        yield change
