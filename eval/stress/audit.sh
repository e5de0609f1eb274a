#!/usr/bin/env bash
# Look for known vulnerabilities in what an environment has installed, with pip-audit from an environment of its own.
#
#     eval/stress/audit.sh [PYTHON] [PIP-AUDIT OPTION...]
#
# PYTHON: of the environment that is audited (python3). A package that the vulnerability service cannot tell of is an
# error, not a pass; `-s osv` asks another service. What is known, and why it stays, is in docs/versions.md.
set -euo pipefail
python=${1:-python3}
shift || true

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip freeze --disable-pip-version-check --exclude-editable >"$folder/frozen.txt"
echo "$(wc -l <"$folder/frozen.txt") packages of $("$python" -c 'import sys; print(sys.prefix)')" >&2

python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pip-audit
"$folder/venv/bin/pip-audit" --requirement "$folder/frozen.txt" --no-deps --disable-pip --strict --timeout 30 "$@"
