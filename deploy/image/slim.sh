#!/bin/sh
# Removes files that the image never uses from installed packages, and compiles the others: slim.sh SITE_PACKAGES
# It removes tests, dialects of unsupported databases, Pygments lexers and debug symbols. It compiles only modules that
# Python imports: Ansible reads the source files of its modules.
set -eu
cd "$1"
rm -rf ansible_test
rm -rf certifi/tests jsonschema/tests jsonschema/benchmarks jsonschema_specifications/tests referencing/tests
rm -rf alembic/testing mako/testing sqlalchemy/testing
rm -rf sqlalchemy/dialects/mssql sqlalchemy/dialects/mysql sqlalchemy/dialects/oracle
find pygments/lexers -name '*.py' -not -name __init__.py -not -name _mapping.py -not -name special.py -delete
find . -name '*.cpython-*.so' -exec strip --strip-unneeded {} +
find . -name __pycache__ -prune -exec rm -rf {} +
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
  -x '/pygments/styles/[^_]|/pydantic/v1/|/ansible/modules/|/ansible/module_utils/facts/|/ansible_collections/' "$1"
