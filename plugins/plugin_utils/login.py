# SPDX-License-Identifier: Apache-2.0
"""Reads the login for Proxmox from an operator's variable, from the credentials file, or from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: Environment variable with the path of the credentials file.
CREDENTIALS_VARIABLE = "SMITH_CREDENTIALS_FILE"
#: The Ansible variable in which an operator can give the login to all action plugins of a play, for example from a
#: file of Ansible Vault. Its value is a dictionary. The possible keys are `ca_bundle` and the keys of
#: VARIABLE_OF_PARAMETER. The executor does not set this variable.
LOGIN_VARIABLE = "smith_login"
#: The environment variable of each login parameter of community.proxmox's modules. These variables are used only if
#: there is no credentials file.
VARIABLE_OF_PARAMETER = {
    "api_host": "PROXMOX_HOST",
    "api_port": "PROXMOX_PORT",
    "api_user": "PROXMOX_USER",
    "api_token_id": "PROXMOX_TOKEN_ID",
    "api_token_secret": "PROXMOX_TOKEN_SECRET",
    "api_password": "PROXMOX_PASSWORD",
    "validate_certs": "PROXMOX_VALIDATE_CERTS",
}
#: The values of `validate_certs` that mean false.
FALSE_TEXTS = ("0", "false", "no", "off")


class LoginError(Exception):
    """The login is incomplete, or the credentials file cannot be read. The text begins with an error code."""


@dataclass(frozen=True, kw_only=True)
class Login:
    """The login for Proxmox."""

    connection: dict[str, Any]  #: the login parameters, named like the parameters of community.proxmox's modules
    ca_bundle: str  #: the path of the file with the cluster's CA; '' for the CAs of the system


def read_login(connection: dict[str, Any] | None, ca_bundle: str) -> Login:
    """Return the login of an action plugin: its arguments `connection` and `ca_bundle`.

    An empty argument is replaced by the values of the credentials file or of the environment.
    """
    credentials_file = os.environ.get(CREDENTIALS_VARIABLE, "")
    values = _read_file(credentials_file) if credentials_file else _read_environment()
    ca_bundle = ca_bundle or _ca_bundle_of(values)
    return Login(connection=normalized_login(connection or values), ca_bundle=ca_bundle)


def login_from_variables(variables: Mapping[str, Any] | None, resolve: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the login in LOGIN_VARIABLE, from the variables of an Ansible task; {} if the variable is not set.

    `resolve` decrypts the values that Ansible Vault has encrypted, and resolves templates.
    """
    value = (variables or {}).get(LOGIN_VARIABLE)
    if not value:
        return {}
    login = resolve(value)
    if not isinstance(login, Mapping):
        raise LoginError(f"INVALID_REQUEST: {LOGIN_VARIABLE} must be a dictionary")
    return {str(name): value if isinstance(value, bool) else str(value) for name, value in login.items()}


def read_login_parameters(credentials_file: str) -> dict[str, Any]:
    """Return the login parameters from the credentials file or, without a file, from the variables `PROXMOX_*`.

    The Ansible filter `connection` calls this. A playbook passes its result to modules of community.proxmox.
    """
    return normalized_login(_read_file(credentials_file) if credentials_file else _read_environment())


def normalized_login(values: dict[str, Any]) -> dict[str, Any]:
    """Return the login parameters without empty values, because the modules refuse an empty port.

    The result always has `validate_certs`, because the modules' default differs between their versions. It is true if
    `values` does not contain it.
    """
    login = {key: values[key] for key in VARIABLE_OF_PARAMETER if values.get(key) not in (None, "")}
    login["validate_certs"] = str(login.get("validate_certs", "true")).strip().lower() not in FALSE_TEXTS
    return login


def find_ca_bundle(credentials_file: str) -> str:
    """Return the path of the file with the cluster's CA, or an empty text if the CAs of the system are used."""
    return _ca_bundle_of(_read_file(credentials_file) if credentials_file else {})


def _ca_bundle_of(values: dict[str, Any]) -> str:
    path = values.get("ca_bundle") or os.environ.get("PROXMOX_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE")
    return str(path or "")


def module_environment(ca_bundle: str) -> dict[str, str]:
    """Return the environment variables that the modules of community.proxmox need.

    Version 1.4 of the collection reads the path of the CA file only from environment variables. Since version 1.6, the
    collection reads the timeout of API requests from PROXMOX_API_TIMEOUT. The default of 5 s is too short, because a
    request that changes a configuration may wait 10 s for Proxmox's lock.
    """
    environment = {"PROXMOX_API_TIMEOUT": "30"}
    return environment | ({"REQUESTS_CA_BUNDLE": ca_bundle, "PROXMOX_CA_PATH": ca_bundle} if ca_bundle else {})


def _read_file(path: str) -> dict[str, Any]:
    # CSafeLoader is as safe as SafeLoader and ten times as fast.
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(Path(path).read_text(encoding="utf-8"))
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError) as exc:
        raise LoginError(f"PVE_AUTH: SMITH_CREDENTIALS_FILE {path} cannot be read: {exc}") from None
    except yaml.YAMLError:  # its text may contain a secret
        raise LoginError(f"PVE_AUTH: SMITH_CREDENTIALS_FILE {path} is not valid YAML") from None
    if not isinstance(content, dict):
        raise LoginError(f"PVE_AUTH: SMITH_CREDENTIALS_FILE {path} contains no YAML mapping")
    return content


def _read_environment() -> dict[str, Any]:
    return {key: os.environ.get(variable, "") for key, variable in VARIABLE_OF_PARAMETER.items()}
