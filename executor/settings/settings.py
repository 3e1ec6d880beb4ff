"""Settings: read once at the start, checked, frozen, passed on. Every problem is told at once, with what to write.

Where values come from: `setting_sources.py`; what they have to look like: `setting_types.py`. The tables of
docs/settings.md are generated from the fields below.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, ValidationInfo
from pydantic import field_validator as check
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from executor.errors import SettingsError
from executor.redaction import MASK
from executor.settings.sources import DEFAULT_HTTP_ADDR, DEFAULT_SECRETS_DIR, gather
from executor.settings.types import (
    MAX_VMID,
    MIN_VMID,
    AnyCase,
    AnyPath,
    DatabaseUrl,
    ExistingFolder,
    Folder,
    HeaderName,
    Host,
    ListenAddress,
    Name,
    Names,
    Networks,
    Origin,
    OsTemplates,
    Password,
    ReadableFile,
    Templates,
    Token,
    TokenId,
    User,
    is_local,
)

#: A playbook may use this share of FulcrumCore's job timeout unless told otherwise: the rest is for claim and report.
PLAYBOOK_SHARE = 0.8
#: FulcrumCore gives an agent up after 30 s without a heartbeat; one must be able to be late.
GREATEST_HEARTBEAT_INTERVAL_S = 25
LEAST_HTTP_TOKEN_LENGTH = 16
_DAY_S = 86_400
_GROUPS = {"FULCRUM": "FulcrumCore", "PROXMOX": "Proxmox VE", "SMITH": "Agent Smith"}


# Defaults that depend on the machine or on other settings.


def _data_dir() -> Path:
    """The container's volume where there is one, and a folder of the user's own elsewhere."""
    mounted = Path("/data")
    if mounted.is_dir() and os.access(mounted, os.W_OK):
        return mounted
    return Path("~/.local/share/agent-smith").expanduser()


def _database_in(settings: dict[str, Any]) -> str:
    return f"sqlite:///{settings['smith_data_dir'] / 'smith.db'}"


def _run_dir(settings: dict[str, Any]) -> Path:
    """Memory, if there is any to write to: files of a run hold secrets."""
    memory = Path("/dev/shm")  # noqa: S108  the folder in it is ours by its mode, which the runner sets and checks
    if memory.is_dir() and os.access(memory, os.W_OK):
        return memory / f"agent-smith-{os.getuid()}"
    return Path(settings["smith_data_dir"]) / "run"


def _playbook_timeout(settings: dict[str, Any]) -> float:
    return float(settings["fulcrum_job_timeout_s"] * PLAYBOOK_SHARE)


def _setting(default: Any, meaning: str, *, example: str, unit: str = "", default_text: str = "", **rules: Any) -> Any:
    """Declare one setting. `default` may be a function, of the settings above it; `default_text` then describes it."""
    extra: dict[str, Any] = {"example": example, "unit": unit, "default_text": default_text}
    place = "default_factory" if callable(default) else "default"
    return Field(**{place: default}, description=meaning, json_schema_extra=extra, **rules)


def _seconds(default: Any, meaning: str, *, ge: float, le: float = 365 * _DAY_S, **more: Any) -> Any:
    more.setdefault("example", f"{default:g}" if not callable(default) else "")
    return _setting(default, meaning, unit="s", ge=ge, le=le, **more)


def _count(default: int, meaning: str, *, ge: int, le: int = 1_000_000_000, **more: Any) -> Any:
    more.setdefault("example", str(default))
    return _setting(default, meaning, ge=ge, le=le, **more)


class Settings(BaseSettings):
    """All settings. `load_settings` reads them; made directly, as in tests, only what is passed counts."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False)

    fulcrum_api_url: Origin = _setting(
        "", "the origin of FulcrumCore's API", default_text="none, required", example="https://core.example.net"
    )
    fulcrum_api_token: Token = _setting(
        SecretStr(""),
        "the agent's own token, which an administrator of FulcrumCore makes",
        default_text="none, required",
        example="the-token-shown-once",
    )
    fulcrum_ca_bundle: ReadableFile | None = _setting(
        None,
        "a file with the certificates that FulcrumCore's is checked against",
        example="/etc/ssl/core-ca.pem",
        default_text="the system's",
    )
    fulcrum_verify_tls: bool = _setting(
        True, "whether FulcrumCore's certificate is checked; false is for a lab only", example="true"
    )
    fulcrum_job_timeout_s: float = _seconds(
        300, "FulcrumCore's own job timeout, which it does not tell; counted from the job's creation", ge=10
    )
    fulcrum_poll_interval_s: float = _seconds(2, "how often FulcrumCore is asked for pending jobs", ge=0.1, le=3600)
    fulcrum_heartbeat_interval_s: float = _seconds(
        10,
        "how often FulcrumCore is told that the agent is alive; it gives an agent up after 30 s",
        ge=0.1,
        le=GREATEST_HEARTBEAT_INTERVAL_S,
    )

    proxmox_host: Host = _setting(
        "",
        "the host name or address of a node, or of what stands before the cluster",
        default_text="none, required",
        example="pve1.example.net",
    )
    proxmox_port: int = _count(8006, "the port of Proxmox's API", ge=1, le=65_535)
    proxmox_user: User = _setting(
        "",
        "the user whose token or password is used, with its realm",
        default_text="none, required",
        example="smith@pve",
    )
    proxmox_token_id: TokenId = _setting(
        "",
        "the name of the user's API token, without the user",
        default_text="none, required without a password",
        example="agent",
    )
    proxmox_token_secret: Token = _setting(
        SecretStr(""),
        "the API token's secret",
        default_text="none, required without a password",
        example="01234567-89ab-cdef-0123-456789abcdef",
    )
    proxmox_password: Password = _setting(
        SecretStr(""),
        "the user's password, for those who have no token",
        default_text="none, required without a token",
        example="correct-horse",
    )
    proxmox_validate_certs: bool = _setting(
        True, "whether Proxmox's certificate is checked; false is for a lab only", example="true"
    )
    proxmox_ca_bundle: ReadableFile | None = _setting(
        None,
        "a file with the certificates that Proxmox's is checked against",
        example="/etc/ssl/pve-root-ca.pem",
        default_text="the system's",
    )
    proxmox_nodes: Names = _setting(
        (), "the nodes that new VMs may be placed on", example="pve1,pve2", default_text="every node"
    )
    proxmox_storage: Name = _setting(
        "", "the storage of new VMs' disks", example="local-zfs", default_text="the template's"
    )
    proxmox_bridge: Name = _setting("vmbr0", "the network bridge of new VMs", example="vmbr0")
    proxmox_pool: Name = _setting("", "the resource pool that new VMs join", example="customers", default_text="none")
    proxmox_vmid_min: int = _count(100_000, "the least VMID that may be given to a new VM", ge=MIN_VMID, le=MAX_VMID)
    proxmox_vmid_max: int = _count(
        199_999,
        "the greatest VMID that may be given to a new VM",
        ge=MIN_VMID,
        le=MAX_VMID,
        validate_default=True,  # PROXMOX_VMID_MIN alone may be set, above this
    )
    proxmox_templates: Templates = _setting(
        {},
        "the templates that services may name, as name=vmid",
        example="debian-12=9000,ubuntu-24.04=9001",
        default_text="none",
    )
    proxmox_full_clones: bool = _setting(
        True,
        "whether new VMs are full copies of their template; false makes linked clones, on the template's storage",
        example="true",
    )
    proxmox_os_templates: OsTemplates = _setting(
        {},
        "the templates that services may name for containers, as name=volume",
        example="debian-12=local:vztmpl/debian-12-standard_12.7-1_amd64.tar.zst",
        default_text="none",
    )
    proxmox_backup_storage: Name = _setting(
        "", "the storage that backups go to, the last one of a deletion too", example="backups", default_text="none"
    )

    smith_data_dir: Folder = _setting(
        _data_dir,
        "where the database and the runs' artifacts are kept",
        example="/var/lib/agent-smith",
        default_text="`/data` if it is writable, else `~/.local/share/agent-smith`",
    )
    smith_database_url: DatabaseUrl = _setting(
        _database_in,
        "the database: an SQLite file, or PostgreSQL when several machines share the work",
        example="postgresql://smith:password@db.example.net/smith",
        default_text="`smith.db` in SMITH_DATA_DIR",
        repr=False,  # it may hold a password
    )
    smith_run_dir: Folder = _setting(
        _run_dir,
        "where a run's files are while it runs, secrets among them; in memory if possible",
        example="/run/agent-smith",
        default_text="`/dev/shm/agent-smith-<uid>` if writable, else `run` in SMITH_DATA_DIR",
    )
    smith_secrets_dir: AnyPath = _setting(
        DEFAULT_SECRETS_DIR,
        "where secrets are mounted, each in a file named as its variable in lower case",
        example="/run/credentials/agent-smith.service",
    )
    smith_actions_path: ExistingFolder | None = _setting(
        None,
        "a folder of your own playbooks, which come before ours",
        example="/etc/agent-smith/playbooks",
        default_text="none",
    )
    smith_cluster: Name = _setting(
        "default", "the name of the Proxmox cluster in the mappings; never change it once VMs exist", example="default"
    )
    smith_concurrency: int = _count(
        0, "how many VM jobs run at once; 0 = as many as cores and memory carry, 20 a core at the most", ge=0, le=256
    )
    smith_warm: Annotated[Literal["auto", "on", "off"], AnyCase] = _setting(
        "auto",
        "whether runs are forked from processes that have loaded Ansible once: auto = where that was tested, "
        "on = refuse to start elsewhere, off = never",
        example="auto",
    )
    smith_clones_per_storage: int = _count(
        40,
        "how many clones run at once on one storage, on each node of a local one; fewer while its locks are contended",
        ge=1,
        le=256,
    )
    smith_memory_overcommit: float = _setting(
        1.0,
        "how much memory new VMs may be promised on a node, as a multiple of what it has",
        ge=0.1,
        le=1000,
        example="1.0",
    )
    smith_cpu_overcommit: float = _setting(
        4.0,
        "how many cores new VMs may be promised on a node, as a multiple of what it has",
        ge=0.1,
        le=1000,
        example="4.0",
    )
    smith_lease_s: float = _seconds(30, "how long a job stays with an agent that gives no sign of life", ge=1, le=3600)
    smith_playbook_timeout_s: float = _seconds(
        _playbook_timeout,
        "how long one playbook may run; less than FULCRUM_JOB_TIMEOUT_S",
        ge=1,
        example="240",
        default_text="80 % of FULCRUM_JOB_TIMEOUT_S",
    )
    smith_shutdown_timeout_s: float = _seconds(
        60, "how long a guest may take to shut down before it is forced off", ge=1, le=3600
    )
    smith_address_timeout_s: float = _seconds(
        10,
        "how long a start waits for the guest agent to tell an address, which need not come; 0 = one look",
        ge=0,
        le=600,
    )
    smith_delete_grace_s: float = _seconds(
        0,
        "how long a deleted VM is kept, stopped and marked, before it is destroyed; 0 = it is destroyed at once",
        ge=0,
        example="259200",
    )
    smith_final_backup: bool = _setting(
        False, "whether a VM is backed up to PROXMOX_BACKUP_STORAGE before it is destroyed", example="false"
    )
    smith_delete_purge: bool = _setting(
        False, "whether a deletion takes the VM out of backup jobs, replication and HA, too", example="false"
    )
    smith_vmid_quarantine_s: float = _seconds(
        3600, "how long the VMID of a deleted VM rests before it is given away again", ge=0
    )
    smith_max_jobs: int = _count(0, "after how many jobs the agent restarts itself; 0 = never", ge=0, example="1000")
    smith_max_memory_mib: int = _count(
        0,
        "at how much memory of all its processes the agent restarts itself; 0 = never",
        ge=0,
        unit="MiB",
        example="2048",
    )
    smith_max_runtime_s: float = _seconds(
        0, "after how long the agent restarts itself; 0 = never", ge=0, example="86400"
    )
    smith_drain_timeout_s: float = _seconds(
        300, "how long running jobs may take to finish when the agent stops or restarts", ge=0, le=_DAY_S
    )
    smith_job_retention_s: float = _seconds(
        7 * _DAY_S, "how long finished jobs and their artifacts are kept", ge=60, le=3650 * _DAY_S, example="604800"
    )
    smith_artifacts_max_mib: int = _count(
        1024, "how much disk the artifacts of finished runs may take; 0 = no limit", ge=0, unit="MiB"
    )
    smith_metrics_interval_s: float = _seconds(
        60, "how often the VMs' metrics are sent to FulcrumCore; 0 = never", ge=0
    )
    smith_reconcile_interval_s: float = _seconds(
        900, "how often mappings, Proxmox and FulcrumCore are compared; 0 = never", ge=0
    )
    smith_prune_interval_s: float = _seconds(
        3600, "how often old jobs and artifacts are removed, and VMs destroyed whose SMITH_DELETE_GRACE_S is over", ge=1
    )
    smith_http_token: Token = _setting(
        SecretStr(""),
        "what a scraper shows as `Authorization: Bearer` to read metrics; needed unless SMITH_HTTP_ADDR is local, or "
        "SMITH_HTTP_PROXIES is set",
        default_text="none",
        example="sixteen-characters-or-more",
    )
    smith_http_proxies: Networks = _setting(
        (),
        "addresses or networks of reverse proxies that say by SMITH_HTTP_USER_HEADER who asks, and are believed",
        default_text="none",
        example="192.0.2.7,10.8.0.0/24",
    )
    smith_http_user_header: HeaderName = _setting(
        "X-Forwarded-User",
        "the header in which SMITH_HTTP_PROXIES name whom they have recognised; they must drop it from callers",
        example="X-Forwarded-User",
    )
    smith_http_addr: ListenAddress = _setting(
        DEFAULT_HTTP_ADDR, "where health and Prometheus metrics are served, or off", example=DEFAULT_HTTP_ADDR
    )
    smith_log_format: Annotated[Literal["auto", "json", "console"], AnyCase] = _setting(
        "auto", "how logs look: json, console, or auto = console on a terminal", example="json"
    )
    smith_log_level: Annotated[Literal["debug", "info", "warning", "error"], AnyCase] = _setting(
        "info", "from which level on our own events are logged; third parties: warning", example="info"
    )
    smith_remote_config: bool = _setting(
        False, "whether the configuration that FulcrumCore holds for the agent overlays these settings", example="false"
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only what is passed: `load_settings` looks the values up, because each one's origin must be known."""
        return (init_settings,)

    @check("proxmox_vmid_max")
    @classmethod
    def _range_is_not_empty(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("proxmox_vmid_min", MIN_VMID):
            raise ValueError("is wrong, it is less than PROXMOX_VMID_MIN")
        return value

    @check("smith_playbook_timeout_s")
    @classmethod
    def _playbook_ends_before_the_job(cls, value: float, info: ValidationInfo) -> float:
        job_timeout_s = info.data.get("fulcrum_job_timeout_s")
        if job_timeout_s is not None and value >= job_timeout_s:
            raise ValueError(
                f"is wrong, it must be less than FULCRUM_JOB_TIMEOUT_S ({job_timeout_s:g}), "
                "or FulcrumCore gives the job up while it still runs"
            )
        return value

    @check("smith_final_backup")
    @classmethod
    def _has_a_place(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("proxmox_backup_storage"):
            raise ValueError("is wrong, PROXMOX_BACKUP_STORAGE must say where the backup is to go")
        return value

    @check("smith_http_token")
    @classmethod
    def _cannot_be_guessed(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < LEAST_HTTP_TOKEN_LENGTH:
            raise ValueError(f"is wrong, it is shorter than {LEAST_HTTP_TOKEN_LENGTH} characters")
        return value

    @check("smith_http_addr")
    @classmethod
    def _is_not_open_to_everybody(cls, value: str, info: ValidationInfo) -> str:
        token = info.data.get("smith_http_token")  # absent: refused itself, which is told already
        proxies = info.data.get("smith_http_proxies")
        if token is not None and proxies == () and not token.get_secret_value() and not is_local(value):
            raise ValueError(
                f"is wrong, other machines can reach {value}, so SMITH_HTTP_TOKEN or SMITH_HTTP_PROXIES must be set"
            )
        return value

    @check("smith_metrics_interval_s", "smith_reconcile_interval_s")
    @classmethod
    def _is_never_or_not_all_the_time(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError(f"must be 0 or at least 1, not {value:g}")
        return value

    def require_fulcrum(self) -> None:
        """Raises SettingsError naming every variable that is missing to reach FulcrumCore."""
        _raise_if_any(_missing(self, "FULCRUM_API_URL", "FULCRUM_API_TOKEN"))

    def require_fulcrum_address(self) -> None:
        """Raises SettingsError when FulcrumCore's address is missing; for those who come with a token of their own."""
        _raise_if_any(_missing(self, "FULCRUM_API_URL"))

    def require_proxmox(self) -> None:
        """Raises SettingsError naming every variable that is missing to reach Proxmox."""
        lines = _missing(self, "PROXMOX_HOST", "PROXMOX_USER")
        token, password = ("PROXMOX_TOKEN_ID", "PROXMOX_TOKEN_SECRET"), "PROXMOX_PASSWORD"
        missing_of_token = _missing(self, *token)
        if not _is_set(self, password):
            lines += missing_of_token
        elif len(missing_of_token) < len(token):
            # The Ansible modules take the password then, proxmoxer the token: two users at work would confuse anyone.
            lines.append(_line(password, "must not be set beside PROXMOX_TOKEN_ID and PROXMOX_TOKEN_SECRET"))
        _raise_if_any(lines)

    def insecurities(self) -> list[tuple[str, str]]:
        """Return each setting that gives up what TLS protects, with what that means."""
        url = urlsplit(self.fulcrum_api_url)
        found = []
        if url.scheme == "http" and not is_local(f"{url.hostname}:0"):
            found.append(("FULCRUM_API_URL", "http:// lets everybody on the way read the token"))
        if url.scheme == "https" and not self.fulcrum_verify_tls:
            found.append(("FULCRUM_VERIFY_TLS", "whoever stands between us and FulcrumCore can read the token"))
        if self.proxmox_host and not self.proxmox_validate_certs:
            found.append(("PROXMOX_VALIDATE_CERTS", "whoever stands between us and Proxmox can read the token"))
        return found


#: Every setting by the name of its variable, in the order of the documentation.
FIELDS: dict[str, FieldInfo] = {name.upper(): field for name, field in Settings.model_fields.items()}
#: Those that may come from a file and are never shown.
SECRETS = (
    "FULCRUM_API_TOKEN",
    "PROXMOX_TOKEN_SECRET",
    "PROXMOX_PASSWORD",
    "SMITH_DATABASE_URL",
    "SMITH_HTTP_TOKEN",
)


def load_settings(*, env_file: Path | None = Path(".env"), environ: Mapping[str, str] | None = None) -> Settings:
    """Read, check and freeze the settings.

    Raises SettingsError with one line for every problem there is; none of them shows a secret.
    """
    gathered = gather(FIELDS, SECRETS, os.environ if environ is None else environ, env_file)
    problems = [_line(problem.name, problem.text) if problem.name else problem.text for problem in gathered.problems]
    values: dict[str, Any] = {name.lower(): value for name, value in gathered.values.items()}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += _lines_of(error)
        raise SettingsError("\n".join(problems)) from None  # pydantic's own text would show values
    _raise_if_any(problems)
    settings._origins.update(gathered.origins)
    return settings


def overlay(
    settings: Settings, values: Mapping[str, Any], origin: str, *, without: frozenset[str] = frozenset()
) -> Settings:
    """Return new settings with `values` (by attribute) over what was set before, but for `without`.

    Defaults that depend on other settings are worked out anew. Raises pydantic's ValidationError; see `problems_in`.
    """
    kept = {name: getattr(settings, name) for name in settings.model_fields_set - without}
    made = Settings(**{**kept, **values})
    made._origins.update(settings._origins)
    made._origins.update({name.upper(): origin for name in values})
    for name in without:
        made._origins.pop(name.upper(), None)
    return made


def _raise_if_any(lines: list[str]) -> None:
    if lines:
        raise SettingsError("\n".join(lines))


def _missing(settings: Settings, *names: str) -> list[str]:
    return [_line(name, "is missing") for name in names if not _is_set(settings, name)]


def _is_set(settings: Settings, name: str) -> bool:
    return bool(_plain(getattr(settings, name.lower())))


def _line(name: str, problem: str) -> str:
    """One problem: the variable, what is wrong, what it is for, and an example."""
    return f"{name} {problem}: {FIELDS[name].description}. Example: {name}={_extra(FIELDS[name])['example']}"


def _lines_of(error: ValidationError) -> list[str]:
    return [_line(name, problem) for name, problem in problems_in(error).items()]


def problems_in(error: ValidationError) -> dict[str, str]:
    """Return what is wrong with each setting that pydantic refuses, by its variable; none of it shows a secret.

    Those that only depend on a refused one are left out.
    """
    problems = {
        str(details["loc"][0]).upper(): _what(details)
        for details in reversed(error.errors(include_url=False))
        if details["type"] != "default_factory_not_called"
    }
    return {name: problems[name] for name in FIELDS if name in problems}


#: pydantic's error types in our words; what a bound or a choice is comes from its context.
_WORDS: dict[str, str] = {
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be at least {ge:.15g}",
    "less_than_equal": "must be at most {le:.15g}",
}


def _what(details: ErrorDetails) -> str:
    """Say what is wrong. Only values of these simple types are shown: none of them can be a misplaced secret."""
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    if words := _WORDS.get(details["type"]):
        return f"{words.format(**context)}, not {str(details['input'])[:40]!r}"
    return f"is wrong ({details['msg']})"


# For people: `smith config show`, docs/settings.md, an example file.


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One setting as it may be shown: secrets are masked."""

    name: str
    value: str
    origin: str  #: default, environment, the path of a file, or `given` when code passed it
    unit: str
    default: str
    description: str


def describe(settings: Settings) -> list[SettingRow]:
    """Return every setting with its value and where that came from."""
    return [
        SettingRow(
            name=name,
            value=_shown(name, getattr(settings, name.lower())),
            origin=_origin_of(settings, name),
            unit=_extra(field)["unit"],
            default=_default_text(name, field),
            description=field.description or "",
        )
        for name, field in FIELDS.items()
    ]


def secret_values(settings: Settings) -> tuple[str, ...]:
    """Return every secret that the settings hold, to be registered with the redactor."""
    tokens = (
        settings.fulcrum_api_token,
        settings.proxmox_token_secret,
        settings.proxmox_password,
        settings.smith_http_token,
    )
    secrets = [*(token.get_secret_value() for token in tokens), *_passwords_in(settings.smith_database_url)]
    return tuple(dict.fromkeys(secret for secret in secrets if secret))


def settings_table_markdown() -> str:
    """Return the tables of docs/settings.md."""
    parts: list[str] = []
    for prefix, title in _GROUPS.items():
        parts += [f"## {title}", "", "| variable | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
        parts += [_table_row(name, field) for name, field in FIELDS.items() if name.startswith(prefix)]
        parts.append("")
    return "\n".join(parts)


def example_env() -> str:
    """Return a `.env` file to start from: what must be set, and everything else as comments."""
    required = ("FULCRUM_API_URL", "FULCRUM_API_TOKEN", "PROXMOX_HOST", "PROXMOX_USER", "PROXMOX_TOKEN_ID")
    parts = []
    for name, field in FIELDS.items():
        sign = "" if name in {*required, "PROXMOX_TOKEN_SECRET"} else "#"
        unit = f" [{_extra(field)['unit']}]" if _extra(field)["unit"] else ""
        parts.append(f"# {field.description}{unit}\n{sign}{name}={_extra(field)['example']}\n")
    return "\n".join(parts)


def _table_row(name: str, field: FieldInfo) -> str:
    kind = " *(secret)*" if name in SECRETS else ""
    cells = (f"`{name}`{kind}", _default_text(name, field), _extra(field)["unit"], _bounds(field), field.description)
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _bounds(field: FieldInfo) -> str:
    least = next((str(rule.ge) for rule in field.metadata if hasattr(rule, "ge")), "")
    greatest = next((str(rule.le) for rule in field.metadata if hasattr(rule, "le")), "")
    return f"{least} to {greatest}" if least or greatest else ""


def _extra(field: FieldInfo) -> dict[str, str]:
    extra = field.json_schema_extra
    return {key: str(value) for key, value in extra.items()} if isinstance(extra, dict) else {}


def _default_text(name: str, field: FieldInfo) -> str:
    return _extra(field)["default_text"] or _shown(name, field.default)


def _origin_of(settings: Settings, name: str) -> str:
    if name in settings._origins:
        return settings._origins[name]
    return "given" if name.lower() in settings.model_fields_set else "default"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if name == "SMITH_DATABASE_URL":
        return _without_passwords(str(value))
    return _text(value)


def _text(value: Any) -> str:
    """Write a value as it would be set."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _passwords_in(url: str) -> Iterator[str]:
    """Yield the passwords of a database URL, as written and as meant."""
    parts = urlsplit(url)
    for written in (parts.password or "", *parse_qs(parts.query).get("password", [])):
        yield from (written, unquote(written))


def _without_passwords(url: str) -> str:
    for password in sorted(filter(None, _passwords_in(url)), key=len, reverse=True):
        url = url.replace(password, MASK)
    return url
