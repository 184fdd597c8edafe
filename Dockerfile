# One image for every entry of the Procfile: what a container runs is its command. Nothing secret is in it: settings
# come from the environment, see the README.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# Of pyproject.toml's extras; a worker that asks no language model and a deployment without a console need none.
ARG EXTRAS=console,llm
WORKDIR /build
RUN python -m venv /opt/dramaturg
COPY pyproject.toml README.md LICENSE Procfile ./
COPY db ./db
COPY middleware ./middleware
COPY migrations ./migrations
COPY worker ./worker
RUN --mount=type=cache,target=/root/.cache/pip /opt/dramaturg/bin/pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
# tini, of whichever release the image's Debian has, is process 1: it hands SIGTERM on, and reaps what a killed keeper
# leaves, which Dramatiq's main process does not.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin dramaturg
COPY --from=build /opt/dramaturg /opt/dramaturg
ENV PATH=/opt/dramaturg/bin:$PATH PYTHONUNBUFFERED=1
# The scheduler, replays and `worker check` read which modules there are from the Procfile of the current folder.
WORKDIR /app
COPY Procfile ./
USER 10001
# Once: an entry stops within 20 seconds of it (STOP_WITHIN), so the host is to wait for 30 before it kills.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["worker", "--help"]
# No HEALTHCHECK: a worker that cannot work ends itself, and is started again. The console has one in compose.yaml.
