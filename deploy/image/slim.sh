#!/bin/sh
# Takes out of a folder of installed packages what the image never runs, and compiles the rest: slim.sh SITE_PACKAGES
# Tests, databases that we do not know, the syntax of five hundred languages, and debug symbols. Bytecode is made
# only of what may be imported: Ansible reads the sources of its modules.
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
