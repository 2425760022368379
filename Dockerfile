# The image of every process: API, worker, receiver, commands. `docker-compose.yml` shows them together.
#
#   docker build -t webhook-dispatcher .
#
# It needs the package index and nothing else. What is installed is what requirements.lock pins, checked by hash, less what
# only tests need. The base is pinned by version; how to pin it by digest as well stands in docs/operations.md.
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS built
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/build && python -m venv --without-pip /opt/dispatcher
COPY requirements.lock scripts/lib/part_of_lock.py ./
RUN python part_of_lock.py hatchling <requirements.lock >build.lock \
 && python part_of_lock.py webhook-dispatcher <requirements.lock >run.lock
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r build.lock \
 && /opt/build/bin/pip --python /opt/dispatcher/bin/python install --require-hashes --only-binary :all: -r run.lock
COPY pyproject.toml README.md LICENSE ./
COPY dispatcher dispatcher
COPY subscriptions subscriptions
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
 && /opt/build/bin/pip --python /opt/dispatcher/bin/python install --no-deps --no-index wheels/*.whl

FROM ${BASE}
# A number that no user of the host is likely to have. Its home is the one place that it can write to.
RUN groupadd --gid 10001 dispatcher \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin dispatcher \
 && install --directory --owner 10001 --group 10001 --mode 0700 /data
COPY --from=built /opt/dispatcher /opt/dispatcher
ENV PATH=/opt/dispatcher/bin:$PATH PYTHONDONTWRITEBYTECODE=1 DISPATCHER_HOST=0.0.0.0 DISPATCHER_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# For `serve`; whoever runs another command asks another port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
# No shell in between: SIGTERM is the program's own.
ENTRYPOINT ["dispatcher"]
CMD ["serve"]
