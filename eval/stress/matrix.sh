#!/usr/bin/env bash
# Run the tests on the oldest or the newest versions that pyproject.toml admits, in an environment of their own.
#
#     ATENT_DATA=DATA eval/stress/matrix.sh [-p PYTHON] [-d FOLDER] [-k] oldest|newest [TEST FILE...]
#
# oldest: each direct dependency at its lower bound; newest: what pip picks without constraints. The tools that only
# tests need are new in both. -p: the interpreter (python3); -d: where the environment is made (a temporary folder);
# -k: keep the one that is there. Prints a row of docs/versions.md and ends with pytest's exit code.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }

python=python3 folder="" keep=""
while getopts p:d:k option; do
    case $option in
        p) python=$OPTARG ;;
        d) folder=$OPTARG ;;
        k) keep=1 ;;
        *) usage ;;
    esac
done
shift $((OPTIND - 1))
[[ ${1-} == oldest || ${1-} == newest ]] || usage
combination=$1
shift

if [[ -z $folder ]]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
venv=$folder/$combination-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

lowest() { # name==LOWER BOUND of all that stands between `dependencies` and the extra `test`
    sed -n '/^dependencies = /,/^test = /p' "$root/pyproject.toml" | grep -oE '"[a-zA-Z0-9-]+[>=]=[^"]+"' | tr -d '"' | sed 's/>=/==/'
}

if [[ -z $keep || ! -x $venv/bin/pytest ]]; then
    "$python" -m venv --clear "$venv"
    : >"$venv/constraints.txt"
    [[ $combination == newest ]] || lowest >"$venv/constraints.txt"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -c "$venv/constraints.txt" -e "$root[all,test]"
    "$venv/bin/pip" check
fi

# The plugin of anyio, which others bring along, is not ours: old versions of it warn under a new pytest. The other
# warnings are of old versions of typer (under a new click), of RobustBench and torchattacks (under torch below 2.6), of
# ART and of matplotlib (under a new pyparsing), and of torch.compile under Python 3.13.0.
quiet=(-W "ignore:'click.utils.get_:DeprecationWarning"
    -W 'ignore:You are using `torch.load` with `weights_only=False`:FutureWarning'
    -W 'ignore:The given NumPy array is not writable:UserWarning'
    -W 'ignore:Guards may run slower on Python 3.13.0:RuntimeWarning'
    -W ignore::pyparsing.warnings.PyparsingDeprecationWarning)
status=0
(cd "$root" && OMP_NUM_THREADS=1 ATENT_REQUIRE_DATA=1 "$venv/bin/python" -m pytest -q -p no:cacheprovider -p no:anyio \
    "${quiet[@]}" --junit-xml="$venv/report.xml" "$@") || status=$?

"$venv/bin/python" - "$combination" "$venv/report.xml" <<'ROW'
import datetime, platform, sys
import xml.etree.ElementTree as tree

import torch, torchvision

suite = tree.parse(sys.argv[2]).getroot()[0]
total, failed, errors, skipped = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
versions = [platform.python_version(), torch.__version__, torchvision.__version__]
print("|", " | ".join([str(datetime.date.today()), sys.argv[1], *versions, str(total), str(total - failed - errors - skipped), str(failed + errors), str(skipped)]), "|")
ROW
exit "$status"
