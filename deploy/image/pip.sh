#!/bin/sh
# pip of one of the build's virtual environments, with what the builder handed in as secrets: pip.sh VENV ARGUMENTS...
set -eu
venv=$1
shift
if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi
if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_COMPILE=1
exec "$venv/bin/python3" -m pip --quiet "$@"
