#!/bin/sh
# Runs pip of a virtual environment with the build secrets ca_bundle and pip_conf, if given: pip.sh VENV ARGUMENTS...
set -eu
venv=$1
shift
if [ -s /run/secrets/pip_conf ]; then export PIP_CONFIG_FILE=/run/secrets/pip_conf; fi
if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_COMPILE=1
exec "$venv/bin/python3" -m pip --quiet "$@"
