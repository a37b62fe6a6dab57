# The image of every pod: Ray's own, for its `ray` user and what KubeRay's probes call. The CPU variant of the base is enough
# for GPUs: torch brings its CUDA libraries, and the driver comes from the node.
#   docker build -t mochi-serve:0.1.0 .                                  for GPUs: torch with CUDA
#   docker build -t mochi-serve:0.1.0-cpu --build-arg VARIANT=cpu .      for CPUs alone: torch without
ARG RAY_VERSION=2.60.0
# Pinned with `--build-arg BASE=rayproject/ray@sha256:...`; `crane digest rayproject/ray:2.60.0-py311-cpu` tells the digest.
ARG BASE=rayproject/ray:${RAY_VERSION}-py311-cpu
FROM ${BASE}

ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/models/hub \
    MOCHI_SERVE_MODEL_CACHE=/models/s3

USER root
# What torch and Triton compile the transformer's blocks with.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# All that the running user may write of ours; the code stays root's.
RUN mkdir -p /app/data /models && chown ray:users /app/data /models
WORKDIR /app

# Packages in two layers before the code, the largest first: torch changes a few times a year, the others with any pin.
ARG VARIANT=cuda
ARG TORCH_VERSION=2.13.0
USER ray
RUN case "$VARIANT" in \
      cuda) pip install "torch==$TORCH_VERSION" ;; \
      cpu) pip install "torch==$TORCH_VERSION" --index-url https://download.pytorch.org/whl/cpu ;; \
      *) echo "VARIANT is '$VARIANT'; allowed are cuda and cpu" >&2; exit 1 ;; \
    esac

USER root
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir serve_app deployments && touch serve_app/__init__.py deployments/__init__.py
USER ray
# On CUDA with the kernels for H100 and H200.
RUN pip install --constraint constraints.txt --editable "$(if [ "$VARIANT" = cuda ]; then echo '.[hopper]'; else echo .; fi)"

USER root
COPY serve_config.yaml ./
COPY configs ./configs
COPY models ./models
COPY deployments ./deployments
COPY serve_app ./serve_app
# Compiled here: the running user could not keep it. The front is what pods run as HAProxy.
RUN python -m compileall -q serve_app deployments && python -m serve_app.local.front_program /usr/local/bin/mochi-serve-front

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="mochi-serve" \
      org.opencontainers.image.description="Mochi 1 behind an OpenAI-compatible video API, on Ray Serve" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# By its number, so that Kubernetes can see that it is not root.
USER 1000:100
VOLUME /app/data
EXPOSE 8000
# On one machine; Kubernetes has probes of its own and does not look at it. The first start fetches weights.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=8)"]
# KubeRay calls `ray start` itself. Run by hand with --network host, the image serves one machine on 127.0.0.1; compose.yaml
# has a whole installation.
CMD ["mochi-serve", "serve"]
