#!/usr/bin/env bash
# From two genomes to a trained, exported DNA encoder on a laptop CPU. `make demo` runs this; read it as documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-demo}
if [ $# -gt 0 ] && [ -n "$(ls -A "$OUT" 2> /dev/null)" ]; then
    echo "launch/demo.sh: $OUT exists and is not empty; name a new folder" >&2
    exit 2
fi

# 1. FASTA -> non-overlapping chunks of 4,000 nucleotides, in Megatron's indexed format. 10 % valid and 10 % test by region.
megadna preprocess \
    --input tests/data/ecoli_K12_MG1655.fna.gz tests/data/mgenitalium_G37.fa.gz \
    --valid_fraction 0.1 --test_fraction 0.1 \
    --output "$OUT/dataset" --overwrite
megadna inspect "$OUT/dataset"

# 2. Pretrain: megatron-core on two CPU ranks (data parallel), bf16 weights, fp32 master weights, distributed optimizer.
megadna train --config configs/demo.yaml --data.path "$OUT/dataset" --output "$OUT/run" --overwrite

# 3. Masked bits per base on the test regions, beside baselines that see exactly what the model sees.
megadna evaluate --model "$OUT/run" --split valid --samples 512
megadna evaluate --model "$OUT/run" --split test

# 4. Checkpoint -> Hugging Face folder. The export compares its logits with the training model's and refuses to differ.
megadna export --model "$OUT/run" --output "$OUT/model" --overwrite

# 5. Fill the masked bases of a real sequence, with transformers alone; then the curves and the report.
python tools/fill_mask.py "$OUT/model" --input tests/data/ecoli_K12_MG1655.fna.gz --length 240
megadna report "$OUT/run"

cat <<TEXT

Where everything lies:
  $OUT/dataset            chunks and manifest.json
  $OUT/run                config.yaml, metrics.jsonl, tensorboard/, checkpoints/, evaluation-test.json
  $OUT/run/report         report.html (open it in a browser)
  $OUT/model              the Hugging Face folder

Three commands to try next (after: source .venv/bin/activate):
  megadna inspect $OUT/dataset --locate valid:0
  megadna train --config configs/demo.yaml --data.path $OUT/dataset --output runs/tp2 \\
      --parallel.tensor 2 --train.steps 20 --train.warmup_steps 5
  tensorboard --logdir $OUT/run/tensorboard
TEXT
