"""Makes the planned changes in Proxmox, one request after the other."""

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
    before_token: Callable[[], object],
    store_secret: Callable[[str], object],
) -> Iterator[Change]:
    """Make the changes, and yield each when it is made. If one fails, the earlier ones stay. Raises JobError.

    `before_token` is called before a token is created. `store_secret` gets the secret of the new token, which Proxmox
    sends only once, before the change is yielded.
    """
    for change in changes:
        is_new_token = change.kind is ChangeKind.TOKEN and change.method == "POST"
        if is_new_token:
            before_token()
        answer = session.change(change.method, change.path, change.body)
        if is_new_token:
            secret = as_text(as_object(answer).get("value"))
            if not secret:
                raise JobError(ErrorCode.PVE_API_ERROR, "Proxmox's answer has no secret of the new token")
            store_secret(secret)
        yield change
