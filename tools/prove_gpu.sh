#!/usr/bin/env bash
# What a GPU does with megadna, in at most a quarter of an hour. Each stage writes OUT/STAGE.json and a line to OUT/summary.txt; its output
# is in OUT/STAGE.log. A stage that has its JSON is skipped, so the same command goes on after an interruption. No network is needed.
#
#   tools/prove_gpu.sh --fetch FOLDER                          where there is a network: wheels of what a machine with torch lacks (8 MB)
#   tools/prove_gpu.sh [--wheels FOLDER] OUT [STAGE...]        where there is a GPU; all stages, the most telling first, or those named
#   tools/prove_gpu.sh --dry_run OUT [STAGE...]                all of it on a CPU at toy size; tests/gpu is collected, not run
#
#   tests       tests/gpu on one card
#   steps       training steps of the presets by every attention kernel, beside the planner's prediction (tools/bench_gpu.py)
#   bare        the 86M beside a bare PyTorch loop and transformers' Trainer in one process (tools/bench_train.py)
#   pretrain    two genomes, an 86M, validation, kill -9, --resume, equal losses (tools/prove_resume.py)
#   downstream  its export, and embeddings and variants beside transformers (tools/bench_embed.py, tools/bench_variants.py)
#   ranks       the same kill on one rank, resumed on two with tensor parallelism; on one card it says why not
#
# PYTHON: the interpreter, by default python3. PYTHON_VERSION: that of the machine with the GPU for --fetch, by default PYTHON's own.
# Exit status: 0, 1 where a stage failed, 2 where nothing could begin.
# shellcheck disable=SC2329  # the stages are called by name
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
STAGES=(tests steps bare pretrain downstream ranks)
PACKAGES=(megatron-core jsonargparse docstring_parser typeshed_client isal xxhash pysam)

stop() {
    echo "prove_gpu.sh: $1" >&2
    exit 2
}

fetch() {
    local version=${PYTHON_VERSION:-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')}
    "$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --python-version "$version" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --constraint "$ROOT/constraints.txt" --dest "$1" "${PACKAGES[@]}"
    du -sh "$1"
}

megadna() { "$PYTHON" -m megadna "$@"; }

# The summary of pytest, from the file that it writes for machines.
counts() {
    "$PYTHON" - "$1" <<'CODE'
import json, sys
from xml.etree import ElementTree
suite = ElementTree.parse(sys.argv[1]).getroot().find("testsuite").attrib
counts = {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}
line = ", ".join(f"{count} {name}" for name, count in counts.items())
print(json.dumps({"line": f"tests/gpu: {line}, {float(suite['time']):.0f} s", **counts}, indent=2))
CODE
}

stage_tests() {
    if [ "$DRY" = 1 ]; then
        local found
        found=$("$PYTHON" -m pytest -p no:cacheprovider --collect-only tests/gpu | grep -c '::')
        echo "{\"line\": \"tests/gpu: collected only, not run: $found tests\", \"collected\": $found}" > "$1"
        return
    fi
    local workers=()
    if [ "$(nproc)" -ge 8 ] && "$PYTHON" -c 'import xdist' 2> /dev/null; then workers=(-n 4); fi
    "$PYTHON" -m pytest -p no:cacheprovider "${workers[@]}" --junitxml "$OUT/tests.xml" tests/gpu
    counts "$OUT/tests.xml" > "$1"
}

stage_steps() {
    if [ "$DRY" = 1 ]; then set -- "$1" --dry_run; fi
    "$PYTHON" tools/bench_gpu.py --seconds 120 --output "$@"
}

stage_bare() {
    local sizes=(--device cuda --config configs/megadna-86m.yaml --rounds 10)
    if [ "$DRY" = 1 ]; then sizes=(--layers 2 --hidden 64 --heads 2 --ffn 128 --length 64 --batch 2 --rounds 2); fi
    # Trainer would spread its batches over all cards
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0} "$PYTHON" tools/bench_train.py "${sizes[@]}" --precision bf16 --output "$1"
}

TOY=(--model.num_layers 2 --model.hidden_size 32 --model.ffn_hidden_size 64 --data.sequence_length 64
    --data.num_workers 0 --train.micro_batch_size 4 --train.global_batch_size 4 --train.warmup_steps 2 --train.steps 60
    --checkpoint.interval 20 --validation.interval 30 --validation.samples 16 --log.tensorboard false)

dataset() {
    [ -e "$OUT/dataset" ] && return
    local genomes=(tests/data/ecoli_K12_MG1655.fna.gz tests/data/mgenitalium_G37.fa.gz)
    if [ "$DRY" = 1 ]; then genomes=(tests/data/mgenitalium_G37.fa.gz); fi
    megadna preprocess --input "${genomes[@]}" --valid_fraction 0.1 --test_fraction 0.1 --output "$OUT/dataset"
}

stage_pretrain() {
    dataset
    rm -rf "$OUT/pretrain"
    local config=configs/megadna-86m.yaml
    local keys=(--data.path "$OUT/dataset" --train.global_batch_size 16 --train.steps 1000 --train.warmup_steps 50
        --checkpoint.interval 50 --validation.interval 100 --validation.samples 64 --train.exit_after_minutes 1)
    if [ "$DRY" = 1 ]; then config=configs/demo.yaml keys=(--data.path "$OUT/dataset" --engine.num_processes 1 "${TOY[@]}"); fi
    "$PYTHON" tools/prove_resume.py --config "$config" --output "$OUT/pretrain" --tolerance 1e-2 -- "${keys[@]}"
    cp "$OUT/pretrain/proof.json" "$1"
}

