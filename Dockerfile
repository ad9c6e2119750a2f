# Two images of megadna, on NVIDIA's PyTorch or slim for the CPU. The entry point is `megadna`; nothing runs as root.
#   docker build --target gpu -t megadna .
#   docker build --target cpu -t megadna:cpu .
#   docker run --rm --gpus all --ipc host -v "$PWD:/work" megadna train --config /opt/megadna/configs/megadna-86m.yaml ...
# BASE brings torch, Transformer Engine, apex and flash-attn, made for each other: they stay as they are.
ARG BASE=nvcr.io/nvidia/pytorch:25.06-py3
ARG CPU_BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${CPU_BASE} AS cpu
# The CPU wheel of torch comes from PyTorch's own index; on PyPI, Linux on x86 gets the one with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /opt/megadna
WORKDIR /opt/megadna
RUN grep '^torch==' constraints.txt > /tmp/torch.txt \
    && python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" --requirement /tmp/torch.txt \
    && python -m pip install --no-cache-dir --constraint constraints.txt ".[downstream]"
RUN id -u 1000 > /dev/null 2>&1 || useradd --create-home --uid 1000 megadna
USER 1000
WORKDIR /work
ENTRYPOINT ["megadna"]

FROM ${BASE} AS gpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY . /opt/megadna
WORKDIR /opt/megadna
# What BASE has is pinned to what BASE has, so that pip takes it as it is or says why it cannot.
RUN python -m pip list --format freeze | grep -E '^(torch|numpy|transformer[_-]engine|apex|flash[_-]attn)==' > /tmp/base.txt \
    && python -m pip install --no-cache-dir --constraint /tmp/base.txt ".[downstream]" \
    && python -m pip list --format freeze | grep -xF -f /tmp/base.txt | diff - /tmp/base.txt
RUN id -u 1000 > /dev/null 2>&1 || useradd --create-home --uid 1000 megadna
USER 1000
WORKDIR /work
ENTRYPOINT ["megadna"]
