# The service's image: docs/DOCKER_SETUP.md tells how to build and run it.
#   docker build -t fast-embedding .
#   docker build -t fast-embedding-dev --target development .

FROM python:3.12-slim AS base
# At run time the root file system is read-only: compiled modules come with the image or not at all.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/venv/bin:$PATH \
    MODELS_DIR=/data/models \
    HUB_CACHE_DIR=/data/hub \
    HF_HOME=/data/huggingface
# A fixed number, so that the owner of a volume and Kubernetes' `runAsUser` can name it. The official image comes
# without Python's own modules compiled, which would cost each start and each health check.
RUN groupadd --gid 10001 embedding \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin embedding \
    && install --directory --owner=embedding --group=embedding /data /data/hub /data/models \
    && python -m compileall -q --invalidation-mode unchecked-hash -x '/(site-packages|test|idlelib|lib2to3|turtledemo)/' \
        /usr/local/lib/python3.12
WORKDIR /app


FROM base AS dependencies
COPY requirements/runtime.txt requirements/lock.txt requirements/
# Wheels only: where one is missing for a platform, the build fails here instead of asking for a compiler.
# What no program reads goes: the packages' own tests, and ONNX Runtime's library for C beside the one for Python.
# What only makes up example data (faker) stays without being compiled.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
        --only-binary :all: --requirement requirements/runtime.txt --constraint requirements/lock.txt \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + \
    && find /opt/venv -name 'libonnxruntime.so.*' -delete \
    && python -m compileall -q --invalidation-mode unchecked-hash -x '/site-packages/faker/' /opt/venv/lib


# With the tools of the tests. uvicorn starts the service anew when a file below /app changes: mount the repository there.
FROM dependencies AS development
COPY requirements/ requirements/
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --only-binary :all: \
    --requirement requirements/test.txt --requirement requirements/lint.txt --constraint requirements/lock.txt
COPY . .
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "cli.health"]
ENTRYPOINT ["/bin/sh", "-c", "exec uvicorn main:app --reload --host \"${HOST:-0.0.0.0}\" --port \"${PORT:-8000}\""]


# Models of the hub that come with the image, made by the little that downloads them: a change of anything else
# downloads nothing again.
FROM dependencies AS preloaded
COPY config.py ./
COPY models/ models/
COPY engine/ engine/
COPY cli/ cli/
# A mirror of the hub, for this build only.
ARG HF_ENDPOINT
# Names of models, with commas or blanks between them.
ARG PRELOAD_MODELS
RUN mkdir preloaded \
    && if [ -n "$PRELOAD_MODELS" ]; then \
        HUB_CACHE_DIR=/app/preloaded HF_HOME=/tmp/huggingface \
            python -m cli download $(echo "$PRELOAD_MODELS" | tr ',' ' '); \
    fi


FROM base AS production
# What changes least comes first: a change of the code makes the last, small layers only.
COPY --from=dependencies /opt/venv /opt/venv
COPY models/ models/
COPY --from=preloaded /app/preloaded preloaded
COPY api/ api/
COPY cli/ cli/
COPY engine/ engine/
COPY serving/ serving/
COPY *.py ./
RUN python -m compileall -q --invalidation-mode unchecked-hash .
USER 10001:10001
VOLUME /data
EXPOSE 8000
# Live and ready, asked for at the HOST and PORT that the service listens on.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "cli.health"]
# The process itself gets SIGTERM. The commands of main.py can follow: `docker run --rm fast-embedding check`.
ENTRYPOINT ["python", "main.py"]
ARG VERSION=2.0.0
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="fast-embedding" \
      org.opencontainers.image.description="REST service that turns text into vectors: FastEmbed's ONNX models on CPU" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
