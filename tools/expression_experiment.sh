#!/usr/bin/env bash
# Does pretraining help to predict expression? An encoder, the same from random weights and baselines learn from yeast
# promoters (Vaishnav et al. 2022: families of native promoters and their variants) and Drosophila enhancers (DeepSTARR)
# and are compared on relatives of none of them: docs/results.md.
#
#   tools/expression_experiment.sh OUTPUT MODEL       # from the repository's folder; MODEL: what `megadna export` wrote
#     NATIVE=Native_complex.csv.gz      columns sequence and "Measured Expression"
#     DEEPSTARR="train.txt.gz val.txt.gz test.txt.gz"
#     SEEDS="1 2 3 4 5"  NATIVE_STEPS=200  DEEPSTARR_STEPS=80  DEV_ROWS=300 (of DeepSTARR; scored twice in every run)
# A run that was stopped is resumed, and more seeds are added, when the command is started again.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?give the folder to write}
MODEL=${2:?give the folder of the pretrained encoder}
read -ra SEEDS <<< "${SEEDS:-1 2 3 4 5}"
mkdir -p "$OUT/native" "$OUT/deepstarr"

cp "${NATIVE:?give the table of yeast promoters}" "$OUT/native/train.csv.gz"
{ cat configs/finetune/promoter_expression.yaml; echo "label_columns: [Measured Expression]"; } > "$OUT/native.yaml"
read -r TRAIN DEV TEST <<< "${DEEPSTARR:?give the three tables of DeepSTARR}"
cp "$TRAIN" "$OUT/deepstarr/train.txt.gz"
cp "$TEST" "$OUT/deepstarr/test.txt.gz"
gunzip -c "$DEV" | awk -v rows="${DEV_ROWS:-300}" 'NR <= rows + 1' > "$OUT/deepstarr/dev.txt"
cp configs/finetune/enhancer_activity.yaml "$OUT/deepstarr.yaml"

for task in native deepstarr; do
    steps=${NATIVE_STEPS:-200}
    [ "$task" = native ] || steps=${DEEPSTARR_STEPS:-80}
    megadna benchmark --suite expression --recipe "$OUT/$task.yaml" --model "$MODEL" --data "$OUT/$task" \
        --output "$OUT/table-$task" --seeds "${SEEDS[@]}" --max_steps "$steps"
done
echo "Tables: $OUT/table-*/results.md; the row 'model minus random weights' is what pretraining gained."
