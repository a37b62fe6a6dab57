# The image of every pod: Ray's own, for its `ray` user and what KubeRay's probes call. The CPU variant is enough for
# GPUs: torch brings its CUDA libraries, and the driver comes from the node.
ARG RAY_VERSION=2.60.0
FROM rayproject/ray:${RAY_VERSION}-py311-cpu

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/models/hub \
    MOCHI_SERVE_MODEL_CACHE=/models/s3

USER root
# What torch and Triton compile the transformer's blocks with.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN mkdir -p /app /models && chown ray:users /app /models
USER ray
WORKDIR /app

# The packages are a layer of their own, made before the code: a change of code does not download torch again.
COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir serve_app deployments \
    && touch serve_app/__init__.py deployments/__init__.py \
    && pip install --constraint constraints.txt --editable .

COPY --chown=ray:users serve_config.yaml ./
COPY --chown=ray:users configs ./configs
COPY --chown=ray:users models ./models
COPY --chown=ray:users deployments ./deployments
COPY --chown=ray:users serve_app ./serve_app

# KubeRay calls `ray start` itself. Run by hand with --network host, the image serves one machine on 127.0.0.1.
CMD ["mochi-serve", "serve"]
