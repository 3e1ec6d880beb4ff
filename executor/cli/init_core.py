"""Creates the agent, its types and its token in FulcrumCore for `smith init`.

The types are the service type, the agent type and the metric types.

If a run of `smith init` was interrupted after it created a token, and before it stored the token's secret, the next run
deletes this token and creates a new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from executor.cli.bootstrap import (
    DEFAULT_TAGS,
    DEFAULT_TOKEN_LIFETIME_DAYS,
    adding_remedy_if_admin_token_refused,
    create_admin_client,
    is_token_of_agent,
)
from executor.cli.init_files import SecretFile
from executor.errors import SmithError
from executor.fulcrum.admin import ApiCollection, FulcrumAdmin, FulcrumToken
from executor.fulcrum.bootstrap import (
    AGENT_TYPE_FILE,
    VM_SERVICE_TYPE_FILE,
    Bootstrap,
    BootstrapRequest,
    BootstrapStep,
    ObjectStatus,
    read_type_file,
)
from executor.fulcrum.offered_type import restrict_service_type
from executor.settings.settings import Settings


class TokenInUse(SmithError):
    """A token exists, but the settings folder lacks its secret: another installation may use it. No change was made."""


@dataclass(frozen=True, kw_only=True)
class FulcrumAnswers:
    """The operator's answers to the questions of `smith init` about FulcrumCore."""

    admin_token: str
    agent_name: str
    provider_name_or_id: str
    may_create_provider: bool


class FulcrumSetup:
    """Finds the objects that FulcrumCore lacks, and creates them.

    The class `Bootstrap` reads and creates the objects. It yields one BootstrapStep for each object that the agent
    needs: what was found, created or changed.

    `token_file` is the file with the secret of the agent's token. Its record is a second file with the ids of
    the agent's earlier tokens. The record exists only while a token is being created. If a run of `smith init` finds a
    record, an earlier run was interrupted.
    """

    def __init__(
        self, settings: Settings, answers: FulcrumAnswers, token_file: SecretFile, *, replaces_token: bool
    ) -> None:
        """Read the existing objects in FulcrumCore.

        Raises FulcrumError or TokenInUse. Raises BootstrapRefused if the objects do not fit the answers, for example if
        the provider does not exist.
        """
        self._settings, self._token_file, self._replaces_token = settings, token_file, replaces_token
        self._admin = create_admin_client(settings, answers.admin_token)
        request = BootstrapRequest(
            agent_name=answers.agent_name,
            provider_name_or_id=answers.provider_name_or_id,
            may_create_provider=answers.may_create_provider,
            # the service type with only the templates, bridges, VLANs and tags that the settings allow
            service_type=restrict_service_type(read_type_file(VM_SERVICE_TYPE_FILE), settings),
            agent_type=read_type_file(AGENT_TYPE_FILE),
            tags=DEFAULT_TAGS,  # the agent's tags in FulcrumCore
            token_lifetime=timedelta(days=DEFAULT_TOKEN_LIFETIME_DAYS),
        )
        with adding_remedy_if_admin_token_refused():
            self._bootstrap = Bootstrap(self._admin, request)
            #: The tokens that `make_changes` deletes before it creates a new token.
            self.tokens_to_delete = self._find_tokens_to_delete()
            if self._needs_new_token():  # by default, Bootstrap creates a token only if the agent has no valid token
                self._bootstrap = Bootstrap(self._admin, replace(request, wants_new_token=True))

    def describe_planned_changes(self) -> list[str]:
        """Return one text for each change that `make_changes` makes."""
        texts = [f"delete token {token.id}, whose secret is not stored" for token in self.tokens_to_delete]
        for step in self._bootstrap.dry_run():
            texts += _change_texts(step)
        return texts

    def describe_different_objects(self) -> list[str]:
        """Return one text for each object in FulcrumCore that differs from the object that `make_changes` would create.

        `make_changes` does not change such an object, because an administrator may have changed it on purpose.
        """
        return [
            f"{step.kind} {step.name} differs, and is not changed: {', '.join(step.differences)}"
            for step in self._bootstrap.dry_run()
            if step.differences
        ]

    def make_changes(self) -> Iterator[str]:
        """Create the missing objects, and yield a text about each change after it is made. Raises FulcrumError."""
        deleted_ids = {token.id for token in self.tokens_to_delete}
        for token in self.tokens_to_delete:
            self._admin.delete_token(token.id)
            yield f"delete token {token.id}"
        if self._bootstrap.must_create_token:
            # `earlier_tokens` are the valid tokens that the agent had before this run. If this run is interrupted, the
            # next run deletes every token of the agent whose id is not in `earlier_ids`.
            earlier_ids = [token.id for token in self._bootstrap.earlier_tokens if token.id not in deleted_ids]
            self._token_file.write_record({"known_tokens": earlier_ids})
        for step in self._bootstrap.create_missing(self._token_file.store_secret):
            # EXTENDED: the agent type existed, and the service type was added to it.
            if step.status in (ObjectStatus.CREATED, ObjectStatus.EXTENDED):
                yield from _change_texts(step)

    def _needs_new_token(self) -> bool:
        """Return whether a token must be created: no valid token is stored, or an earlier run was interrupted."""
        stored_token = self._token_file.read()
        is_valid = bool(stored_token and self._bootstrap.agent_id and self._is_token_of_agent(stored_token))
        return not is_valid or self._token_file.read_record() is not None

    def _is_token_of_agent(self, token: str) -> bool:
        return is_token_of_agent(self._settings, token, self._bootstrap.agent_id)

    def _find_tokens_to_delete(self) -> list[FulcrumToken]:
        """Return the agent's tokens that must be deleted before a new token is created; [] if no new token is needed.

        With --replace-tokens: all tokens. After an interrupted run: the tokens that it created. Otherwise raises
        TokenInUse if the agent has a token, because another installation may use it.
        """
        earlier_tokens = self._bootstrap.earlier_tokens
        if not self._needs_new_token() or not earlier_tokens:
            return []
        if self._replaces_token:
            return earlier_tokens
        record = self._token_file.read_record()
        if record is None:  # No earlier run was interrupted while it created a token.
            agent_id = self._bootstrap.agent_id
            raise TokenInUse(
                f"the agent {agent_id} has a token in FulcrumCore that is not stored in {self._token_file.path}: "
                "another installation may use this token. Use --replace-tokens to replace it, or choose another --agent"
            )
        return [token for token in earlier_tokens if token.id not in record.get("known_tokens", [])]


def provider_exists(settings: Settings, admin_token: str, name_or_id: str) -> bool:
    """Return whether FulcrumCore has a participant (an organization) with this name or id. Raises FulcrumError."""
    with adding_remedy_if_admin_token_refused():
        admin: FulcrumAdmin = create_admin_client(settings, admin_token)
        participants = admin.list_objects(ApiCollection.PARTICIPANTS)
    return any(name_or_id in (participant.name, participant.id) for participant in participants)


def _change_texts(step: BootstrapStep) -> list[str]:
    # MISSING: the object does not exist, and a dry run did not create it.
    if step.status in (ObjectStatus.CREATED, ObjectStatus.MISSING):
        return [f"create {step.kind} {step.name}"]
    if step.status is ObjectStatus.EXTENDED:
        return [f"add the service type to {step.kind} {step.name}"]
    return []