stage_downstream() {
    [ -e "$OUT/pretrain.json" ] || { echo "stage pretrain must come first: it makes the model" && return 1; }
    local embed=(--longest 3998 --sequences 2000 --precision bf16) variants=(--window 1001 --sites 1024)
    if [ "$DRY" = 1 ]; then embed=(--longest 60 --sequences 8) variants=(--window 51 --sites 12); fi
    megadna export --checkpoint "$OUT/pretrain/run" --output "$OUT/model" --overwrite
    "$PYTHON" tools/bench_embed.py --model "$OUT/model" --rounds 1 "${embed[@]}" --output "$OUT/embed.json"
    "$PYTHON" tools/bench_variants.py --model "$OUT/model" "${variants[@]}" --output "$OUT/variants.json"
    "$PYTHON" - "$OUT/embed.json" "$OUT/variants.json" > "$1" <<'CODE'
import json, sys
embed, variants = (json.load(open(path)) for path in sys.argv[1:])
print(json.dumps({"line": f"{embed['line']}; {variants['line']}", "embed": embed, "variants": variants}, indent=2))
CODE
}

stage_ranks() {
    if [ "$DRY" = 0 ] && "$PYTHON" -c 'import sys, torch; sys.exit(torch.cuda.device_count() > 1)'; then
        echo '{"line": "two ranks: skipped, nccl refuses two ranks on one card and there is one", "skipped": true}' > "$1"
        return
    fi
    dataset
    rm -rf "$OUT/ranks"
    local keys=("${TOY[@]}")
    if [ "$DRY" = 0 ]; then keys+=(--engine.device cuda); fi
    "$PYTHON" tools/prove_resume.py --config configs/demo.yaml --output "$OUT/ranks" --tolerance 1e-2 \
        --first '--engine.num_processes 1' --again '--engine.num_processes 2 --parallel.tensor 2' \
        -- --data.path "$OUT/dataset" "${keys[@]}"
    cp "$OUT/ranks/proof.json" "$1"
}

run_stage() {
    local name=$1 start=$SECONDS status=0 line limit=170
    if [ -e "$OUT/$name.json" ]; then
        say "$name: done before"
        return
    fi
    case $name in
        bare) limit=110 ;;
        downstream) limit=150 ;;
        ranks) limit=90 ;;
    esac
    if [ "$DRY" = 1 ]; then limit=900; fi # a CPU may be busy with other work
    timeout --kill-after 10 "$limit" bash "$0" --stage "$name" "$OUT/$name.part" > "$OUT/$name.log" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        mv "$OUT/$name.part" "$OUT/$name.json"
        line=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["line"])' "$OUT/$name.json")
        say "$name: $line [$((SECONDS - start)) s]"
    else
        FAILED=1
        line="failed with status $status after $((SECONDS - start)) s"
        [ "$status" != 124 ] || line="stopped at its limit of $limit s"
        say "$name: $line; $OUT/$name.log ends in: $(tail -1 "$OUT/$name.log")"
    fi
}

say() { echo "$1" | tee -a "$OUT/summary.txt"; }

install_wheels() {
    [ -d "$OUT/packages" ] && return
    compgen -G "$1/*.whl" > /dev/null || stop "$1: holds no wheels; make them with tools/prove_gpu.sh --fetch $1"
    "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$OUT/packages" "$1"/*.whl
}

DRY=${DRY:-0} WHEELS='' FAILED=0
if [ "${1:-}" = --stage ]; then
    set +u # an empty list of options is no mistake (bash before 4.4)
    cd "$ROOT"
    "stage_$2" "$3"
    exit
fi
while [[ ${1:-} == --* ]]; do
    case $1 in
        --dry_run) DRY=1 && shift ;;
        --wheels) WHEELS=${2:-} && shift $(($# > 1 ? 2 : 1)) ;;
        --fetch) [ $# = 2 ] || stop "--fetch takes one folder for the wheels" && fetch "$2" && exit ;;
        *) stop "$1 is no option: --fetch, --wheels or --dry_run" ;;
    esac
done
[ $# -gt 0 ] || stop "name a folder for the results: tools/prove_gpu.sh [--wheels FOLDER] [--dry_run] OUT [STAGE...]"
OUT=$1 && shift
for name in "$@"; do
    [[ " ${STAGES[*]} " == *" $name "* ]] || stop "$name is no stage: ${STAGES[*]}"
done
[ ! -e "$OUT" ] || [ -d "$OUT" ] || stop "$OUT is a file; name a folder for the results"
if [ "$DRY" = 0 ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    stop "no GPU here that $PYTHON's torch sees; --dry_run runs all stages on the CPU at toy size"
fi
if [ "$DRY" = 1 ]; then export CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=1; fi
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
[ -z "$WHEELS" ] || install_wheels "$WHEELS"
export OUT DRY PYTHON PYTHONPATH="$ROOT:$OUT/packages:${PYTHONPATH:-}"
DEVICE=$("$PYTHON" 2> "$OUT/import.log" <<'CODE'
import megadna.train.loop, torch
print("torch", torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU")
CODE
) || stop "$(tail -1 "$OUT/import.log"); make wheels with --fetch FOLDER and say --wheels FOLDER"
say "$DEVICE, $(date -u +%Y-%m-%d)"
if [ $# -gt 0 ]; then STAGES=("$@"); fi
for name in "${STAGES[@]}"; do run_stage "$name"; done
exit "$FAILED"
