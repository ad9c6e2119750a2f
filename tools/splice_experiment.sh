#!/usr/bin/env bash
# Does pretraining help to find splice sites? A small encoder is pretrained on three real genomes without the contigs that
# are held out, fine-tuned on Arabidopsis splice sites against hard negatives (GT/AG of the same gene), and compared with
# the same encoder from random weights and with baselines, over seeds, on the held-out contigs.
#
#   tools/splice_experiment.sh OUTPUT       # from the repository's folder; PRETRAIN_STEPS, FINETUNE_STEPS, SEEDS in the
#                                           # environment; a stopped run goes on where it stood
# The splits were fixed before any training: gi|68711 and gi|68718 overlap, so both are test.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?say where to write}
TEST=('gi|68711' 'gi|68718' 'gi|68716')
DEV=('gi|68717')
GENOMES=(tests/data/arabidopsis_bacs.fa.gz tests/data/yeast_I_VI_VIII.fa.gz tests/data/human_GRCh38_chr9_1-1000000_sm.fa.gz)

# 1. Pretraining data: every contig but those of dev and test.
[ -d "$OUT/dataset" ] || megadna preprocess --input "${GENOMES[@]}" --contigs '(?!gi\|687(11|16|17|18)$).*' \
    --valid_fraction 0.05 --test_fraction 0.05 --output "$OUT/dataset"

# 2. Windows of 400 bases around donors, acceptors and hard negatives, split by contig.
[ -d "$OUT/sites" ] || megadna splice-sites --genome tests/data/arabidopsis_bacs.fa.gz \
    --annotation tests/data/arabidopsis_bacs.gff3.gz --length 400 --split chromosome \
    --test_contigs "${TEST[@]}" --dev_contigs "${DEV[@]}" --output "$OUT/sites"

# 3. Pretrain and export: the demo's encoder, with windows of 400 bases.
if [ ! -d "$OUT/model" ]; then
    RESUME=()
    [ ! -d "$OUT/run" ] || RESUME=(--resume)
    megadna train --config configs/demo.yaml --data.path "$OUT/dataset" --data.sequence_length 402 --output "$OUT/run" \
        --train.steps "${PRETRAIN_STEPS:-4000}" "${RESUME[@]}"
    megadna export --checkpoint "$OUT/run" --output "$OUT/model"
fi

# 4. Fine-tune over seeds, with random weights and baselines beside.
cat > "$OUT/recipe.yaml" <<'RECIPE'
adapt: full
pooling: centre
head_sizes: [64]
head_activation: relu
label_names: [donor, acceptor, negative]
stranded: true
batch_size: 32
learning_rate: 3.0e-4
patience: 5
RECIPE
read -ra SEEDS <<< "${SEEDS:-1 2 3 4 5}"
megadna benchmark --suite splice --recipe "$OUT/recipe.yaml" --model "$OUT/model" --data "$OUT/sites" --output "$OUT/table" \
    --seeds "${SEEDS[@]}" --max_steps "${FINETUNE_STEPS:-1000}" --pretraining_data "$OUT/dataset"
echo "The table is $OUT/table/results.md; the row 'model minus random weights' says what pretraining gave."
