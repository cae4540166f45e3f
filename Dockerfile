# The service's image: docs/DOCKER_SETUP.md tells how to build and run it.
#   docker build -t fast-embedding .
#   docker build -t fast-embedding-dev --target development .

FROM python:3.12-slim AS base
# The root file system is read-only at run time: compiled modules come with the image or not at all.
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/venv/bin:$PATH \
    MODELS_DIR=/data/models \
    HUB_CACHE_DIR=/data/hub \
    HF_HOME=/data/huggingface
# A fixed number, so that volumes and `runAsUser` can name it.
RUN groupadd --gid 10001 embedding \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin embedding \
    && install --directory --owner=embedding --group=embedding /data /data/hub /data/models
WORKDIR /app


FROM base AS dependencies
# Without pip in it: what the service needs, and nothing that installs more.
RUN python -m venv --without-pip /opt/venv
COPY requirements/runtime.txt requirements/lock.txt requirements/
# Wheels only: where one is missing for a platform, the build fails here instead of calling for a compiler.
RUN pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --only-binary :all: \
    --requirement requirements/runtime.txt --constraint requirements/lock.txt


# With the tools of the tests, and uvicorn starting anew when a file below /app changes: mount the repository there.
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


FROM base AS production
# What changes least comes first: a change of the code makes the last layers only.
COPY --from=dependencies /opt/venv /opt/venv
COPY models/ models/
COPY api/ api/
COPY cli/ cli/
COPY engine/ engine/
COPY serving/ serving/
COPY *.py ./
USER 10001:10001
VOLUME /data
EXPOSE 8000
# Live and ready, asked for at the HOST and PORT that the service listens on.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-m", "cli.health"]
STOPSIGNAL SIGTERM
# Commands of main.py can follow: `docker run fast-embedding check`.
ENTRYPOINT ["python", "main.py"]
ARG VERSION=2.0.0
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="fast-embedding" \
      org.opencontainers.image.description="REST service that turns text into vectors: FastEmbed's ONNX models on CPU" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
