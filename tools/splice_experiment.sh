#!/usr/bin/env bash
# Does pretraining help to find splice sites? A small encoder is pretrained on real genomes without the contigs that are
# held out, fine-tuned on Arabidopsis splice sites against hard negatives (GT/AG of the same genes), and compared, over
# seeds and on the held-out contigs, with the same encoder from random weights and with baselines: docs/results.md.
#
#   tools/splice_experiment.sh OUTPUT       # from the repository's folder; the settings are in the environment:
#     GENOMES="..."         genomes to pretrain on, Arabidopsis first (it is read twice as often as each of the others)
#     PRETRAIN_STEPS=2000   PRETRAIN_MINUTES=25: stop then and take the model as it is
#     TRAIN_WINDOWS="all"   or also smaller numbers of labelled windows, as "all 240"; ADAPT="full" or also "frozen":
#                           a table each
#     FINETUNE_STEPS=240    SEEDS="1 2 3 4 5"
#     LOCAL_CONTEXT=both    model.local_context of the encoder
# A run that was stopped, even killed, is resumed when the same command is started again.
# The splits were fixed before any training: gi|68711 and gi|68718 overlap, so both are test.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?give the folder to write}
DATA=tests/data
TEST=('gi|68711' 'gi|68718' 'gi|68716')
DEV=('gi|68717')
DEFAULT="$DATA/arabidopsis_bacs.fa.gz $DATA/yeast_I_VI_VIII.fa.gz $DATA/human_GRCh38_chr9_1-1000000_sm.fa.gz"
read -ra GENOMES <<< "${GENOMES:-$DEFAULT}"
read -ra SEEDS <<< "${SEEDS:-1 2 3 4 5}"
mkdir -p "$OUT"

# 1. Pretraining data: every contig but those of dev and test.
megadna preprocess --input "${GENOMES[@]}" --contigs '(?!gi\|687(11|16|17|18)$).*' \
    --valid_fraction 0.05 --test_fraction 0.05 --output "$OUT/dataset"

# 2. Windows of 160 bases around donors, acceptors and hard negatives, split by contig.
[ -d "$OUT/sites" ] || megadna splice-sites --genome "$DATA/arabidopsis_bacs.fa.gz" \
    --annotation "$DATA/arabidopsis_bacs.gff3.gz" --length 160 --split chromosome \
    --test_contigs "${TEST[@]}" --dev_contigs "${DEV[@]}" --output "$OUT/sites"

# 3. Pretrain on rows of the same length, and export.
weights=
for genome in "${GENOMES[@]}"; do
    name=$(basename "${genome%.gz}")
    weights="$weights${weights:+, }${name%.*}: $([ -n "$weights" ] && echo 1 || echo 2)"
done
cat > "$OUT/pretrain.yaml" <<RECIPE
seed: 1234
tokenizer: {kind: nucleotide}
data: {sequence_length: 162, num_workers: 0, reverse_complement: 0.5, masking: {fraction: 0.3}, blend: {by: source, weights: {$weights}}}
model: {num_layers: 3, hidden_size: 96, num_attention_heads: 4, ffn_hidden_size: 192, local_context: ${LOCAL_CONTEXT:-both}}
engine: {device: cpu, precision: fp32}
train:
  steps: ${PRETRAIN_STEPS:-2000}
  exit_after_minutes: ${PRETRAIN_MINUTES:-0}
  micro_batch_size: 32
  global_batch_size: 32
  lr: 2.0e-3
  min_lr: 2.0e-5
  warmup_steps: 100
  betas: [0.9, 0.98]
checkpoint: {interval: 250, keep_last: 2}
validation: {interval: 500, samples: 512, micro_batch_size: 64}
RECIPE
if [ ! -d "$OUT/model" ]; then
    status=0
    megadna train --config "$OUT/pretrain.yaml" --data.path "$OUT/dataset" --output "$OUT/run" --resume auto ||
        status=$?
    [ "$status" = 0 ] || [ "$status${PRETRAIN_MINUTES:+ in time}" = "75 in time" ] || exit "$status"
    megadna export --model "$OUT/run" --output "$OUT/model"
fi

# 4. Fine-tune over seeds, compared with random weights and baselines; the same settings for both.
for windows in ${TRAIN_WINDOWS:-all}; do
    task="$OUT/tasks/$windows"
    mkdir -p "$task"
    cp "$OUT"/sites/*.* "$task"
    [ "$windows" = all ] || head -n $((windows + 1)) "$OUT/sites/train.csv" > "$task/train.csv"
    for adapt in ${ADAPT:-full}; do
        cat > "$OUT/$adapt.yaml" <<RECIPE
adapt: $adapt
pooling: centre
head_sizes: [64]
head_activation: relu
label_names: [donor, acceptor, negative]
stranded: true
batch_size: 16
learning_rate: 1.0e-3
RECIPE
        megadna benchmark --suite splice --recipe "$OUT/$adapt.yaml" --model "$OUT/model" --data "$task" \
            --output "$OUT/table-$windows-$adapt" --seeds "${SEEDS[@]}" --max_steps "${FINETUNE_STEPS:-240}" \
            --pretraining_data "$OUT/dataset"
    done
done
echo "Tables: $OUT/table-*/results.md; the row 'model minus random weights' is what pretraining gained."
