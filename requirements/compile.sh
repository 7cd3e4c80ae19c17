#!/usr/bin/env bash
# Pins every group: requirements/<group>.in -> requirements/<group>.txt, with hashes, without index addresses, wheels only.
# `make pins` keeps what is pinned and adds what is new; `make pins UPGRADE=yes` takes the newest of everything.
# dev is compiled first and binds the others, so that the images and the processes run the same versions.
set -euo pipefail
cd "$(dirname "$0")"

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-build --no-emit-index-url \
        --custom-compile-command "make pins" "$@"
}

upgrade=()
[ "${UPGRADE:-no}" = no ] || upgrade=(--upgrade)

compile "${upgrade[@]}" dev.in --output-file dev.txt
for group in tools serving loadtest bench; do
    rm -f "$group.txt"
    compile --constraints dev.txt "$group.in" --output-file "$group.txt"
done
compile "${upgrade[@]}" --no-deps samples.in --output-file samples.txt
compile "${upgrade[@]}" --no-deps streamer.in --output-file streamer.txt
compile "${upgrade[@]}" uv.in --output-file uv.txt
