#!/bin/sh
# Prints the Python that sets up .venv: at least 3.11, with venv. Otherwise says what was found and
# what is needed. PYTHON=... names one; a working .venv keeps its own.
set -u
need="import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
else
    candidates=".venv/bin/python python3 python3.13 python3.12 python3.11 python3.14"
fi

found=""
venv_missing=""
for python in $candidates; do
    version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || continue
    if "$python" -c "$need" 2>/dev/null; then
        command -v "$python"
        exit 0
    fi
    found="$found
  $python is Python $version"
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        found="$found, but has no venv module"
        venv_missing=${venv_missing:-${version%.*}}
    fi
done

{
    echo "langchain-relay needs Python 3.11 or later with the venv module. Looked for: $candidates"
    echo "Found:${found:- none of them}"
    if [ -n "$venv_missing" ]; then
        echo "Debian, Ubuntu: sudo apt install python$venv_missing-venv"
    else
        echo "Debian, Ubuntu: sudo apt install python3 python3-venv (or a later release's python3.12)"
        echo "Fedora:         sudo dnf install python3.12"
        echo "macOS:          brew install python@3.12"
    fi
    echo "If it is elsewhere: make install PYTHON=/path/to/python3"
} >&2
exit 1
